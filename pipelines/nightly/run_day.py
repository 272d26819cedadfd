"""One date: the lake's events to files of every table, checked against the lake and committed."""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.connectors.removals import gone_dates
from headrace.connectors.write_lake import WrittenFile
from headrace.pipelines.nightly.commit_day import commit_day, first_seen_before, is_committed
from headrace.pipelines.nightly.finish_users_fn import (
    EPOCH,
    FinishUsersFn,
    WriteSummaryFn,
    summary_keys,
    write_summary,
)
from headrace.pipelines.nightly.local_days import LocalDay
from headrace.pipelines.nightly.nightly_config import NightlyConfig
from headrace.pipelines.nightly.nightly_tables import TABLES
from headrace.pipelines.nightly.plan_day import Snapshot, Split, count_events, digest_of, plan_splits
from headrace.pipelines.nightly.read_day_fn import (
    DayTask,
    Message,
    Part,
    ReadDayFn,
    receipt_path,
    stage_schema,
)
from headrace.pipelines.nightly.warehouse import DayManifest, Warehouse
from headrace.pipelines.settings import as_dict
from headrace.runners.failures import explained
from headrace.runners.options import prepare, with_package
from headrace.schemas.errors import ConfigError, UntrustedRunError
from headrace.transforms.coders import register_coders

_AGAIN = "Nothing was committed; run the same command again, and report it as a bug if it stays"


@dataclass(frozen=True)
class DayResult:
    """What the run of one date did."""

    day: LocalDay
    lake_version: int
    events: int
    """The lake's events of the date; of them ``without_user`` have no user_id, and so no session."""
    without_user: int
    rows: dict[str, int]
    """Rows by table."""
    already_done: bool
    """True if nothing had changed since the last run of the date, so that there was nothing to do."""
    elapsed_seconds: float
    reasons: list[str] = field(default_factory=list)
    """Why it was run although nobody asked for it; empty if somebody did."""


def run_day(
    warehouse: Warehouse,
    config: NightlyConfig,
    snapshot: Snapshot,
    day: LocalDay,
    *,
    beam_args: Sequence[str] = (),
    reasons: Sequence[str] = (),
    on_table: Callable[[str], None] = lambda table: None,
) -> DayResult:
    """Runs one date: its rows in every table become those of the snapshot; other dates are not touched.

    Idempotent: with the lake's files, the configuration and the earlier dates unchanged it does nothing, and after a crash it goes
    on with the commits, or begins anew. Equal events give equal bytes in every file, whatever files of the lake they are in.

    Args:
        on_table: called after each table's commit.

    Raises:
        ConfigError: a funnel names a column that the lake lacks.
        InputError: a file of the lake or of an earlier date can't be read.
        UntrustedRunError: the rows do not add up; nothing is committed.
        OutputError: the disk refused.
    """
    began = time.monotonic()
    gap_us = warehouse.gap // timedelta(microseconds=1)
    if gone := gone_dates(Path(snapshot.root).parent, day.start_us - gap_us, day.end_us):
        raise ConfigError(
            f"date {day.date}: the lake's events of {', '.join(gone)} went by a retention policy, so its tables can't be made; "
            "what the warehouse has of it stays"
        )
    files = snapshot.overlapping(day.start_us - gap_us, day.end_us)
    known = first_seen_before(warehouse, day.date)
    fingerprint = _fingerprint(warehouse, config, day, digest_of(files), _first_seen(warehouse, known))
    manifest = warehouse.manifest(day.date)
    same = manifest is not None and manifest.fingerprint == fingerprint
    if manifest is not None and same and manifest.state == "done" and is_committed(warehouse, manifest):
        if manifest.lake_version != snapshot.version or manifest.rerun_because:
            manifest.lake_version, manifest.rerun_because = snapshot.version, []
            warehouse.save(manifest)
        return _result(day, manifest, began, reasons, already_done=True)
    if manifest is None or not same or not _is_written(warehouse, manifest):
        funnels = {name: funnel.definition() for name, funnel in config.funnels.items()}
        task = DayTask(
            lake=snapshot.root,
            work=str(warehouse.work(day.date)),
            warehouse=str(warehouse.root),
            name=fingerprint[:12],
            day=day,
            gap=warehouse.gap,
            shards=warehouse.shards,
            funnels=funnels,
            columns=stage_schema(snapshot.schema, funnels.values()),
            known=tuple(((of - EPOCH).days, path) for of, path in known),
            compression=config.compression,
        )
        splits = plan_splits(snapshot, files, config.split_bytes)
        _process(config, task, splits, beam_args)
        written, events, keyless = _collect(task, splits)
        _require_balance(task, written, count_events(snapshot, files, day), events, keyless)
        kept = [] if manifest is None else manifest.rerun_because
        manifest = DayManifest(
            date=day.date.isoformat(),
            fingerprint=fingerprint,
            lake_version=snapshot.version,
            inputs=digest_of(files),
            files=written,
            events=events,
            without_user=keyless,
            first_seen=_users_digest(task, written["user_first_seen"]),
            rerun_because=kept,
        )
        warehouse.save(manifest)
    commit_day(warehouse, manifest, on_table=on_table)
    return _result(day, manifest, began, reasons, already_done=False)


def assemble_day(pipeline: beam.Pipeline, task: DayTask, splits: Sequence[Split]) -> None:
    """Adds the steps of ``docs/nightly.md``, section "How it works", to a Beam pipeline."""
    register_coders()
    read = (
        pipeline
        | "CreateSplits" >> beam.Create(splits, reshuffle=True)
        | "ReadDay"
        >> beam.ParDo(ReadDayFn(task))
        .with_output_types(Message, parts=Part)
        .with_outputs("parts", main="pieces")
    )
    users = (
        read.pieces
        | "GroupByShard" >> beam.GroupByKey()
        | "FinishUsers" >> beam.ParDo(FinishUsersFn(task)).with_output_types(Part)
    )
    _ = (
        (read.parts, users)
        | "JoinParts" >> beam.Flatten()
        | "GroupByTable" >> beam.GroupByKey()
        | "WriteSummaries" >> beam.ParDo(WriteSummaryFn(task)).with_output_types(str)
    )


def _process(config: NightlyConfig, task: DayTask, splits: Sequence[Split], beam_args: Sequence[str]) -> None:
    work = Path(task.work)
    if work.exists():
        shutil.rmtree(work)
    for name in ("stage", "receipts", "tables"):
        (work / name).mkdir(parents=True)
    with ExitStack() as stack:
        prepared = prepare(beam_args, config)
        options = prepared.options
        if prepared.profile.ships_package:
            package = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-package-")))
            options = prepare(with_package(beam_args, package), config).options
        if splits:
            pipeline = beam.Pipeline(options=options)
            assemble_day(pipeline, task, splits)
            with explained():
                pipeline.run().wait_until_finish()
    for number, key in enumerate(summary_keys(task)):
        if not receipt_path(task.work, "summary", number).exists():
            write_summary(task, key, [])


def _collect(task: DayTask, splits: Sequence[Split]) -> tuple[dict[str, list[WrittenFile]], int, int]:
    """Reads the receipts. Returns the files by table, the events that were read, and those of them without user."""
    events = keyless = users = 0
    for split in splits:
        receipt = _receipt(task.work, "split", split.index)
        events += receipt["rows"]
        keyless += receipt["without_user"]
    files: dict[str, list[WrittenFile]] = {name: [] for name in TABLES}
    shards = [n for n in range(task.shards) if receipt_path(task.work, "shard", n).exists()]
    for kind, numbers in (("shard", shards), ("summary", range(len(summary_keys(task))))):
        for number in numbers:
            receipt = _receipt(task.work, kind, number)
            users += receipt.get("events", 0)
            for name, each in receipt["files"].items():
                files[name] += [WrittenFile(**file) for file in each]
    if users != events - keyless:
        raise UntrustedRunError(
            f"date {task.day.date}: {events:,} events were read, {keyless:,} of them without user, but the shards of users have "
            f"{users:,}: the run lost or made rows. {_AGAIN}"
        )
    return files, events, keyless


def _receipt(work: str, kind: str, number: int) -> dict[str, Any]:
    path = receipt_path(work, kind, number)
    if not path.exists():
        raise UntrustedRunError(
            f"the runner finished, but {kind} {number} left no receipt in {path.parent}; is the output folder shared with all "
            "workers? Nothing was committed; run the same command again"
        )
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def _require_balance(
    task: DayTask, files: dict[str, list[WrittenFile]], lake: int, events: int, keyless: int
) -> None:
    """Holds what was read and what the written files say against what the lake's files hold.

    Raises:
        UntrustedRunError: they differ.
    """
    sums = {
        name: _sum_events(task, name, files[name])
        for name in ("user_daily_metrics", "user_sessions", "cube_geo")
    }
    found = {
        "the reader": events,
        "user_daily_metrics, with the events without user": sums["user_daily_metrics"] + keyless,
        "user_sessions, with the events without user": sums["user_sessions"] + keyless,
        "cube_geo": sums["cube_geo"],
    }
    for place, count in found.items():
        if count != lake:
            raise UntrustedRunError(
                f"date {task.day.date}: the lake has {lake:,} events, {place} {count:,}: the run lost or made rows. {_AGAIN}"
            )


def _sum_events(task: DayTask, table: str, files: Sequence[WrittenFile]) -> int:
    """Adds up the column ``events`` of written files."""
    root = Path(task.work) / "tables" / table
    columns = (pq.read_table(root / f.path, columns=["events"], partitioning=None)["events"] for f in files)
    return sum(pc.sum(column).as_py() or 0 for column in columns)


def _users_digest(task: DayTask, files: Sequence[WrittenFile]) -> str:
    """Returns a digest of the files' content: equal users give equal bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update((Path(task.work) / "tables" / "user_first_seen" / file.path).read_bytes())
    return digest.hexdigest() if files else ""


def _first_seen(warehouse: Warehouse, known: Sequence[tuple[date, str]]) -> list[tuple[str, str]]:
    """Returns what tells one set of earlier users from another: by date the digest, or the files where no finished run has it.

    Of a date that is being committed the manifest is new already, and the table may still be old.
    """
    paths: dict[date, list[str]] = {}
    for day, path in known:
        paths.setdefault(day, []).append(path)
    found = []
    for day, each in sorted(paths.items()):
        manifest = warehouse.manifest(day)
        done = manifest is not None and manifest.state == "done"
        names = [manifest.first_seen] if manifest is not None and done else sorted(each)
        found += [(day.isoformat(), name) for name in names]
    return found


def _is_written(warehouse: Warehouse, manifest: DayManifest) -> bool:
    """Returns whether all of a manifest's files are there still, in the work folder or in their tables."""
    staged = warehouse.work(date.fromisoformat(manifest.date)) / "tables"
    return all(
        (staged / name / file.path).exists() or (warehouse.path(name) / file.path).exists()
        for name, files in manifest.files.items()
        for file in files
    )


def _fingerprint(
    warehouse: Warehouse, config: NightlyConfig, day: LocalDay, inputs: str, known: list[tuple[str, str]]
) -> str:
    content = {
        "headrace": version("headrace"),
        "date": day.date.isoformat(),
        "timezone": warehouse.zone.key,
        "interval": [day.start_us, day.end_us],
        "gap_seconds": warehouse.gap.total_seconds(),
        "shards": warehouse.shards,
        "funnels": {name: as_dict(funnel) for name, funnel in config.funnels.items()},
        "compression": config.compression,
        "inputs": inputs,
        "first_seen": known,
    }
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _result(
    day: LocalDay, manifest: DayManifest, began: float, reasons: Sequence[str], *, already_done: bool
) -> DayResult:
    return DayResult(
        day=day,
        lake_version=manifest.lake_version,
        events=manifest.events,
        without_user=manifest.without_user,
        rows=manifest.rows,
        already_done=already_done,
        elapsed_seconds=time.monotonic() - began,
        reasons=list(reasons),
    )
