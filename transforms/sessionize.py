"""Sessions of visitors: the events of one key without a long pause."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Literal

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection, TaggedOutput
from apache_beam.transforms.trigger import DefaultTrigger
from apache_beam.transforms.window import GlobalWindows, TimestampCombiner, TimestampedValue, WindowFn
from apache_beam.utils.timestamp import Timestamp

from headrace.schemas.columns import RAW
from headrace.schemas.errors import ConfigError
from headrace.transforms.base import LateResults, Outcome
from headrace.transforms.batches import column, replace
from headrace.transforms.coders import register_coders
from headrace.transforms.conditions import matches
from headrace.transforms.group_by_user import pieces
from headrace.transforms.hashing import present
from headrace.transforms.merge_partials import MergePartials
from headrace.transforms.rejects import no_rejects, rejected
from headrace.transforms.session_definitions import Sessions
from headrace.transforms.session_partials import finish, has_key, key_of, merge, partial, require
from headrace.transforms.sessionize_stream import BATCH_ROWS, STAGE, SessionizeStream

NO_TIME, NO_KEY = "no_time", "no_key"


def split_keyless(batch: pa.RecordBatch, sessions: Sessions) -> Outcome:
    """Leaves out the rows that ``where`` does not take, and rejects those of the others that belong to no session.

    Raises:
        ConfigError: the batch lacks a column, or a column has no values that a condition names.
    """
    require(batch, sessions)
    wanted = matches(batch, sessions.where)
    timed, keyed = present(column(batch, "event_time")), has_key(batch, sessions)
    lost = wanted & ~(timed & keyed)
    if not lost.any():
        return Outcome(batch if wanted.all() else batch.filter(pa.array(wanted)), no_rejects())
    timeless = pa.array(~timed[lost])
    keys = ", ".join(sessions.by)
    rejects = rejected(
        batch.filter(pa.array(lost)),
        STAGE,
        pc.if_else(timeless, NO_TIME, NO_KEY),
        message=pc.if_else(
            timeless,
            "event_time is null, so the event belongs to no session",
            f"null in all key columns ({keys}), so the event belongs to no session",
        ),
        masked=batch.schema.get_field_index(RAW) < 0,
    )
    return Outcome(batch.filter(pa.array(wanted & timed & keyed)), rejects)


class Sessionize(beam.PTransform):
    """Makes one row of each session: of the events of one key of which no two consecutive ones are more than ``gap`` apart.

    Exact, by ``event_time``, and independent of the order of rows and of how they are cut into batches: events are pre-aggregated
    in each batch, and only these partial tables are shuffled, by the hash of the key. A replay gives the same sessions. Stateless
    but for the aggregation itself.

    *Bounded* input: sessions are cut at the input's windows, if it has any: batches in one window are taken together, and a
    session that goes on in a batch of the next window is a second one there. Nothing is late, and ``allowed_lateness`` changes
    nothing.

    *Unbounded* input, in the global window: a session comes out once, when the watermark is ``gap`` and ``allowed_lateness``
    beyond its last event, so that no row that is in time can change it any more. Rows further behind the watermark are in
    ``.late``, so that nothing is dropped; sessions of the others are those of a batch. Stateful by shard; exactly once where the
    runner's state is.

    Input: batches with the columns of :data:`headrace.transforms.session_definitions.READ`, so after ``Enrich``, the key columns
    and those of ``where``; masked, as they may be shuffled.
    Output: accepted, batches of up to 16,384 sessions, in each of which they are sorted by key, then start; their columns are those
    of :func:`headrace.transforms.session_partials.finish`. A batch's timestamp is the earliest end of its sessions, but not before
    the input's earliest, and within its window. Rejected, ``QUARANTINE_SCHEMA``, stage ``sessions``: rows with a null
    ``event_time``, reason ``no_time``, and rows in which all key columns are null, reason ``no_key``. Rows that ``where`` does not
    take are in neither, and counted as ``left_out``.

    Args:
        gap: the longest pause within a session.
        by: key columns, whose values name the visitor; null is a value of its own in a row where another is not null.
        where: which events count: column → value, or list of values, as for
            :func:`headrace.transforms.conditions.conditions`; all if empty.
        shards: over how many keys the sessions are spread; the sessions of each have to fit in a worker's memory, those of a
            stream while they are open.
        allowed_lateness: how far behind the watermark of a stream an event may come.

    Raises:
        ConfigError: an argument as described in its message; the input is in sliding or merging windows, or is unbounded and in
            windows or has a trigger of its own; a batch lacks a column, or has one of a type that it can't have.
        OverflowError: the revenue of a session in one currency has more than 38 digits.
    """

    def __init__(
        self,
        gap: timedelta = timedelta(minutes=30),
        *,
        by: Iterable[str] = ("user_id",),
        where: Mapping[str, object] | None = None,
        shards: int = 16,
        allowed_lateness: timedelta = timedelta(minutes=5),
    ) -> None:
        super().__init__()
        groups = by if isinstance(by, str) else tuple(by)
        self._sessions = Sessions(gap, groups, () if where is None else where)  # type: ignore[arg-type]
        if isinstance(shards, bool) or not isinstance(shards, int) or not 1 <= shards <= 1024:
            raise ConfigError(f"Sessionize(shards={shards!r}): must be a whole number from 1 to 1024")
        self._shards = shards
        self._stream = SessionizeStream(self._sessions, allowed_lateness)

    @beam.typehints.no_annotations
    def expand(self, batches: PCollection) -> LateResults:
        windowing = batches.windowing
        _check_windows(windowing.windowfn)
        if not batches.is_bounded and not (
            isinstance(windowing.windowfn, GlobalWindows) and isinstance(windowing.triggerfn, DefaultTrigger)
        ):
            raise ConfigError(
                f"Sessionize on unbounded input in {type(windowing.windowfn).__name__} with {windowing.triggerfn}: sessions come "
                "out by gap= and allowed_lateness=, so these would be ignored; apply it before that WindowInto, or put "
                "beam.WindowInto(GlobalWindows()) before it"
            )
        register_coders()
        parts = batches | "Cut" >> beam.ParDo(
            _CutFn(self._sessions, self._shards, merge_rows=batches.is_bounded)
        ).with_output_types(
            tuple[int, pa.RecordBatch], rejected=pa.RecordBatch, late=pa.RecordBatch
        ).with_outputs("rejected", "late", main="cut")
        if not batches.is_bounded:
            done = parts.cut | "Stream" >> self._stream
            return LateResults(done.finished, parts.rejected, done.late)
        results = (
            parts.cut
            | "EarliestTime"
            >> beam.WindowInto(windowing.windowfn, timestamp_combiner=TimestampCombiner.OUTPUT_AT_EARLIEST)
            | "Merge" >> beam.CombinePerKey(MergePartials(merge, self._sessions))
            | "Finish" >> beam.ParDo(_FinishFn(self._sessions)).with_output_types(pa.RecordBatch)
        )
        return LateResults(results, parts.rejected, parts.late)


def _check_windows(windowfn: WindowFn) -> None:
    """Refuses windows of which a row is in several, and such as depend on which batches come together."""
    name = type(windowfn).__name__
    if isinstance(windowfn, beam.transforms.window.SlidingWindows):
        raise ConfigError(
            f"Sessionize on a PCollection in {name} would count each row several times; apply it before that WindowInto"
        )
    if windowfn.is_merging():
        raise ConfigError(
            f"Sessionize on a PCollection in {name}: these windows merge by the times of whole batches, which would cut "
            "sessions at random; apply it before that WindowInto"
        )


class _CutFn(beam.DoFn):
    """Cuts each batch by shard of the key.

    Args:
        merge_rows: emit the runs of the rows, not the rows themselves; those of a stream are needed to tell which are late.
    """

    def __init__(self, sessions: Sessions, shards: int, *, merge_rows: bool) -> None:
        self._sessions = sessions
        self._shards = shards
        self._merge_rows = merge_rows

    def process(
        self, batch: pa.RecordBatch
    ) -> Iterator[tuple[int, pa.RecordBatch] | TaggedOutput[Literal["rejected"], pa.RecordBatch]]:
        kept, lost = split_keyless(batch, self._sessions)
        for name, rows in (
            ("accepted", kept.num_rows),
            ("rejected", lost.num_rows),
            ("left_out", batch.num_rows - kept.num_rows - lost.num_rows),
        ):
            Metrics.counter(f"headrace.{STAGE}", name).inc(rows)
        if lost.num_rows:
            yield TaggedOutput("rejected", lost)
        if kept.num_rows and self._merge_rows:
            yield from pieces(partial(kept, self._sessions), self._sessions.by, self._shards)
        elif kept.num_rows:
            keys = {name: key_of(kept, name) for name in self._sessions.by}
            rows = replace(kept.select(self._sessions.columns()), keys)
            yield from pieces(rows, self._sessions.by, self._shards)


class _FinishFn(beam.DoFn):
    """Turns the merged partial of one window and shard into its sessions."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def process(
        self,
        keyed: tuple[int, pa.RecordBatch],
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterator[TimestampedValue]:
        if not keyed[1].num_rows:
            return
        for batch in finish(keyed[1], self._sessions).to_batches(max_chunksize=BATCH_ROWS):
            earliest = Timestamp(micros=pc.min(batch.column("session_end")).cast(pa.int64()).as_py())
            yield TimestampedValue(batch, min(max(earliest, timestamp), window.max_timestamp()))
