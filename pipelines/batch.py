"""The batch pipeline: files to lake, quarantine, metrics and ledger."""

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import apache_beam as beam
import pyarrow as pa

from headrace.connectors.atomic_file import remove_temporaries
from headrace.connectors.inputs import Plan, plan_inputs
from headrace.connectors.ledger import Ledger
from headrace.connectors.manifest import InputRecord, Manifest, open_output
from headrace.connectors.map_fields import compile_mapping
from headrace.connectors.write_metrics import write_metrics
from headrace.pipelines.build_definition import build_definition, definition_identity
from headrace.pipelines.commit import (
    TABLES,
    commit_run,
    expected_ledger,
    publish_metrics,
    require_counted,
    written_files,
)
from headrace.pipelines.config import BatchConfig
from headrace.pipelines.definition import Definition
from headrace.pipelines.finish_split_fn import FinishSplitFn, ResolveShardFn
from headrace.pipelines.progress import Progress
from headrace.pipelines.progress_watch import watch
from headrace.pipelines.read_stage_fn import ReadStageFn, Task
from headrace.pipelines.results import load_result, save_counts
from headrace.pipelines.summary import BatchResult
from headrace.pipelines.work_folder import WorkFolder
from headrace.runners.failures import explained
from headrace.runners.options import Prepared, prepare, with_package
from headrace.schemas.columns import ENRICHED_SCHEMA
from headrace.schemas.errors import ConfigError, UntrustedRunError
from headrace.transforms.batches import conform
from headrace.transforms.coders import register_coders
from headrace.transforms.window_partials import finish, merge, partial

Message = tuple[int, bytes]
MetricPart = tuple[str, pa.RecordBatch]


@dataclass(frozen=True)
class _Run:
    config: BatchConfig
    plan: Plan
    definition: Definition
    manifest: Manifest
    work: WorkFolder

    @property
    def tables_root(self) -> Path:
        """Delta tables are written in place (a file counts from its commit on), plain folders are moved there when whole."""
        return self.manifest.out if self.config.lake_format == "delta" else self.work.root / "tables"

    def publish(self) -> None:
        """The tables are committed: the metrics follow, and a rerun need not process anything again."""
        publish_metrics(self.work, self.manifest.out)
        self.manifest.advance("committed")

    def task(self) -> Task:
        return Task(
            output=str(self.manifest.out),
            events_root=str(self.tables_root / "events"),
            quarantine_root=str(self.tables_root / "quarantine"),
            name=self.manifest.fingerprint[:12],
            now=self.manifest.now,
            definition=self.definition,
            mapping=compile_mapping(self.config.mapping) if self.config.mapping else None,
            compression=self.config.compression,
            max_record_bytes=self.config.max_record_bytes,
            shards=self.config.shards,
        )


def run_batch(
    config: BatchConfig,
    *,
    beam_args: Sequence[str] = (),
    on_progress: Callable[[Progress], None] | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> BatchResult:
    """Runs the batch pipeline and commits its output.

    ``OUT/events`` and ``OUT/quarantine`` (Delta tables or Parquet folders), ``OUT/metrics/NAME``, ``OUT/ledger.json`` and
    ``OUT/manifest.json``. Idempotent: the same call after success does nothing; after a crash, however hard, it leaves the
    rows that an undisturbed run leaves.

    Args:
        config: what to read, do and write.
        beam_args: options of Beam; ``--runner`` names the profile.
        on_progress: called about twice a second from another thread.
        clock: gives the reference time where the configuration has none.

    Raises:
        ConfigError: an option, path or existing output that would give a wrong result.
        InputError: an input that can't be read.
        UntrustedRunError: the rows do not add up; the ledger is written and says which.
        OutputError: the disk refused.
    """
    began = time.monotonic()
    config.require_paths()
    prepared = prepare(beam_args, config)
    plan = plan_inputs(
        config.input,
        format=None if config.format == "auto" else config.format,
        split_bytes=config.split_bytes,
    )
    definition = build_definition(config)
    _check_mapping(config, plan)
    out = Path(config.output).absolute()
    manifest = open_output(
        out,
        files=[InputRecord(f.origin, f.size_bytes, f.checksum, f.format, f.compression) for f in plan.files],
        configuration=definition_identity(config, definition),
        now=config.now,
        clock=clock,
    )
    with manifest:
        run = _Run(config, plan, definition, manifest, WorkFolder(out))
        already_done = manifest.status == "done"
        if already_done:
            run.work.remove()
        else:
            if not run.work.complete:
                _process(run, prepared, beam_args, on_progress, began)
                _require_sound(run)
            receipts = run.work.receipts(len(plan.splits))
            ledger, counts = commit_run(
                out,
                run.tables_root,
                receipts,
                lake_format=config.lake_format,
                lake_schema=definition.lake_schema(),
                app_id=manifest.fingerprint,
                on_committed=run.publish,
            )
            _require_balance(ledger, out)
            ledger.write(out / "ledger.json")
            save_counts(out, counts)
            manifest.advance("done")
            run.work.remove()
        result = load_result(out, definition.metrics)
        return BatchResult(
            ledger=result.ledger,
            output=Path(config.output),
            now=manifest.now,
            now_given=config.now is not None,
            elapsed_seconds=time.monotonic() - began,
            already_done=already_done,
            counts=result.counts,
            top_event_types=result.top_event_types,
            revenue=result.revenue,
            warnings=result.warnings,
        )


def assemble_pipeline(pipeline: beam.Pipeline, plan: Plan, task: Task) -> None:
    """Adds the steps of ``docs/architecture.md``, section "Batch pipeline", to a Beam pipeline."""
    register_coders()
    read = (
        pipeline
        | "CreateSplits" >> beam.Create(plan.splits, reshuffle=True)
        | "ReadStage"
        >> beam.ParDo(ReadStageFn(task))
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
        | "GroupBySplit" >> beam.GroupByKey()
        | "FinishSplits" >> beam.ParDo(FinishSplitFn(task)).with_output_types(MetricPart)
        | "GroupByMetric" >> beam.GroupByKey()
        | "WriteMetrics"
        >> beam.ParDo(
            _WriteMetricsFn(str(WorkFolder(task.output).metrics), task.definition)
        ).with_output_types(str)
    )


class _WriteMetricsFn(beam.DoFn):
    """(first of the metrics that share panes, their partials) → the name of each of them, once its table is written."""

    def __init__(self, root: str, definition: Definition) -> None:
        self._root = root
        self._definition = definition

    def process(self, element: tuple[str, Iterable[pa.RecordBatch]]) -> Iterable[str]:
        first, partials = element
        metrics = self._definition.metrics
        merged = merge(list(partials), metrics[first])
        for name in self._definition.shared_panes()[first]:
            write_metrics(self._root, name, finish(merged, metrics[name]))
            yield name


def _process(
    run: _Run,
    prepared: Prepared,
    beam_args: Sequence[str],
    on_progress: Callable[[Progress], None] | None,
    began: float,
) -> None:
    run.work.create()
    task = run.task()
    for table in TABLES:
        (run.tables_root / table).mkdir(parents=True, exist_ok=True)
        remove_temporaries(run.tables_root / table)
    with ExitStack() as stack:
        options = prepared.options
        if prepared.profile.ships_package:
            package = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-package-")))
            options = prepare(with_package(beam_args, package), run.config).options
        if on_progress is not None:
            total = sum(file.size_bytes for file in run.plan.files)
            stack.enter_context(watch(run.work, on_progress, bytes_total=total, began=began))
        if run.plan.splits:
            pipeline = beam.Pipeline(options=options)
            assemble_pipeline(pipeline, run.plan, task)
            with explained():
                pipeline.run().wait_until_finish()
    for name, windows in task.definition.metrics.items():
        if not (run.work.metrics / name).exists():
            nothing = partial(conform({}, ENRICHED_SCHEMA, 0), windows)
            write_metrics(run.work.metrics, name, finish(nothing, windows))


def _require_sound(run: _Run) -> None:
    """Checks what the workers left, before any of it is published.

    Raises:
        UntrustedRunError: rows are missing or too many.
    """
    receipts = run.work.receipts(len(run.plan.splits))
    expected = expected_ledger(receipts)
    _require_balance(expected, run.manifest.out)
    require_counted(run.work.metrics, run.definition.metrics, expected.accepted)
    run.work.mark_complete(written_files(run.tables_root, receipts))


def _require_balance(ledger: Ledger, out: Path) -> None:
    """Writes the ledger of a run that lost or made rows, and stops it."""
    if not ledger.balanced:
        ledger.write(out / "ledger.json")
        raise UntrustedRunError(ledger.explain_imbalance())


def _check_mapping(config: BatchConfig, plan: Plan) -> None:
    """Refuses a wrong mapping before anything is written."""
    if not config.mapping:
        return
    compile_mapping(config.mapping)
    weblogs = [file.origin for file in plan.files if file.format == "weblog"]
    if weblogs:
        raise ConfigError(
            f"{weblogs[0]} is a web log, and `mapping` applies to jsonl, csv, parquet and avro; read it in a run of its own, "
            "without `mapping`"
        )
