"""What one shard of users did on a day: sessions, daily metrics, funnels, first dates. Pure: neither Beam nor files."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.pipelines.nightly.cells import (
    COHORT_COUNTS,
    GEO_COUNTS,
    GEO_KEYS,
    PRODUCT_COUNTS,
    PRODUCT_KEYS,
    cells,
    revenue_columns,
)
from headrace.pipelines.nightly.local_days import LocalDay
from headrace.pipelines.nightly.nightly_config import USER
from headrace.pipelines.nightly.nightly_tables import REVENUES, TABLES
from headrace.schemas.columns import STRING, TIME
from headrace.transforms.batches import as_type, encoded, plain, replace
from headrace.transforms.conditions import matches
from headrace.transforms.funnel import funnel_outcomes
from headrace.transforms.funnel_definitions import FunnelSteps
from headrace.transforms.group_by_user import ordered
from headrace.transforms.grouping import Groups, codes_of
from headrace.transforms.hashing import int64_values, present
from headrace.transforms.session_definitions import Sessions
from headrace.transforms.session_partials import PURCHASES, finish, partial

I64 = npt.NDArray[np.int64]
NEVER = np.iinfo(np.int64).min


class UserDay(NamedTuple):
    """What a shard adds to the warehouse."""

    rows: dict[str, pa.RecordBatch]
    """Rows of ``user_sessions``, ``user_daily_metrics`` and ``user_first_seen``, as the tables declare them."""
    cells: dict[str, pa.Table]
    """What it adds to ``cube_geo``, ``product_daily`` and ``cohorts``, see :mod:`headrace.pipelines.nightly.cells`."""
    outcomes: dict[str, pa.RecordBatch]
    """By funnel: ``level`` and ``times`` of each user who entered, see :func:`headrace.transforms.funnel.funnel_outcomes`."""
    events: int
    """Events of the day."""


def user_day(
    rows: pa.RecordBatch,
    day: LocalDay,
    gap: timedelta,
    funnels: Mapping[str, FunnelSteps],
    known: Iterable[tuple[int, pa.Array]],
) -> UserDay:
    """Follows the users of a shard through a day. The order of rows does not matter.

    Args:
        rows: all of the users' events of the day and of the ``gap`` before it; ``user_id`` is not null.
        gap: longest pause within a session.
        funnels: over the column :data:`USER`.
        known: (days since 1970, user ids first seen on that date) for dates before the day; ids of other shards do no harm.

    Raises:
        OverflowError: revenue with more than 38 digits.
    """
    names, codes = _users(rows.column("user_id"))
    rows = replace(rows, {USER: pa.array(codes)})
    times = int64_values(as_type(rows.column("event_time"), TIME))
    lead = times < day.start_us
    before = np.full(len(names), NEVER)
    np.maximum.at(before, codes[lead], times[lead])
    if lead.any():
        rows, codes = rows.filter(pa.array(~lead)), codes[~lead]
    sessions = Sessions(gap, (USER,))
    found = finish(partial(rows, sessions), sessions).combine_chunks()
    of, start = (int64_values(found.column(n).combine_chunks()) for n in (USER, "session_start"))
    continued = _first_rows(of) & (before[of] != NEVER) & (start - before[of] <= sessions.gap_us)
    date = (day.date - type(day.date)(1970, 1, 1)).days
    active = np.unique(codes).astype(np.int64)
    first = _first_dates(names, known, date)
    daily, earned = _daily(found, of, continued, active)
    new = active[first[active] == date]
    user = names.take(pa.array(of))
    whole = dict(zip(found.column_names, found.columns, strict=True))
    return UserDay(
        {
            "user_sessions": as_table(
                "user_sessions", {**whole, "user_id": user, "continued": pa.array(continued)}, date, len(of)
            ),
            "user_daily_metrics": as_table(
                "user_daily_metrics", {**daily, "user_id": names.take(pa.array(active))}, date, len(active)
            ),
            "user_first_seen": as_table(
                "user_first_seen", {"user_id": names.take(pa.array(new))}, date, len(new)
            ),
        },
        {
            "cube_geo": pa.concat_tables([_places(rows, codes), _session_places(rows, sessions)]),
            "product_daily": _buyers(rows, codes),
            "cohorts": _cohorts(first[active], *earned),
        },
        {name: funnel_outcomes(rows, funnel).select(["level", "times"]) for name, funnel in funnels.items()},
        rows.num_rows,
    )


def _users(ids: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """Returns the distinct ids in alphabetical order, and each row's place among them."""
    values = encoded(ids)
    order = pc.sort_indices(values.dictionary)
    place = np.empty(len(order), np.int32)
    place[order.to_numpy()] = np.arange(len(order), dtype=np.int32)
    return values.dictionary.take(order), place[values.indices.to_numpy()]


def _first_dates(names: pa.Array, known: Iterable[tuple[int, pa.Array]], date: int) -> I64:
    """Returns the first date of each user: the earliest known, else this one."""
    first = np.full(len(names), date, np.int64)
    for day, ids in known:
        at = pc.index_in(as_type(ids, names.type), value_set=names).drop_null().to_numpy()
        first[at] = np.minimum(first[at], day)
    return first


def _daily(
    found: pa.Table, of: I64, continued: npt.NDArray[np.bool_], active: I64
) -> tuple[dict[str, pa.Array], tuple[I64, pa.Array, pa.Array]]:
    """Sums sessions up by user. Returns the columns, and (user's row, currency, amount) of all that was earned."""
    row = np.searchsorted(active, of)
    groups = Groups([(row, max(1, len(active)))], len(row))
    sessions = groups.count()
    start, end = (int64_values(found.column(n).combine_chunks()) for n in ("session_start", "session_end"))
    seconds = groups.add(end - start) / 1e6
    lists = found.column("revenues").combine_chunks()
    earner = np.repeat(row, pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    flat = lists.flatten()
    earned = earner, flat.field("currency"), flat.field("revenue")
    counts = {
        name: groups.add(int64_values(found.column(name).combine_chunks()))
        for name in ("events", "page_views", "purchases")
    }
    columns = {
        "sessions": sessions,
        "visits": groups.count(~continued) if len(row) else sessions,
        **counts,
        "time_spent_seconds": seconds,
        "average_duration_seconds": seconds / np.maximum(sessions, 1),
    }
    arrays = {name: pa.array(values) for name, values in columns.items()}
    return arrays | revenue_columns(*earned, len(active), "a user on a day"), earned


def _places(rows: pa.RecordBatch, codes: npt.NDArray[np.int32]) -> pa.Table:
    """Counts the distinct users of each country and region."""
    users = (codes.astype(np.int64), int(codes.max(initial=0)) + 1)
    keys = [rows.column(name) for name in GEO_KEYS]
    first = Groups([users, *(codes_of(key) for key in keys)], rows.num_rows).first
    at = pa.array(first)
    taken = {name: key.take(at) for name, key in zip(GEO_KEYS, keys, strict=True)}
    return cells(taken, {"users": np.ones(len(first), np.int64)}, GEO_COUNTS, len(first))


def _session_places(rows: pa.RecordBatch, sessions: Sessions) -> pa.Table:
    """Counts the sessions of each country and region by their first event."""
    slim = pa.RecordBatch.from_pydict({n: plain(rows.column(n)) for n in ("event_time", "event_id", USER)})
    users, times, order = ordered(slim, (USER,))
    begins = np.append(
        np.ones(min(1, len(users)), np.bool_),
        (users[1:] != users[:-1]) | (times[1:] - times[:-1] > sessions.gap_us),
    )
    at = pa.array(order[begins])
    taken = {name: rows.column(name).take(at) for name in GEO_KEYS}
    return cells(taken, {"sessions": np.ones(len(at), np.int64)}, GEO_COUNTS, len(at))


def _buyers(rows: pa.RecordBatch, codes: npt.NDArray[np.int32]) -> pa.Table:
    """Counts the distinct buyers of each product and currency."""
    bought = matches(rows, (("event_type", PURCHASES),)) & present(rows.column("product_id"))
    mine, codes = rows.filter(pa.array(bought)), codes[bought]
    keys = {name: mine.column(name) for name in PRODUCT_KEYS if name != "category"}
    users = (codes.astype(np.int64), int(codes.max(initial=0)) + 1)
    first = Groups([users, *(codes_of(key) for key in keys.values())], mine.num_rows).first
    taken = {name: key.take(pa.array(first)) for name, key in keys.items()}
    taken["category"] = pa.nulls(len(first), STRING)
    return cells(taken, {"buyers": np.ones(len(first), np.int64)}, PRODUCT_COUNTS, len(first))


def _cohorts(first: I64, earner: I64, currency: pa.Array, amount: pa.Array) -> pa.Table:
    """Counts active users, and sums what they spent, by first date."""
    users = cells({"cohort": pa.array(first)}, {"users": np.ones(len(first), np.int64)}, COHORT_COUNTS, len(first))  # fmt: skip
    money = cells(
        {"cohort": pa.array(first[earner])}, {}, COHORT_COUNTS, len(earner), currency=currency, revenue=amount
    )
    return pa.concat_tables([users, money])


def _first_rows(of: I64) -> npt.NDArray[np.bool_]:
    return np.append(np.ones(min(1, len(of)), np.bool_), of[1:] != of[:-1])


def as_table(name: str, columns: Mapping[str, object], date: int, rows: int) -> pa.RecordBatch:
    """Returns rows of a table as it declares them, text dictionary-encoded for the writer.

    Args:
        columns: all of the table's, but ``date``; others are left out.
        date: days since 1970.
    """
    arrays = []
    schema = TABLES[name].schema
    for column in schema:
        if column.name == "date":
            arrays.append(pa.repeat(pa.scalar(date, pa.int32()), rows).cast(pa.date32()))
            continue
        found = columns[column.name]
        array = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else pa.array(found)
        if pa.types.is_string(column.type) and column.name != "user_id":
            array = as_type(array, pa.dictionary(pa.int32(), STRING))
        elif column.type == REVENUES:
            array = array.cast(REVENUES)
        else:
            array = as_type(array, column.type)
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, names=schema.names)
