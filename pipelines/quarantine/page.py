"""One self-contained HTML page about a quarantine, in the form of ``headrace report``."""

from datetime import datetime
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment

from headrace.connectors.atomic_file import replace_file
from headrace.pipelines.quarantine.groups import REASON
from headrace.pipelines.quarantine.patterns import BURST, CHANGED_TYPE, CONCENTRATED, JUMPED, NEW, Pattern
from headrace.pipelines.quarantine.plots import over_time as pattern_over_time
from headrace.pipelines.quarantine.plots import two_shares
from headrace.pipelines.quarantine.summary import Summary, Table
from headrace.pipelines.report.plots import bars, over_time
from headrace.pipelines.report.report import Section

TITLES = {
    NEW: "New",
    CHANGED_TYPE: "Changed type",
    JUMPED: "Jumped",
    BURST: "Burst",
    CONCENTRATED: "One source",
}
MOST_BARS = 15
_NAMES = {
    "by_source": "By source and origin",
    "by_schema": "By schema and stated version",
    "by_app_version": "By app version",
}


def write_page(found: Summary, page: Path) -> int:
    """Writes the page, whole or not at all; returns its size in bytes. It holds counts and reasons: no event, no user.

    Raises:
        OutputError: it can't be written.
    """
    text = render(found).encode()
    replace_file(page, text)
    return len(text)


def render(found: Summary) -> str:
    """Returns the page."""
    tiles = [(f"{found.rows:,}", "rejected rows")]
    if found.selection:
        tiles.append((f"{found.all_rows:,}", "in the quarantine"))
    tiles += [
        (f"{found.accepted:,}", "accepted events"),
        (f"{len(found.reasons):,}", "reasons"),
        (f"{len(found.patterns):,}", "patterns found"),
    ]
    span = (
        f"Reached us from {found.first:%Y-%m-%d %H:%M} to {found.last:%Y-%m-%d %H:%M} UTC"
        if found.first and found.last
        else "No rows"
    )
    if found.selection:
        span += f"; selected by {found.selection}"
    template = Environment(autoescape=True, trim_blocks=True).from_string(
        (files("headrace.pipelines.report") / "page.html").read_text(encoding="utf-8")
    )
    page: str = template.render(
        title=f"Quarantine of {found.out.name}",
        subtitle=span,
        tiles=tiles,
        rows=[*_patterns(found), *_counts(found)],
        footer=f"Made by headrace quarantine summary from the committed tables. {found.clock.basis if found.clock else ''} "
        "The page works without a network.",
    )
    return page


def _patterns(found: Summary) -> list[list[Section]]:
    if not found.rows:
        return [[Section("Nothing was rejected", "No row is in the quarantine, or none was selected.")]]
    if not found.patterns:
        return [
            [Section("Patterns", "None: no reason is new, jumped, burst, or comes from one source alone.")]
        ]
    return [[_pattern(found, pattern)] for pattern in found.patterns]


def _pattern(found: Summary, pattern: Pattern) -> Section:
    plot = ""
    if pattern.bins is not None and found.clock is not None:
        plot = pattern_over_time(pattern, found.clock)
    elif pattern.shares is not None:
        plot = two_shares(pattern)
    return Section(
        pattern.group.label,
        plot=plot,
        badge=TITLES[pattern.kind],
        good=False,
        text=pattern.sentence,
        head=[("rows behind it, for --where", False)],
        table=[(pattern.where,)],
    )


def _counts(found: Summary) -> list[list[Section]]:
    rows = []
    clock = found.clock
    if clock is not None:
        points: list[tuple[datetime, str, int]] = [
            (clock.time(n), f"{g.stage}: {g.reason}", int(count))
            for g in found.groups
            if g.kind == REASON
            for n, count in enumerate(g.rows)
            if count
        ]
        if points:
            width = clock.width
            rows.append([Section("Rejected rows over time", clock.basis, over_time(points, width, "rows"))])
    if found.reasons:
        reasons: list[tuple[str, float]] = [
            (f"{stage}: {reason}", n) for stage, reason, n, _ in found.reasons
        ]
        about = [(f"{stage}: {reason}", text) for stage, reason, _, text in found.reasons if text]
        rows.append(
            [
                Section("By reason", plot=bars(reasons[:MOST_BARS])),
                Section("What to do", head=[("", False), ("", False)], table=about),
            ]
        )
    tables = [_table(name, table) for name, table in found.tables.items() if name in {*_NAMES, "by"}]
    return rows + [tables[n : n + 2] for n in range(0, len(tables), 2)]


def _table(name: str, table: Table) -> Section:
    shown = [(*(value or "–" for value in values), f"{n:,}") for values, n in table.rows[:MOST_BARS]]
    rest = table.others + sum(n for _, n in table.rows[MOST_BARS:])
    if rest:
        shown.append((*("others" if n == 0 else "" for n in range(len(table.columns))), f"{rest:,}"))
    return Section(
        _NAMES.get(name, f"By {', '.join(table.columns)}"),
        head=[*((column, False) for column in table.columns), ("rows", True)],
        table=shown,
    )
