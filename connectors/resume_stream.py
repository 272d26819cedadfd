"""Starting a new job from a lake, when the state of the old one can't be used."""

import functools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable

from headrace.connectors.commit_state import Mark
from headrace.connectors.commit_stream import LATE, METRICS
from headrace.connectors.compact_lake import writer_properties
from headrace.connectors.delta_commit import settle
from headrace.connectors.removals import removed_reasons
from headrace.connectors.stream_accounts import Accounts, Rejected, Step, add_rejected
from headrace.connectors.stream_entries import EVENTS, QUARANTINE, TABLES
from headrace.connectors.stream_ledger import (
    LEDGER_SCHEMA,
    ROLLBACK,
    STATISTICS,
    TABLE,
    LedgerRow,
    last_row,
    open_ledger,
    read_stream_ledger,
    write_row,
)
from headrace.connectors.stream_table import FENCED, StreamTable
from headrace.connectors.write_quarantine import PARTITION
from headrace.schemas.columns import EVENT_SCHEMA, TIME
from headrace.schemas.errors import UntrustedRunError
from headrace.transforms.batches import column, mask_of, plain
from headrace.transforms.dedupe_records import payload_hashes
from headrace.transforms.user_agents import UserAgents

_PARTITIONS = {EVENTS: "event_date", QUARANTINE: PARTITION}
_PLACE = ["origin", "origin_position"]
_NOT_PAYLOAD = ("origin", "origin_position", "event_date")
_ORIGINS_AT_ONCE = 200
_BATCH_ROWS = 65_536
_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True)
class RolledBack:
    """What was taken out of the lake."""

    events: int = 0
    quarantine: int = 0
    event_times: tuple[datetime, datetime] | None = None
    """Earliest and latest event time of the rows taken out of ``events``; None if there are none."""
    windows: dict[str, int] = field(default_factory=dict)
    """{metric: rows of ``OUT/metrics/NAME`` whose window holds such a time}: results that counted rows which are read again. They
    stay; the new job fires these windows anew."""


def resume_positions(out: str | os.PathLike[str]) -> dict[str, int]:
    """Returns {origin: position of the next record} of what is done, for ``Source.start``; empty for a new output.

    Every record before a position is in the lake or in the quarantine. Rows beyond may be there too: :func:`roll_back` first.

    Raises:
        UntrustedRunError: a file of the ledger is missing or damaged.
    """
    return read_stream_ledger(out).positions


def roll_back(
    out: str | os.PathLike[str],
    positions: Mapping[str, int],
    *,
    jobs: Collection[str],
    committed_at: int,
    origin_prefix: str = "",
    late: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> RolledBack:
    """Takes all rows beyond the positions out of lake and quarantine, so that reading on from there makes no row twice.

    First the jobs of the past are shut out of the tables: whatever is left of them fails at its next commit. Then what will be left
    is counted and held against the ledger, which gets a row with it; and then the rows are deleted (files with such rows
    are rewritten, the old ones stay on disk until ``remove_replaced``). Idempotent, also when killed half-way; to be called before
    every start from the lake. The same goes for the rows of ``OUT/late`` of polls that are read again.

    Reads origin and position of all rows of both tables, file by file.

    Args:
        positions: as :func:`resume_positions` returned them. Of an origin that it lacks all rows are taken out.
        jobs: all jobs that were ever started for this output; not the new one.
        committed_at: µs since 1970, for the ledger.
        late: {window table: conditions} of late rows that count in windows again, because the new job fires these anew.
        origin_prefix: how the origins of the stream begin (``orders/``); rows of other origins stay. Empty: all are the stream's.

    Raises:
        UntrustedRunError: a committed file is missing or damaged; or what is left does not balance, so the lake has lost rows.
    """
    for job in sorted(jobs):
        _shut_out(out, job)
    ledger = open_ledger(out)
    row = None if ledger is None else last_row(ledger)
    if row is not None and row.app_id not in jobs:
        _shut_out(out, row.app_id)
    found = {name: _Rows(Path(out) / name, positions, origin_prefix) for name in TABLES}
    if row is not None:
        _go_back(out, row, found, committed_at, late)
    _delete_late(out, _unheard(ledger, jobs))
    for name in TABLES:
        found[name].delete_beyond()
    times = found[EVENTS].event_times
    return RolledBack(
        found[EVENTS].beyond,
        found[QUARANTINE].beyond,
        times,
        {} if times is None else _windows(Path(out) / METRICS, *times),
    )


def recent_ids(
    out: str | os.PathLike[str], since_us: int, *, version: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Yields the ids of accepted rows with an ingest time from ``since_us`` on, to seed the state of dedupe with.

    One row group at a time is in memory; files and row groups that are older are not read. Call :func:`roll_back` before.

    Args:
        version: of the lake's table; None: the present one.

    Yields:
        batches of ``event_id`` (string), ``ingest_time`` and ``payload``: uint64, what :func:`payload_hashes
        <headrace.transforms.dedupe_records.payload_hashes>` gave before Enrich; null if that can't be told, because ``device_type``
        is what the user agent says, and the event may or may not have stated it.

    Raises:
        UntrustedRunError: a committed file is missing or damaged.
    """
    root = Path(out) / EVENTS
    if not DeltaTable.is_deltatable(os.fspath(root)):
        return
    agents = _user_agents()
    since = pa.scalar(since_us, pa.timestamp("us", tz="UTC"))
    actions = pa.table(DeltaTable(os.fspath(root), version=version).get_add_actions(flatten=True))
    latest = "max.ingest_time"
    for action in actions.select([n for n in ("path", latest) if n in actions.column_names]).to_pylist():
        # Deltalake cuts a maximum down to milliseconds.
        if action.get(latest) is not None and action[latest] + _MILLISECOND < since.as_py():
            continue
        for batch in _batches(
            root / action["path"], [n for n in EVENT_SCHEMA.names if n not in _NOT_PAYLOAD]
        ):
            times = column(batch, "ingest_time")
            batch = batch.filter(pc.fill_null(pc.greater_equal(times, since), True))
            if batch.num_rows:
                yield pa.RecordBatch.from_arrays(
                    [plain(batch.column("event_id")), batch.column("ingest_time"), _payload(batch, agents)],
                    names=["event_id", "ingest_time", "payload"],
                )


class _Rows:
    """The stream's rows of one table: those up to the positions, and those beyond."""

    def __init__(self, root: Path, positions: Mapping[str, int], prefix: str) -> None:
        self._root, self._positions, self._prefix = root, positions, prefix
        self.kept = self.beyond = 0
        self.kept_reasons: Rejected = {}
        self.event_times: tuple[datetime, datetime] | None = None
        """Of the rows beyond."""
        self._origins: set[str] = set()
        if DeltaTable.is_deltatable(os.fspath(root)):
            for path in pa.table(DeltaTable(os.fspath(root)).get_add_actions()).column("path").to_pylist():
                for batch in _batches(
                    root / path, [*_PLACE, "event_time", "stage", "reason"], dictionary=True
                ):
                    self._add(batch)

    def delete_beyond(self) -> None:
        """Deletes the rows beyond, some origins at a time."""
        origins = sorted(self._origins)
        for start in range(0, len(origins), _ORIGINS_AT_ONCE):
            terms = [self._term(origin) for origin in origins[start : start + _ORIGINS_AT_ONCE]]
            table = DeltaTable(os.fspath(self._root))
            table.delete(" OR ".join(terms), writer_properties=writer_properties(table))

    def _term(self, origin: str) -> str:
        quoted = origin.replace("'", "''")
        if origin not in self._positions:
            return f"(origin = '{quoted}')"
        return f"(origin = '{quoted}' AND origin_position >= {self._positions[origin]})"

    def _add(self, batch: pa.RecordBatch) -> None:
        origins = batch.column("origin")
        names = origins.dictionary.to_pylist()
        ours = pa.array([name.startswith(self._prefix) for name in names], pa.bool_()).take(origins.indices)
        limits = pa.array([self._positions.get(name, -(1 << 63)) for name in names], pa.int64())
        beyond = pc.greater_equal(batch.column("origin_position"), limits.take(origins.indices))
        kept = batch.filter(pc.and_(ours, pc.invert(beyond)))
        batch = batch.filter(pc.and_(ours, beyond))
        self.kept += kept.num_rows
        if "reason" in batch.schema.names and kept.num_rows:
            codes = [plain(kept.column(name)) for name in ("stage", "reason")]
            grouped = pa.table(codes, names=["stage", "reason"]).group_by(["stage", "reason"])
            for each in grouped.aggregate([([], "count_all")]).to_pylist():
                add_rejected(self.kept_reasons, {each["stage"]: {each["reason"]: each["count_all"]}})
        if not batch.num_rows:
            return
        self.beyond += batch.num_rows
        self._origins |= set(pc.unique(plain(batch.column("origin"))).to_pylist())
        range_ = pc.min_max(batch.column("event_time")).as_py()
        if range_["min"] is not None:
            low, high = self.event_times or (range_["min"], range_["max"])
            self.event_times = min(low, range_["min"]), max(high, range_["max"])


def _shut_out(out: str | os.PathLike[str], app_id: str) -> None:
    """Gives the job the highest version in all tables that it commits rows to, so that it can't commit any more."""
    fence = Mark(FENCED, 0)
    for name in (*TABLES, TABLE):
        table = StreamTable(
            Path(out) / name,
            partition_by=[_PARTITIONS[name]] if name in _PARTITIONS else [],
            statistics=STATISTICS if name == TABLE else (),
        )
        mark = table.mark(app_id)
        if table.is_open and mark != fence:
            table.prepare(pa.schema(table.table.schema().to_arrow()))
            table.refresh()
            table.append([], app_id, fence)


def _late_kept(
    out: str | os.PathLike[str], row: LedgerRow, late: Mapping[str, Sequence[str]]
) -> dict[str, int]:
    """Takes out the late rows of the job's polls that are not done and those asked for; returns how many are left, by table."""
    readers = row.accounts.readers
    job = f"job = '{row.app_id}'"
    terms = [f"({job} AND reader = {number} AND poll >= {reader.done})" for number, reader in readers.items()]
    known = ", ".join(map(str, readers))
    _delete_late(out, [*terms, f"({job} AND reader NOT IN ({known}))" if known else f"({job})"], late)
    return {
        folder.name: pc.sum(pa.table(DeltaTable(os.fspath(folder)).get_add_actions())["num_records"]).as_py()
        or 0
        for folder in _tables(Path(out) / LATE)
    }


def _unheard(ledger: DeltaTable | None, jobs: Collection[str]) -> list[str]:
    """Returns the condition for rows of each job that has died before its first commit reached the ledger."""
    heard: set[str] = set()
    if ledger is not None:
        heard = set(ledger.to_pyarrow_table(columns=["app_id"]).column("app_id").to_pylist())
    return [f"(job = '{job}')" for job in sorted({*jobs} - heard)]


def _delete_late(
    out: str | os.PathLike[str],
    everywhere: Sequence[str],
    by_table: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    """Deletes the rows of ``OUT/late`` for which one of the conditions is true."""
    for folder in _tables(Path(out) / LATE):
        terms = [*everywhere, *by_table.get(folder.name, ())]
        table = DeltaTable(os.fspath(folder))
        for start in range(0, len(terms), _ORIGINS_AT_ONCE):
            table.delete(
                " OR ".join(terms[start : start + _ORIGINS_AT_ONCE]),
                writer_properties=writer_properties(table),
            )


def _tables(root: Path) -> list[Path]:
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return [folder for folder in folders if DeltaTable.is_deltatable(os.fspath(folder))]


def _go_back(
    out: str | os.PathLike[str],
    row: LedgerRow,
    found: Mapping[str, _Rows],
    committed_at: int,
    late: Mapping[str, Sequence[str]],
) -> None:
    """Writes the ledger's row of a roll-back: the totals of what is kept, no poll open. Not twice in a row.

    What is kept is counted, not taken off the totals: a commit may have ended between a table and the ledger.
    """
    accounts = row.accounts
    open_rows = sum(poll.entry.rows_in for _, _, poll in accounts.open_polls() if poll.entry is not None)
    gone, kept_reasons = removed_reasons(out)  # Rows that went by policy were done, and count still.
    add_rejected(kept_reasons, found[QUARANTINE].kept_reasons)
    new = Accounts(
        {},
        accounts.rows_in - open_rows,
        found[EVENTS].kept + gone,
        kept_reasons,
        accounts.late,
        accounts.next_job().earlier_watermark,
    )
    if not new.balanced:
        raise UntrustedRunError(
            f"{os.fspath(out)}: by the ledger {new.rows_in:,} records are done, of which the lake holds {new.accepted:,} and the "
            f"quarantine {found[QUARANTINE].kept:,}: rows were lost, or are there twice. Nothing was deleted; read into another "
            "--output"
        )
    if row.kind == ROLLBACK:
        return
    new.late = _late_kept(out, row, late)
    rejected: Rejected = {}
    add_rejected(rejected, new.rejected)
    add_rejected(rejected, accounts.rejected, -1)
    less = {name: rows - accounts.late.get(name, 0) for name, rows in new.late.items()}
    step = Step(-open_rows, new.accepted - accounts.accepted, rejected, less)
    table = StreamTable(Path(out) / TABLE, statistics=STATISTICS)
    table.prepare(LEDGER_SCHEMA)
    table.refresh()
    back = LedgerRow(row.number + 1, ROLLBACK, row.app_id, row.seq, new)
    file = write_row(out, back, step, committed_at=committed_at)
    settle(table.root, [file])
    table.append([file], row.app_id, Mark(FENCED, 0))


@functools.cache
def _user_agents() -> UserAgents:
    agents = UserAgents()
    agents.setup()
    return agents


def _payload(batch: pa.RecordBatch, agents: UserAgents) -> pa.Array:
    derived, _ = agents.columns(column(batch, "user_agent"))
    unsure = mask_of(pc.equal(plain(column(batch, "device_type")), plain(derived["device_type"])))
    return pa.array(payload_hashes(batch), pa.uint64(), mask=unsure)


def _windows(root: Path, low: datetime, high: datetime) -> dict[str, int]:
    """Counts the result rows whose window holds a time in [low, high]."""
    counts = {}
    for folder in _tables(root):
        rows = 0
        for path in pa.table(DeltaTable(os.fspath(folder)).get_add_actions()).column("path").to_pylist():
            for batch in _batches(folder / path, ["window_start", "window_end"]):
                starts, ends = batch.column("window_start"), batch.column("window_end")
                inside = pc.and_(
                    pc.less_equal(starts, pa.scalar(high, TIME)), pc.greater(ends, pa.scalar(low, TIME))
                )
                rows += pc.sum(inside).as_py() or 0
        if rows:
            counts[folder.name] = rows
    return counts


def _batches(path: Path, columns: Collection[str], *, dictionary: bool = False) -> Iterator[pa.RecordBatch]:
    """Yields the columns that the file has, a part of a row group at a time."""
    try:
        with pq.ParquetFile(path, memory_map=True) as known:
            names = known.schema_arrow.names
        here = [name for name in columns if name in names]
        coded = [name for name in here if name in ("origin", "stage", "reason")] if dictionary else []
        with pq.ParquetFile(path, memory_map=True, read_dictionary=coded) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=here, use_threads=False):
                yield _without_views(batch)
    except (OSError, pa.ArrowInvalid) as error:
        raise UntrustedRunError(
            f"file {path} of the committed table can't be read: {error}. Read into another --output"
        ) from error


def _without_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the batch in types that can be filtered: files that deltalake has rewritten say that their texts are views."""
    types = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    if not any(type_ in types for type_ in batch.schema.types):
        return batch
    columns = [c.cast(types.get(c.type, c.type)) for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
