"""What a stream shows while it runs."""

from dataclasses import dataclass, replace
from typing import Self

from headrace.pipelines.progress import clock_time


@dataclass(frozen=True)
class StreamProgress:
    """A stream at one moment; the counts are those of the committed ledger."""

    rows: int
    accepted: int
    rejected: int
    rows_per_second: float | None
    """Over the last seconds; None before two commits."""
    behind: int | None
    """Records that wait in the source; None if not known."""
    watermark_delay_seconds: float | None
    """How far the event-time watermark is behind the clock; None before it is known."""
    committed_seconds: float | None
    """Age of the last commit; None before the first."""
    elapsed_seconds: float
    phase: str
    """``starting``, ``running``, ``draining``, ``restarting``."""

    @property
    def share(self) -> None:
        """A stream has no end."""
        return None

    def describe(self, *, short: bool = False) -> list[str]:
        """Returns the parts of a progress line; ``short`` fits into 100 columns."""
        parts = [self.phase, f"{self.rows:,} rows"]
        if self.rows_per_second is not None:
            parts.append(f"{self.rows_per_second:,.0f}" + ("/s" if short else " rows/s"))
        parts.append(f"{self.rejected:,} rejected")
        if self.behind is not None:
            parts.append(f"lag {self.behind:,}")
        if self.watermark_delay_seconds is not None:
            delay = clock_time(max(0.0, self.watermark_delay_seconds))
            parts.append(f"delay {delay}" if short else f"watermark -{delay}")
        if self.committed_seconds is not None:
            ago = f"{self.committed_seconds:.0f} s"
            parts.append(f"commit {ago}" if short else f"last commit {ago} ago")
        parts.append(clock_time(self.elapsed_seconds) + ("" if short else " elapsed"))
        return parts

    def later(self, seconds: float) -> Self:
        """Returns the same stream that much later."""
        age = None if self.committed_seconds is None else self.committed_seconds + seconds
        return replace(self, elapsed_seconds=self.elapsed_seconds + seconds, committed_seconds=age)
