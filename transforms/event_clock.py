"""A reader's event-time watermark over the partitions that it reads: a pure state machine."""

from collections.abc import Mapping
from datetime import timedelta

import numpy as np
import orjson
import pyarrow as pa

from headrace.schemas.columns import TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import as_type, column, encoded, plain
from headrace.transforms.hashing import int64_values, present

_NONE = -(1 << 63)
_MICRO = timedelta(microseconds=1)


class _Partition:
    """What is known of one partition."""

    __slots__ = ("active_at", "highest")

    def __init__(self, highest: int | None, active_at: int) -> None:
        self.highest = highest
        """Highest event time of an accepted row."""
        self.active_at = active_at
        """When it last gave rows or had records waiting; at first, when it was first seen."""


class EventClock:
    """Watermark of one reader: before it, no more events are expected from its partitions.

    A partition's watermark is the highest event time of its accepted rows minus ``watermark_delay``; the reader's is the lowest
    over its partitions. One with records waiting of which none was accepted yet blocks. One read to its end that gave no rows
    for ``idle_seconds`` is idle and does not count. While all are idle the watermark goes on at the speed of the clock, from the
    highest of theirs and from when the last went idle: so the last windows close, be the events of last year; before the
    first event it stays None. It never goes back. A partition that the reader no longer owns is forgotten; a poll that knows of
    none (the broker is away) makes no partition idle.

    All times are int64 µs since 1970; ``now_us`` is an argument, and counts as not moving while it is behind an earlier one.

    Args:
        watermark_delay: how far events of one partition may be out of order before they are behind the watermark.
        idle_seconds: how long a partition may be silent before the others stop waiting for it.

    Raises:
        ConfigError: a negative delay, or ``idle_seconds`` not above zero.
    """

    def __init__(
        self, watermark_delay: timedelta = timedelta(seconds=30), idle_seconds: float = 60.0
    ) -> None:
        if not isinstance(watermark_delay, timedelta) or watermark_delay < timedelta(0):
            raise ConfigError(
                f"watermark_delay={watermark_delay!r}: must be a timedelta of zero or more, e.g. timedelta(seconds=30)"
            )
        if (
            isinstance(idle_seconds, bool)
            or not isinstance(idle_seconds, int | float)
            or not idle_seconds > 0
        ):
            raise ConfigError(f"idle_seconds={idle_seconds!r}: must be a number above zero, e.g. 60")
        self._delay = watermark_delay // _MICRO
        self._idle_us = round(idle_seconds * 1_000_000)
        self._partitions: dict[str, _Partition] = {}
        self._watermark: int | None = None
        self._highest: int | None = None
        self._idle_since: int | None = None
        self._idle_from: int | None = None
        self._now: int | None = None

    @property
    def watermark(self) -> int | None:
        """The watermark after the last poll; None: not known yet."""
        return self._watermark

    @property
    def idle(self) -> bool:
        """True if all partitions were idle at the last poll, so that no other reader needs to wait for this one."""
        return self._idle_since is not None

    def observe(self, batch: pa.RecordBatch, behind: Mapping[str, int], now_us: int) -> int | None:
        """Takes in one poll and returns the watermark after it.

        Args:
            batch: the accepted rows, with ``origin`` and ``event_time``; a row without event_time moves nothing.
            behind: records still waiting, for every partition that the reader owns. Empty if the source could not say, which
                counts as records waiting everywhere: an outage must not look like silence, or what comes after it is late.
            now_us: the reader's clock.

        Raises:
            ValueError: a row has no origin.
        """
        found = _highest_by_origin(batch)
        polled_before = now_us if self._now is None else self._now
        self._now = now_us = max(now_us, polled_before)
        behind = behind or dict.fromkeys(self._partitions, 1)
        self._partitions = {
            origin: self._partitions.get(origin) or _Partition(None, now_us)
            for origin in dict.fromkeys((*behind, *found))
        }
        for origin, highest in found.items():
            partition = self._partitions[origin]
            partition.highest = highest if partition.highest is None else max(partition.highest, highest)
            partition.active_at = now_us
            self._highest = highest if self._highest is None else max(self._highest, highest)
        busy = []
        for origin, partition in self._partitions.items():
            if behind.get(origin, 0) > 0:
                partition.active_at = now_us
            if now_us - partition.active_at < self._idle_us:
                busy.append(partition.highest)
        if busy:
            self._idle_since = None
            known = [highest for highest in busy if highest is not None]
            if len(known) == len(busy):
                self._advance(min(known))
        else:
            if self._idle_since is None:
                ends = [p.active_at + self._idle_us for p in self._partitions.values()]
                self._idle_since = max([polled_before, *ends])
                if self._highest is not None:
                    self._advance(self._highest)
                self._idle_from = self._watermark
            if self._idle_from is not None:
                self._advance(self._idle_from + self._delay + now_us - self._idle_since)
        return self._watermark

    def to_json(self) -> str:
        """Returns the state, for the reader's own; the arguments are not part of it."""
        partitions = {origin: [p.highest, p.active_at] for origin, p in self._partitions.items()}
        state = {
            "partitions": partitions,
            "watermark": self._watermark,
            "highest": self._highest,
            "idle_since": self._idle_since,
            "idle_from": self._idle_from,
            "now": self._now,
        }
        return orjson.dumps(state).decode()

    @classmethod
    def from_json(
        cls, text: str, watermark_delay: timedelta = timedelta(seconds=30), idle_seconds: float = 60.0
    ) -> "EventClock":
        """Reads what :meth:`to_json` wrote."""
        state = orjson.loads(text)
        clock = cls(watermark_delay, idle_seconds)
        clock._partitions = {origin: _Partition(*values) for origin, values in state["partitions"].items()}
        clock._watermark, clock._highest = state["watermark"], state["highest"]
        clock._idle_since, clock._idle_from, clock._now = (
            state["idle_since"],
            state["idle_from"],
            state["now"],
        )
        return clock

    def _advance(self, event_time: int) -> None:
        reached = event_time - self._delay
        self._watermark = reached if self._watermark is None else max(self._watermark, reached)


def _highest_by_origin(batch: pa.RecordBatch) -> dict[str, int]:
    """Returns the highest event time of each origin that has one."""
    if not batch.num_rows:
        return {}
    codes = encoded(column(batch, "origin"))
    if codes.indices.null_count:
        raise ValueError(
            f"{codes.indices.null_count} rows have no origin; the source must say where it read them"
        )
    times = as_type(column(batch, "event_time"), TIME)
    timed = present(times)
    highest = np.full(len(codes.dictionary), _NONE, np.int64)
    numbers = codes.indices.to_numpy(zero_copy_only=False)
    np.maximum.at(highest, numbers[timed], int64_values(times)[timed])
    seen = np.flatnonzero(highest != _NONE)
    origins = plain(codes.dictionary.take(pa.array(seen))).cast(pa.string()).to_pylist()
    return _joined(origins, highest[seen].tolist())


def _joined(origins: list[str], times: list[int]) -> dict[str, int]:
    """A dictionary from abroad may hold a value twice."""
    found: dict[str, int] = {}
    for origin, time in zip(origins, times, strict=True):
        found[origin] = max(time, found.get(origin, time))
    return found
