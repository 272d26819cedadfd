"""Committing a date of a backfill: its files replace what the lake and the quarantine held for it, and nothing else."""

import os
import shutil
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable, Schema

from headrace.connectors.atomic_file import AtomicFile, naming, sync
from headrace.connectors.delta_commit import add_action, committed_files, ensure_table, plain_schema, settle
from headrace.connectors.write_quarantine import PARTITION as INGEST_DATE
from headrace.connectors.write_quarantine import QUARANTINE_TABLE_SCHEMA
from headrace.pipelines.backfill.backfill_folder import TABLES, BackfillFolder, DateManifest
from headrace.pipelines.backfill.finish_dates_fn import panes_name, read_panes
from headrace.pipelines.backfill.read_dates_fn import QUARANTINE_PARTITION
from headrace.pipelines.definition import Definition
from headrace.transforms.batches import concat
from headrace.transforms.window_definitions import Windows
from headrace.transforms.window_partials import PANE, finish, merge

QUARANTINE_SCHEMA = QUARANTINE_TABLE_SCHEMA.append(pa.field(QUARANTINE_PARTITION, pa.date32()))
"""Columns of the quarantine of backfills: also the date to which a row counts, by which a run replaces it."""
_PARTITIONS = {"events": ["event_date"], "quarantine": [QUARANTINE_PARTITION, INGEST_DATE]}
_EPOCH = date(1970, 1, 1)
_ONE_DAY, _DAY_US = timedelta(days=1), 86_400_000_000


def commit_date(
    folder: BackfillFolder,
    definition: Definition,
    manifest: DateManifest,
    *,
    on_table: Callable[[str], None] = lambda table: None,
) -> None:
    """Makes the manifest's files the rows of its date in both tables; :func:`finish_dates` follows.

    One Delta commit a table takes the date's old files out and the new ones in: a reader of the log sees the old rows or the new.
    Replaced files stay on disk for readers that have begun, until a vacuum. Idempotent: files are moved only where they are
    missing, a table that has them already is left as it is.

    Args:
        on_table: called after each table's commit, with its name.

    Raises:
        UntrustedRunError: a file is missing or altered.
        OutputError: the disk refused.
        ConfigError: a table was altered by others.
    """
    schemas = {"events": definition.lake_schema(), "quarantine": QUARANTINE_SCHEMA}
    day = date.fromisoformat(manifest.date)
    for name in TABLES:
        root, schema, partitions = folder.table(name), schemas[name], _PARTITIONS[name]
        files = manifest.files[name]
        ensure_table(root, schema, partitions)
        for file in files:
            _move(folder.staging / name / file.path, root / file.path)
        if set(date_files(root, name, day)) != {file.path for file in files}:
            settle(root, files)
            DeltaTable(os.fspath(root)).create_write_transaction(
                [add_action(root, file) for file in files],
                "overwrite",
                Schema.from_arrow(plain_schema(schema)),
                partitions,
                partition_filters=[(partitions[0], "=", manifest.date)],
            )
            sync(root / "_delta_log")
        on_table(name)
    panes = folder.state / "panes" / manifest.date
    staged = folder.root / "_work" / "panes" / manifest.date
    if staged.exists() or not manifest.partials:
        with naming(panes):
            if panes.exists():
                shutil.rmtree(panes)
            if staged.exists():
                panes.parent.mkdir(parents=True, exist_ok=True)
                os.replace(staged, panes)


def finish_dates(folder: BackfillFolder, definition: Definition, manifests: Sequence[DateManifest]) -> None:
    """Writes the window tables that these dates' events are in, once their rows are committed, and saves that they are done.

    A window belongs to the date on which it begins: ``OUT/metrics/NAME/date=DATE/part-0.parquet``. It is made of the panes of all
    dates that it reaches into, so a window over midnight is whole once both dates are there. Idempotent.

    Raises:
        OutputError: the disk refused.
    """
    days = [date.fromisoformat(manifest.date) for manifest in manifests]
    for first, names in definition.shared_panes().items():
        panes = panes_name(first, definition.metrics[first])
        for name in names:
            windows = definition.metrics[name]
            within = not windows.slides and _DAY_US % windows.size_us == 0
            reach = 0 if within else -(-(windows.size_us - 1) // _DAY_US)
            for day in sorted({day - _ONE_DAY * back for day in days for back in range(reach + 1)}):
                _write_metric(folder, panes, name, windows, day, reach)
    for manifest in manifests:
        manifest.state = "done"
        folder.save(manifest)


def is_written(folder: BackfillFolder, manifest: DateManifest) -> bool:
    """Returns whether all of a manifest's files are there still, staged or in their tables, and its panes."""
    tables = all(
        (folder.staging / name / file.path).exists() or (folder.table(name) / file.path).exists()
        for name, files in manifest.files.items()
        for file in files
    )
    work = folder.root / "_work"
    return tables and all(
        (work / path).exists() or (folder.state / path).exists() for path in manifest.partials.values()
    )


def is_committed(folder: BackfillFolder, manifest: DateManifest) -> bool:
    """Returns whether both tables hold exactly the manifest's files for its date."""
    day = date.fromisoformat(manifest.date)
    for name in TABLES:
        wanted = {file.path for file in manifest.files[name]}
        root = folder.table(name)
        if set(date_files(root, name, day)) != wanted or not all((root / path).exists() for path in wanted):
            return False
    return True


def date_files(root: Path, table: str, day: date) -> list[str]:
    """Returns the paths of a table's files of one date, relative to its folder; none if there is no table."""
    if not DeltaTable.is_deltatable(os.fspath(root)):
        return []
    prefix = f"{_PARTITIONS[table][0]}={day.isoformat()}/"
    return [path for path in map(unquote, committed_files(root)) if path.startswith(prefix)]


def _write_metric(
    folder: BackfillFolder, panes: str, name: str, windows: Windows, day: date, reach: int
) -> None:
    paths = [folder.state / "panes" / (day + _ONE_DAY * n).isoformat() / panes for n in range(reach + 1)]
    target = folder.root / "metrics" / name / f"date={day.isoformat()}" / "part-0.parquet"
    if not paths[0].exists():
        if target.exists():
            shutil.rmtree(target.parent)
        return
    start = datetime.combine(day, datetime.min.time())
    end_us = ((day - _EPOCH).days + 1) * _DAY_US + windows.size_us
    parts = [_until(read_panes(path), end_us) for path in paths if path.exists()]
    table = finish(_joined(parts, windows), windows)
    begins = table.column("window_start").cast(pa.timestamp("us"))
    table = table.filter(
        pc.and_(
            pc.greater_equal(begins, pa.scalar(start, pa.timestamp("us"))),
            pc.less(begins, pa.scalar(start + _ONE_DAY, pa.timestamp("us"))),
        )
    )
    table = pa.table(
        [c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in table.columns],
        names=table.column_names,
    )
    table = table.sort_by([(column, "ascending") for column in table.column_names])
    file = AtomicFile(target)
    with naming(target), pa.OSFile(str(file.temporary), "wb") as sink:
        pq.write_table(table.combine_chunks(), sink, compression="zstd", store_schema=False)
    file.commit()


def _joined(parts: list[pa.RecordBatch], windows: Windows) -> pa.RecordBatch:
    """Returns the panes of neighbouring dates, ascending; they need merging only where one reaches over midnight."""
    parts = [part for part in parts if part.num_rows] or parts[:1]
    if _DAY_US % windows.pane_us == 0 and all(part.schema.equals(parts[0].schema) for part in parts):
        return concat(parts)
    return merge(parts, windows)


def _until(panes: pa.RecordBatch, end_us: int) -> pa.RecordBatch:
    """Returns the panes that begin before an instant."""
    return panes.filter(pc.less(panes.column(PANE), end_us))


def _move(source: Path, target: Path) -> None:
    if source.exists():
        with naming(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
