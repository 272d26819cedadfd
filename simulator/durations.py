"""Durations and instants as a user writes them: ``90s``, ``5m``, ``1h30m``, ``2d``; ISO 8601 times."""

import re
from datetime import UTC, datetime, timedelta

from headrace.schemas.errors import ConfigError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(?:[0-9]+[smhd])+", re.ASCII)


def parse_duration(text: str, name: str) -> timedelta:
    """Reads ``90s``, ``5m``, ``1h30m`` or ``2d``.

    Raises:
        ConfigError: anything else; ``name`` is the option that the message blames.
    """
    if not _DURATION.fullmatch(text):
        raise ConfigError(f"{name}={text!r} is not a duration; write for example 90s, 5m, 1h30m or 2d")
    try:
        return timedelta(
            seconds=sum(int(n) * _SECONDS[unit] for n, unit in re.findall(r"([0-9]+)([smhd])", text))
        )
    except OverflowError:
        raise ConfigError(f"{name}={text!r} is longer than a calendar; give a few years at most") from None


def parse_time(text: str, name: str) -> datetime:
    """Reads an ISO 8601 time, for example ``2026-01-05T12:00:00Z``; without an offset it is UTC.

    Raises:
        ConfigError: no such time, or outside of the years 1971 to 9000.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{name}={text!r} is not an ISO 8601 time; write for example 2026-01-05T12:00:00Z"
        ) from None
    if not 1971 <= time.year <= 9000:
        raise ConfigError(f"{name}={text!r} lies outside of the years 1971 to 9000")
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def milliseconds(time: datetime) -> int:
    """Returns the milliseconds since 1970, rounded down; exact, unlike ``timestamp()``."""
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def instant(ms: int) -> datetime:
    """The inverse of :func:`milliseconds`."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
