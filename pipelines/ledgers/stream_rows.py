"""A stream's ledger as an auditor reads it: every row of it, held against the one before."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.connectors.stream_accounts import Accounts, Rejected, add_rejected
from headrace.connectors.stream_entries import TABLES
from headrace.connectors.stream_ledger import NUMBER, ROLLBACK, open_ledger
from headrace.connectors.stream_table import FENCED, StreamTable
from headrace.pipelines.ledgers.findings import INTERRUPTED, LEDGER, Finding
from headrace.schemas.errors import UntrustedRunError

_COLUMNS = [
    NUMBER,
    "kind",
    "app_id",
    "seq",
    "committed_at",
    "reads",
    "rows_in",
    "accepted",
    "rejected",
    "total_rows_in",
    "total_accepted",
    "total_rejected",
    "in_flight",
    "balanced",
    "fault",
]


@dataclass
class StreamRows:
    """What the ledger says in all, and what of it does not add up."""

    rows_in: int = 0
    accepted: int = 0
    rejected: Rejected = field(default_factory=dict)
    ranges: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """Origin → [first, next) stretches of what is done, without overlaps, ascending."""
    records_done: int = 0
    in_flight: int = 0
    drained: bool = True
    rolled_back_at: str | None = None
    """When the last roll-back was written, as ISO 8601 with milliseconds."""
    number: int = -1
    """Of the last row."""
    app_id: str = ""
    seq: int | None = None
    findings: list[Finding] = field(default_factory=list)


def read_stream_rows(out: Path) -> StreamRows:
    """Reads all rows of ``OUT/ledger``; a few bytes a commit.

    Raises:
        UntrustedRunError: a file of it is missing or damaged.
    """
    table = open_ledger(out)
    found = StreamRows()
    if table is None:
        return found
    root = out / "ledger"
    rows: list[dict[str, Any]] = []
    for path in pa.table(table.get_add_actions()).column("path").to_pylist():
        rows += _read(root / path, _COLUMNS)
    rows.sort(key=lambda row: row[NUMBER])
    if not rows:
        return found
    stretches: dict[str, list[tuple[int, int]]] = {}
    before = {"rows_in": 0, "accepted": 0, "rejected": {}}
    for number, row in enumerate(rows):
        if row[NUMBER] != number:
            found.findings.append(
                Finding(LEDGER, f"the stream's ledger has row {row[NUMBER]} where row {number} should be")
            )
            break
        found.findings += _follows(row, before)
        before = {
            "rows_in": row["total_rows_in"],
            "accepted": row["total_accepted"],
            "rejected": json.loads(row["total_rejected"]),
        }
        if row["kind"] == ROLLBACK:
            at = row["committed_at"]
            found.rolled_back_at = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for origin, (first, next_) in json.loads(row["reads"]).items():
            stretches.setdefault(origin, []).append((first, next_))
    last = rows[-1]
    found.rows_in, found.accepted = last["total_rows_in"], last["total_accepted"]
    found.rejected = json.loads(last["total_rejected"])
    found.in_flight, found.number = last["in_flight"], last[NUMBER]
    found.app_id, found.seq = last["app_id"], last["seq"]
    found.ranges = {origin: _merged(each) for origin, each in sorted(stretches.items())}
    accounts = _accounts(root, table, last[NUMBER])
    open_rows = [poll.entry.rows_in for _, _, poll in accounts.open_polls() if poll.entry is not None]
    found.records_done = found.rows_in - sum(open_rows)
    found.drained = next(accounts.open_polls(), None) is None
    if accounts.rows_in != found.rows_in or accounts.accepted != found.accepted:
        found.findings.append(
            Finding(
                LEDGER,
                f"row {found.number} of the stream's ledger says {found.rows_in:,} rows in and {found.accepted:,} accepted, the "
                f"accounts in it {accounts.rows_in:,} and {accounts.accepted:,}",
                found.accepted - accounts.accepted,
                run=found.app_id,
            )
        )
    return found


def commits_beyond(out: Path, found: StreamRows) -> list[Finding]:
    """Returns a finding for each table that has commits of the job which the ledger lacks."""
    beyond = []
    for name in TABLES:
        mark = StreamTable(out / name).mark(found.app_id) if found.app_id else None
        if mark is not None and mark.seq != FENCED and mark.seq > (-1 if found.seq is None else found.seq):
            beyond.append(
                Finding(
                    INTERRUPTED,
                    f"{name} has commits of job {found.app_id} up to number {mark.seq}, the ledger up to {found.seq}: a commit is "
                    "under way or was interrupted; the job's next commit, or a start from the lake, puts it right",
                    table=name,
                    run=found.app_id,
                )
            )
    return beyond


def _follows(row: dict[str, Any], before: dict[str, Any]) -> list[Finding]:
    """Holds one row against the totals of the one before, and against itself."""
    number, job = row[NUMBER], row["app_id"]
    found = []
    if row["fault"] is not None or not row["balanced"]:
        text = f"row {number} of the stream's ledger does not balance: {row['fault']}"
        found.append(Finding(LEDGER, text, run=job))
    for name in ("rows_in", "accepted"):
        gap = row[f"total_{name}"] - before[name] - row[name]
        if gap:
            text = (
                f"row {number} of the stream's ledger: {name} is {row[name]:,}, the totals went from {before[name]:,} to "
                f"{row[f'total_{name}']:,}"
            )
            found.append(Finding(LEDGER, text, gap, run=job))
    gaps: Rejected = {}
    add_rejected(gaps, json.loads(row["total_rejected"]))
    add_rejected(gaps, before["rejected"], -1)
    add_rejected(gaps, json.loads(row["rejected"]), -1)
    for stage, reasons in gaps.items():
        for reason, gap in reasons.items():
            if gap:
                text = f"row {number} of the stream's ledger: {stage}/{reason} differs from the totals by {gap:+,}"
                found.append(Finding(LEDGER, text, gap, run=job, stage=stage, reason=reason))
    return found


def _merged(stretches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the stretches ascending, those that touch or overlap as one."""
    found: list[tuple[int, int]] = []
    for first, next_ in sorted(stretches):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], next_)
        else:
            found.append((first, next_))
    return found


def _accounts(root: Path, table: Any, number: int) -> Accounts:
    for path in pa.table(table.get_add_actions()).column("path").to_pylist():
        for row in _read(root / path, [NUMBER, "accounts"]):
            if row[NUMBER] == number:
                return Accounts.decode(row["accounts"])
    raise UntrustedRunError(f"row {number} of the ledger {root} is gone; restore it from a copy")


def _read(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            rows: list[dict[str, Any]] = file.read(columns=columns, use_threads=False).to_pylist()
            return rows
    except (OSError, pa.ArrowInvalid) as error:
        raise UntrustedRunError(
            f"file {os.fspath(path)} of the ledger can't be read: {error}; restore it from a copy"
        ) from error
