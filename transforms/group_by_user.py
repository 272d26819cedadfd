"""The rows of a user brought together in one place: what funnels, attribution, cohorts and profiles have in common."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection, TaggedOutput
from apache_beam.transforms.trigger import AccumulationMode, DefaultTrigger
from apache_beam.transforms.window import (
    FixedWindows,
    GlobalWindows,
    TimestampCombiner,
    TimestampedValue,
    WindowFn,
)
from apache_beam.utils.timestamp import Timestamp

from headrace.schemas.columns import QUARANTINE_SCHEMA, RAW, TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms.base import Outcome
from headrace.transforms.batches import as_type, column, plain
from headrace.transforms.coders import register_coders
from headrace.transforms.grouping import Groups, codes_of
from headrace.transforms.hashing import hash_columns, int64_values, present
from headrace.transforms.rejects import all_rejects, no_rejects, rejected

NO_TIME, NO_KEY, NO_SESSION = "no_time", "no_key", "no_session"
BATCH_ROWS = 16_384

I64 = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class ByUser(NamedTuple):
    """What applying :class:`GroupByUser` returns."""

    grouped: PCollection
    """PCollection of (shard, RecordBatches): all rows of a user are in one shard."""
    rejected: PCollection


class GroupByUser(beam.PTransform):
    """Brings the rows of each user together, one pane a window; windows hold rows by their own event_time.

    Args:
        name: the transform's, for messages.
        stage: for metrics.
        by: key columns of what ``prepare`` returns.
        split: rejects rows; what it accepts has an event_time.
        prepare: makes of the rows what is shuffled; plain columns.
    """

    def __init__(
        self,
        name: str,
        stage: str,
        by: tuple[str, ...],
        shards: int,
        split: Callable[[pa.RecordBatch], Outcome],
        prepare: Callable[[pa.RecordBatch], pa.RecordBatch],
    ) -> None:
        super().__init__()
        self._name = name
        self._arguments = (stage, by, shards, split, prepare)

    @beam.typehints.no_annotations
    def expand(self, batches: PCollection) -> ByUser:
        windowfn = batches.windowing.windowfn
        if isinstance(windowfn, GlobalWindows) and not batches.is_bounded:
            raise ConfigError(
                f"{self._name} on unbounded input in the GlobalWindow would wait for ever for a user's last event; "
                "put it into windows before: beam.WindowInto(FixedWindows(3600))"
            )
        panes = panes_of(windowfn, self._name)
        register_coders()
        cut = batches | "Cut" >> cut_by_user(*self._arguments, panes=panes)
        grouped = (
            cut.cut
            | "OnePane"
            >> beam.WindowInto(
                windowfn,
                trigger=DefaultTrigger(),
                accumulation_mode=AccumulationMode.DISCARDING,
                timestamp_combiner=TimestampCombiner.OUTPUT_AT_EARLIEST,
            )
            | "Group" >> beam.GroupByKey()
        )
        return ByUser(grouped, cut.rejected)


def cut_by_user(
    stage: str,
    by: tuple[str, ...],
    shards: int,
    split: Callable[[pa.RecordBatch], Outcome],
    prepare: Callable[[pa.RecordBatch], pa.RecordBatch],
    *,
    panes: tuple[int, int] | None = None,
) -> beam.PTransform:
    """Returns what cuts batches by shard of the user, and by window; outputs ``cut`` and ``rejected``."""
    return (
        beam.ParDo(_CutFn(panes, stage, by, shards, split, prepare))
        .with_output_types(tuple[int, pa.RecordBatch], rejected=pa.RecordBatch)
        .with_outputs("rejected", main="cut")
    )


def require_default_trigger(batches: PCollection, name: str) -> None:
    """Refuses a trigger that a transform with a clock of its own would ignore."""
    trigger = batches.windowing.triggerfn
    if not isinstance(trigger, DefaultTrigger):
        raise ConfigError(
            f"{name} on unbounded input with the trigger {trigger}: it publishes by every=, so the trigger would be ignored; apply "
            "it before that WindowInto, or put beam.WindowInto(GlobalWindows()) before it"
        )


class _CutFn(beam.DoFn):
    """Cuts batches by window and shard; a piece's timestamp is its first event_time, so that it lies in all its rows' windows."""

    def __init__(
        self,
        panes: tuple[int, int] | None,
        stage: str,
        by: tuple[str, ...],
        shards: int,
        split: Callable[[pa.RecordBatch], Outcome],
        prepare: Callable[[pa.RecordBatch], pa.RecordBatch],
    ) -> None:
        self._panes = panes
        self._stage = stage
        self._by = by
        self._shards = shards
        self._split = split
        self._prepare = prepare

    def process(
        self, batch: pa.RecordBatch, timestamp: Timestamp = beam.DoFn.TimestampParam
    ) -> Iterator[TimestampedValue | TaggedOutput[Literal["rejected"], pa.RecordBatch]]:
        batch, lost = self._split(batch)
        Metrics.counter(f"headrace.{self._stage}", "accepted").inc(batch.num_rows)
        Metrics.counter(f"headrace.{self._stage}", "rejected").inc(lost.num_rows)
        if lost.num_rows:
            yield TaggedOutput("rejected", lost)
        for rows, stamp in self._windows(batch, timestamp):
            for shard, piece in pieces(self._prepare(rows), self._by, self._shards):
                yield TimestampedValue((shard, piece), stamp)

    def _windows(
        self, batch: pa.RecordBatch, timestamp: Timestamp
    ) -> Iterator[tuple[pa.RecordBatch, Timestamp]]:
        if self._panes is None:
            yield batch, timestamp
            return
        length, offset = self._panes
        times = int64_values(as_type(batch.column("event_time"), TIME))
        pane = (times - offset) // length
        for number in np.unique(pane).tolist():
            mine = pane == number
            last = (number + 1) * length + offset - 1
            stamp = min(last, max(timestamp.micros, int(times[mine].min())))
            yield batch.filter(pa.array(mine)), Timestamp(micros=stamp)


def panes_of(windowfn: WindowFn, name: str) -> tuple[int, int] | None:
    """Returns size and offset of fixed windows in microseconds; None for the GlobalWindow.

    Raises:
        ConfigError: other windows; in those that overlap each batch would come several times.
    """
    if isinstance(windowfn, GlobalWindows):
        return None
    if isinstance(windowfn, FixedWindows):
        return windowfn.size.micros, windowfn.offset.micros
    raise ConfigError(
        f"{name} on a PCollection in {type(windowfn).__name__}: users are followed in the GlobalWindow or in FixedWindows; "
        "apply it before that WindowInto, or put beam.WindowInto(FixedWindows(3600)) before it"
    )


def pieces(rows: pa.RecordBatch, by: Sequence[str], shards: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Cuts rows by a hash of the key, which is the same on all machines."""
    if shards == 1 or not rows.num_rows:
        yield from [(0, rows)] * bool(rows.num_rows)
        return
    key = [(i, rows.column(n), rows.column(n).type) for i, n in enumerate(by)]
    shard = (hash_columns(key, rows.num_rows) % np.uint64(shards)).astype(np.uint16)
    order = np.argsort(shard, kind="stable")
    rows = rows.take(pa.array(order))
    numbers, starts = np.unique(shard[order], return_index=True)
    for number, start, end in zip(
        numbers.tolist(), starts.tolist(), [*starts.tolist()[1:], len(order)], strict=True
    ):
        yield number, rows.slice(start, end - start)


def split_rows(
    batch: pa.RecordBatch,
    stage: str,
    by: Sequence[str],
    *,
    session: str | None = None,
    keyless: Flags | None = None,
) -> Outcome:
    """Rejects rows without event_time, with no key (all ``by`` columns null) unless they are ``keyless``, or without session."""
    require(batch, [*by, *([session] if session else [])], stage)
    timed = present(column(batch, "event_time"))
    keyed = np.any([present(batch.column(n)) for n in by], axis=0)
    if keyless is not None:
        keyed |= keyless
    fit = timed & keyed & (present(batch.column(session)) if session else True)
    if fit.all():
        return Outcome(batch, no_rejects())
    faults = (
        (~timed, NO_TIME, "event_time is null, so the event has no place among the user's others"),
        (timed & ~keyed, NO_KEY, f"{', '.join(by)}: null, so the event is of no user"),
        (timed & keyed & ~fit, NO_SESSION, f"{session} is null, so the event is in no session"),
    )
    masked = batch.schema.get_field_index(RAW) < 0
    lost = [
        rejected(batch.filter(pa.array(rows)), stage, reason, message=message, masked=masked)
        for rows, reason, message in faults
        if rows.any()
    ]
    return Outcome(batch.filter(pa.array(fit)), all_rejects(lost))


def ordered(rows: pa.RecordBatch, by: Sequence[str]) -> tuple[I64, I64, I64]:
    """Puts rows of plain columns in order: by user, event_time, event_id; rows with the same id by their other columns.

    Returns:
        a number for each row's user, event_time in microseconds, and where the row is in ``rows``, all in that order.
    """
    users = Groups([codes_of(rows.column(n)) for n in by], rows.num_rows).of
    times = int64_values(rows.column("event_time"))
    order = np.lexsort((times, users))
    users, times = users[order], times[order]
    tied = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    if tied.any():
        run = np.cumsum(~np.r_[False, tied])
        among = np.r_[tied, False] | np.r_[False, tied]
        part = rows.take(pa.array(order[among]))
        others = [part.column(n) for n in part.schema.names if n not in ("event_id", "event_time", *by)]
        order[among] = order[among][sorted_by([pa.array(run[among]), part.column("event_id"), *others])]
    return users, times, order


def sorted_by(keys: Sequence[pa.Array]) -> pa.Array:
    """Returns the rows' order by these columns, nulls last."""
    table = pa.table([plain(key) for key in keys], names=[str(i) for i in range(len(keys))])
    return pc.sort_indices(table, sort_keys=[(name, "ascending") for name in table.column_names])


def require(batch: pa.RecordBatch, names: Iterable[str], place: str) -> None:
    """Raises ConfigError if the batch lacks one of these columns."""
    missing = [n for n in names if batch.schema.get_field_index(n) < 0]
    if missing:
        raise ConfigError(
            f"{place} over {missing}: the batches have no such column; they have {batch.schema.names}. "
            "Apply the transform that adds it before"
        )


def plain_columns(batch: pa.RecordBatch, names: Iterable[str]) -> pa.RecordBatch:
    """Selects columns, no dictionaries, those of events in their declared type; event columns that it lacks are null."""
    arrays = {}
    for name in names:
        array = plain(column(batch, name))
        if name in QUARANTINE_SCHEMA.names:
            type_ = QUARANTINE_SCHEMA.field(name).type
            array = as_type(array, type_.value_type if pa.types.is_dictionary(type_) else type_)
        arrays[name] = array
    return pa.RecordBatch.from_pydict(arrays)


def declared(array: pa.Array, name: str) -> pa.Array:
    """Returns a column in its declared type, if it is one of events."""
    return as_type(array, QUARANTINE_SCHEMA.field(name).type) if name in QUARANTINE_SCHEMA.names else array


def joined(batches: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
    """Joins batches of plain columns into one; a column of nulls takes the type that it has in others."""
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    table = pa.concat_tables(tables, promote_options="default")
    arrays = [pa.concat_arrays(table.column(n).chunks) for n in table.column_names]
    return pa.RecordBatch.from_arrays(arrays, names=table.column_names)


def names_of(columns: Iterable[str]) -> tuple[str, ...]:
    """Returns column names as a tuple; text stays text, for the definition to refuse."""
    return columns if isinstance(columns, str) else tuple(columns)  # type: ignore[return-value]


def check_shards(name: str, shards: object) -> int:
    """Returns the number of shards, or raises ConfigError."""
    if isinstance(shards, bool) or not isinstance(shards, int) or not 1 <= shards <= 1024:
        raise ConfigError(f"{name}(shards={shards!r}): must be a whole number from 1 to 1024")
    return shards
