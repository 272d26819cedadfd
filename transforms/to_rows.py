"""From batches to one ``beam.Row`` an element: the exit to schema-aware transforms and SQL."""

from collections.abc import Iterator, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, Optional

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import TimestampedValue
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.utils.timestamp import Timestamp

from headrace.schemas.columns import EVENT_SCHEMA, QUARANTINE_SCHEMA, TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import as_type, column
from headrace.transforms.to_dicts import row_timestamps


class ToRows(beam.PTransform):
    """Turns every row of a batch into a ``beam.Row`` of the named columns, with the row's own time as its Beam timestamp.

    The output has a Beam schema in which every field may be null: strings, int64, bool, bytes, decimal, date, and ``Timestamp``
    (microseconds) for times. Stateless; bounded or unbounded. Each row is put into the windows that the input's windowing assigns
    to its own timestamp. One element a row costs many times what the columnar stages cost: leave it to the end.

    Input: batches of n >= 0 rows; a column that a batch lacks is null.
    Output: rows; the timestamp is ``event_time``; where that is null or missing, the batch's.

    Args:
        columns: names from ``QUARANTINE_SCHEMA`` (which has all columns of events); by default those of ``EVENT_SCHEMA``.
        types: Arrow types of further columns, such as a profile's or a window's.

    Raises:
        ConfigError: a column whose type is not known, or which has no counterpart in a Beam schema.
    """

    def __init__(
        self, columns: Sequence[str] | None = None, *, types: dict[str, pa.DataType] | None = None
    ) -> None:
        super().__init__()
        known = {f.name: f.type for f in QUARANTINE_SCHEMA} | (types or {})
        names = EVENT_SCHEMA.names if columns is None else list(columns)
        unknown = [n for n in names if n not in known]
        if not names:
            raise ConfigError(
                "ToRows(columns=[]): name at least one column, or leave it out for those of an event"
            )
        if unknown:
            raise ConfigError(
                f"ToRows(columns=…): the type of {unknown} is not known; give it, e.g. types={{{unknown[0]!r}: pa.string()}}"
            )
        self._types = {n: known[n] for n in names}
        self._fields = [(n, Optional[_python_type(n, t)]) for n, t in self._types.items()]  # noqa: UP045

    def expand(self, batches: PCollection) -> PCollection:
        return batches | "ExplodeRows" >> beam.ParDo(_ExplodeFn(self._types)).with_output_types(
            RowTypeConstraint.from_fields(self._fields)
        )


class _ExplodeFn(beam.DoFn):
    """Yields the rows of each batch."""

    def __init__(self, types: dict[str, pa.DataType]) -> None:
        self._types = types

    def process(
        self, batch: pa.RecordBatch, timestamp: Timestamp = beam.DoFn.TimestampParam
    ) -> Iterator[TimestampedValue]:
        Metrics.counter("headrace.edges", "rows_out").inc(batch.num_rows)
        values = [_values(batch, n, t) for n, t in self._types.items()]
        names = list(self._types)
        times = row_timestamps(batch, timestamp)
        for time, row in zip(times, zip(*values, strict=True), strict=True):
            yield TimestampedValue(beam.Row(**dict(zip(names, row, strict=True))), time)


def _values(batch: pa.RecordBatch, name: str, type_: pa.DataType) -> list[Any]:
    known = name in QUARANTINE_SCHEMA.names or batch.schema.get_field_index(name) >= 0
    array = as_type(column(batch, name), type_) if known else pa.nulls(batch.num_rows, type_)
    if pa.types.is_timestamp(type_):
        micros = array.cast(TIME).cast(pa.int64()).to_pylist()
        return [None if m is None else Timestamp(micros=m) for m in micros]
    values: list[Any] = array.to_pylist()
    return values


def _python_type(name: str, type_: pa.DataType) -> type:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    for is_type, python in (
        (pa.types.is_string, str),
        (pa.types.is_boolean, bool),
        (pa.types.is_integer, int),
        (pa.types.is_floating, float),
        (pa.types.is_decimal, Decimal),
        (pa.types.is_date32, date),
        (pa.types.is_timestamp, Timestamp),
        (pa.types.is_binary, bytes),
    ):
        if is_type(type_):
            return python
    raise ConfigError(f"ToRows: column {name!r} is {type_}, which has no counterpart in a Beam schema")
