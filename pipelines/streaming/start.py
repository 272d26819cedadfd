"""How a stream starts: as the job that was drained, as one that crashed, or as a new one from the lake."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from headrace.connectors.map_fields import compile_mapping
from headrace.connectors.resume_stream import resume_positions, roll_back
from headrace.connectors.stream_ledger import settled_until
from headrace.connectors.stream_output import JobRecord, StreamOutput
from headrace.connectors.stream_sinks import Sink
from headrace.connectors.stream_source import Source
from headrace.pipelines.build_definition import definition_identity
from headrace.pipelines.definition import Definition
from headrace.pipelines.stream_config import StreamConfig, end_of
from headrace.pipelines.streaming.engine import Engine
from headrace.pipelines.streaming.seed import Seed, closed_windows, late_again
from headrace.pipelines.streaming.stream_task import StreamTask
from headrace.schemas.errors import ConfigError

SETTLED = "settled_us"
"""In a job's layout: up to when all of its polls are done, by its readers' clocks."""
_SHOWN = 8
FINISHED = "finished"
"""In the layout of a job that came to the end it was given: its windows are closed, so its state is of no use to go on from."""


@dataclass(frozen=True)
class Start:
    """The decision."""

    output: StreamOutput
    config: StreamConfig
    definition: Definition
    source: Source
    record: JobRecord
    restore: str | None
    """Savepoint or checkpoint that the job goes on from; None: from the record's positions."""
    now: datetime

    @classmethod
    def plan(
        cls,
        output: StreamOutput,
        config: StreamConfig,
        definition: Definition,
        source: Source,
        engine: Engine,
        *,
        rebuild: str | None,
        clock: Callable[[], datetime],
        connect: bool = True,
    ) -> "Start":
        """Decides, ends what a killed launcher left running, and prepares the output.

        Args:
            connect: False leaves the positions empty, for a job that is never run.

        Raises:
            ConfigError: the output was written under another definition and ``rebuild`` does not say to go on.
        """
        configuration = definition_identity(config, definition)
        layout = {
            "readers": config.readers,
            "shards": config.shards,
            "window_shards": config.window_shards,
        }
        last = output.last
        if rebuild is not None and Path(rebuild).absolute() != output.out:
            raise ConfigError(
                f"--rebuild-state-from is {rebuild}, the output is {config.output}; state can be rebuilt only from the lake that "
                "the stream goes on writing to: name it in both"
            )
        if last is not None and rebuild is None:
            _require_same(last, source, configuration)
        if last is not None and last.layout["window_shards"] != config.window_shards:
            raise ConfigError(
                f"window_shards was {last.layout['window_shards']}, is {config.window_shards}: results of a window would be in "
                "two places; leave it as it was, or name another --output"
            )
        restore = None
        if last is not None:
            name = StreamTask.name_of(str(output.out), last.name)
            restore = engine.recover(name, last.state)
            if (
                rebuild is not None
                or FINISHED in last.layout
                or {k: last.layout[k] for k in layout} != layout
            ):
                restore = None
        if last is not None and restore is not None:
            return cls(output, config, definition, source, last, restore, clock())
        resume = None if last is None else resume_positions(output.out)
        positions = source.start(config.readers, resume) if connect else [""] * config.readers
        record = JobRecord.new(
            output.jobs,
            source=source.name,
            layout={**layout, "positions": positions},
            configuration=configuration,
            clock=clock,
        )
        if last is not None and resume is not None:
            settled = settled_until(output.out, last.name, last.layout["readers"])
            if settled is not None:
                # Kept before the roll-back, after which the ledger no longer says it.
                last.layout[SETTLED] = settled
                output.save()
            closed = closed_windows(
                output.out,
                definition,
                config.window_shards,
                [job.layout.get(SETTLED) for job in output.jobs],
            )
            roll_back(
                output.out,
                resume,
                jobs=[job.name for job in output.jobs],
                committed_at=round(clock().timestamp() * 1_000_000),
                late=late_again(definition, closed),
            )
            seed = Seed.plan(output.out, definition, config.dedupe_seconds, closed)
            record.layout["seed"] = seed.as_dict()
        output.add(record)
        return cls(output, config, definition, source, record, None, clock())

    def task(
        self,
        checkpoints: str | None,
        sinks: Sequence[Sink] = (),
        quarantine_sinks: Sequence[Sink] = (),
        *,
        retries_bundles: bool = False,
    ) -> StreamTask:
        """Returns what the workers need.

        Args:
            checkpoints: URL of Flink's REST service, if the job runs there.
            sinks: what gets the accepted events beside the lake.
            quarantine_sinks: what gets the rejected rows.
            retries_bundles: as the runner's profile says.
        """
        config = self.config
        until = None if config.until is None else end_of(config.until, self.now)
        seed = self.record.layout.get("seed")
        return StreamTask(
            output=str(self.output.out),
            number=self.output.jobs.index(self.record),
            job=self.record.name,
            run=secrets.token_hex(4),
            source=self.source,
            positions=tuple(self.record.layout["positions"]),
            definition=self.definition,
            mapping=(
                compile_mapping(config.mapping)
                if config.mapping and not config.source.startswith("dir:")
                else None
            ),
            **settings_of(config),
            until_us=None if until is None else round(until.timestamp() * 1_000_000),
            checkpoints=checkpoints,
            retries_bundles=retries_bundles,
            seed=None if seed is None else Seed(**seed),
            sinks=tuple(sinks),
            quarantine_sinks=tuple(quarantine_sinks),
        )


def settings_of(config: StreamConfig) -> dict[str, Any]:
    """Returns the fields of a StreamTask that the configuration says by itself, by name."""
    return {
        "compression": config.compression,
        "shards": config.shards,
        "window_shards": config.window_shards,
        "horizon": timedelta(seconds=config.dedupe_seconds),
        "watermark_delay_us": config.watermark_delay_seconds * 1_000_000,
        "idle_us": config.idle_seconds * 1_000_000,
        "allowed_lateness_us": config.allowed_lateness_seconds * 1_000_000,
        "early_seconds": config.early_seconds,
        "accumulation": config.accumulation,
        "poll_rows": config.poll_rows,
        "poll_seconds": config.poll_seconds,
        "commit_us": round(config.commit_seconds * 1_000_000),
        "poison_attempts": config.poison_attempts,
        "max_events": config.max_events,
    }


def _require_same(last: JobRecord, source: Source, configuration: dict[str, Any]) -> None:
    """Refuses to go on under another definition without a word."""
    differences = [
        f"{key} was {last.configuration.get(key)!r}, is {configuration.get(key)!r}"
        for key in sorted({*last.configuration, *configuration})
        if last.configuration.get(key) != configuration.get(key)
    ]
    if last.source != source.name:
        differences.insert(0, f"source was {last.source}, is {source.name}")
    if differences:
        raise ConfigError(
            f"the output was written with another configuration: {'; '.join(differences[:_SHOWN])}. To go on with the new one add "
            "--rebuild-state-from OUT (a new job, its state rebuilt from the lake), or name another --output"
        )
