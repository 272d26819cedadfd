"""The streaming pipeline: a source to lake, quarantine, window tables and ledger, on a runner that goes on until it is stopped."""

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, TestOptions

from headrace.connectors.commit_stream import StreamCommitter
from headrace.connectors.ledger import Ledger
from headrace.connectors.map_fields import compile_mapping
from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.connectors.stream_output import open_stream_output
from headrace.connectors.stream_sinks import REJECT_COLUMNS, open_sink
from headrace.connectors.stream_sources import open_source
from headrace.pipelines.build_definition import build_definition
from headrace.pipelines.logs import name_job
from headrace.pipelines.stream_config import StreamConfig
from headrace.pipelines.streaming.engine import BeamEngine, Engine, FlinkEngine, savepoints_folder
from headrace.pipelines.streaming.graph import Heartbeats, assemble_stream
from headrace.pipelines.streaming.read_fn import BUNDLE_SECONDS, FLINK_BUNDLE_SECONDS
from headrace.pipelines.streaming.start import Start
from headrace.pipelines.streaming.stream_progress import StreamProgress
from headrace.pipelines.streaming.stream_task import StreamTask
from headrace.pipelines.streaming.supervise import Supervisor
from headrace.pipelines.streaming.telemetry import Telemetry
from headrace.pipelines.streaming.upkeep import UpkeepProcess
from headrace.runners.failures import explained
from headrace.runners.flink import rest_address
from headrace.runners.flink_rest import FlinkRest
from headrace.runners.options import examine, prepare, with_package
from headrace.schemas.errors import ConfigError
from headrace.transforms.coders import register_coders


@dataclass(frozen=True)
class StreamResult:
    """What a stream did until it was stopped."""

    output: Path
    job: str
    ledger: Ledger | None
    """Over all jobs that wrote to the output; None after a dry run."""
    late: dict[str, int]
    """Rows that came too late for a window table, by table; they are in the lake."""
    restarts: int
    elapsed_seconds: float
    state: str | None = None
    """Savepoint that the drained job left; None where the runner keeps none."""


def run_stream(
    config: StreamConfig,
    *,
    beam_args: Sequence[str] = (),
    rebuild_state_from: str | None = None,
    metrics_port: int | None = None,
    metrics_host: str = "127.0.0.1",
    otlp_endpoint: str | None = None,
    dry_run: bool = False,
    stop: threading.Event | None = None,
    on_progress: Callable[[StreamProgress], None] | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> StreamResult:
    """Runs the streaming pipeline until ``stop`` is set, the configured end is reached, or the runner gives up.

    ``OUT/events``, ``OUT/quarantine``, ``OUT/metrics/NAME`` (every firing of every window; ``latest_rows`` of
    :mod:`headrace.transforms.window_rows` gives the present ones), ``OUT/late/NAME`` and ``OUT/ledger``, all Delta tables. Exactly
    once: rows become visible in transactions that each hold what a completed checkpoint holds. Started again, it goes on
    where it stopped: from the runner's savepoint or checkpoint if there is one, else from the lake.

    Args:
        config: what to read, do and write.
        beam_args: options of Beam; ``--runner`` names the profile.
        rebuild_state_from: the output folder itself: leave the runner's state, start from the lake; needed if the configuration
            changed.
        metrics_port: serve metrics and health there; None: don't.
        metrics_host: address to serve them on.
        otlp_endpoint: base URL of an OpenTelemetry collector; None: as ``OTEL_EXPORTER_OTLP_ENDPOINT`` says.
        dry_run: check everything that can be checked without a job.
        stop: set from another thread to drain and end.
        on_progress: called about once a second.
        clock: now.

    Raises:
        ConfigError: an option, path or existing output that would give a wrong result.
        InputError: the source can't be read.
        UntrustedRunError: the ledger does not balance, or the lake holds what the job's state does not know.
    """
    began = time.monotonic()
    config.require_paths()
    found, _ = examine(beam_args, config, streaming=True)
    dry_run = dry_run or found.options.view_as(TestOptions).dry_run
    if dry_run and found.profile.name == "dataflow":
        beam_args = [*beam_args, "--dry_run=true"]  # Without it the profile refuses the job.
    prepared = prepare(beam_args, config, streaming=True)
    definition = build_definition(config)
    source = open_source(
        config.source,
        format=None if config.format == "auto" else config.format,
        max_record_bytes=config.max_record_bytes,
        mapping=compile_mapping(config.mapping) if config.mapping else None,
        schema=definition.registry.get(config.schema).document if config.schema else None,
    )
    sinks = [open_sink(url, definition.lake_schema().names) for url in config.sink]
    quarantine_sinks = [open_sink(url, REJECT_COLUMNS) for url in filter(None, [config.quarantine_sink])]
    if not dry_run:
        source.check()
        for sink in (*sinks, *quarantine_sinks):
            sink.check()
    with ExitStack() as stack:
        place = Path(config.output)
        if dry_run:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-dry-run-"))) / "out"
        output = stack.enter_context(open_stream_output(place))
        shipped = list(beam_args)
        if prepared.profile.ships_package and not dry_run:
            package = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-package-")))
            shipped = with_package(beam_args, package)

        def options_for(name: str, restore: str | None) -> PipelineOptions:
            more = [f"--job_name={name}", *([f"--savepoint_path={restore}"] if restore else [])]
            return prepare([*shipped, *more], config, streaming=True).options

        def build(options: PipelineOptions, native: bool) -> beam.Pipeline:
            return build_pipeline(options, task, native=native)

        rest = FlinkRest(rest_address(prepared.options)) if prepared.profile.name == "flink" else None
        engine: Engine = (
            BeamEngine(options_for, build)
            if rest is None
            else FlinkEngine(options_for, build, rest, savepoints_folder(rest, output.out))
        )
        start = Start.plan(
            output,
            config,
            definition,
            source,
            engine,
            rebuild=rebuild_state_from,
            clock=clock,
            connect=not dry_run,
        )
        task = start.task(
            rest.url if rest else None,
            sinks,
            quarantine_sinks,
            retries_bundles=prepared.profile.retries_bundles,
        )
        if dry_run:
            pipeline = build(options_for(task.job_name, None), rest is not None)
            if prepared.profile.name == "dataflow":
                pipeline.run()  # Beam makes the whole job of it, and sends nothing.
            else:
                pipeline.to_runner_api()
            return StreamResult(Path(config.output), task.job, None, {}, 0, time.monotonic() - began)
        StreamCommitter(output.out, app_id=task.job, lake_schema=definition.lake_schema()).prepare()
        name_job(task.job)
        telemetry = stack.enter_context(
            Telemetry(task.job, source.name, metrics_port, host=metrics_host, otlp_endpoint=otlp_endpoint)
        )
        supervisor = Supervisor(
            engine,
            task,
            start.record,
            output,
            stop=stop or threading.Event(),
            on_progress=on_progress,
            telemetry=telemetry,
        )
        with explained(), UpkeepProcess(output.out, config.compact_seconds):
            supervisor.run(start.restore)
        totals = read_stream_ledger(output.out, positions=False)
        return StreamResult(
            output=Path(config.output),
            job=task.job,
            ledger=totals.ledger(),
            late=totals.late,
            restarts=supervisor.restarts,
            elapsed_seconds=time.monotonic() - began,
            state=start.record.state,
        )


def build_pipeline(options: PipelineOptions, task: StreamTask, *, native: bool) -> beam.Pipeline:
    """Returns the pipeline of ``docs/architecture.md``, section "Streaming pipeline", not yet run.

    Raises:
        ConfigError: Beam does not take the value of an option.
    """
    register_coders()
    try:
        pipeline = beam.Pipeline(options=options)
    except ValueError as error:
        raise ConfigError(f"Beam refuses the runner's options: {error}") from error
    assemble_stream(
        pipeline | "Heartbeats" >> Heartbeats(native=native),
        task,
        bundle_seconds=FLINK_BUNDLE_SECONDS if native else BUNDLE_SECONDS,
    )
    return pipeline
