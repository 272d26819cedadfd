"""When events happen: daily and weekly seasons, sales peaks and anomalies, as an exact schedule of N slots.

Everything is integer arithmetic, so that the schedule is the same on every machine.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from headrace.schemas.errors import ConfigError
from headrace.simulator.durations import milliseconds, parse_duration, parse_time

MINUTE_MS = 60_000
DAY_MS = 86_400_000
_HOURLY = (
    30,
    20,
    15,
    12,
    14,
    22,
    38,
    55,
    72,
    84,
    92,
    98,
    105,
    100,
    94,
    92,
    96,
    104,
    118,
    132,
    136,
    118,
    84,
    52,
)
"""Traffic at each full UTC hour in per cent of the mean; in between it changes linearly."""
_WEEKDAYS = (100, 98, 97, 101, 110, 124, 118)
"""Monday to Sunday, per cent."""
_PEAKS = ((12 * 60 + 20, 12 * 60 + 35, 150), (19 * 60 + 30, 20 * 60, 170))
"""Daily sales: first and last minute of the UTC day, and the traffic in per cent."""

EFFECTS = {
    "traffic_spike": 500,
    "traffic_drop": 10,
    "bot_flood": 300,
    "fraud_burst": 115,
    "payment_outage": 100,
}
"""Kinds of anomaly and the traffic during each in per cent.

traffic_spike: five times the traffic. traffic_drop: a tenth. bot_flood: three times, two thirds of it from a few crawlers.
fraud_burst: a quarter of the events are quick, expensive purchases from a handful of addresses. payment_outage: no purchase and
no payment succeeds.
"""
DEFAULT_LENGTH = timedelta(minutes=5)


class Anomaly(NamedTuple):
    """A disturbance in [start, end), milliseconds since 1970."""

    kind: str
    start: int
    end: int


class Step(NamedTuple):
    """A piece of the schedule with constant conditions: ``events`` slots in [start, end), milliseconds since 1970."""

    start: int
    end: int
    events: int
    sale: bool
    anomalies: frozenset[str]


def parse_anomaly(text: str, start: datetime, span: timedelta) -> Anomaly:
    """Reads ``KIND@T`` or ``KIND@T/LENGTH``: T is an ISO 8601 time or an offset from the start (``+30m``); 5 minutes by default.

    Raises:
        ConfigError: unknown kind, unreadable T or LENGTH, or T outside of the simulated span.
    """
    kind, at, when = text.partition("@")
    if kind not in EFFECTS or not at:
        raise ConfigError(
            f"anomaly={text!r}: write KIND@T, for example traffic_spike@+30m, with KIND one of {', '.join(EFFECTS)}"
        )
    when, slash, length = when.partition("/")
    begin = (
        start + parse_duration(when[1:], f"anomaly={text!r}: T")
        if when.startswith("+")
        else parse_time(when, f"anomaly={text!r}: T")
    )
    if not start <= begin < start + span:
        raise ConfigError(
            f"anomaly={text!r} starts at {begin.isoformat()}, outside of the simulated time from {start.isoformat()} to "
            f"{(start + span).isoformat()}; move it, or set the span"
        )
    lasting = parse_duration(length, f"anomaly={text!r}: LENGTH") if slash else DEFAULT_LENGTH
    if not lasting:
        raise ConfigError(f"anomaly={text!r} has no length; write for example {kind}@{when}/5m")
    return Anomaly(kind, milliseconds(begin), milliseconds(min(begin + lasting, start + span)))


def schedule(events: int, start: int, end: int, anomalies: Sequence[Anomaly] = ()) -> Iterator[Step]:
    """Yields the steps from ``start`` to ``end`` (milliseconds) in order; their ``events`` add up to ``events`` exactly.

    Two passes over the minutes, nothing is kept: memory does not grow with the span.
    """
    total = sum(weight for *_, weight in _steps(start, end, anomalies))
    done = passed = 0
    for first, last, sale, kinds, weight in _steps(start, end, anomalies):
        passed += weight
        upto = events * passed // total
        yield Step(first, last, upto - done, sale, kinds)
        done = upto


def _steps(
    start: int, end: int, anomalies: Sequence[Anomaly]
) -> Iterator[tuple[int, int, bool, frozenset[str], int]]:
    edges = sorted({edge for a in anomalies for edge in (a.start, a.end) if start < edge < end})
    first = start
    while first < end:
        last = min(first - first % MINUTE_MS + MINUTE_MS, end)
        last = next((edge for edge in edges if first < edge < last), last)
        active = frozenset(a.kind for a in anomalies if a.start <= first < a.end)
        level, sale = _season(first)
        for kind in sorted(active):
            level = level * EFFECTS[kind] // 100
        yield first, last, sale, active, level * (last - first)
        first = last


def _season(ms: int) -> tuple[int, bool]:
    """Returns the traffic at this time in parts per 6,000,000 of the mean, and whether a sale is on."""
    minute = ms % DAY_MS // MINUTE_MS
    hour, rest = divmod(minute, 60)
    level = (_HOURLY[hour] * (60 - rest) + _HOURLY[(hour + 1) % 24] * rest) * 1000
    level = level * _WEEKDAYS[(ms // DAY_MS + 3) % 7] // 100
    for begin, stop, per_cent in _PEAKS:
        if begin <= minute < stop:
            return level * per_cent // 100, True
    return level, False
