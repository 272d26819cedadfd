"""Committing a prepared replay, table by table; each step is done once however often it is repeated."""

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError

from headrace.connectors.atomic_file import naming, sync
from headrace.connectors.commit_state import Mark
from headrace.connectors.delta_commit import commit_files, ensure_table
from headrace.connectors.ledger import Ledger
from headrace.connectors.read_quarantine import FOLDER as QUARANTINE
from headrace.connectors.read_quarantine import ROW_SCHEMA
from headrace.connectors.stream_table import StreamTable
from headrace.connectors.write_lake import WrittenFile
from headrace.pipelines.replay.correct_windows import CORRECTIONS, METRICS
from headrace.pipelines.replay.replay_folder import DONE, ReplayFolder, ReplayRecord
from headrace.pipelines.replay.replay_rows import KEY
from headrace.schemas.errors import UntrustedRunError

_ATTEMPTS = 20


def commit_replay(out: Path, record: ReplayRecord, lake_schema: pa.Schema, *, is_stream: bool) -> None:
    """Makes a prepared replay part of the output: lake, quarantine, corrections, window tables, ledger; then it is done.

    Raises:
        UntrustedRunError: what was prepared is missing or altered.
        OutputError: the disk refused; the next replay goes on from there.
    """
    folder = ReplayFolder(out, record.id)
    app_id = f"replay-{record.id}"
    if record.files:
        ensure_table(out / "events", lake_schema, ["event_date"])
        commit_files(
            out / "events",
            lake_schema,
            record.written(),
            app_id=app_id,
            version=0,
            partition_by=["event_date"],
        )
    _change_quarantine(out, folder, app_id)
    for path in sorted(folder.corrections.glob("*/part-0.parquet")):
        _append(out / CORRECTIONS / path.parent.name, path, app_id)
    for path in sorted(folder.metrics.glob("*/part-0.parquet")):
        target = out / METRICS / path.parent.name
        if is_stream:
            _append(target, path, app_id)
        else:
            _replace(path, target / path.name)
    if record.ledger is not None:
        ledger = record.ledger
        Ledger(ledger["rows_in"], ledger["accepted"], ledger["rejected"]).write(out / "ledger.json")
    record.state = DONE
    folder.save(record)
    folder.clear()


def _change_quarantine(out: Path, folder: ReplayFolder, app_id: str) -> None:
    """Takes recovered rows out, and puts those that failed again in place of what they were; one Delta commit.

    A stream that appends meanwhile, or the compaction of the table, is no conflict that a repetition does not solve.
    """
    taken = _prepared(folder.taken)
    failed = _prepared(folder.outcome)
    root = os.fspath(out / QUARANTINE)
    keys = taken.select([*KEY, "ingest_date"])
    failing = failed.append_column("_failed", pa.array([True] * failed.num_rows, pa.bool_()))
    source = keys.join(
        failing.drop_columns(["ingest_date"]), keys=list(KEY), join_type="left outer", use_threads=False
    )
    dates = sorted({str(day) for day in keys.column("ingest_date").unique().to_pylist()})
    listed = ", ".join(f"'{day}'" for day in dates)
    same = " AND ".join(f"target.{name} = source.{name}" for name in KEY)
    changed = [n for n in ROW_SCHEMA.names if n not in (*KEY, "ingest_date")]
    for attempt in range(_ATTEMPTS):
        table = DeltaTable(root)
        if table.transaction_version(app_id) is not None:
            return
        try:
            (
                table.merge(
                    source,
                    f"target.ingest_date IN ({listed}) AND {same}",
                    source_alias="source",
                    target_alias="target",
                    commit_properties=CommitProperties(app_transactions=[Transaction(app_id, 0)]),
                )
                .when_matched_update({n: f"source.{n}" for n in changed}, predicate="source._failed")
                .when_matched_delete(predicate="source._failed IS NULL")
                .execute()
            )
            break
        except CommitFailedError:
            if attempt == _ATTEMPTS - 1:
                raise
    sync(Path(root) / "_delta_log")


def _prepared(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowInvalid) as error:
        raise UntrustedRunError(
            f"{path} is missing or damaged ({error}): the replay was prepared and can't be finished without it; restore it from "
            "a copy"
        ) from error


def _append(root: Path, prepared: Path, app_id: str) -> None:
    """Adds the rows of a prepared file to a Delta table, once."""
    schema = pq.read_schema(prepared)
    table = StreamTable(root, statistics=())
    table.prepare(schema)
    if table.mark(app_id) is not None:
        return
    name = f"part-{app_id}.parquet"
    with naming(root / name):
        shutil.copyfile(prepared, root / name)
    sync(root / name)
    meta = pq.read_metadata(root / name)
    file = WrittenFile(name, meta.num_rows, (root / name).stat().st_size, {}, {"numRecords": meta.num_rows})
    for attempt in range(_ATTEMPTS):
        try:
            table.append([file], app_id, Mark(0, 0))
            return
        except CommitFailedError:
            if attempt == _ATTEMPTS - 1:
                raise
            if table.mark(app_id) is not None:
                return


def _replace(prepared: Path, target: Path) -> None:
    """Puts a copy of a prepared file in place of a table's; readers see the old one or the new."""
    hidden = target.with_name(f".{target.name}.replay")
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(prepared, hidden)
        sync(hidden)
        os.replace(hidden, target)
    sync(target.parent)
