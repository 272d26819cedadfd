"""What a run shows while it works: a live line on a terminal, else a plain line every few seconds."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_EVERY_SECONDS = 5.0
LIVE_EVERY_SECONDS = 0.1


class Shown(Protocol):
    """What a :class:`Reporter` can show."""

    @property
    def share(self) -> float | None:
        """Part of the work that is done, 0 to 1; None if it has no end."""
        ...

    def describe(self, *, short: bool = False) -> list[str]: ...

    def later(self, seconds: float) -> Self: ...


@dataclass(frozen=True)
class Progress:
    """A run's state at one moment. ``rows`` and ``rejected`` count finished work and never fall."""

    rows: int
    rejected: int
    bytes_read: int
    bytes_total: int
    """0 if it is not known."""
    elapsed_seconds: float
    phase: str
    """What it is doing, for example ``reading``."""

    @property
    def share(self) -> float | None:
        """Share of the input that is read, 0 to 1; None if the total is not known."""
        return min(1.0, self.bytes_read / self.bytes_total) if self.bytes_total > 0 else None

    @property
    def rows_per_second(self) -> float | None:
        """Rows since the start by time since the start; None before either is known."""
        return self.rows / self.elapsed_seconds if self.elapsed_seconds > 0 and self.rows else None

    @property
    def remaining_seconds(self) -> float | None:
        """Time left to read the input, at the rate so far; None until 2 % are read, and once all is read."""
        share = self.share
        if share is None or not 0.02 <= share < 1:
            return None
        return self.elapsed_seconds * (1 - share) / share

    def describe(self, *, short: bool = False) -> list[str]:
        """Returns the parts of a progress line: phase, share, rows, rate, rejected, times; ``short`` fits into 80 columns."""
        parts = [self.phase]
        if self.share is not None:
            parts.append(f"{self.share:.0%}" + ("" if short else " of input"))
        parts.append(f"{self.rows:,} rows")
        if self.rows_per_second is not None:
            parts.append(f"{self.rows_per_second:,.0f}" + ("/s" if short else " rows/s"))
        parts.append(f"{self.rejected:,} rejected")
        parts.append(clock_time(self.elapsed_seconds) + ("" if short else " elapsed"))
        if self.remaining_seconds is not None:
            left = clock_time(self.remaining_seconds)
            parts.append(f"{left} left" if short else f"about {left} left")
        return parts

    def later(self, seconds: float) -> Self:
        """Returns the same work that much later."""
        return replace(self, elapsed_seconds=self.elapsed_seconds + seconds)


def clock_time(seconds: float) -> str:
    """Returns ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Reporter:
    """Shows progress on a stream; call it with each :class:`Shown`, from any thread.

    Args:
        stream: where to, usually standard error.
        live: redraw one line in place; only for terminals.
        clock: seconds that only grow.
        refresh: redraw on a thread of its own too, so that the time goes on between two reports.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        live: bool,
        clock: Callable[[], float] = time.monotonic,
        refresh: bool = True,
        width: int | None = None,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._last: tuple[float, Shown] | None = None
        self._drawn = -float("inf")
        self._began = clock()
        self._live = (
            Live(
                self,
                console=Console(file=stream, force_terminal=True, width=width),
                auto_refresh=refresh,
                refresh_per_second=4,
                transient=True,
            )
            if live
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, progress: Shown) -> None:
        now = self._clock()
        self._last = (now, progress)
        if self._live is not None:
            if now - self._drawn >= LIVE_EVERY_SECONDS:
                self._drawn = now
                self._live.refresh()
        elif now - max(self._drawn, self._began) >= PLAIN_EVERY_SECONDS:
            self._drawn = now
            print(", ".join(progress.describe()), file=self._stream, flush=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._last is None:
            yield Text("starting …", style="dim")
            return
        seen, progress = self._last
        current = progress.later(max(0.0, self._clock() - seen))
        line = Table.grid(padding=(0, 1))
        cells: list[ProgressBar | Text] = [
            Text(" · ".join(current.describe(short=True)), no_wrap=True, overflow="ellipsis")
        ]
        if current.share is not None:
            cells.insert(0, ProgressBar(total=1.0, completed=current.share, width=10))
        line.add_row(*cells)
        yield line
