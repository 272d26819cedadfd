"""A summary of a quarantine for people."""

import shlex
import textwrap

from headrace.pipelines.quarantine.page import TITLES
from headrace.pipelines.quarantine.summary import Summary, Table

MOST_SHOWN = 12
_TITLES = {
    "by_source": "By source and origin",
    "by_schema": "By schema and stated version",
    "by_app_version": "By app version",
    "by_hour": "By hour of ingest (UTC)",
}


def describe(found: Summary) -> str:
    """Returns the summary as text: totals, patterns, counts."""
    if not found.rows:
        if found.all_rows:
            return f"no row of the {found.all_rows:,} in the quarantine of {found.out} is selected"
        return f"the quarantine of {found.out} is empty{' for that time' if found.selection else ''}"
    picked = f" of {found.all_rows:,}" if found.rows != found.all_rows else ""
    lines = [
        f"{found.rows:,}{picked} rejected rows beside {found.accepted:,} accepted events, "
        f"reached us {found.first:%Y-%m-%d %H:%M} to {found.last:%Y-%m-%d %H:%M} UTC"
    ]
    lines += ["", "Patterns" if found.patterns else "Patterns: none found"]
    for pattern in found.patterns:
        lines += _wrapped(f"{TITLES[pattern.kind]}: {pattern.sentence}", "  ")
        lines.append(f"    --where {quoted(pattern.where)}")
    if found.patterns and found.clock:
        lines += _wrapped(found.clock.basis, "  ")
    lines += ["", "By stage and reason"]
    width = max(len(f"{n:,}") for _, _, n, _ in found.reasons)
    for stage, reason, n, advice in found.reasons:
        lines.append(f"  {n:>{width},}  {stage}: {reason}")
        if advice:
            lines += _wrapped(advice, " " * (width + 6))
    for name, table in found.tables.items():
        lines += ["", _TITLES.get(name, f"By {', '.join(table.columns)}"), *_rows(table)]
    return "\n".join(lines)


def quoted(where: str) -> str:
    """Quotes an expression for the shell, readably where that is possible."""
    return shlex.quote(where) if set(where) & set('"$`\\!') else f'"{where}"'


def _rows(table: Table) -> list[str]:
    cells = [
        (*(value if value is not None else "–" for value in values), f"{n:,}") for values, n in table.rows
    ]
    shown = cells if table.columns[:1] == ("hour",) else cells[:MOST_SHOWN]
    rest = table.others + sum(n for _, n in table.rows[len(shown) :])
    if rest:
        shown = [*shown, ("others", *("" for _ in table.columns[1:]), f"{rest:,}")]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return [
        "  "
        + "  ".join(
            [row[-1].rjust(widths[-1]), *(c.ljust(w) for c, w in zip(row, widths[:-1], strict=False))]
        ).rstrip()
        for row in shown
    ]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        118,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
