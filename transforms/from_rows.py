"""From Beam rows to batches of raw records: the entry for PCollections with a schema."""

from datetime import datetime
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import PCollection

from headrace.transforms.coders import register_coders
from headrace.transforms.from_dicts import _batch_fn


class FromRows(beam.PTransform):
    """Batches ``beam.Row`` or NamedTuple elements into raw records for ``Decode``.

    As :class:`FromDicts <headrace.transforms.FromDicts>`, with one difference: a row has all of its fields, so one that is None is
    left out of the document, at every level. Fields are named as in the event family's JSON Schema; nested rows are objects.
    Stateless; bounded or unbounded; any windowing. A replay gives the same rows; how they are cut into batches may differ.

    Input: rows.
    Output: ``RAW_SCHEMA``, as FromDicts.

    Args:
        source: name that the rows have as ``origin``.
        ingest_time: when the events reached us, with a time zone; ``None``: each element's own Beam timestamp.

    Raises:
        ConfigError: an empty source, or an ingest_time without a zone.
        InputError: ``ingest_time`` is None and an element has no timestamp; an element is no row.
    """

    def __init__(self, source: str = "rows", *, ingest_time: datetime | None = None) -> None:
        super().__init__()
        self._fn = _batch_fn(type(self).__name__, source, ingest_time, row_fields)

    def expand(self, rows: PCollection) -> PCollection:
        register_coders()
        return rows | "BatchRows" >> beam.ParDo(self._fn).with_output_types(pa.RecordBatch)


def row_fields(value: Any) -> Any:
    """Returns a row as a dict, without the fields that are None; rows in it likewise."""
    if isinstance(value, beam.Row):
        fields = value.as_dict()
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        fields = value._asdict()
    elif isinstance(value, list):
        return [row_fields(v) for v in value]
    else:
        return value
    return {name: row_fields(v) for name, v in fields.items() if v is not None}
