"""Calendar dates of a time zone as intervals of UTC."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

from headrace.runners.suggest import suggest
from headrace.schemas.errors import ConfigError


@dataclass(frozen=True)
class LocalDay:
    """A calendar date where its zone's clocks show it: ``start`` <= time < ``end``, in UTC."""

    date: date
    start: datetime
    end: datetime

    @property
    def start_us(self) -> int:
        """Microseconds since 1970."""
        return _micros(self.start)

    @property
    def end_us(self) -> int:
        """Microseconds since 1970."""
        return _micros(self.end)

    @property
    def hours(self) -> float:
        """Length; 23 or 25 where a zone changes its clocks by an hour."""
        return (self.end - self.start) / timedelta(hours=1)


def find_zone(name: str) -> ZoneInfo:
    """Returns a zone of the IANA database.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        return ZoneInfo(name)
    except (
        KeyError,
        OSError,
        ValueError,
    ):  # ZoneInfoNotFoundError is a KeyError; "" and folders give the others.
        raise ConfigError(
            f"timezone {name!r} is not in the IANA database; {suggest(name, sorted(available_timezones()))}"
        ) from None


def local_day(day: date, zone: ZoneInfo) -> LocalDay:
    """Returns the interval from the first instant of a date to the first instant of the next: days tile time, whatever clocks do.

    A date begins at its first midnight. Where clocks jump over midnight, it begins at the jump. Where they are set back across
    midnight, what is shown as the day before once more belongs to the date that had begun. Source: the rules of :pep:`495`.

    Raises:
        ConfigError: the zone skipped the date, as Samoa did 2011-12-30.

    Example:
        >>> local_day(date(2026, 3, 29), ZoneInfo("Europe/Berlin")).hours
        23.0
    """
    if not date.min < day < date.max - timedelta(days=1):
        raise ConfigError(f"date {day} is too far away; name one within years 1 to 9999")
    start, end = _first_instant(day, zone), _first_instant(day + timedelta(days=1), zone)
    if start == end:
        raise ConfigError(f"date {day} does not exist in {zone.key}, which skipped it; leave it out")
    return LocalDay(day, start, end)


def days_between(first: date, last: date, zone: ZoneInfo) -> Iterator[LocalDay]:
    """Yields the days from ``first`` to ``last``, both included; dates that the zone skipped are left out."""
    for number in range((last - first).days + 1):
        day = first + timedelta(days=number)
        if _first_instant(day, zone) < _first_instant(day + timedelta(days=1), zone):
            yield local_day(day, zone)


def yesterday(now: datetime, zone: ZoneInfo) -> date:
    """Returns the last date that is over in the zone; ``now`` has a zone of its own."""
    return now.astimezone(zone).date() - timedelta(days=1)


def _first_instant(day: date, zone: ZoneInfo) -> datetime:
    midnight = datetime(day.year, day.month, day.day)
    first = midnight.replace(tzinfo=zone).astimezone(UTC)
    if first.astimezone(zone).replace(tzinfo=None) == midnight:
        return first
    # Clocks jump over midnight between these two (PEP 495): in between, local time is before midnight until the jump.
    before = _seconds(midnight.replace(tzinfo=zone, fold=1).astimezone(UTC))
    after = _seconds(first)
    while before < after:
        middle = (before + after) // 2
        local = datetime.fromtimestamp(middle, zone).replace(tzinfo=None)
        before, after = (before, middle) if local >= midnight else (middle + 1, after)
    return datetime.fromtimestamp(before, UTC)


def _seconds(time: datetime) -> int:
    return _micros(time) // 1_000_000


def _micros(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
