"""The committer of a stream: entries become rows of the output's tables, each exactly once."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
from deltalake.exceptions import CommitFailedError

from headrace.connectors.commit_state import Mark, Ready
from headrace.connectors.delta_commit import settle
from headrace.connectors.stream_accounts import Accounts, Imbalance, Rejected, Step
from headrace.connectors.stream_entries import (
    EVENTS,
    QUARANTINE,
    TABLES,
    Entry,
    FilesEntry,
    LateEntry,
    MetricEntry,
    storable,
    unpack,
)
from headrace.connectors.stream_ledger import (
    COMMIT,
    LEDGER_SCHEMA,
    STATISTICS,
    TABLE,
    LedgerRow,
    last_row,
    write_row,
    write_small,
)
from headrace.connectors.stream_table import FENCED, StreamTable
from headrace.connectors.write_lake import WrittenFile
from headrace.connectors.write_quarantine import PARTITION, QUARANTINE_TABLE_SCHEMA
from headrace.schemas.errors import ConfigError, UntrustedRunError

METRICS, LATE = "metrics", "late"
_ATTEMPTS = 8
_FIX = "restore the newer checkpoint, or start with --rebuild-state-from LAKE"

Numbered = tuple[Mark, list[Entry]]


@dataclass(frozen=True)
class Committed:
    """What one call has done."""

    mark: Mark | None
    """Up to here the tables have everything, now or from before; for ``CommitState.drop``. None: nothing at all so far."""
    rows_in: int = 0
    accepted: int = 0
    rejected: Rejected = field(default_factory=dict)
    late: dict[str, int] = field(default_factory=dict)
    receipts: tuple[str, ...] = ()
    """Of the polls that became done: to be acknowledged to the source. Lost in a crash after the commit, as acknowledging is
    allowed to be."""
    tables: tuple[str, ...] = ()
    """Tables that got rows, in the order of their commits."""


class StreamCommitter:
    """Commits the entries of one job to ``OUT/quarantine``, ``OUT/events``, ``OUT/metrics/NAME``, ``OUT/late/NAME`` and at last
    ``OUT/ledger``: one transaction a table, with the job's highest sequence number as its version.

    Exactly once, by the rules of :mod:`commit_state <headrace.connectors.commit_state>`: a crash between two tables is healed by
    committing again, in the same or any larger grouping; every table takes only the numbers that it lacks. The ledger comes last,
    so what it has is in all tables. Another writer (a compaction) may commit at the same time; of two committers of one job the
    second takes what the first has left.

    Nothing of a call is committed unless all of its files are there, with the size and rows that their writers said, on disk for
    good. Entries that don't add up are not committed, nor is anything after them; what is before them is.

    Keeps the tables open; used by one thread. Not picklable: made where it runs.

    Args:
        out: the output.
        app_id: the job: letters, digits, ``_`` and ``-``; never used for another job in this output.
        lake_schema: columns of the lake.

    Raises:
        ConfigError: ``app_id`` can't be a file's name.
    """

    def __init__(self, out: str | os.PathLike[str], *, app_id: str, lake_schema: pa.Schema) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", app_id):
            raise ConfigError(
                f"app_id is {app_id!r}; use letters, digits, _ and - only, it becomes part of a file's name"
            )
        self._out = Path(out)
        self._app_id = app_id
        self._schemas = {EVENTS: lake_schema, QUARANTINE: QUARANTINE_TABLE_SCHEMA}
        self._tables = {
            EVENTS: StreamTable(self._out / EVENTS, partition_by=["event_date"]),
            QUARANTINE: StreamTable(self._out / QUARANTINE, partition_by=[PARTITION]),
            TABLE: StreamTable(self._out / TABLE, statistics=STATISTICS),
        }
        self._row: tuple[int, LedgerRow | None] | None = None

    def prepare(self) -> None:
        """Makes the tables that every stream has, so that they can be read before the first commit. Idempotent.

        Raises:
            ConfigError: a table is there with other types or partitions.
        """
        for name in TABLES:
            self._tables[name].prepare(self._schemas[name])
        self._tables[TABLE].prepare(LEDGER_SCHEMA)

    def commit(self, ready: Ready, *, committed_at: int) -> Committed:
        """Commits what is ready and not yet in the tables.

        Args:
            ready: from ``CommitState.ready``.
            committed_at: µs since 1970, for the ledger.

        Raises:
            UntrustedRunError: the state is older than the lake, or newer, or another job's; a file is missing or altered; entries
                don't add up (then, and in every later call).
            ConfigError: a table has other types or partitions.
            deltalake.exceptions.CommitFailedError: others kept winning; call again.
            OutputError: the disk refused.
        """
        if not ready.arrivals:
            return Committed(None)
        self.prepare()
        marks = {name: self._mark(name, ready) for name in (*TABLES, TABLE)}
        ledger = marks[TABLE]
        if (-1 if ledger is None else ledger.seq) < ready.dropped.seq:
            raise UntrustedRunError(
                f"table {self._out / TABLE} has entries up to number {'none' if ledger is None else ledger.seq}, the job has let "
                f"go of those up to {ready.dropped.seq}: the lake was replaced by an older copy. {_FIX}"
            )
        row = self._last_row()
        accounts = Accounts() if row is None else row.accounts_for(self._app_id)
        step = Step()
        numbered: list[Numbered] = []
        fault = None
        for arrival in ready.arrivals:
            entries = unpack(arrival.packed)
            if ledger is None or arrival.seq > ledger.seq:
                attempt = Step()
                try:
                    accounts = accounts.after(entries, attempt)
                except Imbalance as imbalance:
                    fault = f"entries number {arrival.seq}: {imbalance}"
                    break
                _add(step, attempt)
            numbered.append((Mark(arrival.seq, arrival.chain), entries))
        last = numbered[-1][0] if numbered else None
        if last is not None and ledger is not None and last.seq <= ledger.seq:
            last = None
        done: list[str] = []
        if last is not None:
            done = self._commit_rows(numbered, marks, ready)
        if last is not None or fault is not None:
            number = 0 if row is None else row.number + 1
            seq = last or ledger
            new = LedgerRow(number, COMMIT, self._app_id, seq.seq if seq else None, accounts, fault)
            self._commit_row(new, step, last, ready, committed_at)
        if fault is not None:
            raise UntrustedRunError(
                f"the ledger does not balance: {fault}. These entries are not committed; those before them are. Stop the job, keep "
                "the output as evidence and report it as a bug; to go on, start with --rebuild-state-from LAKE"
            )
        return Committed(
            last or ledger,
            step.rows_in,
            step.accepted,
            step.rejected,
            step.late,
            tuple(step.receipts),
            tuple(done),
        )

    def _commit_rows(
        self, numbered: list[Numbered], marks: dict[str, Mark | None], ready: Ready
    ) -> list[str]:
        files = {name: _files(name, _lacking(numbered, marks[name])) for name in TABLES}
        for name in TABLES:
            _require_new(name, files[name])
            settle(self._out / name, files[name])
        done = [
            name
            for name in (QUARANTINE, EVENTS)
            if files[name] and self._append(name, ready, numbered, partial(_files, name))
        ]
        for folder, kind in ((METRICS, MetricEntry), (LATE, LateEntry)):
            names = {e.name for _, entries in numbered for e in entries if isinstance(e, kind)}
            for metric in sorted(names):
                name = f"{folder}/{metric}"
                if self._append_rows(name, ready, numbered, kind, metric):
                    done.append(name)
        return done

    def _append_rows(
        self,
        name: str,
        ready: Ready,
        numbered: list[Numbered],
        kind: type[MetricEntry] | type[LateEntry],
        metric: str,
    ) -> bool:
        """Commits result rows: the committer itself writes them, one file, under the numbers that it holds."""
        if not re.fullmatch(r"[A-Za-z0-9_-]+", metric):
            raise ConfigError(f"metrics table is named {metric!r}; use letters, digits, _ and - only")
        table = self._tables.setdefault(name, StreamTable(self._out / name))

        def write(left: list[Numbered]) -> list[WrittenFile]:
            parts = [
                storable(e.table())
                for _, entries in left
                for e in entries
                if isinstance(e, kind) and e.name == metric
            ]
            rows = pa.concat_tables(parts, promote_options="default") if parts else None
            if rows is None or not rows.num_rows:
                return []
            table.prepare(rows.schema)
            path = f"part-{self._app_id}-{left[0][0].seq:012d}-{left[-1][0].seq:012d}.parquet"
            written = [write_small(table.root, path, rows.combine_chunks(), {"numRecords": rows.num_rows})]
            settle(table.root, written)
            return written

        return self._append(name, ready, numbered, write)

    def _append(
        self,
        name: str,
        ready: Ready,
        numbered: list[Numbered],
        files_of: Callable[[list[Numbered]], Sequence[WrittenFile]],
    ) -> bool:
        """Commits to one table what it lacks; False if that is nothing."""
        table = self._tables[name]
        for attempt in range(_ATTEMPTS):
            left = _lacking(numbered, self._mark(name, ready))
            files = files_of(left) if left else []
            if not files:
                return False
            if not table.is_open:  # Its columns were changed after its mark was read.
                continue
            try:
                table.append(files, self._app_id, left[-1][0])
                return True
            except CommitFailedError:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise CommitFailedError(f"table {table.root} changes its columns all the time")

    def _commit_row(
        self, row: LedgerRow, step: Step, mark: Mark | None, ready: Ready, committed_at: int
    ) -> None:
        """Commits the ledger's row; left to another committer of this job if that one has the number already."""
        table = self._tables[TABLE]
        assert self._row is not None, "_last_row() was not called"
        before = self._row[0]
        file = write_row(self._out, row, step, committed_at=committed_at)
        settle(table.root, [file])
        try:
            table.append([file], self._app_id, mark)
        except CommitFailedError:
            found = self._mark(TABLE, ready)
            if mark is None or found is None or found.seq < mark.seq:
                raise
        # Others' rows, if any came between, are read from the table at the next commit.
        self._row = (table.version, row) if table.version == before + 1 else None

    def _last_row(self) -> LedgerRow | None:
        """Returns the last row of the ledger as it was at the last ``_mark``; read only if the table has changed since."""
        table = self._tables[TABLE].table
        if self._row is None or self._row[0] != table.version():
            self._row = (table.version(), last_row(table))
        return self._row[1]

    def _mark(self, name: str, ready: Ready) -> Mark | None:
        """Returns what the table has of this job, after holding it against what the state knows."""
        mark = self._tables[name].mark(self._app_id)
        if mark is None:
            return None
        where = f"table {self._out / name}"
        if mark.seq >= FENCED:
            raise UntrustedRunError(
                f"{where} is closed for job {self._app_id}: another one was started from this lake since. Start with "
                "--rebuild-state-from LAKE, or write to another --output"
            )
        if mark.seq >= ready.next_seq:
            raise UntrustedRunError(
                f"{where} has entries up to number {mark.seq}, the job's state only up to {ready.next_seq - 1}: an older savepoint "
                f"was restored, and the lake holds rows that this state does not know. {_FIX}"
            )
        known = ready.dropped.chain if mark.seq == ready.dropped.seq else ready.chains.get(mark.seq)
        if mark.seq >= ready.dropped.seq and known != mark.chain:
            raise UntrustedRunError(
                f"{where} has other entries under number {mark.seq} than the job's state, which has given numbers up to "
                f"{ready.next_seq - 1}: an older savepoint was restored, and has gone on differently. {_FIX}"
            )
        return mark


def _lacking(numbered: list[Numbered], mark: Mark | None) -> list[Numbered]:
    return numbered if mark is None else [each for each in numbered if each[0].seq > mark.seq]


def _files(table: str, numbered: list[Numbered]) -> list[WrittenFile]:
    return [
        file
        for _, entries in numbered
        for entry in entries
        if isinstance(entry, FilesEntry) and entry.table == table
        for file in entry.files
    ]


def _require_new(table: str, files: list[WrittenFile]) -> None:
    seen: set[str] = set()
    for file in files:
        if file.path in seen:
            raise UntrustedRunError(
                f"file {file.path} is to be added to {table} twice; its rows would count twice. Stop the job, keep the output as "
                "evidence and report it as a bug"
            )
        seen.add(file.path)


def _add(step: Step, more: Step) -> None:
    step.rows_in += more.rows_in
    step.accepted += more.accepted
    for stage, reasons in more.rejected.items():
        of_stage = step.rejected.setdefault(stage, {})
        for reason, rows in reasons.items():
            of_stage[reason] = of_stage.get(reason, 0) + rows
    for name, rows in more.late.items():
        step.late[name] = step.late.get(name, 0) + rows
    for origin, (first, next_) in more.reads.items():
        range_ = step.reads.setdefault(origin, [first, next_])
        range_[:] = min(range_[0], first), max(range_[1], next_)
    step.receipts.extend(more.receipts)
