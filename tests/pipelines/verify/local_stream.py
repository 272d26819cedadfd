"""Stands for a stream's process: the stages of a stream in this process, over a directory that grows."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from headrace.connectors.commit_stream import StreamCommitter
from headrace.connectors.map_fields import compile_mapping
from headrace.connectors.stream_ledger import StreamTotals, read_stream_ledger
from headrace.connectors.stream_output import JobRecord, open_stream_output
from headrace.connectors.stream_sources import open_source
from headrace.pipelines.build_definition import build_definition
from headrace.pipelines.stream_config import StreamConfig
from headrace.pipelines.streaming.start import settings_of
from tests.pipelines.streaming.local import Local, make_task

JOB = "s0001-a"


def run_stream_here(
    config: StreamConfig,
    beam_args: Sequence[str],
    on_progress: Callable[[StreamTotals], None],
    *,
    log: Path,
    seed: int = 1,
) -> None:
    """Does what ``run_stream_apart`` does, on :class:`Local`: bundles of random size, in random order."""
    source = open_source(
        config.source,
        format=None if config.format == "auto" else config.format,
        mapping=compile_mapping(config.mapping) if config.mapping else None,
    )
    out = Path(config.output)
    definition = build_definition(config)
    settings = {**settings_of(config), "poll_seconds": 0.0, "until_us": None}
    with open_stream_output(out) as output:
        now = datetime(2026, 1, 5, tzinfo=UTC)
        record = JobRecord.new([], source=source.name, layout={}, configuration={}, clock=lambda: now)
        record.name = JOB
        output.add(record)
        StreamCommitter(out, app_id=JOB, lake_schema=definition.lake_schema()).prepare()
        key = Path(config.key_file or "")
        task = make_task(out, source, key, readers=config.readers, definition=definition, **settings)  # type: ignore[arg-type]
        local = Local(task, seed=seed)
        while not local.ended():
            for reader in range(task.readers):
                local.heartbeat(reader)
            local.settle()
            on_progress(read_stream_ledger(out, positions=False))
        local.settle()
    log.write_text(" ".join(beam_args))
