"""What a run shows when it is done: for people, and as JSON."""

import math
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from headrace.connectors.ledger import Ledger

DAY_SECONDS = 86_400
STAGES = ("decode", "validate", "time", "mask", "dedupe", "rules", "filter")
"""Order in which stages are shown; others follow."""
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
    """Counts beside the rows, such as failed lookups, by ``stage.name``."""
    top_event_types: list[tuple[str, int]] = field(default_factory=list)
    revenue: list[tuple[str, Decimal]] = field(default_factory=list)
    """By currency."""
    warnings: list[str] = field(default_factory=list)

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

    tables = {"quarantine": result.ledger.total_rejected, "events": result.ledger.accepted}
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
    ledger = result.ledger
    if result.already_done:
        _line(console, f"[bold]Nothing to do:[/] {escape(str(result.output))} holds this run already")
    else:
        rate = f", {result.rows_per_second:,.0f} rows/s" if result.rows_per_second is not None else ""
        _line(console, f"[bold]Done[/] in {result.elapsed_seconds:,.1f} s{rate}")
    shares = [("rows in", ledger.rows_in), ("accepted", ledger.accepted), ("rejected", ledger.total_rejected)]
    _rows(console, [(name, _Right(f"{n:,}"), _Right(_share(n, ledger.rows_in))) for name, n in shares])
    if ledger.balanced:
        total = f"{ledger.rows_in:,} = {ledger.accepted:,} + {ledger.total_rejected:,}"
        _line(console, f"  ledger     [green]balanced[/]: {total}")
    else:
        _line(console, f"  ledger     [bold red]NOT balanced[/]: {escape(ledger.explain_imbalance())}")
    sections: list[tuple[str, list[tuple[str, ...]]]] = [
        (
            "Rejected, by stage and reason",
            [
                (stage, reason, _Right(f"{n:,}"))
                for stage, reasons in sorted(ledger.rejected.items(), key=lambda item: _stage_rank(item[0]))
                for reason, n in sorted(reasons.items(), key=lambda item: -item[1])
                if n
            ],
        ),
        ("Top event types", [(name, _Right(f"{n:,}")) for name, n in result.top_event_types]),
        ("Revenue", [(currency, _Right(f"{amount:,.2f}")) for currency, amount in result.revenue]),
        (
            "Counted on the way",
            [
                (*name.replace("_", " ").split(".", 1), _Right(f"{n:,}"))
                for name, n in result.counts.items()
                if n
            ],
        ),
        ("Outputs", _outputs(result.output)),
    ]
    for title, rows in sections:
        if rows:
            _line(console, f"\n[bold]{title}[/]")
            _rows(console, rows)
    for text in [*result.warnings, *notes(result, hints)]:
        _line(console, f"\n[yellow]note:[/] {escape(text)}")
    commands = next_commands(result, hints)
    if commands:
        _line(console, "\n[bold]Next[/]")
        _rows(console, [(command,) for command in commands])


def next_commands(result: BatchResult, hints: Hints) -> list[str]:
    """Returns commands to try, ready to be copied into a shell."""
    output = str(result.output)
    commands = []
    if hints.record is not None:
        commands.append(
            f"{_program('headrace')} explain {shlex.quote(hints.record)} --output {shlex.quote(output)}"
        )
    if result.ledger.accepted:
        events = str(result.output / "events")
        delta = (result.output / "events" / "_delta_log").is_dir()
        table = (
            f"deltalake.DeltaTable({events!r}).to_pyarrow_table()"
            if delta
            else f"pyarrow.dataset.dataset({events!r}, partitioning='hive').to_table()"
        )
        made = f"import duckdb, deltalake, pyarrow.dataset; events = {table}"
        query = "FROM events SELECT event_type, count(*) AS events GROUP BY ALL ORDER BY 2 DESC"
        commands.append(f"{_program('python')} -c {_quoted(f'{made}; duckdb.sql({query!r}).show()')}")
    return commands


def _program(name: str) -> str:
    """Returns how the shell finds a program of this Python environment: by name, or by path if it is not in PATH."""
    here = Path(sys.executable).parent / name
    found = shutil.which(name)
    if found is not None and Path(found) == here:
        return name
    path = here if here.exists() else Path(sys.executable if name == "python" else name)
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def _quoted(code: str) -> str:
    """Quotes for the shell, readably where that is possible."""
    return shlex.quote(code) if set(code) & set('"$`\\!') else f'"{code}"'


def _outputs(output: Path) -> list[tuple[str, ...]]:
    about = {
        "events": "the lake",
        "quarantine": "rejected rows, with stage and reason",
        "metrics": "a table for each metric",
        "ledger.json": "how many rows went where",
        "manifest.json": "what it was made from",
    }
    return [(str(output / name), text) for name, text in about.items() if (output / name).exists()]


def _stage_rank(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def _stale(result: BatchResult) -> int:
    return sum(reasons.get(STALE, 0) for reasons in result.ledger.rejected.values())


def _mostly_stale(result: BatchResult) -> bool:
    return _stale(result) * 2 > result.ledger.rows_in


class _Right(str):
    """A cell that is aligned to the right."""


def _rows(console: Console, rows: list[tuple[str, ...]]) -> None:
    """Prints aligned columns. Unlike rich's tables it never cuts a cell: paths and commands must stay whole."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if isinstance(cell, _Right) else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        console.print(("  " + "   ".join(cells)).rstrip(), soft_wrap=True, markup=False, highlight=False)


def _line(console: Console, markup: str) -> None:
    console.print(markup, soft_wrap=True, highlight=False)


def _share(part: int, whole: int) -> str:
    """Never says 100 % or 0 % of what is not all or nothing."""
    if not whole:
        return ""
    text = f"{part / whole:.1%}"
    if text == "100.0%" and part < whole:
        return ">99.9%"
    return "<0.1%" if text == "0.0%" and part else text


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
