"""What is known of each user from all events so far, as states that merge: yesterday's and today's make tomorrow's, exactly."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import GlobalWindows, TimestampedValue

from headrace.schemas.columns import CODE, MONEY, STRING, TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms.base import Results
from headrace.transforms.batches import as_type
from headrace.transforms.coders import register_coders
from headrace.transforms.conditions import Conditions, columns_of, conditions, matches
from headrace.transforms.group_by_user import (
    BATCH_ROWS,
    GroupByUser,
    check_shards,
    cut_by_user,
    joined,
    plain_columns,
    require,
    require_default_trigger,
    sorted_by,
    split_rows,
)
from headrace.transforms.grouping import Groups, codes_of, sum_decimals
from headrace.transforms.hashing import int64_values
from headrace.transforms.roll_profiles import RollProfiles

STAGE = "profile_users"
TABLES = ("profiles", "state")
PURCHASES: Mapping[str, object] = {"event_type": "purchase"}

SPEND = pa.list_(pa.struct([("currency", STRING), ("revenue", MONEY)]))
CATEGORIES = pa.list_(pa.struct([("category", STRING), ("events", pa.int64())]))
_COMMON = [
    pa.field("user_id", STRING),
    pa.field("first_seen", TIME),
    pa.field("last_seen", TIME),
    pa.field("events", pa.int64()),
    pa.field("purchases", pa.int64()),
    pa.field("spend", SPEND),
]
STATE = pa.schema([*_COMMON, pa.field("categories", CATEGORIES)])
"""One row a user, sorted by ``user_id``. ``spend``: revenue by currency, refunds subtracted, sorted by currency, null last;
empty without revenue. ``categories``: how many events had each ``category``, sorted; null is none."""
PROFILES = pa.schema([*_COMMON, pa.field("preferred_category", CODE)])
"""The same; ``preferred_category`` has most events, of several the first by code point; null if the user has none."""

I64 = npt.NDArray[np.int64]


def partial(batch: pa.RecordBatch, purchases: Conditions | None = None) -> pa.RecordBatch:
    """Returns the state of the users of one batch.

    Args:
        batch: events with ``user_id`` and ``event_time``, not null, ``category``, ``currency`` and ``revenue``.
        purchases: which events are purchases, as :func:`headrace.transforms.conditions.conditions` returns it; None: those of
            type ``purchase``.

    Returns:
        a batch of :data:`STATE`.

    Raises:
        ConfigError: a column is missing.
        ValueError: a row has no event_time or no user_id.
        OverflowError: a sum has more than 38 digits.
    """
    wanted = conditions(PURCHASES, "purchases") if purchases is None else purchases
    names = ["user_id", "event_time", "category", "currency", "revenue"]
    require(batch, [*names, *columns_of(wanted)], "profiles")
    rows = plain_columns(batch, names)
    if rows.column("user_id").null_count or rows.column("event_time").null_count:
        raise ValueError("a row has no event_time or no user_id; take such rows out before")
    times = int64_values(rows.column("event_time"))
    bought = matches(batch, wanted).astype(np.int64)
    events = np.ones(len(times), np.int64)
    row = np.arange(len(times))
    spend = (row, rows.column("currency"), rows.column("revenue"))
    categories = (row, rows.column("category"), pa.array(events))
    return _state(rows.column("user_id"), (times, times), events, bought, spend, categories)


def merge(states: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Merges one or more states, in any order and shape.

    ``merge([partial(a), partial(b)])`` equals ``partial`` of the rows of both.

    Raises:
        OverflowError: a sum has more than 38 digits.
    """
    rows = joined([state.cast(STATE) for state in states])
    seen = tuple(int64_values(rows.column(n)) for n in ("first_seen", "last_seen"))
    events, purchases = (int64_values(rows.column(n)) for n in ("events", "purchases"))
    spend, categories = (_entries(rows.column(n)) for n in ("spend", "categories"))
    return _state(rows.column("user_id"), (seen[0], seen[1]), events, purchases, spend, categories)


def finish(state: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the profiles, a batch of :data:`PROFILES`: the counts of categories are left out but for the preferred one."""
    state = state.cast(STATE)
    row, category, events = _entries(state.column("categories"))
    order = sorted_by([pa.array(row), pc.negate(events), category]).to_numpy()
    users, first = np.unique(row[order], return_index=True)
    best = np.full(state.num_rows, -1)
    best[users] = order[first]
    preferred = category.take(pa.array(best, mask=best < 0))
    columns = [*(state.column(f.name) for f in _COMMON), as_type(preferred, CODE)]
    return pa.RecordBatch.from_arrays(columns, schema=PROFILES)


Entries = tuple[I64, pa.Array, pa.Array]
"""Entries of lists: the row each is in, its name, and its amount."""


def _entries(lists: pa.Array) -> Entries:
    row = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy())
    names, amounts = lists.flatten().flatten()
    return row, names, amounts


def _state(
    user_ids: pa.Array,
    seen: tuple[I64, I64],
    events: I64,
    purchases: I64,
    spend: Entries,
    categories: Entries,
) -> pa.RecordBatch:
    """Adds rows by user; of categories the null one is left out, of revenue the null one."""
    users = Groups([codes_of(user_ids)], len(user_ids))
    ids = user_ids.take(pa.array(users.first))
    by_id = sorted_by([ids])
    rank = np.empty(users.size, np.int64)
    rank[by_id.to_numpy()] = np.arange(users.size)
    first, last = np.full(users.size, np.iinfo(np.int64).max), np.full(users.size, np.iinfo(np.int64).min)
    np.minimum.at(first, users.of, seen[0])
    np.maximum.at(last, users.of, seen[1])
    user = rank[users.of]
    columns = [
        ids.take(by_id),
        pa.array(first).take(by_id).cast(TIME),
        pa.array(last).take(by_id).cast(TIME),
        pa.array(users.add(events)).take(by_id),
        pa.array(users.add(purchases)).take(by_id),
        _lists(user, spend, spend[2].is_valid(), SPEND, users.size),
        _lists(user, categories, categories[1].is_valid(), CATEGORIES, users.size),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=STATE)


def _lists(user: I64, entries: Entries, some: pa.Array, type_: pa.DataType, size: int) -> pa.Array:
    """Adds entries by user and name, and makes one list a user, sorted by name."""
    row, names, amounts = (
        entries[0][some.to_numpy(zero_copy_only=False)],
        *(e.filter(some) for e in entries[1:]),
    )
    owner = user[row]
    groups = Groups([(owner, max(size, 1)), codes_of(names)], len(owner))
    if pa.types.is_decimal(amounts.type):
        sums = sum_decimals(amounts, groups, "spend")
    else:
        sums = pa.array(groups.add(int64_values(amounts)))
    owner, names = owner[groups.first], names.take(pa.array(groups.first))
    order = sorted_by([pa.array(owner), names])
    offsets = np.searchsorted(owner[order.to_numpy()], np.arange(size + 1)).astype(np.int32)
    fields = [type_.value_type.field(i) for i in range(2)]
    values = pa.StructArray.from_arrays([names.take(order), sums.take(order)], fields=fields)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=type_)


class ProfileUsers(beam.PTransform):
    """Sums up each user's events: first and last time, events, purchases, spend, preferred category.

    Exact, and independent of the order of rows and of how they are cut into batches; a replay gives the same output. States of
    disjoint events can be kept and merged later (:func:`merge`, :func:`finish`): yesterday's state and today's give tomorrow's.

    Bounded input in the GlobalWindow gives one result. Unbounded input in the GlobalWindow gives a *rolling* one: the users that
    changed, each with all that is known of it, every ``every`` by the worker's clock and at the end of the input; of several rows
    of a user the one with most ``events`` is the newest. No event is too late for it. Its state is that of all users, and grows
    with their number.

    Input in FixedWindows, bounded or not, gives one result a window: of the rows whose ``event_time`` lies in it, whatever windows
    the batches are in; there is one pane, when the watermark passes the window's end, and Beam drops what comes later. Triggers are
    refused on unbounded input in the GlobalWindow, and not kept elsewhere. Rows are summed up by user in each batch, and only that
    is shuffled; that of one shard is in memory together.

    Input: batches with ``user_id``, ``event_time`` (UTC, microseconds), ``category``, ``currency``, ``revenue`` and the columns of
    ``purchases``; masked, as they may be shuffled.
    Output: accepted, batches of :data:`PROFILES` or :data:`STATE`, sorted within a shard, at the last instant of their window.
    Rejected, ``QUARANTINE_SCHEMA``, stage ``profile_users``: ``no_time`` for a null ``event_time``, ``no_key`` for a null
    ``user_id``.

    Args:
        table: ``profiles``, or ``state`` to merge it with others.
        purchases: conditions on columns (:func:`headrace.transforms.conditions.conditions`): which events are purchases.
        shards: over how many keys users are spread.
        every: how often users that changed are published, of unbounded input in the GlobalWindow.

    Raises:
        ConfigError: an argument as described in its message; input in other windows than those above, or with a trigger; a batch
            lacks a column.
        OverflowError: a sum has more than 38 digits.

    Example:
        >>> today = ProfileUsers("state", purchases={"event_type": ["purchase", "subscribe"]})
    """

    def __init__(
        self,
        table: Literal["profiles", "state"] = "profiles",
        *,
        purchases: Mapping[str, object] = PURCHASES,
        shards: int = 16,
        every: timedelta = timedelta(seconds=30),
    ) -> None:
        super().__init__()
        if not isinstance(every, timedelta) or every <= timedelta(0):
            raise ConfigError(f"every={every!r}: must be a timedelta above zero, e.g. timedelta(seconds=30)")
        if table not in TABLES:
            raise ConfigError(f"table={table!r}: must be one of {', '.join(TABLES)}")
        if not purchases:
            raise ConfigError(f"purchases={purchases!r}: name at least one condition, e.g. {PURCHASES}")
        self._table = table
        self._purchases = conditions(purchases, "purchases")
        self._shards = check_shards("ProfileUsers", shards)
        self._every = every

    @beam.typehints.no_annotations
    def expand(self, batches: PCollection) -> Results:
        register_coders()
        by = ("user_id",)
        split = functools.partial(split_rows, stage=STAGE, by=by)
        prepare = functools.partial(partial, purchases=self._purchases)
        if not batches.is_bounded and isinstance(batches.windowing.windowfn, GlobalWindows):
            require_default_trigger(batches, "ProfileUsers")
            cut = batches | "Cut" >> cut_by_user(STAGE, by, self._shards, split, prepare)
            finished = _finish_state if self._table == "profiles" else merge
            rolled = cut.cut | "Rolling" >> RollProfiles(merge, finished, self._every)
            return Results(rolled, cut.rejected)
        by_user = GroupByUser("ProfileUsers", STAGE, by, self._shards, split, prepare)
        grouped, rejects = batches | "ByUser" >> by_user
        merged = grouped | "Merge" >> beam.ParDo(_MergeFn(self._table)).with_output_types(pa.RecordBatch)
        return Results(merged, rejects)


def _finish_state(states: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    return finish(merge(states))


class _MergeFn(beam.DoFn):
    """Merges the states of one shard."""

    def __init__(self, table: str) -> None:
        self._table = table

    def process(
        self, group: tuple[int, Iterable[pa.RecordBatch]], window: Any = beam.DoFn.WindowParam
    ) -> Iterator[TimestampedValue]:
        state = merge(list(group[1]))
        found = finish(state) if self._table == "profiles" else state
        for start in range(0, found.num_rows, BATCH_ROWS):
            yield TimestampedValue(found.slice(start, BATCH_ROWS), window.max_timestamp())
