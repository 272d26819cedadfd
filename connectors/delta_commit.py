"""The one committer: turns written files into rows of a table, once, and counts what a table really holds."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from headrace.connectors.atomic_file import naming, remove_temporaries, replace_file, sync
from headrace.connectors.write_lake import STATISTICS, WrittenFile
from headrace.connectors.write_quarantine import reasons_in
from headrace.schemas.errors import ConfigError, UntrustedRunError

MARKER = "_headrace_commit.json"
"""In a plain Parquet table: the list of its files. Readers of Parquet folders skip names that start with ``_``."""
STATISTICS_PROPERTY = "delta.dataSkippingStatsColumns"
_DELTA_STATISTICS = ("numRecords", "minValues", "maxValues", "nullCount")
_SYNCS_AT_ONCE = 8
_FIX = "The output can't be trusted: run again with another --output"


def ensure_table(
    root: str | os.PathLike[str],
    schema: pa.Schema,
    partition_by: Sequence[str],
    *,
    statistics: Sequence[str] = STATISTICS,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Creates the Delta table, or adds the columns that it lacks (null in the rows it has). Idempotent.

    Dictionary columns are plain strings in the table. Its log holds statistics of ``statistics`` only, whoever writes to it.

    Args:
        root: the table's folder; files in it that no commit names are no part of the table.
        schema: of the rows, partition columns included.
        partition_by: the partition columns.
        statistics: columns with minimum and maximum in the log; those that the schema lacks are ignored.
        settings: further table properties, such as ``delta.logRetentionDuration``, for a table that is created.

    Raises:
        ConfigError: the table has another type for a column or other partitions; it is unchanged.
    """
    wanted = Schema.from_arrow(plain_schema(schema))
    if not DeltaTable.is_deltatable(os.fspath(root)):
        indexed = [n for n in statistics if n in schema.names]
        properties = (
            {STATISTICS_PROPERTY: ",".join(indexed)} if indexed else {"delta.dataSkippingNumIndexedCols": "0"}
        )
        properties |= settings or {}
        DeltaTable.create(os.fspath(root), wanted, partition_by=list(partition_by), configuration=properties)
        return
    table = DeltaTable(os.fspath(root))
    if missing := _missing_columns(table, root, wanted, partition_by):
        table.alter.add_columns(missing)


def commit_files(
    root: str | os.PathLike[str],
    schema: pa.Schema,
    files: Sequence[WrittenFile],
    *,
    app_id: str,
    version: int,
    partition_by: Sequence[str],
) -> bool:
    """Adds the files to the Delta table in one transaction; readers see all of their rows or none.

    Idempotent: the transaction carries (``app_id``, ``version``), and one that the table has already is not repeated. Before
    it, every file is checked against its size and row count and put on disk for good, so a commit survives a power loss.

    Returns:
        False if the table has this version of the application already; nothing is changed then.

    Raises:
        ConfigError: the table lacks columns, or has other types or partitions (deltalake itself would take the files).
        UntrustedRunError: a file is missing or altered, or is in the table by another commit.
        deltalake.exceptions.CommitFailedError: another writer won; the table is as that one left it.
    """
    where = os.fspath(root)
    table = DeltaTable(where)
    if _is_committed(table, app_id, version):
        return False
    wanted = Schema.from_arrow(plain_schema(schema))
    if missing := _missing_columns(table, root, wanted, partition_by):
        raise ConfigError(
            f"table {where} lacks columns {[f.name for f in missing]}; call ensure_table before commit_files"
        )
    active = _delta_files(table)
    for file in files:
        if file.path in active:
            raise UntrustedRunError(
                f"file {file.path} is in table {where} already, by another run than {app_id}. {_FIX}"
            )
    settle(Path(root), files)
    actions = [add_action(Path(root), file) for file in files]
    try:
        table.create_write_transaction(
            actions,
            "append",
            wanted,
            list(partition_by),
            commit_properties=CommitProperties(app_transactions=[Transaction(app_id, version)]),
        )
    except CommitFailedError:
        if _is_committed(DeltaTable(where), app_id, version):
            return False
        raise
    log = Path(root) / "_delta_log"
    sync(log / f"{DeltaTable(where).version():020d}.json")
    sync(log)
    return True


def commit_parquet(
    staging_root: str | os.PathLike[str], root: str | os.PathLike[str], files: Sequence[WrittenFile]
) -> bool:
    """Makes the files a plain Parquet folder under ``root`` in one step.

    The files are moved out of ``staging_root`` (same disk) into a hidden folder beside ``root``, which gets the list of them,
    ``_headrace_commit.json``, and is then renamed. Readers see no folder, or the whole of it: never half a run. What is not
    in ``files`` stays behind. Idempotent, also when an earlier attempt was killed half-way.

    Returns:
        False if ``root`` holds exactly these files already; nothing is changed then.

    Raises:
        ConfigError: ``root`` holds anything else.
        UntrustedRunError: a file is missing or altered.
        OutputError: the disk refused; ``root`` does not exist then.
    """
    staging, final = Path(staging_root), Path(root)
    listing = _listing(files)
    if final.is_dir() and any(final.iterdir()):
        if (final / MARKER).is_file() and (final / MARKER).read_bytes() == listing:
            return False
        raise ConfigError(
            f"{final} holds other files than this run's; name another --output, or delete that folder"
        )
    hidden = final.with_name(f".{final.name}.commit")
    with naming(hidden):
        hidden.mkdir(parents=True, exist_ok=True)
        for file in files:
            source, target = staging / file.path, hidden / file.path
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)
        remove_temporaries(hidden)
    strays = {p.relative_to(hidden).as_posix() for p in hidden.rglob("*") if p.is_file()} - {
        MARKER,
        *(f.path for f in files),
    }
    if strays:
        raise UntrustedRunError(
            f"{hidden} holds files of another run: {sorted(strays)[:5]}; delete it and run again"
        )
    settle(hidden, files)
    replace_file(hidden / MARKER, listing)
    with naming(final):
        os.replace(hidden, final)
    sync(final.parent)
    return True


def committed_files(root: str | os.PathLike[str]) -> dict[str, int]:
    """Returns {path relative to ``root``: size in bytes} of the files that make up the table now, Delta or plain, sorted.

    Raises:
        ConfigError: there is no committed table, or it has deletion vectors, which the file list does not show.
    """
    if DeltaTable.is_deltatable(os.fspath(root)):
        return _delta_files(DeltaTable(os.fspath(root)))
    try:
        listing = json.loads((Path(root) / MARKER).read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"{os.fspath(root)} holds no committed table: the run has not finished; run the same command again"
        ) from None
    return {file["path"]: file["size_bytes"] for file in listing["files"]}


def count_rows(root: str | os.PathLike[str], files: Sequence[WrittenFile]) -> int:
    """Counts the rows of these files of a committed table, from their own footers and never from what their writer said.

    Raises:
        ConfigError: there is no committed table.
        UntrustedRunError: a file is not part of the table, is missing, or was altered after the commit.
    """
    _require_committed(Path(root), files)
    return sum(_footer_rows(Path(root) / file.path) for file in files)


def count_reasons(root: str | os.PathLike[str], files: Sequence[WrittenFile]) -> dict[str, dict[str, int]]:
    """Counts {stage: {reason: rows}} in these files of the committed quarantine, from their rows; both sorted.

    Raises:
        ConfigError, UntrustedRunError: as :func:`count_rows`.
    """
    _require_committed(Path(root), files)
    total: dict[str, dict[str, int]] = {}
    for file in files:
        for stage, reasons in reasons_in(Path(root) / file.path).items():
            of_stage = total.setdefault(stage, {})
            for reason, rows in reasons.items():
                of_stage[reason] = of_stage.get(reason, 0) + rows
    return {stage: dict(sorted(total[stage].items())) for stage in sorted(total)}


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Returns the schema as a table has it: dictionary columns plain."""
    return pa.schema(
        [pa.field(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in schema]
    )


def _missing_columns(
    table: DeltaTable, root: str | os.PathLike[str], wanted: Schema, partition_by: Sequence[str]
) -> list[Any]:
    """Returns the fields that the table lacks; refuses what can't be reconciled."""
    partitions = table.metadata().partition_columns
    if partitions != list(partition_by):
        raise ConfigError(
            f"table {os.fspath(root)} is partitioned by {partitions}, this run writes {list(partition_by)}; use another --output"
        )
    have = {field.name: field.type for field in table.schema().fields}
    for field in wanted.fields:
        if field.name in have and have[field.name] != field.type:
            raise ConfigError(
                f"table {os.fspath(root)}: column {field.name} is {have[field.name].type}, this run writes {field.type.type}; "
                "a column can't change its type: use another --output, or another name for the column"
            )
    return [field for field in wanted.fields if field.name not in have]


def _is_committed(table: DeltaTable, app_id: str, version: int) -> bool:
    # deltalake refuses only a concurrent writer: the same version twice in sequence it accepts.
    last = table.transaction_version(app_id)
    return last is not None and last >= version


def _delta_files(table: DeltaTable) -> dict[str, int]:
    features: Collection[str] = table.protocol().reader_features or ()
    if "deletionVectors" in features:
        raise ConfigError(
            f"table {table.table_uri} has deletion vectors, so its files hold rows that are deleted; "
            "rewrite it without them (REORG TABLE … APPLY (PURGE), delta.enableDeletionVectors = false)"
        )
    found = pa.table(table.get_add_actions()).select(["path", "size_bytes"])
    return dict(sorted(zip(*(c.to_pylist() for c in found.columns), strict=True)))


def add_action(root: Path, file: WrittenFile) -> AddAction:
    """Returns what adds the file to the table's log."""
    stats = {name: file.stats[name] for name in _DELTA_STATISTICS if name in file.stats}
    changed = int(os.stat(root / file.path).st_mtime * 1000)
    return AddAction(file.path, file.size_bytes, file.partition, changed, True, json.dumps(stats))


def settle(root: Path, files: Sequence[WrittenFile]) -> None:
    """Checks every file against what its writer said, and waits until files and folders are on disk.

    Raises:
        UntrustedRunError: a file is missing, or has another size or row count.
    """
    for file in files:
        path = root / file.path
        _require_size(path, file.size_bytes)
        rows = _footer_rows(path)
        if rows != file.rows:
            raise UntrustedRunError(
                f"file {path} holds {rows:,} rows, its writer counted {file.rows:,}. {_FIX}"
            )
    folders = sorted({(root / file.path).parent for file in files} | {root})
    with ThreadPoolExecutor(
        _SYNCS_AT_ONCE
    ) as pool:  # The disk takes several at once in little more time than one.
        list(pool.map(sync, [root / file.path for file in files]))
        list(pool.map(sync, folders))


def _require_committed(root: Path, files: Sequence[WrittenFile]) -> None:
    committed = committed_files(root)
    for file in files:
        if file.path not in committed:
            raise UntrustedRunError(
                f"file {file.path} is not part of table {root}: it was never committed, or was removed. {_FIX}"
            )
        _require_size(root / file.path, committed[file.path])


def _require_size(path: Path, size_bytes: int) -> None:
    try:
        found = os.stat(path).st_size
    except FileNotFoundError:
        raise UntrustedRunError(f"file {path} is missing. {_FIX}") from None
    if found != size_bytes:
        raise UntrustedRunError(
            f"file {path} has {found:,} bytes, it was written with {size_bytes:,}. {_FIX}"
        )


def _footer_rows(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowInvalid) as error:
        raise UntrustedRunError(f"file {path} is not a Parquet file: {error}. {_FIX}") from error


def _listing(files: Sequence[WrittenFile]) -> bytes:
    rows = [{"path": f.path, "rows": f.rows, "size_bytes": f.size_bytes} for f in files]
    return json.dumps({"format": 1, "files": sorted(rows, key=lambda r: str(r["path"]))}, indent=1).encode()
