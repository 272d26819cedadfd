"""Cohorts: users by the day or week in which they first came, how many come again, and what they spend."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import TimestampedValue

from headrace.schemas.columns import CODE, MONEY, STRING
from headrace.schemas.errors import ConfigError
from headrace.transforms.base import Results
from headrace.transforms.batches import as_type, plain
from headrace.transforms.group_by_user import (
    BATCH_ROWS,
    GroupByUser,
    check_shards,
    joined,
    plain_columns,
    require,
    sorted_by,
    split_rows,
)
from headrace.transforms.grouping import Groups, codes_of, sum_decimals
from headrace.transforms.hashing import decimal_limbs, int64_values, present

STAGE = "cohorts"
PERIODS = ("day", "week")
TABLES = ("retention", "lifetime_value")
MONDAY = 3
"""Days from 1970-01-01, a Thursday, back to the Monday of its week."""

RETENTION = pa.schema(
    [
        pa.field("cohort", pa.date32()),
        pa.field("period", pa.int32()),
        pa.field("cohort_size", pa.int64()),
        pa.field("users", pa.int64()),
        pa.field("retention", pa.float64()),
    ]
)
"""``cohort``: first day, or Monday of the first week, of its users. ``period``: days or weeks since then, from 0. ``users``: how
many of the ``cohort_size`` were active then. ``retention``: what part of them."""

LIFETIME_VALUE = pa.schema(
    [
        pa.field("cohort", pa.date32()),
        pa.field("period", pa.int32()),
        pa.field("currency", CODE),
        pa.field("revenue", MONEY),
        pa.field("cumulative_revenue", MONEY),
        pa.field("per_user", MONEY),
    ]
)
"""``revenue`` of a cohort's users in a period, in one currency; the sum until then; and that sum divided by the cohort's size,
rounded half to even."""

Period = Literal["day", "week"]
Table = Literal["retention", "lifetime_value"]
I64 = npt.NDArray[np.int64]
Big = npt.NDArray[np.object_]
"""Python's whole numbers."""


def cohorts(activity: pa.Table, period: Period = "week") -> pa.Table:
    """Returns how many users of each cohort were active how long after they first were.

    There is a row for each period from the cohort's own to the last of all activity, also where nobody was active: a gap is a
    zero. A user is active on each date that a row names, whatever else is in it; dates may be named several times, and the order of
    rows does not matter.

    Args:
        activity: ``user_id`` and ``date`` (date32), not null. All of a user's rows must be there, or the cohort is a later one.
        period: ``day``, or ``week`` from Monday to Sunday.

    Returns:
        a table of :data:`RETENTION`, sorted by cohort and period.

    Raises:
        ConfigError: another period; a column is missing.
        ValueError: a null user_id or date.
    """
    return _retention(_cells(_checked(activity, period, ()), period), period)


def lifetime_value(activity: pa.Table, period: Period = "week") -> pa.Table:
    """Returns what the users of each cohort spent in each period, and until then.

    Cohorts and periods are those of :func:`cohorts`; there is a row for each period of a cohort and currency, if any revenue of the
    cohort is in that currency (null is one of its own). Refunds are negative. Exact, but for the rounding of ``per_user``.

    Args:
        activity: as for :func:`cohorts`, with ``currency``, and ``revenue`` (decimal; null is none).
        period: likewise.

    Returns:
        a table of :data:`LIFETIME_VALUE`, sorted by cohort, currency and period.

    Raises:
        ConfigError, ValueError: likewise.
        OverflowError: a sum has more than 38 digits.
    """
    return _lifetime_value(_cells(_checked(activity, period, ("currency", "revenue")), period), period)


def _checked(activity: pa.Table, period: str, more: tuple[str, ...]) -> pa.RecordBatch:
    check_period(period)
    names = ["user_id", "date", *more]
    missing = [n for n in names if n not in activity.column_names]
    if missing:
        raise ConfigError(f"activity lacks {missing}; it has {activity.column_names}")
    table = activity.select(names)
    batch = joined(table.to_batches() or [pa.RecordBatch.from_pylist([], table.schema)])
    if batch.column("user_id").null_count or batch.column("date").null_count:
        raise ValueError("a row of activity has no user_id or no date; take such rows out before")
    return batch


def daily_activity(batch: pa.RecordBatch, timezone: str, *, money: bool = True) -> pa.RecordBatch:
    """Returns a row for each user, calendar date in ``timezone`` and currency: ``events``, and ``revenue`` if ``money``.

    ``currency`` is null for events without revenue. Rows need an event_time.
    """
    names = ["user_id", "event_time", *(["currency", "revenue"] if money else [])]
    require(batch, names, STAGE)
    rows = plain_columns(batch, names)
    local = pc.local_timestamp(rows.column("event_time").cast(pa.timestamp("us", timezone)))
    dates = local.cast(pa.date32())
    keys = [rows.column("user_id"), dates]
    if money:
        keys.append(pc.if_else(rows.column("revenue").is_valid(), rows.column("currency"), None))
    groups = Groups([codes_of(_integers(key)) for key in keys], rows.num_rows)
    columns = [key.take(pa.array(groups.first)) for key in keys] + [pa.array(groups.count())]
    if not money:
        return pa.RecordBatch.from_arrays(columns, names=["user_id", "date", "events"])
    columns.append(sum_decimals(rows.column("revenue"), groups, "revenue"))
    return pa.RecordBatch.from_arrays(columns, names=["user_id", "date", "currency", "events", "revenue"])


def _integers(key: pa.Array) -> pa.Array:
    return pa.array(int64_values(key)) if pa.types.is_date32(key.type) else key


def _cells(activity: pa.RecordBatch, period: str) -> pa.RecordBatch:
    """Counts users and adds up revenue by ``cohort`` and ``period`` (int64; numbers of days or weeks) and ``currency``.

    Users are counted where the currency is null. All rows of a user must be there; the cells of different users can be added.
    """
    users = Groups([codes_of(plain(activity.column("user_id")))], activity.num_rows)
    number = int64_values(as_type(activity.column("date"), pa.date32()))
    if period == "week":
        number = (number + MONDAY) // 7
    first = np.full(users.size, np.iinfo(np.int64).max)
    np.minimum.at(first, users.of, number)
    cohort = first[users.of]
    once = Groups([(users.of, max(users.size, 1)), codes_of(pa.array(number))], len(number)).first
    currency, revenue = pa.nulls(len(number), STRING), pa.nulls(len(number), MONEY)
    if activity.schema.get_field_index("revenue") >= 0:
        currency = as_type(activity.column("currency"), STRING)
        revenue = as_type(activity.column("revenue"), MONEY)
    earning = np.flatnonzero(present(revenue))
    rows, here, paid = np.concatenate([once, earning]), len(once), pa.array(earning)
    columns = [
        pa.array(cohort[rows]),
        pa.array((number - cohort)[rows]),
        pa.concat_arrays([pa.nulls(here, STRING), currency.take(paid)]),
        pa.array((np.arange(len(rows)) < here).astype(np.int64)),
        pa.concat_arrays([pa.nulls(here, MONEY), revenue.take(paid)]),
    ]
    return _added([pa.RecordBatch.from_arrays(columns, names=_CELL)])


_CELL = ["cohort", "period", "currency", "users", "revenue"]


def _added(cells: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
    """Adds cells, sorted by cohort, currency and period."""
    rows = joined(cells)
    groups = Groups([codes_of(rows.column(n)) for n in _CELL[:3]], rows.num_rows)
    columns = [rows.column(n).take(pa.array(groups.first)) for n in _CELL[:3]]
    columns += [
        pa.array(groups.add(int64_values(rows.column("users")))),
        sum_decimals(rows.column("revenue"), groups, "revenue"),
    ]
    order = sorted_by([columns[0], columns[2], columns[1]])
    return pa.RecordBatch.from_arrays(columns, names=_CELL).take(order)


class _Periods:
    """All periods of each series: from a cohort's own to the last of all; rows of cells are sorted by series and period.

    Args:
        cohort: number of each row's cohort.
        new: where a series begins.
        period: of each row.
        last: number of the last period of all.
    """

    def __init__(self, cohort: I64, new: npt.NDArray[np.bool_], period: I64, last: int) -> None:
        starts = cohort[new]
        lengths = last - starts + 1
        self.first: I64 = np.cumsum(lengths) - lengths
        """Where each series begins."""
        self.series: I64 = np.repeat(np.arange(len(starts)), lengths)
        self.period: I64 = np.arange(len(self.series)) - self.first[self.series]
        self.cohort: I64 = starts[self.series]
        self.of_rows: I64 = self.first[np.cumsum(new) - 1] + period
        """Where the rows of cells belong."""


def _counted(cells: pa.RecordBatch) -> tuple[_Periods, I64]:
    """Returns the periods of the cohorts, and how many users were active in each."""
    rows = cells.filter(pc.greater(cells.column("users"), 0))
    cohort, period = int64_values(rows.column("cohort")), int64_values(rows.column("period"))
    last = int((cohort + period).max()) if len(cohort) else 0
    periods = _Periods(cohort, _changes(cohort), period, last)
    users = np.zeros(len(periods.series), np.int64)
    users[periods.of_rows] = int64_values(rows.column("users"))
    return periods, users


def _changes(*keys: I64) -> npt.NDArray[np.bool_]:
    """Returns which rows differ from the one before; the first does."""
    return np.any([np.r_[np.ones(min(1, len(key)), bool), key[1:] != key[:-1]] for key in keys], axis=0)


def _retention(cells: pa.RecordBatch, period: str) -> pa.Table:
    periods, users = _counted(cells)
    sizes = users[periods.first][periods.series]
    columns = [_dates(periods.cohort, period), pa.array(periods.period, pa.int32()), pa.array(sizes)]
    return pa.table([*columns, pa.array(users), pa.array(users / sizes)], schema=RETENTION)


def _lifetime_value(cells: pa.RecordBatch, period: str) -> pa.Table:
    cohorts, users = _counted(cells)
    rows = cells.filter(cells.column("revenue").is_valid())
    cohort, number = int64_values(rows.column("cohort")), int64_values(rows.column("period"))
    new = _changes(cohort, codes_of(rows.column("currency"))[0])
    last = int((cohorts.cohort + cohorts.period).max()) if len(users) else 0
    periods = _Periods(cohort, new, number, last)
    sizes = users[cohorts.first][np.searchsorted(cohorts.cohort[cohorts.first], periods.cohort)].astype(
        object
    )
    revenue = np.zeros(len(periods.series), object)
    revenue[periods.of_rows] = _units(rows.column("revenue"))
    total = np.cumsum(revenue)
    cumulative = total - (total - revenue)[periods.first][periods.series]
    columns = [
        _dates(periods.cohort, period),
        pa.array(periods.period, pa.int32()),
        as_type(rows.column("currency").filter(pa.array(new)).take(pa.array(periods.series)), CODE),
        *(_money(units) for units in (revenue, cumulative, _half_even(cumulative, sizes))),
    ]
    return pa.table(columns, schema=LIFETIME_VALUE)


def _dates(numbers: I64, period: str) -> pa.Array:
    days = numbers if period == "day" else numbers * 7 - MONDAY
    return pa.array(days.astype(np.int32)).cast(pa.date32())


def _half_even(whole: Big, parts: Big) -> Big:
    """Divides, rounded half to even."""
    quotient = whole // parts
    twice = (whole - quotient * parts) * 2
    return quotient + ((twice > parts) | ((twice == parts) & (quotient % 2 == 1)))


def _units(money: pa.Array) -> Big:
    """Returns decimal128 values as whole numbers of units of 1e-9."""
    limbs = decimal_limbs(money)
    return limbs[:, 0].astype(object) + limbs[:, 1].view(np.int64).astype(object) * 2**64


def _money(units: Big) -> pa.Array:
    if len(units) and max(units.max(), -units.min()) >= 10**38:
        raise OverflowError("cumulative revenue has more than 38 digits, which decimal128(38, 9) can't hold")
    limbs = np.column_stack(
        [(units & (2**64 - 1)).astype(np.uint64), (units >> 64).astype(np.int64).view(np.uint64)]
    )
    return pa.Array.from_buffers(MONEY, len(units), [None, pa.py_buffer(limbs)])


def check_period(period: object) -> None:
    """Raises ConfigError if it is none."""
    if period not in PERIODS:
        raise ConfigError(f"period={period!r}: must be one of {', '.join(PERIODS)}")


class Cohorts(beam.PTransform):
    """Counts how many users come again, by the day or week in which they first came, or adds up what they spent.

    Exact, and independent of the order of rows and of how they are cut into batches; a replay gives the same output. A user's
    first period is that of the first event in the input, so the input must reach back to it.

    Bounded input in the GlobalWindow gives one result. Input in FixedWindows, bounded or not, gives one a window: of the rows whose
    ``event_time`` lies in it, whatever windows the batches are in. The input's trigger and allowed lateness are not kept: there is
    one pane, when the watermark passes the window's end; Beam drops what comes later. Rows are added up by user, date and
    currency in each batch, and only that is shuffled; that of one shard is in memory together.

    Input: batches with ``user_id``, ``event_time`` (UTC, microseconds), and for lifetime values ``currency`` and ``revenue``;
    masked, as they may be shuffled.
    Output: accepted, batches of :data:`RETENTION` or :data:`LIFETIME_VALUE`, sorted, at the last instant of their window; none if
    there are no users. Rejected, ``QUARANTINE_SCHEMA``, stage ``cohorts``: ``no_time`` for a null ``event_time``, ``no_key`` for a
    null ``user_id``.

    Args:
        period: ``day``, or ``week`` from Monday to Sunday.
        table: ``retention``, as :func:`cohorts` describes it, or ``lifetime_value``, as :func:`lifetime_value` does.
        timezone: IANA name of the zone whose calendar dates count; its changes of offset (daylight saving) are kept.
        shards: over how many keys users are spread.

    Raises:
        ConfigError: an argument as described in its message; unbounded input in the GlobalWindow, or input in other windows than
            those above; a batch lacks a column.
        OverflowError: a sum has more than 38 digits.

    Example:
        >>> values = Cohorts("day", table="lifetime_value", timezone="Europe/Berlin")
    """

    def __init__(
        self,
        period: Period = "week",
        *,
        table: Table = "retention",
        timezone: str = "UTC",
        shards: int = 16,
    ) -> None:
        super().__init__()
        check_period(period)
        if table not in TABLES:
            raise ConfigError(f"table={table!r}: must be one of {', '.join(TABLES)}")
        self._period = period
        self._table = table
        self._timezone = check_timezone(timezone)
        self._shards = check_shards("Cohorts", shards)

    @beam.typehints.no_annotations
    def expand(self, batches: PCollection) -> Results:
        money = self._table == "lifetime_value"
        by = ("user_id",)
        split = partial(split_rows, stage=STAGE, by=by)
        prepare = partial(daily_activity, timezone=self._timezone, money=money)
        by_user = GroupByUser("Cohorts", STAGE, by, self._shards, split, prepare)
        grouped, rejects = batches | "ByUser" >> by_user
        finished = (
            grouped
            | "Cells" >> beam.ParDo(_CellsFn(self._period)).with_output_types(tuple[int, pa.RecordBatch])
            | "GroupCells" >> beam.GroupByKey()
            | "Finish" >> beam.ParDo(_FinishFn(self._period, money)).with_output_types(pa.RecordBatch)
        )
        return Results(finished, rejects)


class _CellsFn(beam.DoFn):
    """Counts the users of one shard."""

    def __init__(self, period: str) -> None:
        self._period = period

    def process(self, group: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[tuple[int, pa.RecordBatch]]:
        yield 0, _cells(joined(group[1]), self._period)


class _FinishFn(beam.DoFn):
    """Adds the cells of all shards, and makes the table."""

    def __init__(self, period: str, money: bool) -> None:
        self._period = period
        self._money = money

    def process(
        self, group: tuple[int, Iterable[pa.RecordBatch]], window: Any = beam.DoFn.WindowParam
    ) -> Iterator[TimestampedValue]:
        make = _lifetime_value if self._money else _retention
        table = make(_added(group[1]), self._period)
        for batch in table.to_batches(max_chunksize=BATCH_ROWS):
            yield TimestampedValue(batch, window.max_timestamp())


def check_timezone(timezone: object) -> str:
    """Returns the zone's name, or raises ConfigError if it is no IANA zone that this machine knows."""
    try:
        ZoneInfo(timezone)  # type: ignore[arg-type]
        pc.local_timestamp(pa.array([0], pa.timestamp("us", timezone)))
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError, AttributeError):
        raise ConfigError(
            f"timezone={timezone!r}: must be the name of an IANA zone, e.g. 'Europe/Berlin'; if it is, install tzdata"
        ) from None
    return str(timezone)
