"""Replaying rows of the quarantine: what recovers goes to the lake, what fails again stays with a higher attempt."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from headrace.connectors.ledger import Ledger
from headrace.connectors.manifest import FILE as MANIFEST_FILE
from headrace.connectors.manifest import load_manifest
from headrace.connectors.output_lock import OutputLock
from headrace.connectors.read_quarantine import open_quarantine
from headrace.connectors.removals import removed
from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.connectors.stream_output import FILE as STREAM_FILE
from headrace.connectors.stream_output import read_jobs
from headrace.connectors.write_lake import PartitionedWriter
from headrace.connectors.write_metrics import write_metrics
from headrace.pipelines.build_definition import build_definition, definition_identity
from headrace.pipelines.definition import Definition
from headrace.pipelines.event_settings import EventSettings
from headrace.pipelines.replay.commit_replay import commit_replay
from headrace.pipelines.replay.correct_windows import (
    Correction,
    batch_table,
    correct,
    correction_rows,
    stream_firing,
)
from headrace.pipelines.replay.fixes import Fix
from headrace.pipelines.replay.replay_folder import (
    DONE,
    FOLDER,
    PREPARED,
    ReplayFolder,
    ReplayRecord,
    file_stem,
    records,
    remove_unprepared,
)
from headrace.pipelines.replay.replay_rows import Outcome, ReplayRows, Selection, counts_of
from headrace.pipelines.stream_config import StreamConfig
from headrace.schemas.errors import ConfigError

MOST_ATTEMPTS = 3
_STEADY = ("key", "metrics", "profiles", "profiles_checksum")
"""What has to be as it was: rows of the same lake under another would not fit together."""
_IGNORED = ("headrace",)


@dataclass(frozen=True)
class ReplayResult:
    """What a replay did, or would do."""

    record: ReplayRecord
    corrections: dict[str, Correction] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    """Settings that differ from those of the run that rejected the rows."""
    finished_before: list[str] = field(default_factory=list)
    """Replays that had been interrupted and were finished first."""


@dataclass(frozen=True)
class _Output:
    """The output that is replayed into."""

    out: Path
    is_stream: bool
    finished: bool
    configuration: dict[str, Any]
    formats: dict[str, str]
    """Format by origin; empty for a stream."""
    stream_format: str
    window_shards: int


def run_replay(
    output: str | os.PathLike[str],
    config: EventSettings,
    *,
    where: str | None = None,
    fixes: Sequence[Fix] = (),
    fixes_text: str | None = None,
    most_attempts: int = MOST_ATTEMPTS,
    all_ages: bool = False,
    dry_run: bool = False,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> ReplayResult:
    """Replays the rows that ``where`` selects; see docs/replay.md.

    Exactly once: what was interrupted before its first commit leaves nothing, what was interrupted later is finished by the
    next replay of the output. Rows whose id the lake has meanwhile fail as duplicates.

    Args:
        config: settings of the stages, as of the run that rejected the rows, apart from what was mended.
        most_attempts: rows that were rejected so often are left where they are.
        all_ages: also rows that the stream may still see copies of; for a stream that has come to its end.
        dry_run: only say what would happen.

    Raises:
        ConfigError: no output, a wrong condition or fix, a key or window tables other than the run's, rows that can't be told
            apart.
        UntrustedRunError: rows are missing after a stage.
        OutputError: the disk refused.
    """
    out = Path(output).absolute()
    definition = build_definition(config)
    with _claimed(out) as found:
        differences = _differences(found.configuration, definition_identity(config, definition))
        finished = [] if dry_run else _finish_interrupted(found, definition.lake_schema())
        now = clock().astimezone(UTC)
        selection = Selection(
            open_quarantine(out),
            where,
            fixes,
            lambda origin: found.formats.get(origin, found.stream_format),
            _newest(found, config, all_ages),
            _oldest(out, definition),
            most_attempts,
        )
        _require_delta(out)
        record = ReplayRecord(
            _identity(selection, definition_identity(config, definition), fixes_text),
            _text(now),
            where,
            fixes_text,
        )
        with ExitStack() as stack:
            root = out
            if dry_run:
                root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-replay-")))
            folder = ReplayFolder(root, record.id)
            if not dry_run:
                remove_unprepared(out, record)
                folder.save(record)
            lake = PartitionedWriter(
                root / "events",
                partition="event_date",
                name=file_stem(record.id),
                compression=config.compression,
            )
            outcome = ReplayRows(definition, selection, out, folder.stage).run(lake)
            corrections = correct(out, definition, outcome.windows)
            _describe(record, outcome, corrections)
            files = lake.close()
            if dry_run:
                return ReplayResult(record, corrections, differences)
            record.files = [asdict(file) for file in files]
            if outcome.taken.num_rows:
                _prepare(found, folder, record, outcome, corrections, definition, config, now)
                commit_replay(out, record, definition.lake_schema(), is_stream=found.is_stream)
            else:
                record.state = DONE
                folder.save(record)
                folder.clear()
        return ReplayResult(record, corrections, differences, finished)


def _prepare(
    found: _Output,
    folder: ReplayFolder,
    record: ReplayRecord,
    outcome: Outcome,
    corrections: dict[str, Correction],
    definition: Definition,
    config: EventSettings,
    now: datetime,
) -> None:
    """Writes all that the commits need, so that they can be repeated; the record says so at last."""
    pq.write_table(outcome.taken, folder.taken)
    pq.write_table(outcome.failed, folder.outcome)
    for name, correction in corrections.items():
        if correction.rows.num_rows:
            write_metrics(folder.corrections, name, correction_rows(correction, record.id, now))
        if found.is_stream:
            table = stream_firing(
                found.out,
                name,
                definition.metrics[name],
                correction,
                accumulation=getattr(config, "accumulation", "accumulating"),
                window_shards=found.window_shards,
                at=now,
            )
        else:
            table = batch_table(found.out, name, correction)
        write_metrics(folder.metrics, name, table)
    if not found.is_stream:
        before = Ledger.load(found.out / "ledger.json")
        record.ledger = _ledger(before, outcome).as_dict()
    record.state = PREPARED
    folder.save(record)


def _ledger(before: Ledger, outcome: Outcome) -> Ledger:
    """Returns the batch's ledger after the replay: rows change sides, none comes or goes."""
    rejected = {stage: dict(reasons) for stage, reasons in before.rejected.items()}
    for sign, counts in ((-1, counts_of(outcome.taken)), (1, counts_of(outcome.failed))):
        for stage, reasons in counts.items():
            for reason, rows in reasons.items():
                of_stage = rejected.setdefault(stage, {})
                of_stage[reason] = of_stage.get(reason, 0) + sign * rows
    return Ledger(before.rows_in, before.accepted + outcome.recovered, rejected)


def _describe(record: ReplayRecord, outcome: Outcome, corrections: dict[str, Correction]) -> None:
    record.selected, record.recovered, record.parked = outcome.selected, outcome.recovered, outcome.parked
    record.failed, record.taken = counts_of(outcome.failed), counts_of(outcome.taken)
    record.waiting = dict(sorted(outcome.waiting.items()))
    record.corrected = {name: c.moved for name, c in sorted(corrections.items()) if c.moved}


def _finish_interrupted(found: _Output, schema: pa.Schema) -> list[str]:
    """Finishes or takes back what earlier replays left."""
    finished = []
    for record in records(found.out):
        if record.state == PREPARED:
            commit_replay(found.out, record, schema, is_stream=found.is_stream)
            finished.append(record.id)
        elif record.state != DONE:
            remove_unprepared(found.out, record)
    return finished


def _newest(found: _Output, config: EventSettings, all_ages: bool) -> datetime | None:
    """Returns the event_time from which on a copy may still arrive; None if none can.

    A stream takes a copy that reaches it within ``max_age_seconds`` of the event, and does not know the ids of a replay. What it
    has not read yet reached us after its watermark less ``max_ahead_seconds``.
    """
    if not found.is_stream:
        return None
    if all_ages:
        if not found.finished:
            raise ConfigError(
                "--all-ages is for a stream that has come to the end of its source (--until): this one may go on from its state, "
                "which would not know the ids of the replay; leave it out, and replay younger rows later"
            )
        return None
    watermark = read_stream_ledger(found.out, positions=False).watermark
    if watermark is None:
        raise ConfigError(
            f"{found.out}: how far the stream has come is not known (its ledger has no watermark), so copies of the rows may "
            "still come; wait for its first commits, or add --all-ages if it has come to the end of its source"
        )
    lateness = timedelta(seconds=getattr(config, "allowed_lateness_seconds", 0))
    age = timedelta(seconds=config.max_age_seconds)
    return watermark - timedelta(seconds=config.max_ahead_seconds) - max(age, lateness)


def _oldest(out: Path, definition: Definition) -> datetime | None:
    """Returns the event_time from which on windows hold nothing of dates that retention took out of the lake."""
    gone = [day for step in removed(out, "events") for day in step.partitions]
    if not gone:
        return None
    end = datetime.fromisoformat(max(gone)).replace(tzinfo=UTC) + timedelta(days=1)
    longest = max((windows.size_us for windows in definition.metrics.values()), default=0)
    return end + timedelta(microseconds=longest)


@contextmanager
def _claimed(out: Path) -> Iterator[_Output]:
    """Finds out what the output is, and keeps other replays, and runs that would collide, out of it."""
    if (out / STREAM_FILE).is_file():
        jobs = read_jobs(out)
        if not jobs:
            raise ConfigError(f"{out} has no job yet; nothing can be replayed")
        (out / FOLDER).mkdir(exist_ok=True)
        lock, own = OutputLock(out / FOLDER), None
        with suppress(ConfigError):  # Else the stream is running: it goes on beside the replay.
            own = OutputLock(out)
        last = jobs[-1]
        format_ = str(last.configuration.get("format", "json"))
        try:
            yield _Output(
                out,
                True,
                "finished" in last.layout,
                last.configuration,
                {},
                "weblog" if format_ == "weblog" else "json",
                int(last.layout["window_shards"]),
            )
        finally:
            lock.release()
            if own is not None:
                own.release()
        return
    if not (out / MANIFEST_FILE).is_file():
        raise ConfigError(
            f"{out} is no output of a run; name the --output of `headrace run batch` or `run stream`"
        )
    lock = OutputLock(out)
    try:
        manifest = load_manifest(out)
        if manifest.status != "done":
            raise ConfigError(f"the run into {out} has not finished; run the same command again, then replay")
        formats = {each.origin: "weblog" if each.format == "weblog" else "json" for each in manifest.inputs}
        yield _Output(out, False, True, manifest.configuration, formats, "json", 1)
    finally:
        lock.release()


def _require_delta(out: Path) -> None:
    root = out / "events"
    if not DeltaTable.is_deltatable(os.fspath(root)):
        raise ConfigError(
            f"{out} is a plain Parquet lake, whose files can't be added to in one step; replay needs a Delta lake "
            "(lake_format: delta). Export the rows (`headrace quarantine export`), mend them, and run them as a batch of their own"
        )


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns the settings that differ, or raises ConfigError if one of them may not."""
    different = [
        k for k in sorted(then.keys() | now.keys()) if k not in _IGNORED and then.get(k) != now.get(k)
    ]
    different = [k for k in different if k in now]
    steady = [k for k in different if k in _STEADY]
    if steady:
        raise ConfigError(
            f"{', '.join(steady)} differ from the run's, so what is recovered would not fit to the rest of the lake: give the "
            "run's configuration (--config) and key (--key-file)"
        )
    return different


def _identity(selection: Selection, definition: dict[str, Any], fixes: str | None) -> str:
    quarantine = selection.quarantine
    what = [quarantine.version, quarantine.files, selection.where, fixes, selection.most_attempts, definition]
    return hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=8).hexdigest()


def _text(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def config_class(output: str | os.PathLike[str]) -> type[EventSettings]:
    """Returns the kind of configuration that an output was made with.

    Raises:
        ConfigError: it is none.
    """
    from headrace.pipelines.config import BatchConfig

    out = Path(output)
    if (out / STREAM_FILE).is_file():
        return StreamConfig
    if (out / MANIFEST_FILE).is_file():
        return BatchConfig
    raise ConfigError(
        f"{out} is no output of a run; name the --output of `headrace run batch` or `run stream`"
    )
