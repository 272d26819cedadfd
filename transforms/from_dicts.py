"""From one dict an element to batches of raw records: the row-wise entry."""

import dataclasses
import enum
import json
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from headrace.schemas.columns import RAW_SCHEMA
from headrace.schemas.errors import ConfigError, InputError
from headrace.transforms.batches import conform, constant
from headrace.transforms.coders import register_coders

BATCH_ROWS = 8_192
FAULT = "unserialisable"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_SERIALIZE_NUMPY


def encode_document(value: object) -> tuple[bytes, str | None]:
    """Returns a value as one JSON document, and the fault if it can't be written as one.

    Decimals become strings with all of their digits, datetimes RFC 3339 text (one without a zone stays without, so that its
    validation fails: the zone is not guessed), Beam timestamps likewise, UUIDs, dates, enums and numpy scalars their usual text.
    Integers beyond 64 bits are written in full. NaN and infinities are written as such, which is no JSON, so ``Decode`` rejects
    them; they don't turn into null. What can't be written at all gives its ``repr`` as the document, with the fault
    ``unserialisable``: it ends, sealed, in the quarantine.
    """
    try:
        document = orjson.dumps(value, _known, _OPTIONS)
        if b"null" not in document or not _has_nonfinite(value):
            return document, None
    except (TypeError, ValueError, RecursionError):
        pass  # orjson refuses what json can still write, such as big integers
    try:
        return json.dumps(_plain(value), separators=(",", ":")).encode(), None
    except (TypeError, ValueError, RecursionError):
        pass  # it is no JSON value
    try:
        return repr(value).encode("utf-8", "backslashreplace"), FAULT
    except RecursionError:
        return f"<{type(value).__name__} nested too deep to be written>".encode(), FAULT


class FromDicts(beam.PTransform):
    """Batches dicts into raw records for ``Decode``: one dict is one event of any family.

    Every element becomes one row; see :func:`encode_document` for how values are written. Elements are batched within their bundle
    and window; a batch keeps the window and has the smallest timestamp of its elements, so nothing becomes late. Stateless; bounded
    or unbounded; any windowing. A replay gives the same rows; how they are cut into batches may differ.

    Input: dicts (or any JSON value; ``Decode`` decides).
    Output: ``RAW_SCHEMA``: ``raw`` the JSON document, ``origin`` the ``source``, ``origin_position`` null, ``ingest_time`` as
    below, ``fault`` null or ``unserialisable``. One PCollection: nothing is rejected here.

    Args:
        source: name that the rows have as ``origin``.
        ingest_time: when the events reached us, with a time zone; the same for all. ``None``: each element's own Beam timestamp.

    Raises:
        ConfigError: an empty source, or an ingest_time without a zone.
        InputError: ``ingest_time`` is None and an element has no timestamp (as those of ``Create``).
    """

    def __init__(self, source: str = "dicts", *, ingest_time: datetime | None = None) -> None:
        super().__init__()
        self._fn = _batch_fn(type(self).__name__, source, ingest_time)

    def expand(self, dicts: PCollection) -> PCollection:
        register_coders()
        return dicts | "BatchDicts" >> beam.ParDo(self._fn).with_output_types(pa.RecordBatch)


def _batch_fn(
    owner: str,
    source: str,
    ingest_time: datetime | None,
    convert: Callable[[Any], object] | None = None,
) -> "BatchDocumentsFn":
    """Checks the arguments that FromDicts and FromRows share."""
    if not isinstance(source, str) or not source:
        raise ConfigError(f"{owner}(source={source!r}): must be a name, e.g. 'orders'")
    if ingest_time is None:
        return BatchDocumentsFn(owner, source, None, convert)
    if not isinstance(ingest_time, datetime) or ingest_time.tzinfo is None:
        raise ConfigError(
            f"{owner}(ingest_time={ingest_time!r}): must be a datetime with a time zone, "
            "e.g. datetime(2026, 1, 1, tzinfo=timezone.utc)"
        )
    return BatchDocumentsFn(owner, source, (ingest_time - _EPOCH) // timedelta(microseconds=1), convert)


class _Rows:
    """The rows of one window so far."""

    def __init__(self) -> None:
        self.documents: list[bytes] = []
        self.faults: list[str | None] = []
        self.times: list[int] = []
        self.first: Timestamp = MAX_TIMESTAMP


class BatchDocumentsFn(beam.DoFn):
    """Batches elements as JSON documents; shared by FromDicts and FromRows."""

    def __init__(
        self, owner: str, source: str, ingest_us: int | None, convert: Callable[[Any], object] | None
    ) -> None:
        self._owner, self._source, self._ingest_us, self._convert = owner, source, ingest_us, convert

    def start_bundle(self) -> None:
        self._windows: dict[Any, _Rows] = {}

    def process(
        self,
        element: Any,
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterator[WindowedValue]:
        rows = self._windows.setdefault(window, _Rows())
        document, fault = encode_document(self._convert(element) if self._convert else element)
        rows.documents.append(document)
        rows.faults.append(fault)
        rows.times.append(self._ingest(timestamp))
        rows.first = min(rows.first, timestamp)
        if len(rows.documents) >= BATCH_ROWS:
            yield self._batch(window, self._windows.pop(window))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for window, rows in self._windows.items():
            yield self._batch(window, rows)
        self._windows = {}

    def _ingest(self, timestamp: Timestamp) -> int:
        if self._ingest_us is not None:
            return self._ingest_us
        if not MIN_TIMESTAMP < timestamp < GlobalWindow().max_timestamp():
            raise InputError(
                f"{self._owner}: an element has no timestamp to take as ingest_time; pass {self._owner}(ingest_time=…), or "
                "give the elements timestamps (beam.window.TimestampedValue) before"
            )
        micros: int = timestamp.micros
        return micros

    def _batch(self, window: Any, rows: _Rows) -> WindowedValue:
        count = len(rows.documents)
        Metrics.counter("headrace.edges", "rows_in").inc(count)
        batch = conform(
            {
                "raw": pa.array(rows.documents, pa.binary()),
                "origin": constant(self._source, count, RAW_SCHEMA.field("origin").type),
                "ingest_time": pa.array(rows.times, RAW_SCHEMA.field("ingest_time").type),
                "fault": pa.array(rows.faults, pa.string()),
            },
            RAW_SCHEMA,
            count,
        )
        return WindowedValue(batch, rows.first, [window])


def _known(value: object) -> object:
    """Turns what orjson does not know into what it does."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, Timestamp):
        return value.to_rfc3339()
    opened = _opened(value)
    if opened is value:
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return opened


def _opened(value: Any) -> Any:
    """Returns what a row, dataclass, enum or numpy value holds; anything else is returned as it is."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, beam.Row):
        return value.as_dict()
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return value._asdict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value


def _plain(value: Any) -> Any:
    """Returns a value of dicts, lists and scalars for the json module.

    Raises:
        TypeError: a key is no string (json would turn 1 into "1", which may be there already), or a value has no JSON form.
    """
    value = _opened(value)
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a key is no string")
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return orjson.loads(orjson.dumps(value, _known, _OPTIONS))


def _has_nonfinite(value: Any) -> bool:
    """Finds NaN and infinities, which orjson writes as null."""
    value = _opened(value)
    if isinstance(value, dict):
        return any(_has_nonfinite(v) for v in value.values())
    if isinstance(value, list | tuple):
        return any(_has_nonfinite(v) for v in value)
    return isinstance(value, float) and not math.isfinite(value)
