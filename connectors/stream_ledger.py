"""The ledger of a stream: a Delta table with one row for each commit, ``OUT/ledger``."""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from headrace.connectors.atomic_file import AtomicFile, naming
from headrace.connectors.ledger import Ledger
from headrace.connectors.stream_accounts import Accounts, Rejected, Step
from headrace.connectors.write_lake import WrittenFile
from headrace.schemas.columns import TIME
from headrace.schemas.errors import ConfigError, UntrustedRunError

TABLE = "ledger"
NUMBER = "number"
STATISTICS = (NUMBER,)
"""Columns of the ledger with statistics in its log; it holds no person's data."""
COMMIT, ROLLBACK = "commit", "rollback"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_COLUMNS: list[tuple[str, pa.DataType, str]] = [
    (NUMBER, pa.int64(), "0, 1, 2, … over all jobs that wrote to the output"),
    ("kind", pa.string(), "commit; or rollback: rows beyond what was done were taken out before a new job"),
    ("app_id", pa.string(), "the job"),
    ("seq", pa.int64(), "the job's highest sequence number in the tables; null if none"),
    ("committed_at", TIME, "by the committer's clock"),
    ("reads", pa.string(), "JSON: origin to [first, next) of the polls that became done"),
    ("rows_in", pa.int64(), "records of polls whose reader has reported with this commit"),
    ("accepted", pa.int64(), "rows of the committed files of the lake"),
    ("rejected", pa.string(), "JSON: stage to reason to rows of the committed files of the quarantine"),
    ("late", pa.string(), "JSON: metric to late partial rows"),
    ("total_rows_in", pa.int64(), "with all commits before, less what was rolled back; so the totals below"),
    ("total_accepted", pa.int64(), ""),
    ("total_rejected", pa.string(), "JSON"),
    ("total_late", pa.string(), "JSON"),
    ("in_flight", pa.int64(), "rows read and not yet in a table"),
    ("open_polls", pa.int64(), "polls that are not done"),
    ("watermark", TIME, "lowest of all readers, of what is done; null if not known"),
    ("behind", pa.int64(), "records waiting in the source"),
    ("readers", pa.string(), "JSON: reader to polls done, watermark in µs, behind, position, final"),
    ("accounts", pa.binary(), "what the next commit goes on from (MessagePack)"),
    ("balanced", pa.bool_(), "true if everything adds up so far"),
    ("fault", pa.string(), "what does not add up; null if nothing"),
]
LEDGER_SCHEMA = pa.schema([pa.field(n, t) for n, t, _ in _COLUMNS])
DESCRIPTIONS = {n: d for n, _, d in _COLUMNS}


@dataclass(frozen=True)
class LedgerRow:
    """One row of the table, as the next commit needs it."""

    number: int
    kind: str
    app_id: str
    seq: int | None
    accounts: Accounts
    fault: str | None = None

    def accounts_for(self, app_id: str) -> Accounts:
        """Returns the accounts that a commit of this job goes on from.

        Raises:
            UntrustedRunError: the row has a fault, or another job has left polls that are not done.
        """
        if self.fault is not None:
            raise UntrustedRunError(
                f"the ledger does not balance since its row {self.number}: {self.fault}. Nothing is committed any more; stop the "
                "job, keep the output as evidence and report it as a bug. To go on, start with --rebuild-state-from LAKE: it "
                "takes out what is not proven complete and reads it again"
            )
        if self.app_id == app_id and self.kind == COMMIT:
            return self.accounts
        if next(self.accounts.open_polls(), None) is not None:
            raise UntrustedRunError(
                f"job {self.app_id} has left polls that are not complete, so job {app_id} would read their rows twice. Restore "
                f"the checkpoint of {self.app_id}, or start with --rebuild-state-from LAKE"
            )
        return self.accounts.next_job()


class ReaderTotals(NamedTuple):
    """How far one reader has come."""

    done: int
    """Polls 0 to ``done`` - 1 are in the tables with all of their rows."""
    final: bool
    """True if the last of them is the last of a run."""


@dataclass(frozen=True)
class StreamTotals:
    """Where a stream stands, from the lake alone."""

    rows_in: int = 0
    """Records of all polls that readers have reported."""
    accepted: int = 0
    rejected: Rejected = field(default_factory=dict)
    late: dict[str, int] = field(default_factory=dict)
    """{metric: late partial rows}."""
    in_flight: int = 0
    """Rows read and not yet in a table."""
    open_polls: int = 0
    balanced: bool = True
    fault: str | None = None
    positions: dict[str, int] = field(default_factory=dict)
    """{origin: position of the next record} of what is done: every record before it is in a table."""
    watermark: datetime | None = None
    behind: int = 0
    readers_at_end: int = 0
    """Readers whose last poll is done."""
    last_commit: datetime | None = None
    commits: int = 0
    readers: dict[int, ReaderTotals] = field(default_factory=dict)
    windows_ended: int = 0
    """Shards of window tables, of the present job, that have come to the end of the stream."""

    @property
    def drained(self) -> bool:
        """True if nothing is under way between the source and the tables."""
        return not self.open_polls

    @property
    def equation(self) -> str:
        """What has to be equal, in numbers."""
        rejected = sum(sum(reasons.values()) for reasons in self.rejected.values())
        return f"rows in {self.rows_in:,} ≠ accepted {self.accepted:,} + rejected {rejected:,} + in flight {self.in_flight:,}"

    def ledger(self) -> Ledger:
        """Returns the ledger of what has arrived: rows in flight don't count as rows in, and are in ``in_flight``."""
        return Ledger(self.rows_in - self.in_flight, self.accepted, self.rejected)


def read_stream_ledger(out: str | os.PathLike[str], *, positions: bool = True) -> StreamTotals:
    """Reads where the stream of an output stands; all zeros before the first commit.

    Args:
        out: the output.
        positions: False leaves ``positions`` empty and reads a single row, for showing progress.

    Raises:
        UntrustedRunError: a file of the ledger is missing or damaged.
    """
    table = open_ledger(out)
    row = None if table is None else _last_row(table)
    if table is None or row is None:
        return StreamTotals()
    accounts = Accounts.decode(row["accounts"])
    return StreamTotals(
        rows_in=row["total_rows_in"],
        accepted=row["total_accepted"],
        rejected=json.loads(row["total_rejected"]),
        late=json.loads(row["total_late"]),
        in_flight=row["in_flight"],
        open_polls=row["open_polls"],
        balanced=row["balanced"],
        fault=row["fault"],
        positions=_positions(table) if positions else {},
        watermark=row["watermark"],
        behind=row["behind"],
        readers_at_end=sum(reader.final for reader in accounts.readers.values()),
        last_commit=row["committed_at"],
        commits=row["number"] + 1,
        windows_ended=len(accounts.ended),
        readers={
            number: ReaderTotals(reader.done, reader.final) for number, reader in accounts.readers.items()
        },
    )


def settled_until(out: str | os.PathLike[str], app_id: str, readers: int) -> int | None:
    """Returns the time in µs up to which all polls of a job are done, all of its readers' and by their clocks.

    What a stage has made from messages up to then holds no row that is not in the tables.

    Args:
        readers: how many the job has.

    Returns:
        None: of a reader no poll is done; or the last row of the ledger is no commit of this job.
    """
    table = open_ledger(out)
    row = None if table is None else last_row(table)
    if row is None or row.kind != COMMIT or row.app_id != app_id:
        return None
    times = [reader.read_at for reader in row.accounts.readers.values() if reader.read_at is not None]
    return min(times) if len(times) == readers else None


def open_ledger(out: str | os.PathLike[str]) -> DeltaTable | None:
    """Opens the ledger's table; None if there is none."""
    root = os.fspath(Path(out) / TABLE)
    return DeltaTable(root) if DeltaTable.is_deltatable(root) else None


def last_row(table: DeltaTable) -> LedgerRow | None:
    """Returns the last row of the ledger; None if it has none."""
    row = _last_row(table)
    if row is None:
        return None
    return LedgerRow(
        row[NUMBER],
        row["kind"],
        row["app_id"],
        row["seq"],
        Accounts.decode(row["accounts"]),
        row["fault"],
    )


def write_row(out: str | os.PathLike[str], row: LedgerRow, step: Step, *, committed_at: int) -> WrittenFile:
    """Writes a Parquet file with one row, under a name that no other attempt uses; not yet part of the table.

    Args:
        row: its accounts are those after the commit.
        step: what the commit changed.
        committed_at: µs since 1970.

    Raises:
        OutputError: the disk refused.
    """
    accounts = row.accounts
    values: dict[str, Any] = {
        NUMBER: row.number,
        "kind": row.kind,
        "app_id": row.app_id,
        "seq": row.seq,
        "committed_at": committed_at,
        "reads": _json(step.reads),
        "rows_in": step.rows_in,
        "accepted": step.accepted,
        "rejected": _json(step.rejected),
        "late": _json(step.late),
        "total_rows_in": accounts.rows_in,
        "total_accepted": accounts.accepted,
        "total_rejected": _json(accounts.rejected),
        "total_late": _json(accounts.late),
        "in_flight": accounts.in_flight,
        "open_polls": sum(1 for _ in accounts.open_polls()),
        "watermark": accounts.watermark,
        "behind": accounts.behind,
        "readers": _json(
            {
                str(number): {
                    "done": reader.done,
                    "watermark": reader.watermark,
                    "behind": reader.behind,
                    "position": reader.position,
                    "final": reader.final,
                }
                for number, reader in accounts.readers.items()
            }
        ),
        "accounts": accounts.encode(),
        "balanced": row.fault is None and accounts.balanced,
        "fault": row.fault,
    }
    table = pa.table([pa.array([values[f.name]], f.type) for f in LEDGER_SCHEMA], schema=LEDGER_SCHEMA)
    path = f"part-{row.number:012d}-{secrets.token_hex(4)}.parquet"
    range_ = {NUMBER: row.number}
    stats = {"numRecords": 1, "minValues": range_, "maxValues": range_, "nullCount": {NUMBER: 0}}
    return write_small(Path(out) / TABLE, path, table, stats)


def write_small(root: Path, path: str, table: pa.Table, stats: Mapping[str, Any]) -> WrittenFile:
    """Writes one small Parquet file without statistics in its footer, replacing one of that name.

    Raises:
        OutputError: the disk refused.
    """
    file = AtomicFile(root / path)
    try:
        with naming(file.path):
            pq.write_table(
                table, file.temporary, compression="zstd", write_statistics=False, store_schema=False
            )
            size = os.stat(file.temporary).st_size
    except BaseException:
        file.discard()
        raise
    file.commit()
    return WrittenFile(path, table.num_rows, size, {}, dict(stats))


def _last_row(table: DeltaTable) -> dict[str, Any] | None:
    actions = pa.table(table.get_add_actions(flatten=True))
    if not actions.num_rows:
        return None
    highest, path = max(
        zip(actions.column(f"max.{NUMBER}").to_pylist(), actions.column("path").to_pylist(), strict=True)
    )
    rows = _read(table, path, LEDGER_SCHEMA.names).to_pylist()
    return next(row for row in rows if row[NUMBER] == highest)


def _positions(table: DeltaTable) -> dict[str, int]:
    found: dict[str, int] = {}
    for reads in _reads(table):
        for origin, (_, next_) in reads.items():
            found[origin] = max(found.get(origin, next_), next_)
    return dict(sorted(found.items()))


def _reads(table: DeltaTable) -> Iterator[dict[str, list[int]]]:
    for path in pa.table(table.get_add_actions()).column("path").to_pylist():
        for text in _read(table, path, ["reads"]).column("reads").to_pylist():
            yield json.loads(text)


def _read(table: DeltaTable, path: str, columns: list[str]) -> pa.Table:
    where = Path(table.table_uri.removeprefix("file://")) / path
    try:
        with pq.ParquetFile(where) as file:
            return file.read(columns=columns, use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise UntrustedRunError(
            f"file {where} of the ledger can't be read: {error}. The rows of the lake are there, but not their count; start with "
            "another --output"
        ) from error


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def micros(time: datetime) -> int:
    """Returns a time with its zone as µs since 1970."""
    if time.tzinfo is None:
        raise ConfigError(f"time {time.isoformat()} has no zone; add one, for example {time.isoformat()}Z")
    return (time - _EPOCH) // timedelta(microseconds=1)
