"""What lies in a quarantine: counts by several columns, and the patterns in it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from headrace.connectors.read_quarantine import ROW_SCHEMA, Quarantine, all_of, open_quarantine
from headrace.pipelines.quarantine.advice import advice
from headrace.pipelines.quarantine.clock import Clock, make_clock
from headrace.pipelines.quarantine.database import fetch, one, open_database
from headrace.pipelines.quarantine.documents import Unsealer
from headrace.pipelines.quarantine.groups import Group, read_groups
from headrace.pipelines.quarantine.nearest import nearest
from headrace.pipelines.quarantine.patterns import Pattern, find_patterns
from headrace.schemas.errors import ConfigError
from headrace.transforms.pii_patterns import PatternScanner
from headrace.transforms.rejects import UNMASKED

HIDDEN = (*UNMASKED, "session_id", "document")
"""Columns that are never shown or counted by: they hold persons' data, masked or sealed."""
HOUR = "hour"
"""Counted by like a column: the hour of ingest_time."""
MOST_ROWS = 1000
"""Of one table of counts; the rest is summed up."""

_TABLES: dict[str, tuple[str, ...]] = {
    "by_source": ("source", "origin"),
    "by_schema": ("schema", "schema_version"),
    "by_app_version": ("app_version",),
    "by_hour": (HOUR,),
}


@dataclass
class Table:
    """Rows by some columns; most rows first, by hour in order."""

    columns: tuple[str, ...]
    rows: list[tuple[tuple[str | None, ...], int]] = field(default_factory=list)
    others: int = 0
    """Rows of the groups that are left out."""


@dataclass
class Summary:
    """Counts and patterns of the selected rows."""

    out: Path
    version: int | None
    selection: str | None
    rows: int = 0
    all_rows: int = 0
    """In the quarantine, selected or not."""
    accepted: int = 0
    """Events in the lake; of the time between ``--since`` and ``--until``."""
    first: datetime | None = None
    """Ingest time of the first selected row."""
    last: datetime | None = None
    reasons: list[tuple[str, str, int, str | None]] = field(default_factory=list)
    """Stage, reason, rows, advice."""
    tables: dict[str, Table] = field(default_factory=dict)
    patterns: list[Pattern] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    """What patterns were looked for in."""
    clock: Clock | None = None


def summarise(
    out: Path,
    *,
    where: str | None = None,
    since: str | None = None,
    until: str | None = None,
    by: Sequence[str] = (),
    unsealer: Unsealer | None = None,
) -> Summary:
    """Counts the selected rows of an output's quarantine and looks for patterns in them.

    Deterministic; the rows stay in DuckDB, what comes here are counts.

    Args:
        where: see ``headrace.connectors.read_quarantine.compile_where``.
        since, until: bounds of ``ingest_time``, ISO 8601.
        by: columns of one table in place of the usual ones; ``hour`` is the hour of ``ingest_time``.
        unsealer: reads versions, sources and devices of rows that were rejected before they were read, from their documents.

    Raises:
        ConfigError: no output, a wrong expression or time, an unknown or a hidden column.
        UntrustedRunError: a committed file is missing or damaged.
    """
    selection, span = all_of(where, since, until), all_of(None, since, until)
    _check_columns(by)
    quarantine: Quarantine = open_quarantine(out)
    found = Summary(out, quarantine.version, selection)
    with open_database(quarantine, where, span=span, unsealer=unsealer) as db:
        found.all_rows, found.accepted = one(
            db, "SELECT (SELECT count(*) FROM stored), (SELECT count(*) FROM events)"
        )
        found.rows, low, high = one(
            db, "SELECT count(*), epoch_us(min(ingest_time)), epoch_us(max(ingest_time)) FROM picked"
        )
        if not found.rows:
            return found
        found.first, found.last = (datetime.fromtimestamp(t / 1e6, UTC) for t in (low, high))
        found.reasons = [
            (stage, reason, n, advice(stage, reason))
            for stage, reason, n in fetch(
                db, "SELECT stage, reason, count(*) FROM picked GROUP BY ALL ORDER BY 3 DESC, 1, 2"
            )
        ]
        tables = {"by": tuple(by)} if by else _TABLES
        found.tables = {name: _counted(db, columns) for name, columns in tables.items()}
        found.clock = make_clock(db)
        found.groups = read_groups(db, found.clock)
        found.patterns = find_patterns(
            db, found.groups, found.clock, selection=selection, accepted=found.accepted
        )
    return found


def shown_columns() -> list[str]:
    """Returns the columns that may be shown and counted by."""
    return [name for name in ROW_SCHEMA.names if name not in HIDDEN]


def _check_columns(by: Sequence[str]) -> None:
    for name in by:
        if name in HIDDEN:
            raise ConfigError(
                f"--by {name}: the column holds persons' data, masked or sealed, and is not counted by; use another"
            )
        if name != HOUR and name not in ROW_SCHEMA.names:
            raise ConfigError(
                f"--by {name}: the quarantine has no such column; {nearest(name, [*shown_columns(), HOUR])}"
            )


def _counted(db: duckdb.DuckDBPyConnection, columns: Sequence[str]) -> Table:
    hour = "strftime(time_bucket(INTERVAL 1 hour, ingest_time) AT TIME ZONE 'UTC', '%Y-%m-%dT%H:00Z')"
    keys = [hour if name == HOUR else f'CAST("{name}" AS VARCHAR)' for name in columns]
    names = [f"k{n}" for n in range(len(keys))]
    order = names if HOUR in columns[:1] else ["n DESC", *names]
    groups = ", ".join(f"{key} AS {name}" for key, name in zip(keys, names, strict=True))
    sql = f"SELECT {groups}, count(*) AS n FROM picked GROUP BY ALL"
    rows = fetch(db, f"{sql} ORDER BY {', '.join(f'{o} NULLS LAST' for o in order)} LIMIT {MOST_ROWS}")
    total = int(one(db, "SELECT count(*) FROM picked")[0])
    table = Table(tuple(columns), others=total - sum(row[-1] for row in rows))
    scanner = PatternScanner()
    scanner.setup()
    for row in rows:
        texts = scanner.scrub_values([text or "" for text in row[:-1]])
        values = tuple(None if text is None else t for text, t in zip(row[:-1], texts, strict=True))
        table.rows.append((values, row[-1]))
    return table


def as_dict(found: Summary) -> dict[str, Any]:
    """Returns the summary as plain JSON values."""
    return {
        "output": str(found.out),
        "version": found.version,
        "where": found.selection,
        "rows": found.rows,
        "all_rows": found.all_rows,
        "accepted": found.accepted,
        "first": iso(found.first),
        "last": iso(found.last),
        "reasons": [
            {"stage": stage, "reason": reason, "rows": n, "advice": text}
            for stage, reason, n, text in found.reasons
        ],
        **{
            name: {
                "rows": [
                    {**dict(zip(table.columns, values, strict=True)), "rows": n} for values, n in table.rows
                ],
                "others": table.others,
            }
            for name, table in found.tables.items()
        },
        "times": found.clock.basis if found.clock else None,
        "patterns": [
            {
                "kind": p.kind,
                "stage": p.group.stage,
                "reason": p.group.reason,
                "schema": p.group.schema,
                "pointer": p.group.pointer,
                "sentence": p.sentence,
                "rows": p.rows,
                "where": p.where,
                "first": iso(p.first),
                "last": iso(p.last),
                "values": [{"column": column, "value": value} for column, value in p.values],
            }
            for p in found.patterns
        ],
    }


def iso(time: datetime | None) -> str | None:
    """Returns a time as ISO 8601 with Z."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z") if time else None
