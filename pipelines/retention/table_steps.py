"""Taking what is too old out of one table: found, moved to the cold place, committed. Each part can be repeated."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError

from headrace.connectors.atomic_file import AtomicFile, naming, replace_file, sync
from headrace.connectors.compact_lake import writer_properties
from headrace.connectors.delta_commit import MARKER, commit_files, committed_files, ensure_table
from headrace.connectors.removals import EVENTS, QUARANTINE, Step
from headrace.connectors.write_lake import WrittenFile
from headrace.pipelines.ledgers.held_rows import Files, hold
from headrace.pipelines.retention.output_tables import (
    DATED_FILES,
    LISTED,
    PARTITIONED,
    WINDOW,
    WINDOWED,
    OutputTable,
    midnight,
    require_date,
)
from headrace.schemas.columns import TIME
from headrace.schemas.errors import UntrustedRunError

_ATTEMPTS = 20
_BATCH_ROWS = 65_536
_PART = "part-0.parquet"


def dates_in(root: Path, table: OutputTable) -> list[date]:
    """Returns the dates that a table has rows of, ascending; of a table of windows, those on which they begin."""
    where = root / table.name
    if table.form in (PARTITIONED, LISTED, DATED_FILES):
        names = {_date_of(path, table.partition) for path in _paths(where, table)}
    else:
        names = set()
        for path in _paths(where, table):
            starts = pq.read_table(
                path if path.startswith("/") else where / path, columns=[WINDOW], partitioning=None
            )
            names |= {str(day) for day in pc.unique(starts.column(0).cast(pa.date32())).to_pylist()}
    return sorted(day for day in map(require_date, names) if day is not None)


def describe(root: Path, table: OutputTable, step: Step, days: Sequence[date]) -> None:
    """Fills in what goes with these dates: files, rows, bytes; of lake and quarantine also the counts for the ledger.

    Raises:
        UntrustedRunError: a file is missing or damaged; what is in it can't be accounted for.
    """
    where = root / table.name
    names = {str(day) for day in days}
    step.partitions = sorted(names)
    if table.form in (PARTITIONED, LISTED, DATED_FILES):
        step.paths = [path for path in _paths(where, table) if _date_of(path, table.partition) in names]
        full = [where / unquote(path) for path in step.paths]
        step.rows = sum(_rows(path) for path in full)
        step.files, step.bytes = len(full), sum(path.stat().st_size for path in full)
    else:
        limit = midnight(date.fromisoformat(step.before))
        step.rows = sum(batch.num_rows for batch in _windows(where, table, limit))
        step.files = step.bytes = 0
    if table.name in (EVENTS, QUARANTINE):
        with hold(Files(root, {table.name: [os.fspath(path) for path in full]}, [])) as held:
            step.counts = held.counts(table.name)
            step.origins = held.origins(table.name)
        if sum(count.rows for count in step.counts) != step.rows:
            raise UntrustedRunError(
                f"{where}: the footers say {step.rows:,} rows, {sum(c.rows for c in step.counts):,} were counted; nothing went"
            )


def move(root: Path, table: OutputTable, step: Step) -> None:
    """Copies what goes into the cold table, in one commit; not again if that has it.

    Raises:
        OutputError: the disk refused; nothing is committed.
        ConfigError: the cold table has other columns.
    """
    assert step.cold is not None
    cold, where = Path(step.cold), root / table.name
    if (
        DeltaTable.is_deltatable(step.cold)
        and DeltaTable(step.cold).transaction_version(step.app_id) is not None
    ):
        return
    cold.mkdir(parents=True, exist_ok=True)
    files = []
    if table.form in (PARTITIONED, LISTED):
        if table.form == PARTITIONED:
            delta = DeltaTable(os.fspath(where))
            columns = delta.metadata().partition_columns
            schema = pa.schema(delta.schema().to_arrow())
        else:
            columns = [table.partition]
            schema = pq.read_schema(where / step.paths[0]).append(pa.field(table.partition, pa.date32()))
        for number, path in enumerate(sorted(step.paths)):
            relative = unquote(path)
            name = f"{os.path.dirname(relative)}/part-{step.app_id}-{number:06d}.parquet"
            _copy(where / relative, cold / name)
            values = dict(part.split("=", 1) for part in os.path.dirname(relative).split("/"))
            files.append(_written(cold, name, {column: values[column] for column in columns}))
    else:
        name = f"part-{step.app_id}.parquet"
        parts = list(_old_parts(where, table, step))
        schema = parts[0].schema
        target = AtomicFile(cold / name)
        with naming(cold / name), pq.ParquetWriter(target.temporary, schema, compression="zstd") as writer:
            for part in parts:
                writer.write_batch(part)
        target.commit()
        columns = []
        files.append(_written(cold, name, {}))
    ensure_table(cold, schema, columns, statistics=())
    commit_files(cold, schema, files, app_id=step.app_id, version=0, partition_by=columns)


def take_out(root: Path, table: OutputTable, step: Step) -> bool:
    """Takes the rows out of the table, in one step for readers.

    Returns:
        False if the table's files are others than those described, by a compaction or a late row: describe anew, and try again.
    """
    where = root / table.name
    if table.form == PARTITIONED:
        return _delete_dates(where, table.partition, step)
    if table.form == WINDOWED:
        return _delete_windows(where, step)
    if table.form == LISTED:
        return _unlist(where, step)
    for path in list(_paths(where, table)):
        if table.form == DATED_FILES:
            if _date_of(path, table.partition) in step.partitions:
                shutil.rmtree((where / path).parent)
        else:
            _rewrite(where / path, midnight(date.fromisoformat(step.before)))
    return True


def attempts() -> range:
    """Returns how often a commit is tried beside a stream that commits too."""
    return range(_ATTEMPTS)


def delete_before(where: Path, partition: str, day: date) -> int:
    """Deletes the rows of a cold table before a date; returns their number."""
    table = DeltaTable(os.fspath(where))
    if partition:
        old = [
            path
            for path in committed_files(where)
            if (found := require_date(_date_of(path, partition))) is not None and found < day
        ]
        rows = sum(_rows(where / unquote(path)) for path in old)
        if rows:
            table.delete(f"{partition} < '{day}'")
        return rows
    limit = midnight(day)
    old_rows = sum(batch.num_rows for batch in _windows(where, OutputTable("", "", WINDOWED), limit))
    if old_rows:
        table.delete(_before(limit.date()), writer_properties=writer_properties(table))
    return old_rows


def _delete_dates(where: Path, partition: str, step: Step) -> bool:
    table = DeltaTable(os.fspath(where))
    if table.transaction_version(step.app_id) is not None:
        return True
    here = {path for path in committed_files(where) if _date_of(path, partition) in step.partitions}
    if here != set(step.paths) or table.version() != DeltaTable(os.fspath(where)).version():
        return False
    listed = ", ".join(f"'{day}'" for day in step.partitions)
    try:
        # It takes out the files of this snapshot; if anything came to these dates meanwhile, it fails.
        table.delete(f"{partition} IN ({listed})", commit_properties=_once(step))
    except CommitFailedError:
        return False
    sync(where / "_delta_log")
    return True


def _delete_windows(where: Path, step: Step) -> bool:
    table = DeltaTable(os.fspath(where))
    if table.transaction_version(step.app_id) is not None:
        return True
    try:
        table.delete(
            _before(date.fromisoformat(step.before)),
            writer_properties=writer_properties(table),
            commit_properties=_once(step),
        )
    except CommitFailedError:
        return False
    sync(where / "_delta_log")
    return True


def _unlist(where: Path, step: Step) -> bool:
    """Takes files off a plain lake's list in one step, and then off the disk: it has no log for readers that go by an older one."""
    said = json.loads((where / MARKER).read_bytes())
    if step.app_id not in said.get("retention", []):
        gone = set(step.paths)
        said["files"] = [file for file in said["files"] if file["path"] not in gone]
        said["retention"] = [*said.get("retention", []), step.app_id]
        replace_file(where / MARKER, json.dumps(said, indent=1).encode())
    for path in step.paths:
        (where / path).unlink(missing_ok=True)
    return True


def _once(step: Step) -> CommitProperties:
    return CommitProperties(app_transactions=[Transaction(step.app_id, 0)])


def _before(day: date) -> str:
    return f"{WINDOW} < arrow_cast('{day}T00:00:00Z', 'Timestamp(Microsecond, Some(\"UTC\"))')"


def _paths(where: Path, table: OutputTable) -> list[str]:
    if table.form in (PARTITIONED, LISTED, WINDOWED):
        return list(committed_files(where))
    if table.form == DATED_FILES:
        return sorted(
            path.relative_to(where).as_posix() for path in where.glob(f"{table.partition}=*/*.parquet")
        )
    return [_PART]


def _date_of(path: str, partition: str) -> str:
    return next((p.partition("=")[2] for p in unquote(path).split("/") if p.startswith(f"{partition}=")), "")


def _rows(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowInvalid) as error:
        raise UntrustedRunError(
            f"file {path} can't be read ({error}); nothing went. `headrace ledger verify` says what is missing"
        ) from error


def _windows(where: Path, table: OutputTable, limit: object) -> Iterator[pa.RecordBatch]:
    """Yields the rows of windows that began before ``limit``."""
    paths = [os.fspath(where / unquote(path)) for path in _paths(where, table)]
    if paths:
        found = ds.dataset(paths, format="parquet").scanner(
            filter=ds.field(WINDOW) < pa.scalar(limit, TIME), batch_size=_BATCH_ROWS, use_threads=False
        )
        yield from (batch for batch in found.to_batches() if batch.num_rows)


def _old_parts(where: Path, table: OutputTable, step: Step) -> Iterator[pa.RecordBatch]:
    if table.form == DATED_FILES:
        for path in step.paths:
            yield from pq.read_table(where / path, partitioning=None).to_batches()
    else:
        yield from _windows(where, table, midnight(date.fromisoformat(step.before)))


def _rewrite(path: Path, limit: object) -> None:
    """Leaves the windows out that began before ``limit``; readers see the old file or the new."""
    table = pq.read_table(path, partitioning=None)
    kept = table.filter(pc.greater_equal(table.column(WINDOW), pa.scalar(limit, TIME)))
    if kept.num_rows == table.num_rows:
        return
    file = AtomicFile(path)
    with naming(path):
        pq.write_table(kept, file.temporary, compression="zstd")
    file.commit()


def _copy(source: Path, target: Path) -> None:
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _written(root: Path, name: str, partition: dict[str, str]) -> WrittenFile:
    rows = _rows(root / name)
    return WrittenFile(name, rows, (root / name).stat().st_size, dict(partition), {"numRecords": rows})
