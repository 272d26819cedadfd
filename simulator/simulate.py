"""The simulator's front door: checks the arguments and returns the simulation."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from headrace.schemas.errors import ConfigError
from headrace.simulator.durations import parse_duration, parse_time
from headrace.simulator.pacing import Pacer
from headrace.simulator.people import FAMILY_WEIGHTS
from headrace.simulator.simulation import Settings, Simulation
from headrace.simulator.traffic import parse_anomaly

DEFAULT_START = datetime(2026, 1, 5, 12, tzinfo=UTC)
"""A Monday noon, just before a sale: output depends on the arguments alone, never on the clock."""
JSON_FAMILIES = tuple(family for family in FAMILY_WEIGHTS if family != "weblog")
DEFAULT_FAULT_RATE = 0.1
EVENTS_PER_MINUTE = 16_700
"""The traffic that the default span is made for."""


def simulate(
    events: int,
    seed: int = 1,
    *,
    rate: float | None = None,
    start: str | datetime = DEFAULT_START,
    span: str | timedelta | None = None,
    anomalies: Sequence[str] = (),
    families: Sequence[str] = JSON_FAMILIES,
    fault_rate: float = DEFAULT_FAULT_RATE,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Simulation:
    """Returns an iterator over chunks of lines: events of a web shop, its apps and its bank, in the order in which they arrive.

    Equal arguments give equal bytes, on every machine and Python version; ``rate`` only sets the span, if none is given. Memory
    does not grow with ``events``. ``.summary`` holds the exact counts once the iterator is exhausted.

    Args:
        events: lines to write.
        seed: any integer.
        rate: mean events per second of wall time; None: as fast as possible.
        start: ISO 8601 time, or a datetime with a zone: the earliest event time, cut to whole seconds.
        span: event time from the first to the last event, for example ``90m``. Default: events / rate seconds, or without a
            rate one minute for each 16,700 events, at least 1 h, at most 23 h (so that no event is stale by its place alone).
        anomalies: ``KIND@T`` or ``KIND@T/LENGTH``, see ``headrace.simulator.traffic``.
        families: event families; ``weblog`` writes access-log lines and stands alone.
        fault_rate: share of lines with an injected fault, 0 to 1; see ``headrace.simulator.faults``.
        clock, sleep: the wall clock that ``rate`` is kept by, in seconds.

    Raises:
        ConfigError: an argument that makes no sense.

    Example::

        simulation = simulate(1000, seed=7)
        data = b"".join(simulation)
        simulation.summary.classes["malformed"]
    """
    begin = parse_time(start, "start") if isinstance(start, str) else start
    if begin.tzinfo is None:
        raise ConfigError(f"start={begin!r} has no time zone; give it one, for example UTC")
    begin = begin.astimezone(UTC).replace(microsecond=0)
    if events < 1:
        raise ConfigError(f"events={events} must be 1 or more")
    if rate is not None and not 0 < rate < float("inf"):
        raise ConfigError(f"rate={rate} must be more than 0 events per second; leave it out for full speed")
    if not 0 <= fault_rate <= 1:
        raise ConfigError(f"fault_rate={fault_rate} must lie between 0 and 1; 0 injects no faults")
    chosen = _families(families)
    length = parse_duration(span, "span") if isinstance(span, str) else span or default_span(events, rate)
    if not timedelta(milliseconds=1) <= length <= timedelta(days=3660):
        raise ConfigError(
            f"span={span!r} must be longer than nothing and at most 10 years; set it, or another rate"
        )
    disturbed = tuple(parse_anomaly(text, begin, length) for text in anomalies)
    pacer = Pacer(events / rate / (length / timedelta(milliseconds=1)), clock, sleep) if rate else None
    return Simulation(Settings(events, seed, begin, length, disturbed, chosen, fault_rate), pacer)


def default_span(events: int, rate: float | None) -> timedelta:
    """Returns the event time from first to last event where none is given."""
    if rate:
        return timedelta(milliseconds=max(1, min(int(events / rate * 1000), 10**12)))
    return min(max(timedelta(minutes=events // EVENTS_PER_MINUTE), timedelta(hours=1)), timedelta(hours=23))


def _families(names: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in names if name not in FAMILY_WEIGHTS]
    if unknown or not names:
        raise ConfigError(f"families={','.join(names)!r}: choose from {', '.join(FAMILY_WEIGHTS)}")
    chosen = tuple(family for family in FAMILY_WEIGHTS if family in names)
    if "weblog" in chosen and len(chosen) > 1:
        raise ConfigError(
            "families: weblog writes access-log lines, the others JSON, and a file has one format; simulate weblog on its own"
        )
    return chosen
