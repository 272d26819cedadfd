"""Cohorts against plain Python and DuckDB; money in whole units of 1e-9."""

import doctest
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from zoneinfo import ZoneInfo

import apache_beam as beam
import duckdb
import pyarrow as pa
import pytest
from apache_beam.transforms.window import FixedWindows, Sessions
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import CODE, ENRICHED_SCHEMA, MONEY
from headrace.schemas.errors import ConfigError
from headrace.transforms import cohorts as module
from headrace.transforms.batches import plain, replace
from headrace.transforms.cohorts import (
    LIFETIME_VALUE,
    RETENTION,
    Cohorts,
    cohorts,
    daily_activity,
    lifetime_value,
)

from .collect import Batches, collect

DAY = timedelta(days=1)
START = date(2024, 4, 25)
UNIT = Decimal("0.000000001")
BIG = Decimal("9" * 29 + ".999999999")
EXACT = Context(prec=80, rounding=ROUND_HALF_EVEN)
ACTIVITY = pa.schema(
    [
        pa.field("user_id", pa.string()),
        pa.field("date", pa.date32()),
        pa.field("events", pa.int64()),
        pa.field("currency", CODE),
        pa.field("revenue", MONEY),
    ]
)
SCHEMA = pa.schema(
    [ENRICHED_SCHEMA.field(n) for n in ("event_id", "event_time", "user_id", "currency", "revenue")]
)


def active(user: str | None, day: int, revenue: object = None, currency: str | None = "EUR") -> dict:
    money = None if revenue is None else Decimal(revenue)
    return {"user_id": user, "date": START + day * DAY, "events": 1, "currency": currency, "revenue": money}


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=ACTIVITY)


def begin(day: date, period: str) -> date:
    return day - timedelta(days=day.weekday()) if period == "week" else day


def oracle(rows: list[dict], period: str) -> tuple[list[dict], list[dict]]:
    step = timedelta(days=7 if period == "week" else 1)
    first: dict[str, date] = {}
    for row in rows:
        own = begin(row["date"], period)
        first[row["user_id"]] = min(own, first.get(row["user_id"], own))
    users, money = defaultdict(set), defaultdict(list)
    for row in rows:
        cohort, own = first[row["user_id"]], begin(row["date"], period)
        users[cohort, own].add(row["user_id"])
        if row["revenue"] is not None:
            money[cohort, row["currency"], own].append(row["revenue"])
    retention, values = [], []
    last = max((own for _, own in users), default=None)
    for cohort in sorted(set(first.values())):
        size = len(users[cohort, cohort])
        for n in range((last - cohort) // step + 1):
            count = len(users.get((cohort, cohort + n * step), ()))
            line = {"cohort": cohort, "period": n, "cohort_size": size, "users": count}
            retention.append(line | {"retention": count / size})
        own_currencies = {c for other, c, _ in money if other == cohort}
        for currency in sorted(own_currencies, key=lambda c: (c is None, c)):
            total = Decimal(0)
            for n in range((last - cohort) // step + 1):
                revenue = Decimal(0)
                for amount in money.get((cohort, currency, cohort + n * step), ()):
                    revenue = EXACT.add(revenue, amount)
                total = EXACT.add(total, revenue)
                each = EXACT.quantize(EXACT.divide(total, size), UNIT)
                line = {"cohort": cohort, "period": n, "currency": currency, "revenue": revenue}
                values.append(line | {"cumulative_revenue": total, "per_user": each})
    return retention, values


ROW = st.builds(
    active,
    st.sampled_from("uvwxyz"),
    st.integers(0, 40),
    st.none() | st.sampled_from([0, UNIT, 5 * UNIT, -7 * UNIT]) | st.decimals(-(10**15), 10**15, places=9),
    st.sampled_from(["EUR", "USD", None]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, max_size=25), st.sampled_from(["day", "week"]), st.randoms(use_true_random=False))
def test_both_tables_are_those_of_plain_python_in_any_order(rows, period, shuffle):
    retention, values = oracle(rows, period)
    assert cohorts(table(rows), period).to_pylist() == retention
    found = lifetime_value(table(rows), period)
    assert found.to_pylist() == values
    shuffle.shuffle(rows)
    assert lifetime_value(table(rows), period).combine_chunks().equals(found.combine_chunks())


@settings(max_examples=15, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=60))
def test_retention_is_what_duckdb_counts(rows):
    duckdb.register("activity", table(rows).select(["user_id", "date"]))
    expected = duckdb.sql(
        """with a as (select distinct user_id, date_trunc('week', date)::date d from activity),
             f as (select user_id, min(d) cohort from a group by user_id)
           select cohort, (d - cohort) // 7 period, count(*) users from a join f using (user_id)
           group by all order by all"""
    ).fetchall()
    found = cohorts(table(rows), "week").to_pylist()
    assert [(r["cohort"], r["period"], r["users"]) for r in found if r["users"]] == expected
    assert all(r["cohort_size"] == n for r in found for c, p, n in expected if c == r["cohort"] and not p)


def test_weeks_begin_on_monday_before_1970_too():
    sunday = date(1969, 12, 28)
    rows = [{"user_id": "u", "date": sunday + n * DAY} for n in (0, 1, 7, 8)]
    found = cohorts(pa.Table.from_pylist(rows, ACTIVITY), "week").to_pylist()
    assert [(r["cohort"], r["period"], r["users"]) for r in found] == [
        (date(1969, 12, 22), 0, 1),
        (date(1969, 12, 22), 1, 1),
        (date(1969, 12, 22), 2, 1),
    ]


def test_a_period_in_which_nobody_came_is_a_zero():
    rows = [active("u", 0, "1"), active("v", 3), active("u", 5)]
    found = cohorts(table(rows), "day").to_pylist()
    assert [(r["cohort"], r["users"]) for r in found] == [
        *((START, n) for n in (1, 0, 0, 0, 0, 1)),
        *((START + 3 * DAY, n) for n in (1, 0, 0)),
    ]
    values = lifetime_value(table(rows), "day")["cumulative_revenue"].to_pylist()
    assert values == [1] * 6


def test_an_average_is_rounded_half_to_even():
    rows = [active("u", 0, UNIT), active("v", 0), active("u", 1, 2 * UNIT), active("u", 2, -4 * UNIT)]
    found = lifetime_value(table(rows), "day")["per_user"].to_pylist()
    assert found == [0, 2 * UNIT, 0]


def test_sums_to_the_last_of_38_digits_and_not_beyond():
    found = lifetime_value(table([active("u", 0, BIG), active("u", 1, BIG.copy_negate())]), "day")
    assert found["cumulative_revenue"].to_pylist() == [BIG, 0]
    for days in ((0, 0), (0, 1)):
        with pytest.raises(OverflowError, match="more than 38 digits"):
            lifetime_value(table([active("u", d, BIG) for d in days]), "day")


def test_types_chunks_and_encodings():
    rows = [active("u", 0, "2"), active("v", 1), active("u", 1, "3", None)]
    whole = table(rows)
    for make, schema in ((cohorts, RETENTION), (lifetime_value, LIFETIME_VALUE)):
        assert make(whole.slice(0, 0)).num_rows == make(ACTIVITY.empty_table()).num_rows == 0
        assert make(whole.slice(0, 0)).schema.equals(schema)
        expected = make(whole, "day")
        assert expected.schema.equals(schema)
        chunks = pa.concat_tables([table(rows[:1]), table(rows), table(rows[1:])]).slice(1, 3)
        encoded = whole.set_column(0, "user_id", whole["user_id"].dictionary_encode())
        for variant in (chunks, encoded):
            assert make(variant, "day").to_pylist() == expected.to_pylist()


def test_bad_activity_is_refused():
    for row in (active(None, 0), active("u", 0) | {"date": None}):
        with pytest.raises(ValueError, match="no user_id or no date"):
            cohorts(table([row]))
    with pytest.raises(ConfigError, match=r"activity lacks \['revenue'\]"):
        lifetime_value(table([]).drop_columns(["revenue"]))
    with pytest.raises(ConfigError, match="period='month': must be one of day, week"):
        cohorts(table([]), "month")


def event(user: str | None, time: datetime | None, revenue: str | None = None) -> dict:
    money = None if revenue is None else Decimal(revenue)
    return {"user_id": user, "event_time": time, "currency": "EUR", "revenue": money}


def events(rows: list[dict]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"])
def test_dates_are_those_of_the_zone_through_changes_of_offset(zone):
    times = [
        datetime(y, m, 28, tzinfo=UTC) + n * timedelta(hours=1)
        for y in (1960, 2011, 2024)
        for m in (3, 12)
        for n in range(96)
    ]
    found = daily_activity(events([event("u", t) for t in times]), zone, money=False).to_pylist()
    expected = defaultdict(int)
    for time in times:
        expected[time.astimezone(ZoneInfo(zone)).date()] += 1
    assert {r["date"]: r["events"] for r in found} == expected


def test_activity_is_added_up_by_user_date_and_currency():
    noon = datetime(2024, 5, 1, 12, tzinfo=UTC)
    rows = [event("u", noon, "1"), event("u", noon + DAY, "2"), event("u", noon, "3"), event("u", noon)]
    batch = events(rows)
    keys = ("user_id", "date", "currency", "events", "revenue")
    expected = [
        ("u", noon.date(), "EUR", 2, 4),
        ("u", noon.date(), None, 1, None),
        ("u", noon.date() + DAY, "EUR", 1, 2),
    ]
    plains = pa.RecordBatch.from_arrays([plain(c) for c in batch.columns], names=batch.schema.names)
    encoded = replace(batch, {"user_id": batch["user_id"].dictionary_encode()})
    for variant in (batch, plains, encoded):
        found = [tuple(r[k] for k in keys) for r in daily_activity(variant, "UTC").to_pylist()]
        assert sorted(found, key=str) == sorted(expected, key=str)


NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
EVENTS = [event(f"u{i % 7}", NOON + i * timedelta(hours=5), f"{i}.5" if i % 3 else None) for i in range(60)]


@pytest.mark.parametrize("name", ["retention", "lifetime_value"])
def test_the_transform_is_the_kernel_however_batches_are_cut(name):
    rows = [*EVENTS, event(None, NOON), event("u", None)]
    zone = "Asia/Tokyo"

    def build(pipeline):
        read = pipeline | Batches([*(events(rows[i::3]) for i in range(3)), events([])])
        return (read | Cohorts("day", table=name, timezone=zone, shards=3))._asdict()

    found = collect(build)
    make = {"retention": cohorts, "lifetime_value": lifetime_value}[name]
    whole = pa.Table.from_batches([daily_activity(events(EVENTS), zone)])
    assert [r for e in found["accepted"] for r in e.value.to_pylist()] == make(whole, "day").to_pylist()
    lost = [r for e in found["rejected"] for r in e.value.to_pylist()]
    assert sorted((r["stage"], r["reason"]) for r in lost) == [("cohorts", "no_key"), ("cohorts", "no_time")]


def test_each_fixed_window_has_its_own_cohorts():
    def build(pipeline):
        read = (
            pipeline
            | Batches([(events(EVENTS), NOON.timestamp())])
            | beam.WindowInto(FixedWindows(86_400 * 7))
        )
        return (read | Cohorts("day"))._asdict()

    found = collect(build)["accepted"]
    assert len(found) == 3
    for element in found:
        low, high = float(element.window.start), float(element.window.end)
        inside = [r for r in EVENTS if low <= r["event_time"].timestamp() < high]
        whole = pa.Table.from_batches([daily_activity(events(inside), "UTC")])
        assert element.value.to_pylist() == cohorts(whole, "day").to_pylist()
        assert element.micros == element.window.max_timestamp().micros


def test_input_whose_results_would_be_wrong_is_refused():
    batches = beam.Pipeline(runner="FnApiRunner") | Batches([])
    with pytest.raises(ConfigError, match="Cohorts on a PCollection in Sessions"):
        batches | beam.WindowInto(Sessions(60)) | Cohorts()
    batches.is_bounded = False
    with pytest.raises(ConfigError, match="Cohorts on unbounded input in the GlobalWindow"):
        batches | "Unbounded" >> Cohorts()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"period": "month"}, "period='month'"),
        ({"table": "both"}, "table='both': must be one of retention, lifetime_value"),
        ({"timezone": "Mars/Olympus"}, "timezone='Mars/Olympus': must be the name of an IANA zone"),
        ({"timezone": "+02:00"}, "timezone="),
        ({"timezone": None}, "timezone=None"),
        ({"timezone": "Europe"}, "timezone='Europe'"),
        ({"shards": 0}, r"Cohorts\(shards=0\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Cohorts(**arguments)


def test_documented_examples_run():
    assert doctest.testmod(module, raise_on_error=True).attempted == 1
