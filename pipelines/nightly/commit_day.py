"""Committing a date: its files replace what the tables held for it, and nothing else."""

import os
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable, Schema

from headrace.connectors.atomic_file import naming, sync
from headrace.connectors.delta_commit import add_action, committed_files, ensure_table, settle
from headrace.connectors.write_lake import WrittenFile
from headrace.pipelines.nightly.leftovers import remove_work_folder
from headrace.pipelines.nightly.nightly_tables import TABLES
from headrace.pipelines.nightly.warehouse import DayManifest, Warehouse

PARTITION = "date"


def commit_day(
    warehouse: Warehouse, manifest: DayManifest, *, on_table: Callable[[str], None] = lambda table: None
) -> None:
    """Makes the manifest's files the rows of its date in every table.

    One Delta commit a table takes the date's old files out and the new ones in: readers of the log see the old rows or the new.
    Idempotent: files are moved only where they are missing, a table that has them already is left as it is, so the call can be
    repeated after a crash at any point. At the end the old files are deleted, so that readers of the folders without the log
    (``read_parquet('WAREHOUSE/user_sessions/*/*.parquet')``) see each row once.

    Args:
        manifest: in state written; saved in state done at the end.
        on_table: called after each table, with its name.

    Raises:
        UntrustedRunError: a file is missing or altered.
        OutputError: the disk refused.
        ConfigError: a table was altered by others.
    """
    day = date.fromisoformat(manifest.date)
    mark_later_dates(warehouse, manifest)
    for name, table in TABLES.items():
        root = warehouse.path(name)
        files = manifest.files.get(name, [])
        ensure_table(root, table.schema, [PARTITION], statistics=())
        _move(warehouse.work(day) / "tables" / name, root, files)
        if set(partition_files(root, day)) != {file.path for file in files}:
            settle(root, files)
            DeltaTable(os.fspath(root)).create_write_transaction(
                [add_action(root, file) for file in files],
                "overwrite",
                Schema.from_arrow(table.schema),
                [PARTITION],
                partition_filters=[(PARTITION, "=", manifest.date)],
            )
            sync(root / "_delta_log")
        on_table(name)
    for name in TABLES:
        _sweep(warehouse.path(name), day)
    manifest.state, manifest.rerun_because = "done", []
    warehouse.save(manifest)
    shutil.rmtree(warehouse.work(day), ignore_errors=True)
    remove_work_folder(warehouse)


def is_committed(warehouse: Warehouse, manifest: DayManifest) -> bool:
    """Returns whether every table holds exactly the manifest's files for its date."""
    day = date.fromisoformat(manifest.date)
    for name in TABLES:
        root = warehouse.path(name)
        wanted = {file.path for file in manifest.files.get(name, [])}
        if not DeltaTable.is_deltatable(os.fspath(root)) or set(partition_files(root, day)) != wanted:
            return False
        if not all((root / path).exists() for path in wanted):
            return False
    return True


def partition_files(root: Path, day: date) -> list[str]:
    """Returns the paths of a table's files of one date, relative to its folder; none if there is no table."""
    prefix = f"{PARTITION}={day.isoformat()}/"
    return [path for path in _files(root) if path.startswith(prefix)]


def first_seen_before(warehouse: Warehouse, day: date) -> list[tuple[date, str]]:
    """Returns (date, path relative to the warehouse) of the files with users first seen before a day, ascending."""
    found = []
    for path in _files(warehouse.path("user_first_seen")):
        of = date.fromisoformat(path.partition("/")[0].removeprefix(f"{PARTITION}="))
        if of < day:
            found.append((of, f"user_first_seen/{path}"))
    return sorted(found)


def mark_later_dates(warehouse: Warehouse, manifest: DayManifest) -> list[date]:
    """Marks later dates whose cohorts change with this commit: those with a user who is now first seen on this date, or no longer.

    Returns:
        the dates that are marked, ascending.
    """
    day = date.fromisoformat(manifest.date)
    later = [(of, each) for of, each in warehouse.manifests() if of > day]
    if not later:
        return []
    root = warehouse.path("user_first_seen")
    new = [_existing(warehouse, day, f) for f in manifest.files.get("user_first_seen", [])]
    old = [root / path for path in partition_files(root, day)]
    before, after = _users(old), _users(new)
    changed = pa.concat_arrays(
        [
            before.filter(pc.invert(pc.is_in(before, value_set=after))),
            after.filter(pc.invert(pc.is_in(after, value_set=before))),
        ]
    )
    if not len(changed):
        return []
    marked = []
    for of, each in later:
        metrics = warehouse.path("user_daily_metrics")
        paths = [metrics / path for path in partition_files(metrics, of)]
        if any(pc.any(pc.is_in(_users([path]), value_set=changed)).as_py() for path in paths):
            reason = f"users' first date changed with the run of {manifest.date}"
            if reason not in each.rerun_because:
                each.rerun_because.append(reason)
                warehouse.save(each)
            marked.append(of)
    return marked


def _files(root: Path) -> list[str]:
    if not DeltaTable.is_deltatable(os.fspath(root)):
        return []
    return [unquote(path) for path in committed_files(root)]


def _existing(warehouse: Warehouse, day: date, file: WrittenFile) -> Path:
    staged = warehouse.work(day) / "tables" / "user_first_seen" / file.path
    return staged if staged.exists() else warehouse.path("user_first_seen") / file.path


def _users(paths: list[Path]) -> pa.Array:
    tables = [pq.read_table(path, columns=["user_id"], partitioning=None) for path in paths]
    if not tables:
        return pa.array([], pa.string())
    column = pa.concat_tables(tables).column("user_id").cast(pa.string())
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.string())


def _move(staging: Path, root: Path, files: list[WrittenFile]) -> None:
    for file in files:
        source, target = staging / file.path, root / file.path
        if source.exists():
            with naming(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)


def _sweep(root: Path, day: date) -> None:
    """Deletes the date's files that are no part of the table any more."""
    folder = root / f"{PARTITION}={day.isoformat()}"
    keep = {os.path.basename(path) for path in partition_files(root, day)}
    if not folder.is_dir():
        return
    with naming(folder):
        for path in folder.iterdir():
            if path.name not in keep:
                path.unlink()
        if not keep:
            folder.rmdir()
