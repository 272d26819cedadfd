"""What a run shows when it is done: for people, and as JSON."""

import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

if TYPE_CHECKING:
    from headrace.connectors.ledger import Ledger

DAY_SECONDS = 86_400
STALE = "stale"
"""Reason code of rows that are older than the reference time allows."""


@dataclass(frozen=True)
class BatchResult:
    """What a batch run did."""

    ledger: "Ledger"
    output: Path
    now: datetime
    """The reference time that was used."""
    now_given: bool
    """True if the user gave it; false if it is the start of the first run."""
    elapsed_seconds: float
    already_done: bool
    """True if the output was complete already and nothing had to be done."""
    counts: dict[str, int] = field(default_factory=dict)
    """Counts beside the rows, such as failed lookups."""
    top_event_types: list[tuple[str, int]] = field(default_factory=list)
    revenue: list[tuple[str, Decimal]] = field(default_factory=list)
    """By currency."""
    warnings: list[str] = field(default_factory=list)

    @property
    def rejected(self) -> int:
        """Rows rejected in all stages."""
        return self.ledger.total_rejected

    @property
    def rows_per_second(self) -> float | None:
        """None if the run did nothing."""
        if self.already_done or self.elapsed_seconds <= 0:
            return None
        return self.ledger.rows_in / self.elapsed_seconds


@dataclass(frozen=True)
class Hints:
    """Facts read back from the output, for the commands that the summary proposes."""

    record: str | None = None
    """``ORIGIN:LINE`` of one record, a rejected one if there is any."""
    stale_times: tuple[datetime, datetime] | None = None
    """Earliest and latest event time of the stale rows."""


def read_hints(result: BatchResult) -> Hints:
    """Looks into the output's committed files for a record to explain and, if most rows are stale, for their times."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    from headrace.connectors.delta_commit import committed_files

    tables = {"quarantine": result.rejected, "events": result.ledger.accepted}
    files = {
        name: [str(result.output / name / path) for path in committed_files(result.output / name)]
        for name, rows in tables.items()
        if rows
    }
    record = None
    for paths in files.values():
        first = ds.dataset(paths, format="parquet").head(1, columns=["origin", "origin_position"]).to_pylist()
        if first:
            record = f"{first[0]['origin']}:{first[0]['origin_position']}"
            break
    times = None
    if _mostly_stale(result):
        stale = ds.field("reason").cast(pa.string()) == STALE
        column = ds.dataset(files["quarantine"], format="parquet").to_table(
            columns=["event_time"], filter=stale
        )
        ends = pc.min_max(column["event_time"]).as_py()
        times = (ends["min"], ends["max"]) if ends["max"] is not None else None
    return Hints(record, times)


def as_json(result: BatchResult, hints: Hints) -> dict[str, Any]:
    """Returns the summary as plain JSON values; money is text, times are ISO 8601."""
    return {
        "rows_in": result.ledger.rows_in,
        "accepted": result.ledger.accepted,
        "rejected": result.ledger.rejected,
        "balanced": result.ledger.balanced,
        "output": str(result.output),
        "now": _iso(result.now),
        "now_given": result.now_given,
        "already_done": result.already_done,
        "elapsed_seconds": round(result.elapsed_seconds, 3),
        "rows_per_second": None if result.rows_per_second is None else round(result.rows_per_second),
        "counts": result.counts,
        "top_event_types": [{"event_type": name, "events": count} for name, count in result.top_event_types],
        "revenue": [{"currency": currency, "amount": f"{amount:f}"} for currency, amount in result.revenue],
        "warnings": [*result.warnings, *notes(result, hints)],
    }


def notes(result: BatchResult, hints: Hints) -> list[str]:
    """Returns what the user should know about this result and do about it."""
    found = []
    if _mostly_stale(result):
        against = "--now" if result.now_given else "the start of the first run, as --now was not given"
        found.append(
            f"{_stale(result):,} of {result.ledger.rows_in:,} rows are stale against {_iso(result.now)} ({against}). "
            f"If the input is an archive, run again into another output with {_archive_options(hints)}"
        )
    if not result.ledger.rows_in:
        found.append("the input holds no rows")
    return found


def _archive_options(hints: Hints) -> str:
    if hints.stale_times is None:
        return "--now END_OF_THE_DATA"
    first, last = hints.stale_times
    end = last.replace(microsecond=0) + timedelta(seconds=1 if last.microsecond else 0)
    span = math.ceil((end - first).total_seconds())
    wider = f" --max-age-seconds {span}" if span > DAY_SECONDS else ""
    return f"--now {_iso(end)}{wider}"


def print_summary(result: BatchResult, console: Console, hints: Hints) -> None:
    """Prints the summary; works on a terminal and into a file."""
    rows_in, accepted, rejected = result.ledger.rows_in, result.ledger.accepted, result.rejected
    rate = f"{result.rows_per_second:,.0f} rows/s" if result.rows_per_second is not None else ""
    if result.already_done:
        console.print(f"[bold]Nothing to do:[/] {escape(str(result.output))} holds this run already")
    else:
        console.print(f"[bold]Done[/] in {result.elapsed_seconds:,.1f} s")

    rows = _grid(("left", "right", "right", "left"))
    rows.add_row("rows in", f"{rows_in:,}", "", rate)
    rows.add_row("accepted", f"{accepted:,}", _share(accepted, rows_in), "")
    rows.add_row("rejected", f"{rejected:,}", _share(rejected, rows_in), "")
    _section(console, rows)
    if result.ledger.balanced:
        console.print(
            f"  ledger [green]balanced[/]: {rows_in:,} in = {accepted:,} accepted + {rejected:,} rejected"
        )
    else:
        console.print(f"  ledger [bold red]NOT balanced[/]: {escape(result.ledger.explain_imbalance())}")

    _table(
        console,
        "Rejected",
        ("left", "left", "right"),
        (
            (stage, reason, f"{count:,}")
            for stage, reasons in result.ledger.rejected.items()
            for reason, count in sorted(reasons.items(), key=lambda item: -item[1])
        ),
    )
    _table(
        console,
        "Top event types",
        ("left", "right"),
        ((name, f"{n:,}") for name, n in result.top_event_types),
    )
    _table(
        console,
        "Revenue",
        ("left", "right"),
        ((currency, _money(amount)) for currency, amount in result.revenue),
    )
    _table(
        console,
        "Counted on the way",
        ("left", "right"),
        ((name.replace("_", " "), f"{n:,}") for name, n in result.counts.items() if n),
    )
    _table(console, "Outputs", ("left", "left"), _outputs(result.output))
    for text in [*result.warnings, *notes(result, hints)]:
        console.print(f"\n[yellow]note:[/] {escape(text)}", soft_wrap=True, highlight=False)
    console.print("\n[bold]Next[/]")
    for command in next_commands(result, hints):
        console.print(f"  {command}", soft_wrap=True, markup=False, highlight=False)


def next_commands(result: BatchResult, hints: Hints) -> list[str]:
    """Returns commands to try, ready to be copied into a shell."""
    output = str(result.output)
    commands = []
    if hints.record is not None:
        commands.append(f"headrace explain {shlex.quote(hints.record)} --output {shlex.quote(output)}")
    if result.ledger.accepted:
        events = str(result.output / "events")
        source = (
            f"deltalake.DeltaTable({events!r}).to_pyarrow_dataset()"
            if (result.output / "events" / "_delta_log").is_dir()
            else f"pyarrow.dataset.dataset({events!r}, partitioning='hive')"
        )
        query = "SELECT event_type, count(*) AS events FROM events GROUP BY ALL ORDER BY events DESC"
        code = f"import deltalake, duckdb, pyarrow.dataset; events = {source}; duckdb.sql({query!r}).show()"
        commands.append(f"python -c {shlex.quote(code)}")
    return commands


def _outputs(output: Path) -> list[tuple[str, str]]:
    about = {
        "events": "the lake",
        "quarantine": "rejected rows, with stage and reason",
        "metrics": "one table a metric",
        "ledger.json": "what went where",
        "manifest.json": "what was run",
    }
    return [(text, str(output / name)) for name, text in about.items() if (output / name).exists()]


def _stale(result: BatchResult) -> int:
    return sum(reasons.get(STALE, 0) for reasons in result.ledger.rejected.values())


def _mostly_stale(result: BatchResult) -> bool:
    return _stale(result) * 2 > result.ledger.rows_in


def _grid(justify: tuple[str, ...]) -> Table:
    table = Table.grid(padding=(0, 3))
    for side in justify:
        table.add_column(justify="right" if side == "right" else "left", no_wrap=True)
    return table


def _section(console: Console, table: Table) -> None:
    console.print(Padding(table, (0, 0, 0, 2)), soft_wrap=True)


def _table(console: Console, title: str, justify: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    table = _grid(justify)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    if table.row_count:
        console.print(f"\n[bold]{title}[/]")
        _section(console, table)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _money(amount: Decimal) -> str:
    return f"{amount:,.2f}"


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
