"""One self-contained HTML page about an output: traffic, revenue, funnel, sessions, geography, quality, ledger."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

from jinja2 import Environment

from headrace.connectors.ledger import Ledger
from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.pipelines.report.lake_figures import DURATIONS, LakeFigures, lake_figures
from headrace.pipelines.report.plots import bars, over_time, small_multiples
from headrace.schemas.errors import ConfigError

MOST_BARS = 15
MOST_CURRENCIES = 6


@dataclass
class Section:
    """One box of the page."""

    title: str
    note: str = ""
    plot: str = ""
    head: list[tuple[str, bool]] = field(default_factory=list)
    """Column, and whether it holds numbers."""
    table: Sequence[tuple[str, ...]] = ()
    badge: str = ""
    good: bool = True
    text: str = ""


@dataclass(frozen=True)
class Quality:
    """What the ledger says."""

    rows_in: int
    accepted: int
    rejected: Mapping[str, Mapping[str, int]]
    in_flight: int
    balanced: bool
    late: Mapping[str, int]
    kind: str
    """batch or stream."""


def write_report(out: Path, page: Path) -> int:
    """Writes the page; returns its size in bytes. It holds nothing but sums and names of groups: no event, no user.

    Raises:
        ConfigError: ``out`` is no output of a run.
    """
    text = render(out, lake_figures(out), quality_of(out))
    page.write_text(text, encoding="utf-8")
    return len(text.encode())


def quality_of(out: Path) -> Quality:
    """Reads the ledger of a batch or a stream.

    Raises:
        ConfigError: there is none.
    """
    if (out / "ledger.json").exists():
        ledger = Ledger.load(out / "ledger.json")
        return Quality(ledger.rows_in, ledger.accepted, ledger.rejected, 0, ledger.balanced, {}, "batch")
    if (out / "ledger").is_dir():
        totals = read_stream_ledger(out, positions=False)
        return Quality(
            totals.rows_in,
            totals.accepted,
            totals.rejected,
            totals.in_flight,
            totals.balanced,
            totals.late,
            "stream",
        )
    raise ConfigError(f"{out} has no ledger; name the --output of a finished batch or of a stream")


def render(out: Path, lake: LakeFigures, quality: Quality) -> str:
    """Returns the page."""
    rejected = sum(sum(reasons.values()) for reasons in quality.rejected.values())
    tiles = [
        (f"{lake.events:,}", "events in the lake"),
        (f"{lake.users:,}", "users"),
        (f"{lake.sessions:,}", "sessions (30 min gap)"),
        *[(_compact(total), f"revenue in {currency}") for currency, total, _ in lake.currencies[:2]],
        (f"{rejected / quality.rows_in:.2%}" if quality.rows_in else "–", "of the records rejected"),
    ]
    period = (
        f"{lake.first:%Y-%m-%d %H:%M} to {lake.last:%Y-%m-%d %H:%M} UTC"
        if lake.first and lake.last
        else "no events"
    )
    template = Environment(autoescape=True, trim_blocks=True).from_string(
        (files("headrace.pipelines.report") / "page.html").read_text(encoding="utf-8")
    )
    page: str = template.render(
        title=f"Events in {out.name}",
        subtitle=f"{period}, a {quality.kind}'s output",
        tiles=tiles,
        rows=[
            *_traffic(lake),
            *_money_and_funnel(lake),
            *_sessions(lake),
            *_rankings(lake),
            _quality(lake, quality, rejected),
        ],
        footer="Made by headrace report from the committed tables; times in UTC. The page works without a network.",
    )
    return page


def _traffic(lake: LakeFigures) -> list[list[Section]]:
    if not lake.traffic:
        return []
    every = _duration(lake.bin)
    users: list[tuple[datetime, str, int]] = [(at, "users", count) for at, count in lake.users_by_bin]
    return [
        [
            Section(
                f"Traffic: events per {every}, by type",
                plot=over_time(lake.traffic, lake.bin, "events"),
            )
        ],
        [
            Section(
                f"Active users per {every}",
                plot=over_time(users, lake.bin, "users"),
            )
        ],
    ]


def _money_and_funnel(lake: LakeFigures) -> list[list[Section]]:
    rows = []
    if lake.revenue:
        names = [name for name, _, _ in lake.currencies[:MOST_CURRENCIES]]
        more = ", ".join(f"{name} {_compact(total)}" for name, total, _ in lake.currencies[MOST_CURRENCIES:])
        note = "Purchases less refunds, in the currencies with most of them." + (
            f" Others in all: {more}." if more else ""
        )
        plot = small_multiples(lake.revenue, lake.bin, names)
        rows.append([Section(f"Revenue per {_duration(lake.bin)}, by currency", note, plot)])
    if lake.funnel:
        steps = [(step["name"], step["users"]) for step in lake.funnel]
        notes = [
            f"{step['conversion'] or 0:.0%}"
            + (
                f", {_seconds(step['median_seconds'])} after the last"
                if step["median_seconds"] is not None
                else ""
            )
            for step in lake.funnel
        ]
        note = "Users who took the steps in this order within a day of the first; part of those who entered, median time."
        rows.append([Section("Funnel", note, bars(steps, notes=notes, wide=True))])
    return rows


def _sessions(lake: LakeFigures) -> list[list[Section]]:
    if not lake.sessions:
        return []
    classes = [
        f"{_seconds(low)} to {_seconds(high)}" if math.isfinite(high) else f"{_seconds(low)} and more"
        for low, high in pairwise(DURATIONS)
    ]
    median = _seconds(lake.duration_seconds or 0)
    note = f"Median {median}; {lake.bounces / lake.sessions:.1%} are bounces (one page view, no purchase)."
    channels = [(name, count) for name, count, _ in lake.channels[:MOST_BARS]]
    bought = [f"{buys / count:.1%} buy" for _, count, buys in lake.channels[:MOST_BARS]]
    return [
        [
            Section("Sessions by duration", note, bars(list(zip(classes, lake.durations, strict=True)))),
            Section("Sessions by channel", "By the first event with a source.", bars(channels, notes=bought)),
        ]
    ]


def _rankings(lake: LakeFigures) -> list[list[Section]]:
    rows = []
    if lake.countries:
        top = lake.countries[:MOST_BARS]
        more = len(lake.countries) - len(top)
        note = f"The largest; {more} more." if more else ""
        rows.append(
            [
                Section(
                    "Geography: events by country",
                    note,
                    bars([(name, count) for name, count, _ in top]),
                ),
                Section("Devices", "Events.", bars(list(lake.devices[:MOST_BARS]))),
            ]
        )
    if lake.products or lake.categories:
        head = [("", False), ("events", True), ("purchases", True)]
        rows.append(
            [
                Section(title, head=head, table=[(name, f"{n:,}", f"{p:,}") for name, n, p in found])
                for title, found in (("Top products", lake.products), ("Top categories", lake.categories))
            ]
        )
    return rows


def _quality(lake: LakeFigures, quality: Quality, rejected: int) -> list[Section]:
    reasons = sorted(
        (
            (f"{stage}: {reason}", count)
            for stage, of in quality.rejected.items()
            for reason, count in of.items()
        ),
        key=lambda row: (-row[1], row[0]),
    )
    delay = ""
    if lake.delay_seconds is not None:
        delay = (
            f"Between event and ingest: {_seconds(lake.delay_seconds[0])} in the median, "
            f"{_seconds(lake.delay_seconds[1])} for 95 of 100."
        )
    flight = f" + {quality.in_flight:,} in flight" if quality.in_flight else ""
    table = [("records read", f"{quality.rows_in:,}"), ("accepted", f"{quality.accepted:,}")]
    table += [("rejected", f"{rejected:,}")]
    table += [("in flight", f"{quality.in_flight:,}")] if quality.kind == "stream" else []
    table += [
        (f"late for {name} (in the lake)", f"{count:,}") for name, count in sorted(quality.late.items())
    ]
    return [
        Section(
            "Quality: why records were rejected",
            delay or "Nothing was rejected.",
            bars(reasons[:MOST_BARS]) if reasons else "",
        ),
        Section(
            "Ledger",
            badge="balanced" if quality.balanced else "does not balance",
            good=quality.balanced,
            text=f"{quality.rows_in:,} read = {quality.accepted:,} accepted + {rejected:,} rejected{flight}",
            head=[("", False), ("records", True)],
            table=table,
        ),
    ]


def _duration(width: timedelta) -> str:
    names = ((86_400, "day"), (3600, "hour"), (60, "minute"))
    seconds = int(width.total_seconds())
    for size, name in names:
        if seconds % size == 0:
            count = seconds // size
            return name if count == 1 else f"{count} {name}s"
    return f"{seconds} s"


def _compact(amount: Decimal) -> str:
    for size, least, name in ((10**9, 10**9, "bn"), (10**6, 10**6, "M"), (10**3, 10**5, "k")):
        if abs(amount) >= least:
            return f"{amount / size:,.2f} {name}"
    return f"{amount:,.2f}"


def _seconds(seconds: float) -> str:
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f}".rstrip("0").rstrip(".") + f" {name}"
    return f"{seconds:.0f} s"
