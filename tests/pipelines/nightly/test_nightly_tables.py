"""Every table against a plain DuckDB script over the same lake."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks.nightly import script
from headrace.pipelines.nightly.local_days import LocalDay, find_zone, local_day
from headrace.pipelines.nightly.nightly import run_nightly
from headrace.pipelines.nightly.nightly_tables import TABLES
from tests.pipelines.nightly.lakes import add_events, config, database, event, ordered, random_events, rows

ALL_DAY = {
    "purchase": {
        "steps": {t: {"event_type": t} for t in ("page_view", "product_view", "add_to_cart", "purchase")},
        "within_seconds": 90_000,
    }
}


def expected(lake: Path, days: list[LocalDay]) -> dict[str, list[tuple[Any, ...]]]:
    db = database(lake)
    found: dict[str, list[tuple[Any, ...]]] = {name: [] for name in TABLES}
    for day in days:
        start, end = (time.replace(tzinfo=None) for time in (day.start, day.end))
        for statement in script(day.date, start, end):
            db.execute(statement)
        for name, table in TABLES.items():
            found[name] += db.execute(f"SELECT {', '.join(table.schema.names)} FROM {name}").fetchall()
    return {name: ordered(each) for name, each in found.items()}


def ours(output: Path) -> dict[str, list[tuple[Any, ...]]]:
    def plain(value: Any) -> Any:
        return value.astimezone(UTC).replace(tzinfo=None) if isinstance(value, datetime) else value

    return {name: ordered(tuple(plain(v) for v in row) for row in rows(output, name)) for name in TABLES}


@pytest.mark.parametrize(
    ("zone", "first", "hours"),
    [
        pytest.param("Europe/Berlin", date(2026, 3, 28), [24, 23, 24], marks=pytest.mark.integration),
        pytest.param("Europe/Berlin", date(2026, 10, 24), [24, 25, 24], marks=pytest.mark.integration),
        ("Asia/Kolkata", date(2026, 3, 28), [24]),
    ],
)
def test_every_table_is_what_duckdb_says(tmp_path: Path, zone: str, first: date, hours: list[int]) -> None:
    days = [local_day(first + timedelta(days=i), find_zone(zone)) for i in range(len(hours))]
    assert [day.hours for day in days] == hours
    begin = datetime(first.year, first.month, first.day, tzinfo=UTC) - timedelta(hours=12)
    add_events(tmp_path / "lake", random_events(1500, 1, begin, 96, users=30), "a")
    add_events(tmp_path / "lake", random_events(300, 2, begin + timedelta(hours=40), 40, users=60), "b")
    add_events(tmp_path / "lake", _around_midnights(days), "c")
    settings = config(
        tmp_path / "lake", tmp_path / "out", timezone=zone, funnels=_funnels(), split_bytes=20_000
    )
    result = run_nightly(settings, (first, days[-1].date))
    assert [day.events for day in result.days] == [_count(tmp_path / "lake", day) for day in days]
    found, wanted = ours(tmp_path / "out"), expected(tmp_path / "lake", days)
    for name in TABLES:
        assert found[name] == wanted[name], name
        assert found[name]
    assert any(row[-1] for row in found["user_sessions"])


def test_days_without_events_have_no_rows_but_the_funnels(tmp_path: Path) -> None:
    add_events(tmp_path / "lake", [event(1, datetime(2026, 1, 5, 12, tzinfo=UTC))], "a")
    result = run_nightly(config(tmp_path / "lake", tmp_path / "out"), (date(2026, 1, 6), date(2026, 1, 6)))
    assert result.days[0].rows == {**dict.fromkeys(TABLES, 0), "funnel_daily": 4}
    assert {row[4:] for row in rows(tmp_path / "out", "funnel_daily")} == {(0, None, None, 0, None)}


def test_events_without_user_count_in_the_cube_and_the_products_only(tmp_path: Path) -> None:
    noon = datetime(2026, 1, 5, 12, tzinfo=UTC)
    nobody = event(1, noon, user_id=None, product_id="p1", event_type="product_view", country="DE")
    add_events(tmp_path / "lake", [nobody], "a")
    result = run_nightly(config(tmp_path / "lake", tmp_path / "out"), (noon.date(), noon.date()))
    assert (result.days[0].events, result.days[0].without_user) == (1, 1)
    assert result.days[0].rows["user_sessions"] == result.days[0].rows["user_daily_metrics"] == 0
    (geo,) = rows(tmp_path / "out", "cube_geo")
    assert geo == (noon.date(), "DE", None, 0, 0, 1, 1, 0, None, None, [])
    (product,) = rows(tmp_path / "out", "product_daily")
    assert product == (noon.date(), "p1", None, None, 1, 0, 0, 0, 0, None, 0)


@pytest.mark.parametrize(("seconds", "continued"), [(1800, True), (1801, False)])
def test_a_session_across_midnight_is_cut_and_counted_once(
    tmp_path: Path, seconds: int, continued: bool
) -> None:
    midnight = datetime(2026, 1, 5, 23, tzinfo=UTC)  # 2026-01-06 in Berlin
    events = [
        event(1, midnight - timedelta(seconds=1)),
        event(2, midnight - timedelta(seconds=1) + timedelta(seconds=seconds)),
        event(3, midnight + timedelta(hours=5)),
    ]
    add_events(tmp_path / "lake", events, "a")
    settings = config(tmp_path / "lake", tmp_path / "out", timezone="Europe/Berlin")
    run_nightly(settings, (date(2026, 1, 5), date(2026, 1, 6)))
    parts = [(row[0].day, row[5], row[-1]) for row in rows(tmp_path / "out", "user_sessions")]
    assert parts == [(5, 1, False), (6, 1, continued), (6, 1, False)]
    daily = [(row[0].day, row[2], row[3]) for row in rows(tmp_path / "out", "user_daily_metrics")]
    assert daily == [(5, 1, 1), (6, 2, 1 if continued else 2)]


def _funnels() -> dict[str, Any]:
    from headrace.pipelines.nightly.nightly_config import FunnelConfig

    return {name: FunnelConfig(**settings) for name, settings in ALL_DAY.items()}  # type: ignore[arg-type]


def _around_midnights(days: list[LocalDay]) -> list[dict[str, Any]]:
    """A user's sessions across each midnight: up to the gap of 30 minutes, and just over it."""
    apart = [(user, seconds) for user in ("night-1", "night-2") for seconds in (-1, 1799)]
    return [
        event(
            3_000_000 + 10 * i + j,
            day.start + timedelta(seconds=seconds + (user == "night-2" and seconds > 0)),
            user_id=user,
        )
        for i, day in enumerate(days)
        for j, (user, seconds) in enumerate(apart)
    ]


def _count(lake: Path, day: LocalDay) -> int:
    start, end = (time.replace(tzinfo=None) for time in (day.start, day.end))
    query = f"SELECT count(*) FROM lake WHERE event_time >= '{start}' AND event_time < '{end}'"
    ((count,),) = database(lake).execute(query).fetchall()
    return int(count)
