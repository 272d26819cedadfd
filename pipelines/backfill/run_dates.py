"""One job of a backfill: some neighbouring dates of the archive to checked files, waiting to be committed."""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow.compute as pc

from headrace.connectors.archive_plan import ArchiveSplit
from headrace.connectors.map_fields import compile_mapping
from headrace.connectors.write_lake import WrittenFile
from headrace.connectors.write_quarantine import reasons_in
from headrace.pipelines.backfill.backfill_config import BackfillConfig
from headrace.pipelines.backfill.backfill_folder import BackfillFolder, DateManifest
from headrace.pipelines.backfill.finish_dates_fn import (
    FinishDatesFn,
    Part,
    WritePanesFn,
    panes_path,
    read_panes,
)
from headrace.pipelines.backfill.plan_backfill import BackfillPlan
from headrace.pipelines.backfill.read_dates_fn import QUARANTINE_PARTITION, DatesTask, ReadDatesFn
from headrace.pipelines.definition import Definition
from headrace.pipelines.finish_split_fn import ResolveShardFn
from headrace.pipelines.progress import Progress
from headrace.pipelines.progress_watch import watch
from headrace.pipelines.work_folder import Receipt, WorkFolder, receipt_from
from headrace.runners.failures import explained
from headrace.runners.options import prepare, with_package
from headrace.schemas.errors import UntrustedRunError
from headrace.transforms.coders import register_coders
from headrace.transforms.window_definitions import Count
from headrace.transforms.window_partials import finish

Message = tuple[int, bytes]
_AGAIN = (
    "Nothing of these dates was committed; run the same command again, and report it as a bug if it stays"
)


@dataclass
class JobLedger:
    """Where the rows of one job went."""

    rows_in: int = 0
    """Records that the readers counted."""
    outside: int = 0
    """Rows of dates that are not the job's."""
    accepted: int = 0
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By (stage, reason)."""

    @property
    def balanced(self) -> bool:
        return self.rows_in == self.accepted + sum(self.rejected.values()) + self.outside

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        rejected: dict[str, dict[str, int]] = {}
        for (stage, reason), rows in sorted(self.rejected.items()):
            rejected.setdefault(stage, {})[reason] = rows
        return {
            "rows_in": self.rows_in,
            "accepted": self.accepted,
            "rejected": rejected,
            "outside": self.outside,
            "balanced": self.balanced,
        }


def run_dates(
    folder: BackfillFolder,
    config: BackfillConfig,
    definition: Definition,
    plan: BackfillPlan,
    fingerprints: Mapping[date, str],
    *,
    beam_args: Sequence[str],
    on_progress: Callable[[Progress], None] | None,
    began: float,
) -> tuple[JobLedger, list[DateManifest]]:
    """Reads the archive for these dates (neighbours, ascending), and checks what was written.

    Returns:
        the job's ledger, and a manifest for each date, not yet saved.

    Raises:
        InputError: a file can't be read, or changed meanwhile.
        UntrustedRunError: the rows do not add up; nothing is committed.
        OutputError: the disk refused.
    """
    days = sorted(fingerprints)
    task = DatesTask(
        output=str(folder.root),
        first=days[0],
        names=tuple(fingerprints[day][:12] for day in days),
        last_takes_undated=plan.now is not None and days[-1] == plan.dates[-1],
        definition=definition,
        mapping=compile_mapping(config.mapping) if config.mapping else None,
        compression=config.compression,
        shards=config.shards,
    )
    splits = plan.splits(days)
    work = WorkFolder(folder.root)
    work.create()
    with ExitStack() as stack:
        prepared = prepare(beam_args, config)
        options = prepared.options
        if prepared.profile.ships_package:
            package = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-package-")))
            options = prepare(with_package(beam_args, package), config).options
        if on_progress is not None:
            total = sum(split.size_bytes for split in splits)
            stack.enter_context(watch(work, on_progress, bytes_total=total, began=began))
        if splits:
            pipeline = beam.Pipeline(options=options)
            assemble_dates(pipeline, task, splits)
            with explained():
                pipeline.run().wait_until_finish()
    plan.require_unchanged()
    ledger, receipts = _collect(task, splits)
    if not ledger.balanced:
        raise UntrustedRunError(
            f"dates {days[0]} to {days[-1]}: rows in {ledger.rows_in:,} ≠ accepted {ledger.accepted:,} + rejected "
            f"{sum(ledger.rejected.values()):,} + outside {ledger.outside:,}: the job lost or made rows. {_AGAIN}"
        )
    return ledger, [_manifest(task, n, fingerprints[day], receipts) for n, day in enumerate(days)]


def assemble_dates(pipeline: beam.Pipeline, task: DatesTask, splits: Sequence[ArchiveSplit]) -> None:
    """Adds the steps of ``docs/backfill.md``, section "How it works", to a Beam pipeline."""
    register_coders()
    read = (
        pipeline
        | "CreateSplits" >> beam.Create(splits, reshuffle=True)
        | "ReadDates"
        >> beam.ParDo(ReadDatesFn(task))
        .with_output_types(Message, records=Message)
        .with_outputs("records", main="receipts")
    )
    verdicts = (
        read.records
        | "GroupByShard" >> beam.GroupByKey()
        | "ResolveShards" >> beam.ParDo(ResolveShardFn()).with_output_types(Message)
    )
    _ = (
        (read.receipts, verdicts)
        | "JoinVerdicts" >> beam.Flatten()
        | "GroupByUnit" >> beam.GroupByKey()
        | "FinishDates" >> beam.ParDo(FinishDatesFn(task)).with_output_types(Part)
        | "GroupByMetric" >> beam.GroupByKey()
        | "WritePanes" >> beam.ParDo(WritePanesFn(task)).with_output_types(str)
    )


def _collect(task: DatesTask, splits: Sequence[ArchiveSplit]) -> tuple[JobLedger, dict[int, Receipt]]:
    """Reads the receipts of splits and units; counts the rejected rows in the files themselves."""
    root = WorkFolder(task.output).root
    ledger = JobLedger()
    receipts: dict[int, Receipt] = {}
    for split in splits:
        found = _json(root / "splits" / f"{split.split.index:06d}.json")
        ledger.rows_in += found["rows_in"]
        ledger.outside += found["outside"]
        for unit, rows in found["units"].items():
            receipt = receipt_from(_json(root / "receipts" / f"{int(unit):09d}.json"))
            if receipt.rows_in != rows:
                raise UntrustedRunError(
                    f"split {split.split.origin}:{split.split.start} counted {rows:,} rows, its receipt {receipt.rows_in:,}. "
                    f"{_AGAIN}"
                )
            receipts[int(unit)] = receipt
            ledger.accepted += sum(file.rows for file in receipt.events)
            day = int(unit) % task.days
            for file in receipt.quarantine:
                for stage, reasons in reasons_in(Path(task.root("quarantine", day)) / file.path).items():
                    ledger.rejected.update({(stage, reason): n for reason, n in reasons.items()})
    return ledger, receipts


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UntrustedRunError(
            f"the runner finished, but left no {path.name} in {path.parent}; is the output folder shared with all workers? {_AGAIN}"
        )
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def _manifest(
    task: DatesTask, number: int, fingerprint: str, receipts: Mapping[int, Receipt]
) -> DateManifest:
    day = task.day(number).isoformat()
    files: dict[str, list[WrittenFile]] = {"events": [], "quarantine": []}
    counts: Counter[str] = Counter()
    rejected: dict[str, Counter[str]] = {}
    for unit, receipt in sorted(receipts.items()):
        if unit % task.days != number:
            continue
        counts.update(receipt.counts)
        files["events"] += receipt.events
        for file in receipt.quarantine:
            for stage, reasons in file.stats["by_reason"].items():
                rejected.setdefault(stage, Counter()).update(reasons)
            path = f"{QUARANTINE_PARTITION}={day}/{file.path}"
            partition = {QUARANTINE_PARTITION: day, **file.partition}
            files["quarantine"].append(WrittenFile(path, file.rows, file.size_bytes, partition, file.stats))
    accepted = sum(file.rows for file in files["events"])
    partials = {}
    for first in task.definition.shared_panes():
        panes = panes_path(task, number, first)
        if panes.exists():
            partials[first] = f"panes/{day}/{panes.name}"
    _require_counted(task, number, accepted)
    return DateManifest(
        date=day,
        fingerprint=fingerprint,
        files=files,
        partials=partials,
        accepted=accepted,
        rejected={stage: dict(sorted(r.items())) for stage, r in sorted(rejected.items())},
        counts=dict(sorted(counts.items())),
    )


def _require_counted(task: DatesTask, number: int, accepted: int) -> None:
    """Holds the metrics that count every row once against the lake's files."""
    for first, names in task.definition.shared_panes().items():
        for name in names:
            windows = task.definition.metrics[name]
            columns = [n for n, m in windows.measures.items() if isinstance(m, Count) and not m.where]
            if windows.where or windows.top is not None or windows.slides or not columns:
                continue
            path = panes_path(task, number, first)
            table = finish(read_panes(path), windows) if path.exists() else None
            found = 0 if table is None else pc.sum(table.column(columns[0])).as_py() or 0
            if found != accepted:
                raise UntrustedRunError(
                    f"date {task.day(number)}: metric {name} counts {found:,} rows, the files of the lake have {accepted:,}. "
                    f"{_AGAIN}"
                )


def discard(folder: BackfillFolder) -> None:
    """Deletes what jobs have left in the work folder; only when all of it is committed, or made again."""
    if (folder.root / "_work").exists():
        shutil.rmtree(folder.root / "_work")
