"""Plots of patterns: rejected rows over time with the finding marked, or who has which share."""

from datetime import timedelta

import matplotlib
import numpy as np
from matplotlib.dates import date2num
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from headrace.pipelines.quarantine.clock import Clock
from headrace.pipelines.quarantine.patterns import Pattern
from headrace.pipelines.report.plots import COLOURS, FAINT, INK, SETTINGS, new_figure, svg, time_axis

MOST_BARS = 72
_QUIET = "#b9c0ca"
_LOUD = COLOURS[3]


def over_time(pattern: Pattern, clock: Clock) -> str:
    """Plots the rows of a pattern's group by time: the finding's red, others grey; a line says what share of events they are."""
    assert pattern.bins is not None
    rows, events = pattern.group.rows, pattern.group.events
    together = -(-len(rows) // MOST_BARS)
    count = -(-len(rows) // together)
    inside = np.zeros(len(rows), bool)
    inside[pattern.bins[0] : pattern.bins[1] + 1] = True
    loud, quiet, among = (_summed(a, together, count) for a in (rows * inside, rows * ~inside, events))
    width = clock.width * together
    # The middle of each bin, so that a bar covers its bin.
    times = np.array([date2num(clock.time(0) + width * n) for n in range(count + 1)])
    step = width / timedelta(days=1)
    with matplotlib.rc_context(SETTINGS):
        figure, axes = new_figure(9.6, 2.3)
        axes.bar(times[:-1] + step / 2, quiet, width=step * 0.86, color=_QUIET, linewidth=0, label="rows")
        axes.bar(
            times[:-1] + step / 2,
            loud,
            bottom=quiet,
            width=step * 0.86,
            color=_LOUD,
            linewidth=0,
            label="rows of the finding",
        )
        axes.set_ylabel(f"rows per {_length(width)}")
        time_axis(axes, times, width)
        axes.set_ylim(0, max(float((loud + quiet).max()), 1) * 1.12)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        shares = axes.twinx()
        for side in ("top", "right", "left", "bottom"):
            shares.spines[side].set_visible(False)
        shares.grid(visible=False)
        share = np.where(among > 0, (loud + quiet) / np.maximum(among, 1), np.nan)
        shares.step(
            times, np.append(share, share[-1]), where="post", color=INK, linewidth=1, label="share of events"
        )
        shares.set_ylim(0, max(float(np.nanmax(share)), 1e-6) * 1.12)
        shares.yaxis.set_major_locator(MaxNLocator(4))
        shares.yaxis.set_major_formatter(FuncFormatter(lambda part, _: f"{part * 100:.3g} %"))
        shares.set_ylabel("share of events")
        bars, names = axes.get_legend_handles_labels()
        lines, more = shares.get_legend_handles_labels()
        axes.legend(
            bars + lines,
            names + more,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=3,
            frameon=False,
            fontsize=8.5,
        )
        return svg(figure)


def two_shares(pattern: Pattern) -> str:
    """Plots a value's part of the rejected rows over its part of the accepted events."""
    assert pattern.shares is not None
    with matplotlib.rc_context(SETTINGS):
        figure, axes = new_figure(9.6, 1.25)
        for y, part, colour in ((1, pattern.shares[0], _LOUD), (0, pattern.shares[1], COLOURS[0])):
            axes.barh(y, 1, color=FAINT, height=0.6, linewidth=0)
            axes.barh(y, part, color=colour, height=0.6, linewidth=0)
            axes.text(1.01, y, f"{part:.1%}", va="center", fontsize=9)
        axes.set_yticks([1, 0], ["of these rows", "of accepted events"])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False)
        axes.set_xlim(0, 1.08)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.spines["bottom"].set_visible(False)
        return svg(figure)


def _summed(array: np.ndarray, together: int, count: int) -> np.ndarray:
    padded = np.zeros(together * count)
    padded[: len(array)] = array
    return padded.reshape(count, together).sum(axis=1)


def _length(width: timedelta) -> str:
    seconds = int(width.total_seconds())
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds % size == 0:
            return f"{seconds // size} {name}"
    return f"{seconds} s"
