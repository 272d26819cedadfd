"""The figures of a running stream at one moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol


class Totals(Protocol):
    """What is read of the committed ledger, over all jobs that wrote to the output."""

    @property
    def rows_in(self) -> int: ...
    @property
    def accepted(self) -> int: ...
    @property
    def rejected(self) -> Mapping[str, Mapping[str, int]]:
        """{stage: {reason: rows}}"""
        ...

    @property
    def late(self) -> Mapping[str, int]:
        """{window table: rows}"""
        ...

    @property
    def in_flight(self) -> int:
        """Rows of committed polls that are neither accepted nor rejected yet."""
        ...

    @property
    def behind(self) -> int:
        """Records that waited in the source at the last polls."""
        ...

    @property
    def watermark(self) -> datetime | None: ...
    @property
    def last_commit(self) -> datetime | None: ...
    @property
    def commits(self) -> int: ...
    @property
    def balanced(self) -> bool: ...


@dataclass(frozen=True)
class Counts:
    """The ledger at the launcher's last look; a copy, so that it can be read from any thread."""

    rows_in: int
    accepted: int
    rejected: dict[tuple[str, str], int]
    """By (stage, reason)."""
    late: dict[str, int]
    in_flight: int
    behind: int | None
    """None before the first commit."""
    watermark: float | None
    """Seconds since 1970; so is the next."""
    committed_at: float | None
    commits: int
    balanced: bool

    @classmethod
    def of(cls, totals: Totals) -> "Counts":
        return cls(
            rows_in=totals.rows_in,
            accepted=totals.accepted,
            rejected={
                (stage, reason): n for stage, by in totals.rejected.items() for reason, n in by.items()
            },
            late=dict(totals.late),
            in_flight=totals.in_flight,
            behind=totals.behind if totals.commits else None,
            watermark=None if totals.watermark is None else totals.watermark.timestamp(),
            committed_at=None if totals.last_commit is None else totals.last_commit.timestamp(),
            commits=totals.commits,
            balanced=totals.balanced,
        )

    @property
    def total_rejected(self) -> int:
        return sum(self.rejected.values())


@dataclass(frozen=True)
class Moment:
    """Everything that a metric is computed from."""

    now: float
    """Seconds since 1970."""
    updated: float
    """When the launcher last looked at the job; when it began, before the first look."""
    info: dict[str, str] = field(default_factory=dict)
    counts: Counts | None = None
    rows_per_second: float | None = None
    rejected_ratio: float | None = None
    commit_latency: float | None = None
    commit_interval: float | None = None
    up: bool = False
    ready: bool = False
    restarts: int = 0
    alarms: int = 0

    @property
    def commit_age(self) -> float | None:
        counts = self.counts
        return None if counts is None or counts.committed_at is None else self.now - counts.committed_at

    @property
    def watermark_delay(self) -> float | None:
        counts = self.counts
        return None if counts is None or counts.watermark is None else self.now - counts.watermark

    @property
    def freshness(self) -> float | None:
        """Age of the newest moment up to which the tables are known to hold everything."""
        ages = [self.watermark_delay]
        if self.counts is not None and self.counts.behind == 0:
            ages.append(self.commit_age)
        known = [age for age in ages if age is not None]
        return min(known) if known else None
