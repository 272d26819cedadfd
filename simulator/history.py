"""Counting what was written, and keeping the last of it so that it can be written again."""

from collections import defaultdict
from random import Random
from typing import TypeVar

from headrace.simulator.summary import SimulationSummary

T = TypeVar("T")
Line = tuple[str, str, str, str, int, str, int]
"""A sound event: text, family, event id or "", event type, time in ms since 1970, currency, cents of a purchase or refund."""

_KEPT = 2048
_EACH = 4
"""One in so many accepted lines is kept for copying."""


class History:
    """Gives each line its verdict and counts it in ``summary``; memory does not grow with the number of lines."""

    def __init__(self, rng: Random, summary: SimulationSummary, stale_before: int) -> None:
        self._rng, self._summary, self._stale_before = rng, summary, stale_before
        self._accepted: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._turn = 0
        self._with_id: list[Line] = []
        self._without_id: list[Line] = []
        self._rejected: list[tuple[str, str, str]] = []

    def accept(self, line: Line) -> str:
        """Counts a valid line that is not ahead of time and no copy of an event with an id; returns its text."""
        text, family, event_id, event_type, ms, currency, cents = line
        if ms < self._stale_before:
            return self.reject("stale", family, text)
        self._accepted[family, event_type] += 1
        if cents and event_type in ("purchase", "refund"):
            self._summary.revenue_cents[currency] += cents
        self._turn = turn = self._turn + 1
        if not turn % _EACH:
            kept = self._with_id if event_id else self._without_id
            if len(kept) < _KEPT:
                kept.append(line)
            else:
                kept[turn // _EACH % _KEPT] = line
        return text

    def reject(self, verdict: str, family: str, text: str) -> str:
        """Counts a line with this verdict; returns its text."""
        self._summary.classes[verdict] += 1
        self._summary.families[family] += 1
        if verdict not in ("duplicate", "conflict"):
            kept = self._rejected
            if len(kept) < _KEPT:
                kept.append((verdict, family, text))
            else:
                kept[self._summary.classes[verdict] % _KEPT] = (verdict, family, text)
        return text

    def with_id(self) -> Line | None:
        """Returns an accepted line with an event id; None if there is none yet."""
        return self._any(self._with_id)

    def without_id(self) -> Line | None:
        """Returns an accepted line without an event id; None if there is none yet."""
        return self._any(self._without_id)

    def rejected(self) -> tuple[str, str, str] | None:
        """Returns verdict, family and text of a line that was rejected before dedupe; None if there is none yet."""
        return self._any(self._rejected)

    def settle(self) -> None:
        """Adds the accepted lines that were counted since the last call to the summary."""
        summary = self._summary
        for (family, event_type), count in self._accepted.items():
            summary.classes["accepted"] += count
            summary.families[family] += count
            summary.event_types[event_type] += count
        self._accepted.clear()
        summary.events = summary.classes.total()

    def _any(self, kept: list[T]) -> T | None:
        return kept[int(self._rng.random() * len(kept))] if kept else None
