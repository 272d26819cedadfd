from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from headrace.pipelines.nightly.local_days import days_between, find_zone, local_day, yesterday
from headrace.schemas.errors import ConfigError


@pytest.mark.parametrize(
    ("zone", "day", "start", "hours"),
    [
        ("UTC", "2026-01-05", "2026-01-05T00:00", 24),
        ("Europe/Berlin", "2026-03-29", "2026-03-28T23:00", 23),
        ("Europe/Berlin", "2026-10-25", "2026-10-24T22:00", 25),
        ("Asia/Kolkata", "2026-03-29", "2026-03-28T18:30", 24),
        ("Australia/Lord_Howe", "2026-04-05", "2026-04-04T13:00", 24.5),
        ("America/Sao_Paulo", "2018-11-04", "2018-11-04T03:00", 23),  # clocks jump from 0:00 to 1:00
        ("America/Havana", "2026-11-01", "2026-11-01T04:00", 25),  # 1:00 is set back to 0:00: midnight twice
        ("Asia/Beirut", "2026-03-29", "2026-03-28T22:00", 23),
        ("America/Scoresbysund", "2024-03-31", "2024-03-31T01:00", 24),  # 23:00 + 1 h of the day before, and a new zone
    ],
)  # fmt: skip
def test_a_date_is_the_time_between_two_first_instants(zone: str, day: str, start: str, hours: float) -> None:
    found = local_day(date.fromisoformat(day), ZoneInfo(zone))
    assert (found.start, found.hours) == (datetime.fromisoformat(start).replace(tzinfo=UTC), hours)


@pytest.mark.parametrize(
    "zone",
    ["Europe/Berlin", "America/St_Johns", "America/Sao_Paulo", "Asia/Tehran", "Pacific/Apia", "Asia/Gaza"],
)
def test_dates_tile_time_and_begin_where_the_clock_first_shows_them(zone: str) -> None:
    days = list(days_between(date(2006, 1, 1), date(2016, 12, 31), ZoneInfo(zone)))
    assert all(one.end == next_.start for one, next_ in pairwise(days))
    for day in days:
        assert day.start.astimezone(ZoneInfo(zone)).date() == day.date
        assert (day.start - timedelta(seconds=1)).astimezone(ZoneInfo(zone)).date() < day.date


def test_a_date_that_the_zone_skipped_is_refused() -> None:
    with pytest.raises(ConfigError, match="2011-12-30 does not exist in Pacific/Apia"):
        local_day(date(2011, 12, 30), ZoneInfo("Pacific/Apia"))
    days = days_between(date(2011, 12, 29), date(2011, 12, 31), ZoneInfo("Pacific/Apia"))
    assert [day.date.day for day in days] == [29, 31]


@pytest.mark.parametrize("name", ["Europe/Berln", "", "Europe", "../etc/passwd"])
def test_an_unknown_zone_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="IANA"):
        find_zone(name)


def test_yesterday_is_the_zones() -> None:
    assert yesterday(datetime(2026, 1, 6, 19, tzinfo=UTC), ZoneInfo("Asia/Kolkata")) == date(2026, 1, 6)
