"""What a backfill would read and how long it would take, before it is run."""

import tempfile
import time
from dataclasses import dataclass
from datetime import date
from itertools import islice

from headrace.connectors.archive_plan import ArchiveSplit
from headrace.connectors.map_fields import compile_mapping
from headrace.connectors.read_parquet_columns import read_parquet_columns
from headrace.connectors.stage import StageWriter
from headrace.connectors.write_lake import PartitionedWriter
from headrace.pipelines.backfill.backfill_config import BackfillConfig
from headrace.pipelines.backfill.plan_backfill import BackfillPlan
from headrace.pipelines.definition import Definition
from headrace.pipelines.pane_partials import PanePartials
from headrace.transforms.base import Kernel
from headrace.transforms.decode_columns import DecodeColumnsKernel
from headrace.transforms.dedupe_records import hash_records

_BLOCKS = 3
START_SECONDS = 5.0
"""What a job costs before its first row: imports, and the kernels of each worker."""


@dataclass(frozen=True)
class Estimate:
    """What would be read."""

    dates: tuple[date, ...]
    missing: tuple[date, ...]
    layout: str
    jobs: int
    files: int
    row_groups: int
    """Those that are read; a group between two jobs counts twice, as it is read twice."""
    row_groups_pruned: int
    """Those whose statistics show that none of their rows can be of the dates."""
    rows: int
    size_bytes: int
    columns: int
    columns_skipped: int
    """Columns of files that are left out in some row group, since they hold no value there."""
    sample_rows: int
    """Rows on which the rate was measured; 0 if there are none."""
    sample_file: str
    rows_per_second: float | None
    seconds: float | None


def estimate(
    config: BackfillConfig, plan: BackfillPlan, definition: Definition, *, workers: int = 1
) -> Estimate:
    """Counts what the plan reads, from footers, and times the stages on some of its rows.

    Args:
        workers: processes over which the rows are spread.
    """
    jobs = plan.jobs(list(plan.dates), config.rows_at_once)
    splits = [split for days in jobs for split in plan.splits(days)]
    kept = {(s.split.origin, n) for s in splits for n in s.groups}
    every = {(p.file.origin, n) for p in plan.files for n, group in enumerate(p.groups) if group.rows}
    skipped = {(s.split.origin, name) for s in splits for names in s.skip.values() for name in names}
    rows = sum(split.rows for split in splits)
    sample = max(splits, key=lambda s: min(s.rows, 50_000), default=None)
    measured, seconds = (0, 0.0) if sample is None else time_stages(config, sample, definition)
    rate = measured / seconds * workers if measured and seconds else None
    return Estimate(
        dates=plan.dates,
        missing=plan.missing,
        layout=plan.archive.layout,
        jobs=len(jobs),
        files=len({s.split.origin for s in splits}),
        row_groups=sum(len(split.groups) for split in splits),
        row_groups_pruned=len(every - kept),
        rows=rows,
        size_bytes=sum(split.size_bytes for split in splits),
        columns=sum(len(p.columns) for p in plan.files),
        columns_skipped=len(skipped),
        sample_rows=measured,
        sample_file=sample.split.origin if sample is not None else "",
        rows_per_second=rate,
        seconds=None if rate is None else rows / rate + START_SECONDS * len(jobs),
    )


def time_stages(config: BackfillConfig, split: ArchiveSplit, definition: Definition) -> tuple[int, float]:
    """Runs all stages and writers over the first blocks of a split, twice, and returns rows and seconds of the second time."""
    mapping = compile_mapping(config.mapping) if config.mapping else None
    decode, *rest = definition.before_dedupe("parquet")
    columns = DecodeColumnsKernel(
        decode, schema=definition.schema, registry=definition.registry, mapped=mapping is not None
    )
    before: list[Kernel] = [columns, *rest]
    after = definition.after_dedupe()
    rows, began = 0, 0.0
    for turn in range(2):
        rows, began = 0, time.monotonic()
        with tempfile.TemporaryDirectory(prefix="headrace-estimate-") as folder:
            stage = StageWriter(f"{folder}/stage.arrow")
            lake = PartitionedWriter(
                folder, partition="event_date", name=f"turn{turn}", compression=config.compression
            )
            panes = PanePartials(definition)
            blocks = read_parquet_columns(
                split.split,
                ingest_time=split.ingest_time,
                mapping=mapping,
                ingest_column=split.ingest_column,
                groups=split.groups,
                skip=split.skip,
            )
            for block in islice(blocks, _BLOCKS):
                rows += block.records
                batch = block.raw
                for kernel in before:
                    batch = kernel(batch).accepted
                    if not batch.num_rows:
                        break
                if batch.num_rows:
                    hash_records(batch, 0, stage.rows)
                    stage.write(batch)
                for kernel in after:
                    if batch.num_rows:
                        batch = kernel(batch).accepted
                if batch.num_rows:
                    lake.write(batch)
                    panes.add(batch)
            stage.close()
            lake.close()
            list(panes.merged())
            seconds = time.monotonic() - began
    return rows, seconds
