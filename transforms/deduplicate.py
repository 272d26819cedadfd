"""Exact deduplication by event id: of all rows if they are bounded, else within a horizon of ingest time."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection, TaggedOutput
from apache_beam.transforms.trigger import AccumulationMode, DefaultTrigger
from apache_beam.transforms.window import SlidingWindows, TimestampCombiner, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from headrace.schemas.errors import ConfigError
from headrace.transforms.base import Outcome, Results
from headrace.transforms.batches import column, concat, plain
from headrace.transforms.coders import register_coders
from headrace.transforms.dedupe_records import (
    NO_ID,
    STAGE,
    VERDICT,
    Verdicts,
    by_shard,
    hash_records,
    payload_hashes,
    recurring,
    reject_rows,
    resolve,
    settle,
    unpack_records,
)
from headrace.transforms.dedupe_shard import HORIZON
from headrace.transforms.deduplicate_stream import DeduplicateStream
from headrace.transforms.hashing import present

BATCH_ROWS = 16_384
SHARDS, STREAM_SHARDS = 64, 16
MAX_DISORDER = timedelta(hours=2)


def deduplicate(batches: list[pa.RecordBatch]) -> Iterator[Outcome]:
    """The kernel: decides among all rows of ``batches`` and yields one outcome for each batch.

    The result does not depend on how rows are spread over batches, nor on their order. Every row has an event_id.
    """
    if not batches:
        return
    starts = np.cumsum([0, *(b.num_rows for b in batches)])
    verdicts = _verdicts(batches, starts)
    for batch, start in zip(batches, starts[:-1].tolist(), strict=True):
        yield settle(batch, verdicts, start)


class Deduplicate(beam.PTransform):
    """Keeps one event for each event_id, exact on 128 bits of id.

    Bounded input: of the rows with one ``event_id``, the one with the smallest (ingest_time, origin, origin_position, hash of the
    canonical row; null last) is kept, whatever the order of arrival. The others are rejected: reason ``duplicate`` if all event
    columns except the id, the ingest time and the origin are equal, else ``duplicate_conflict``. Rows with ``id_generated`` never
    lose: repeated ones are numbered in the same order and get ids of their own, so equal log lines stay separate events. A row
    that states an id generated for another is a duplicate of it. Kept rows, their number and columns are unchanged otherwise;
    the order of rows is not kept. In windows other than the global one each window is deduplicated for itself. Whole rows go
    through one GroupByKey, so mask them before. The output has the input's windows with the default trigger; a batch's timestamp
    is its minimum event time within its window. Replay gives the same rows. A row that ties in all four sort keys is the same
    event; which of the copies stays is then arbitrary.

    Unbounded input, in the GlobalWindow: the row that arrives first is kept; copies are rejected with the same reasons as long as
    its id is remembered, which is until ingest time in its shard has passed the row's by ``horizon`` and ``max_disorder``, often an
    hour or two longer. How far ingest time has come is told by the middle row of each batch, and several batches must agree, so
    that single rows with a wrong clock make no id expire. Rows with ``id_generated`` are like all others, as their ids come from
    their position. Rows keep their order within a shard, batches their timestamps. Ids are held in the runner's state, 22 bytes
    each (24 with all around them), and in the memory of the workers, up to 42 bytes: a failed bundle, a restart or a move to
    another worker loses none and doubles none.

    Input: batches of ``EVENT_SCHEMA``, further columns allowed.
    Output: accepted, the same schema; rejected, ``QUARANTINE_SCHEMA`` with masked columns: stage ``dedupe``, reasons as above, and
    ``no_id`` for a null ``event_id``.

    Args:
        shards: into how many parts of the id space the work is cut; by default 64, of which each has to fit in a worker's memory,
            or 16 if the input is unbounded: there more shards mean smaller batches and more reads of state.
        horizon: unbounded input only: for how long copies are recognised, in ingest time.
        max_disorder: unbounded input only: how much later than rows of newer ingest time a row may arrive.

    Raises:
        ConfigError: shards is not in 1..65536, horizon is not above zero, max_disorder is below zero; bounded input is in sliding
            windows, or unbounded input in any but the global window.
    """

    def __init__(
        self,
        shards: int | None = None,
        *,
        horizon: timedelta = HORIZON,
        max_disorder: timedelta = MAX_DISORDER,
    ) -> None:
        super().__init__()
        if shards is not None and (
            isinstance(shards, bool) or not isinstance(shards, int) or not 1 <= shards <= 65_536
        ):
            raise ConfigError(f"Deduplicate(shards={shards!r}): must be a whole number from 1 to 65536")
        for name, value, least in (("horizon", horizon, 1), ("max_disorder", max_disorder, 0)):
            if not isinstance(value, timedelta) or value < timedelta(microseconds=least):
                raise ConfigError(
                    f"Deduplicate({name}={value!r}): must be a timedelta "
                    f"{'above' if least else 'of at least'} zero, for example timedelta(hours=24)"
                )
        self._shards = shards
        self._horizon = horizon
        self._max_disorder = max_disorder

    @beam.typehints.no_annotations
    def expand(self, batches: PCollection) -> Results:
        if not batches.is_bounded:
            stream = DeduplicateStream(self._shards or STREAM_SHARDS, self._horizon, self._max_disorder)
            return batches | "Stream" >> stream
        windowfn = batches.windowing.windowfn
        if isinstance(windowfn, SlidingWindows):
            raise ConfigError(
                "Deduplicate on a PCollection in SlidingWindows would decide on each row several times; "
                "apply it before that WindowInto"
            )
        register_coders()
        cut = (
            batches
            | "OnePane"
            >> beam.WindowInto(
                windowfn,
                trigger=DefaultTrigger(),
                accumulation_mode=AccumulationMode.DISCARDING,
                timestamp_combiner=TimestampCombiner.OUTPUT_AT_EARLIEST,
            )
            | "CutByShard"
            >> beam.ParDo(_CutFn(self._shards or SHARDS))
            .with_output_types(tuple[int, pa.RecordBatch], rejected=pa.RecordBatch)
            .with_outputs("rejected", main="cut")
        )
        done = (
            cut.cut
            | "GroupByShard" >> beam.GroupByKey()
            | "Decide"
            >> beam.ParDo(_DecideFn())
            .with_output_types(pa.RecordBatch, rejected=pa.RecordBatch)
            .with_outputs("rejected", main="accepted")
        )
        rejects = (cut.rejected, done.rejected) | "Rejected" >> beam.Flatten()
        return Results(done.accepted, rejects)


class _CutFn(beam.DoFn):
    """Cuts each batch into slices by the hash of the id."""

    def __init__(self, shards: int) -> None:
        self._shards = shards

    def process(
        self, batch: pa.RecordBatch
    ) -> Iterator[tuple[int, pa.RecordBatch] | TaggedOutput[Literal["rejected"], pa.RecordBatch]]:
        named = present(column(batch, "event_id"))
        if not named.all():
            unnamed = batch.filter(pa.array(~named))
            Metrics.counter(f"headrace.{STAGE}", "rejected").inc(unnamed.num_rows)
            yield TaggedOutput("rejected", reject_rows(unnamed, [NO_ID] * unnamed.num_rows))
            batch = batch.filter(pa.array(named))
        for shard, packed in by_shard(hash_records(batch, 0, 0), self._shards):
            yield shard, batch.take(pa.array(unpack_records([packed])["row"].astype(np.int64)))


class _DecideFn(beam.DoFn):
    """Decides all rows of one shard."""

    def process(
        self,
        group: tuple[int, Iterable[pa.RecordBatch]],
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterator[TimestampedValue | TaggedOutput[Literal["rejected"], pa.RecordBatch]]:
        outcomes = list(deduplicate(list(_joined(group[1]))))
        for batch in _joined([o.accepted for o in outcomes]):
            Metrics.counter(f"headrace.{STAGE}", "accepted").inc(batch.num_rows)
            yield TimestampedValue(batch, _stamp(batch, timestamp, window))
        for batch in _joined([o.rejected for o in outcomes]):
            Metrics.counter(f"headrace.{STAGE}", "rejected").inc(batch.num_rows)
            yield TaggedOutput("rejected", TimestampedValue(batch, _stamp(batch, timestamp, window)))


def _verdicts(batches: list[pa.RecordBatch], starts: npt.NDArray[np.int64]) -> Verdicts:
    """Decides; a row is numbered over all batches. Only rows whose id recurs are put in order."""
    records = np.concatenate([hash_records(b, 0, s) for b, s in zip(batches, starts.tolist(), strict=False)])
    rows = np.flatnonzero(recurring(records))
    if not len(rows):
        return np.empty(0, VERDICT)
    order = _order(batches, starts, rows)
    records, rows = records[rows[order]], rows[order]
    records["row"] = np.arange(len(rows))
    verdicts = resolve(records).verdicts.copy()
    verdicts["row"] = rows[verdicts["row"]]
    return verdicts[np.argsort(verdicts["row"])]


def _order(
    batches: list[pa.RecordBatch], starts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Sorts rows by (ingest_time, origin, origin_position, payload), null last."""
    parts = []
    for batch, low, high in zip(batches, starts, starts[1:], strict=False):
        mine = rows[(rows >= low) & (rows < high)] - low
        here = batch.take(pa.array(mine))
        names = ("ingest_time", "origin", "origin_position")
        arrays = [plain(column(here, name)) for name in names]
        parts.append(pa.table([*arrays, pa.array(payload_hashes(here))], names=[*names, "payload"]))
    table = pa.concat_tables(parts)
    keys = [(name, "ascending") for name in table.column_names]
    order: npt.NDArray[np.int64] = pc.sort_indices(table, sort_keys=keys).to_numpy()
    return order.astype(np.int64)


def _joined(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Joins small batches of one schema up to 16k rows; drops empty ones."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        if not batch.num_rows:
            continue
        if held and (
            batch.schema != held[0].schema or sum(b.num_rows for b in held) + batch.num_rows > BATCH_ROWS
        ):
            yield concat(held)
            held = []
        held.append(batch)
    if held:
        yield concat(held)


def _stamp(batch: pa.RecordBatch, earliest: Timestamp, window: Any) -> Timestamp:
    """Returns the minimum event time, never before the group's earliest timestamp nor after its window."""
    first = pc.min(column(batch, "event_time")).cast(pa.int64()).as_py()
    stamp = earliest if first is None else max(earliest, Timestamp(micros=first))
    return min(stamp, window.max_timestamp())
