"""Committing a finished run: files become rows of the tables, and the rows are counted."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.connectors.atomic_file import naming, sync
from headrace.connectors.delta_commit import (
    commit_files,
    commit_parquet,
    count_reasons,
    count_rows,
    ensure_table,
)
from headrace.connectors.ledger import Ledger
from headrace.connectors.write_lake import WrittenFile
from headrace.connectors.write_quarantine import PARTITION, QUARANTINE_TABLE_SCHEMA
from headrace.pipelines.work_folder import Receipt, WorkFolder
from headrace.schemas.errors import UntrustedRunError
from headrace.transforms.window_definitions import Count, Windows

TABLES = ("events", "quarantine")


def commit_run(
    out: Path,
    tables_root: Path,
    receipts: Sequence[Receipt],
    *,
    lake_format: str,
    lake_schema: pa.Schema,
    app_id: str,
    on_committed: Callable[[], None],
) -> tuple[Ledger, dict[str, int]]:
    """Makes the files that the receipts name part of ``OUT/events`` and ``OUT/quarantine``, then counts their rows.

    Idempotent: what is committed already is left as it is.

    Returns:
        The ledger, with ``rows_in`` as the readers counted and the rest from the committed files; and the other counts.
    """
    events, quarantine = _files(receipts)
    tables = {
        "events": (events, lake_schema, "event_date"),
        "quarantine": (quarantine, QUARANTINE_TABLE_SCHEMA, PARTITION),
    }
    for name, (files, schema, partition) in tables.items():
        root = out / name
        if lake_format == "delta":
            ensure_table(root, schema, [partition])
            commit_files(root, schema, files, app_id=app_id, version=0, partition_by=[partition])
        else:
            commit_parquet(tables_root / name, root, files)
    on_committed()
    counts: Counter[str] = Counter()
    for receipt in receipts:
        counts.update(receipt.counts)
    ledger = Ledger(
        rows_in=sum(receipt.rows_in for receipt in receipts),
        accepted=count_rows(out / "events", events),
        rejected=count_reasons(out / "quarantine", quarantine),
    )
    return ledger, dict(sorted(counts.items()))


def require_counted(root: Path, metrics: Mapping[str, Windows], accepted: int) -> None:
    """Holds the metrics that count every row against the lake, since no ledger entry covers them.

    Raises:
        UntrustedRunError: the windows have other rows than the lake.
    """
    for name, windows in metrics.items():
        if windows.where or windows.top is not None or windows.size_us % windows.every_us:
            continue
        expected = accepted * (windows.size_us // windows.every_us)
        counts = [n for n, m in windows.measures.items() if isinstance(m, Count) and not m.where]
        for column in counts:
            table = pq.read_table(root / name / "part-0.parquet", columns=[column], partitioning=None)
            found = sum(table.column(column).to_pylist())
            if found != expected:
                raise UntrustedRunError(
                    f"metric {name} counts {found:,} rows in {column}, the lake's {accepted:,} would be {expected:,}: the windows "
                    "lost or made rows. Nothing was committed; run the same command again, and report it as a bug if it stays"
                )


def publish_metrics(work: WorkFolder, out: Path) -> None:
    """Moves the metrics to ``OUT/metrics`` in place of what an undone run left there; does nothing once they are there.

    Raises:
        OutputError: the disk refused.
    """
    if not work.metrics.exists():
        return
    final = out / "metrics"
    with naming(final):
        if final.exists():
            shutil.rmtree(final)
        os.replace(work.metrics, final)
    sync(out)


def expected_ledger(receipts: Sequence[Receipt]) -> Ledger:
    """The ledger as the receipts have it, before anything is committed: a run that loses rows must not publish the rest."""
    events, quarantine = _files(receipts)
    rejected: dict[str, Counter[str]] = {}
    for file in quarantine:
        for stage, reasons in file.stats["by_reason"].items():
            rejected.setdefault(stage, Counter()).update(reasons)
    return Ledger(
        rows_in=sum(receipt.rows_in for receipt in receipts),
        accepted=sum(file.rows for file in events),
        rejected={stage: dict(reasons) for stage, reasons in rejected.items()},
    )


def written_files(tables_root: Path, receipts: Sequence[Receipt]) -> list[Path]:
    """Returns where the workers wrote the files that the receipts name."""
    return [
        tables_root / name / file.path
        for name, files in zip(TABLES, _files(receipts), strict=True)
        for file in files
    ]


def _files(receipts: Sequence[Receipt]) -> tuple[list[WrittenFile], list[WrittenFile]]:
    events = [file for receipt in receipts for file in receipt.events]
    quarantine = [file for receipt in receipts for file in receipt.quarantine]
    return events, quarantine
