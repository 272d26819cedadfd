"""Plots of a report as SVG text, for a page that works offline."""

import io
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

COLOURS = ("#2f6fb3", "#e08a2e", "#3d9a63", "#b5475a", "#7a62a8", "#8a8f98", "#c9b037")
INK, FAINT = "#2b2f36", "#d9dde3"
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "headrace",
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Segoe UI", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
}
MOST_SERIES = 6

Points = Sequence[tuple[datetime, str, int]] | Sequence[tuple[datetime, str, Decimal]]
Floats = npt.NDArray[np.float64]


def over_time(points: Sequence[tuple[datetime, str, int]], width: timedelta, label: str) -> str:
    """Plots counts over time as areas on each other: the largest ``MOST_SERIES`` by name, all others as one.

    Args:
        points: start of the bin, name of the series, value; a bin without a value is zero.
        width: of a bin.
    """
    sizes: dict[str, float] = {}
    for _, name, value in points:
        sizes[name] = sizes.get(name, 0.0) + float(value)
    names = sorted(sizes, key=lambda name: (-sizes[name], name))
    rest = set(names[MOST_SERIES:])
    named = [(at, "others" if name in rest else name, value) for at, name, value in points]
    times, series = _series(named, width)
    ordered = {name: series[name] for name in [*names[:MOST_SERIES], *(["others"] if rest else [])]}
    with matplotlib.rc_context(SETTINGS):
        figure, axes = new_figure(9.6, 2.7)
        axes.stackplot(times, list(ordered.values()), labels=list(ordered), colors=COLOURS, linewidth=0)
        axes.set_ylim(bottom=0)
        time_axis(axes, times, width)
        axes.set_ylabel(label)
        if len(ordered) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), frameon=False, fontsize=8.5)
        return svg(figure)


def small_multiples(points: Points, width: timedelta, names: Sequence[str]) -> str:
    """Plots each series over time on axes of its own, since they have different units."""
    times, series = _series(points, width)
    rows = -(-len(names) // 3)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(9.6, 0.3 + 1.55 * rows), layout="constrained")
        for n, name in enumerate(names):
            axes = figure.add_subplot(rows, 3, n + 1)
            _bare(axes)
            axes.axhline(0, color=FAINT, linewidth=1)
            axes.plot(times, series[name], color=COLOURS[0], linewidth=1.3)
            axes.fill_between(times, series[name], color=COLOURS[0], alpha=0.15, linewidth=0)
            axes.set_title(name, fontsize=9, loc="left")
            time_axis(axes, times, width, ticks=4)
        return svg(figure)


def _series(points: Points, width: timedelta) -> tuple[Floats, dict[str, Floats]]:
    """Returns the starts of all bins as matplotlib's dates, and by name the sum of each."""
    first, last = min(p[0] for p in points), max(p[0] for p in points)
    count = (last - first) // width + 1
    series: dict[str, Floats] = {}
    for at, name, value in points:
        series.setdefault(name, np.zeros(count))[(at - first) // width] += float(value)
    return np.array([date2num(first + width * n) for n in range(count)]), series


def time_axis(axes: Axes, times: Floats, width: timedelta, ticks: int = 9) -> None:
    first, last = float(times[0]), float(times[-1])
    axes.set_xlim(first, last if last > first else first + width / timedelta(days=1))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(5 if ticks > 5 else 3))
    locator = AutoDateLocator(maxticks=ticks)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))


def bars(
    rows: Sequence[tuple[str, float]], *, percent: bool = False, notes: Sequence[str] = (), wide: bool = False
) -> str:
    """Plots one horizontal bar a row, the first on top, with its value.

    Args:
        percent: values are parts of one.
        notes: written after the value of each row.
        wide: over the whole page, else over half of it.
    """
    names = [_short(name) for name, _ in rows]
    values = [float(value) for _, value in rows]
    with matplotlib.rc_context(SETTINGS):
        figure, axes = new_figure(9.6 if wide else 4.7, 0.55 + 0.27 * len(rows))
        at = np.arange(len(rows))[::-1]
        axes.barh(at, values, color=COLOURS[0], height=0.66)
        axes.set_yticks(at, names)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        most = max([*values, 1e-9])
        axes.set_xlim(0, most * (1.32 if notes else 1.16))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0) if percent else EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=not percent))
        for n, (y, value) in enumerate(zip(at, values, strict=True)):
            text = f"{value:.1%}" if percent else f"{value:,.0f}"
            more = f" · {notes[n]}" if notes else ""
            axes.text(value + most * 0.012, y, text + more, va="center", fontsize=8.5)
        return svg(figure)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    _bare(axes)
    return figure, axes


def _bare(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def svg(figure: Figure) -> str:
    """Returns the picture as an element for a page: without its head, scaled to the width it is given."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace("<svg ", '<svg role="img" ', 1)


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
