"""Funnels: how many users take one step after another, exactly."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Literal, NamedTuple

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import (
    TimestampedValue,
)

from headrace.schemas.columns import TIME
from headrace.transforms.base import Results
from headrace.transforms.batches import plain
from headrace.transforms.conditions import matches
from headrace.transforms.funnel_definitions import SUMMARY, FunnelSteps
from headrace.transforms.group_by_user import (
    BATCH_ROWS,
    GroupByUser,
    check_shards,
    declared,
    joined,
    names_of,
    ordered,
    plain_columns,
    require,
    sorted_by,
    split_rows,
)
from headrace.transforms.grouping import Groups, codes_of
from headrace.transforms.hashing import int64_values

STAGE = "funnel"
STEPS = "_steps"
"""Column of narrowed rows, int64: bit k is set where the row fulfils the conditions of step k + 1."""

I64 = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def funnel_outcomes(batch: pa.RecordBatch, funnel: FunnelSteps) -> pa.RecordBatch:
    """Returns how far each user came who took the first step, sorted by key.

    Of a user's chains (:class:`FunnelSteps`) the one told is of the highest level; of these the one whose last event comes first;
    of these the one whose other events, from the last back to the first, are the latest. The order of rows does not matter.

    Args:
        batch: all rows of some users.

    Returns:
        the ``by`` columns; the ``group_by`` columns of the chain's first event; ``level``: int32, from 1; ``times``: a struct with
        the time of each step, by its name (UTC, microseconds), null from the first step that was not reached.

    Raises:
        ConfigError: the batch lacks a column.
        ValueError: a row has no event_time, no key or no session.
    """
    _, lost = split_rows(batch, STAGE, funnel.by, session=funnel.session)
    if lost.num_rows:
        raise ValueError(f"{lost.num_rows} rows have no event_time, key or session; take them out before")
    return _outcomes(_narrow(batch, funnel), funnel)


def _narrow(batch: pa.RecordBatch, funnel: FunnelSteps) -> pa.RecordBatch:
    """Returns what is needed of the rows, in a strict funnel of all, else of those that are a step."""
    require(batch, funnel.columns(), "a funnel")
    bits = np.zeros(batch.num_rows, np.int64)
    for step, wanted in enumerate(funnel.conditions):
        bits |= matches(batch, wanted).astype(np.int64) << step
    rows = plain_columns(batch, ["event_time", "event_id", *funnel.kept()])
    rows = rows.append_column(STEPS, pa.array(bits))
    return rows if funnel.order == "strict" else rows.filter(pa.array(bits != 0))


def _outcomes(rows: pa.RecordBatch, funnel: FunnelSteps) -> pa.RecordBatch:
    users, times, order = ordered(rows, funnel.by)
    bits = int64_values(rows.column(STEPS))[order]
    place, group = np.arange(len(order)), users
    if funnel.session is not None:
        session = codes_of(rows.column(funnel.session).take(pa.array(order)))
        group = Groups([codes_of(pa.array(users)), session], len(order)).of
        place = np.argsort(group, kind="stable")
        users, times, group, bits = users[place], times[place], group[place], bits[place]
    levels = _levels(times, group, bits, funnel)
    level, at = _best(levels, users, place)
    reached = [pa.nulls(len(level), TIME)] * len(funnel.names)
    first = np.zeros(len(level), np.int64)
    for step in range(len(levels) - 1, -1, -1):
        mine = level > step
        first[mine] = levels[step].rows[at[mine]]
        at[mine] = levels[step].before[at[mine]]
        reached[step] = pa.array(times[first], mask=~mine).cast(TIME)
    chosen = rows.take(pa.array(order[place[first]]))
    by_key = sorted_by(chosen.select(funnel.by).columns)
    names = [*funnel.by, *funnel.group_by]
    columns = [declared(chosen.column(n).take(by_key), n) for n in names]
    columns += [
        pa.array(level, pa.int32()).take(by_key),
        pa.StructArray.from_arrays(reached, list(funnel.names)).take(by_key),
    ]
    return pa.RecordBatch.from_arrays(columns, names=[*names, "level", "times"])


class _Level(NamedTuple):
    """The rows that end a chain of one level, in order."""

    rows: I64
    before: I64
    """The event before it in the chain, as an index into the level below."""


def _levels(times: I64, group: I64, bits: I64, funnel: FunnelSteps) -> list[_Level]:
    """Returns the levels that are reached; rows are sorted by group (user, or user and session), then in order of events.

    A later row's chain never starts earlier, so only the latest row of the level below can be the event before.
    """
    rows = np.flatnonzero(bits & 1)
    starts = times[rows]
    levels = [_Level(rows, np.arange(len(rows)))]
    for step in range(1, len(funnel.names)):
        here = np.flatnonzero(bits >> step & 1)
        before = np.searchsorted(rows, here) - 1
        here, before = here[before >= 0], before[before >= 0]
        fits = (group[rows[before]] == group[here]) & (times[here] - starts[before] <= funnel.within_us)
        if funnel.order == "strict":
            fits &= rows[before] == here - 1
        rows, before = here[fits], before[fits]
        starts = starts[before]
        levels.append(_Level(rows, before))
    return levels


def _best(levels: Sequence[_Level], users: I64, place: I64) -> tuple[I64, I64]:
    """Returns, for each user who entered, the highest level and the user's first row of that level."""
    size = int(users.max()) + 1 if len(users) else 0
    level, at = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for number, (rows, _) in enumerate(levels, 1):
        early = np.argsort(place[rows], kind="stable")
        mine = users[rows[early]]
        new = np.flatnonzero(np.diff(mine, prepend=-1))
        level[mine[new]] = number
        at[mine[new]] = early[new]
    return level[level > 0], at[level > 0]


def funnel_summary(outcomes: pa.RecordBatch, funnel: FunnelSteps) -> pa.Table:
    """Returns a row for each group and step, sorted by group; without ``group_by`` all users are one group, be there any or not.

    Returns:
        the ``group_by`` columns, null being a group of its own; ``step``: int32, from 1; ``name``; ``users``: int64, who reached
        this step; ``conversion``: float64, the part of those who entered; ``step_conversion``: float64, the part of those who
        reached the step before; ``drop_off``: int64, who reached this step and no further, 0 for the last;
        ``median_seconds``: float64, exact median of the time since the step before. Null: a part of nobody, a median of nobody, and
        ``step_conversion`` and ``median_seconds`` of the first step.
    """
    level = int64_values(outcomes.column("level"))
    by = [plain(outcomes.column(n)) for n in funnel.group_by]
    groups = Groups([codes_of(values) for values in by], len(level))
    size, steps = groups.size if by else 1, len(funnel.names)
    reached = np.array([np.bincount(groups.of[level > k], minlength=size) for k in range(steps + 1)]).T
    users = reached[:, :-1]
    before = np.hstack([np.zeros((size, 1), np.int64), users[:, :-1]])
    drop_off = (users - reached[:, 1:]) * (np.arange(steps) < steps - 1)
    medians = np.full((size, steps), np.nan)
    times = [int64_values(array) for array in outcomes.column("times").flatten()]
    for k in range(1, steps):
        mine = level > k
        medians[:, k] = _median_seconds((times[k] - times[k - 1])[mine], groups.of[mine], users[:, k])
    keys = [values.take(pa.array(groups.first)) for values in by]
    order = sorted_by(keys).to_numpy() if by else np.zeros(1, np.int64)
    each = pa.array(np.repeat(order, steps))
    columns = [declared(key.take(each), n) for key, n in zip(keys, funnel.group_by, strict=True)]
    columns += [
        pa.array(np.tile(np.arange(1, steps + 1, dtype=np.int32), size)),
        pa.array(list(funnel.names) * size, pa.string()),
        pa.array(users[order].ravel()),
        _parts(users[order], users[order, :1]),
        _parts(users[order], before[order]),
        pa.array(drop_off[order].ravel()),
        pa.array(medians[order].ravel(), from_pandas=True),
    ]
    return pa.table(columns, names=[*funnel.group_by, *SUMMARY])


def _parts(users: I64, of: I64) -> pa.Array:
    """Divides; null for a part of nobody."""
    whole = np.broadcast_to(of, users.shape).ravel()
    return pa.array(users.ravel() / np.maximum(whole, 1), mask=whole == 0)


def _median_seconds(waits: I64, group: I64, counts: I64) -> npt.NDArray[np.float64]:
    """Returns the exact median of microseconds within each group, in seconds; NaN of none."""
    waits = waits[np.lexsort((waits, group))]
    starts = np.cumsum(counts) - counts
    low, high = starts + (counts - 1) // 2, starts + counts // 2
    medians = np.full(len(counts), np.nan)
    some = counts > 0
    medians[some] = (waits[low[some]] + waits[high[some]]) / 2e6
    return medians


class Funnel(beam.PTransform):
    """Counts how many users take one step after another, and how long they need, exactly.

    What a chain of steps is, and what ``loose`` and ``strict`` mean, is said at :class:`FunnelSteps
    <headrace.transforms.funnel_definitions.FunnelSteps>`. The result does not depend on the order of rows or on how they are cut
    into batches; a replay gives the same output. Ids must be unique, so deduplicate before; copies of an event are several events.

    Bounded input in the GlobalWindow gives one result. Input in FixedWindows, bounded or not, gives one a window: of the rows whose
    ``event_time`` lies in it, whatever windows the batches are in; chains do not reach across windows. The input's trigger and
    allowed lateness are not kept: there is one pane, when the watermark passes the window's end; Beam drops what comes later.
    Only the rows that are a step are shuffled (all, if the order is strict), and of them only key, time, id, session and groups;
    those of one shard are in memory together.

    Input: batches with ``event_time`` (UTC, microseconds), ``event_id``, the key, the session and the columns that are named;
    masked, as they may be shuffled.
    Output: accepted, batches as :func:`funnel_summary` describes, at the last instant of their window; none for a window without
    any row that is a step. Rejected, ``QUARANTINE_SCHEMA``, stage ``funnel``: ``no_time`` for a null ``event_time``, ``no_key`` if
    all ``by`` columns are null, ``no_session`` for a null session.

    Args:
        steps: name → conditions, in order.
        within: longest time from a chain's first event to its last.
        order: ``loose`` or ``strict``.
        by: key columns, whose values name the user.
        session: a column that tells a user's sessions apart, if a chain must lie within one.
        group_by: columns of a chain's first event to group by.
        shards: over how many keys users are spread.

    Raises:
        ConfigError: an argument as described in its message; unbounded input in the GlobalWindow, or input in other windows than
            those above; a batch lacks a column.

    Example:
        >>> funnel = Funnel({"view": {"event_type": "product_view"}, "buy": {"event_type": "purchase"}}, timedelta(hours=1))
    """

    def __init__(
        self,
        steps: Mapping[str, Mapping[str, object]],
        within: timedelta = timedelta(days=1),
        *,
        order: Literal["loose", "strict"] = "loose",
        by: Iterable[str] = ("user_id",),
        session: str | None = None,
        group_by: Iterable[str] = (),
        shards: int = 16,
    ) -> None:
        super().__init__()
        self._funnel = FunnelSteps(steps, within, order, names_of(by), session, names_of(group_by))
        self._shards = check_shards("Funnel", shards)

    @beam.typehints.no_annotations
    def expand(self, batches: PCollection) -> Results:
        funnel = self._funnel
        split = partial(split_rows, stage=STAGE, by=funnel.by, session=funnel.session)
        by_user = GroupByUser(
            "Funnel", STAGE, funnel.by, self._shards, split, partial(_narrow, funnel=funnel)
        )
        grouped, rejects = batches | "ByUser" >> by_user
        summaries = (
            grouped
            | "Outcomes" >> beam.ParDo(_OutcomesFn(funnel)).with_output_types(tuple[int, pa.RecordBatch])
            | "GroupOutcomes" >> beam.GroupByKey()
            | "Summary" >> beam.ParDo(_SummaryFn(funnel)).with_output_types(pa.RecordBatch)
        )
        return Results(summaries, rejects)


class _OutcomesFn(beam.DoFn):
    """Follows the users of one shard."""

    def __init__(self, funnel: FunnelSteps) -> None:
        self._funnel = funnel

    def process(self, group: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[tuple[int, pa.RecordBatch]]:
        yield 0, _outcomes(joined(group[1]), self._funnel)


class _SummaryFn(beam.DoFn):
    """Sums up the outcomes of all shards."""

    def __init__(self, funnel: FunnelSteps) -> None:
        self._funnel = funnel

    def process(
        self, group: tuple[int, Iterable[pa.RecordBatch]], window: Any = beam.DoFn.WindowParam
    ) -> Iterator[TimestampedValue]:
        summary = funnel_summary(joined(group[1]), self._funnel).combine_chunks()
        for batch in summary.to_batches(max_chunksize=BATCH_ROWS):
            yield TimestampedValue(batch, window.max_timestamp())
