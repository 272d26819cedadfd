"""Applying a retention policy to outputs: planned, recorded, moved or deleted, and repeatable from wherever it was interrupted."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

from deltalake import DeltaTable

from headrace.connectors.atomic_file import replace_file
from headrace.connectors.output_lock import OutputLock
from headrace.connectors.removals import DONE, FOLDER, RetentionRecord, Step, is_applied, retention_records
from headrace.pipelines.ledgers.accounts import BATCH
from headrace.pipelines.replay.replay_folder import FOLDER as REPLAYS
from headrace.pipelines.replay.replay_folder import PREPARED, records
from headrace.pipelines.retention.copy_audit import copy_audit
from headrace.pipelines.retention.output_tables import (
    PARTITIONED,
    WAREHOUSE,
    WINDOWED,
    Output,
    OutputTable,
    hold_needed,
    is_stream,
    open_output,
    require_known,
    stays,
)
from headrace.pipelines.retention.policy import Policy
from headrace.pipelines.retention.table_steps import (
    attempts,
    dates_in,
    delete_before,
    describe,
    move,
    take_out,
)
from headrace.pipelines.settings import as_dict
from headrace.schemas.errors import ConfigError, UntrustedRunError

_COLD_OWNER = "_output.json"


@dataclass
class Applied:
    """What went from one output, or would go."""

    output: Path
    steps: list[Step] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """What is old enough and stays, and why."""
    finished: list[str] = field(default_factory=list)
    """Earlier applications that had been interrupted and were finished first."""
    cold_rows: dict[str, int] = field(default_factory=dict)
    """Cold table → rows that left it for good."""
    audit_files: int = 0
    """Ledgers, manifests and records that were new or changed, and were copied to the cold place."""
    unlinked: int = 0
    """Files of Delta tables that left the disk, those of earlier applications."""


def apply_retention(
    policy: Policy,
    outputs: Sequence[Path],
    *,
    dry_run: bool = False,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    on_step: Callable[[str], None] = lambda what: None,
) -> list[Applied]:
    """Takes what is older than the policy's ages out of outputs and warehouses.

    Whole dates go (windows: those that began before a date), by commits whose predicates name dates and nothing else. Before the
    first of them ``OUT/retention/ID.json`` says what goes; what an interrupted call left is finished by the next. Again, it does
    nothing. A stream may run beside it.

    Args:
        outputs: of batches, streams, backfills and nightly runs. A lake's dates that a warehouse among them still needs stay.
        dry_run: only say what would go.
        on_step: called with ``moved TABLE`` and ``deleted TABLE``.

    Raises:
        ConfigError: a folder is no output, is in use by another run, or shares a cold place with another output of its name.
        UntrustedRunError: a file is missing or damaged.
        OutputError: the disk refused; the next call goes on from there.
    """
    roots = [require_known(Path(root).absolute()) for root in outputs]
    if len({*roots}) != len(roots):
        raise ConfigError("an output is named twice; name each once")
    now = clock().astimezone(UTC)
    with ExitStack() as stack:
        for root in roots:
            if not dry_run:
                _lock(stack, root)
        found = [open_output(root) for root in roots]
        finished = {} if dry_run else {each.root: _finish(each, on_step) for each in found}
        hold_needed([o for o in found if o.what != WAREHOUSE], [o for o in found if o.what == WAREHOUSE])
        done = []
        for output in found:
            _require_quiet(output)
            applied = _plan(policy, output, now)
            applied.finished = finished.get(output.root, [])
            if not dry_run:
                _carry_out(policy, output, applied, now, on_step)
            done.append(applied)
    return done


def _plan(policy: Policy, output: Output, now: datetime) -> Applied:
    applied = Applied(output.root, kept=list(output.notes))
    if output.no_watermark:
        applied.kept.append(
            "all of it: how far the stream has come is not known yet, so it may still write to any date"
        )
        return applied
    earlier = len(retention_records(output.root))
    id_ = f"{now:%Y%m%dT%H%M%S}-{_digest([repr(policy), now.isoformat(), str(output.root), str(earlier)])}"
    for table in output.tables:
        ages = policy.ages(table.kind)
        before = now.date() - timedelta(days=ages.hot_days)
        old = [day for day in dates_in(output.root, table) if day < before]
        held = [day for day in old if stays(output, table, day)]
        applied.kept += [f"{table.name} of {day}: {stays(output, table, day)}" for day in held]
        if table.form not in (PARTITIONED, "listed", "dated files") and held:
            before = min(held)  # Windows go from the oldest on.
            old = [day for day in old if day < before]
        goes = [day for day in old if day not in held]
        if not goes:
            continue
        cold = (
            None
            if ages.cold is None
            else os.fspath(Path(ages.cold).absolute() / output.root.name / table.name)
        )
        step = Step(
            table.name, table.kind, f"retention-{id_}-{table.name.replace('/', '-')}", str(before), cold=cold
        )
        describe(output.root, table, step, goes)
        applied.steps.append(step)
    return applied


def _carry_out(
    policy: Policy, output: Output, applied: Applied, now: datetime, on_step: Callable[[str], None]
) -> None:
    if applied.steps:
        id_ = (
            applied.steps[0]
            .app_id.removeprefix("retention-")
            .removesuffix("-" + applied.steps[0].table.replace("/", "-"))
        )
        record = RetentionRecord(
            id_,
            now.isoformat(timespec="seconds").replace("+00:00", "Z"),
            as_dict(policy),
            steps=applied.steps,
            kept=applied.kept,
            headrace=version("headrace"),
        )
        for step in applied.steps:
            if step.cold is not None:
                _own_cold(output, Path(step.cold.removesuffix(step.table)))
        record.save(output.root)
        _run(output, record, on_step)
    if policy.audit.cold is not None:
        folder = Path(policy.audit.cold).absolute() / output.root.name
        _own_cold(output, folder)
        applied.audit_files = copy_audit(output.root, folder / "audit")
    for table in output.tables:
        ages = policy.ages(table.kind)
        if ages.cold is not None:
            cold = Path(ages.cold).absolute() / output.root.name / table.name
            if DeltaTable.is_deltatable(os.fspath(cold)):
                columns = DeltaTable(os.fspath(cold)).metadata().partition_columns
                rows = delete_before(
                    cold, columns[0] if columns else "", now.date() - timedelta(days=ages.cold_days)
                )
                if rows:
                    applied.cold_rows[os.fspath(cold)] = rows
                applied.unlinked += _vacuum(cold, policy.safety_hours)
        if table.form in (PARTITIONED, WINDOWED):
            applied.unlinked += _vacuum(output.root / table.name, policy.safety_hours)


def _finish(output: Output, on_step: Callable[[str], None]) -> list[str]:
    """Finishes what earlier applications have recorded and not done."""
    finished = []
    for record in retention_records(output.root):
        if record.state != DONE:
            _run(output, record, on_step)
            finished.append(record.id)
    return finished


def _run(output: Output, record: RetentionRecord, on_step: Callable[[str], None]) -> None:
    tables = {table.name: table for table in output.tables}
    for step in record.steps:
        if step.table in tables:
            _step(output, record, tables[step.table], step, on_step)
    for step in record.steps:
        step.paths = []
    record.state = DONE
    record.save(output.root)


def _step(
    output: Output, record: RetentionRecord, table: OutputTable, step: Step, on_step: Callable[[str], None]
) -> None:
    for _ in attempts():
        if step.cold is not None and step.rows and not is_applied(output.root, step):
            move(output.root, table, step)
            on_step(f"moved {table.name}")
        if take_out(output.root, table, step):
            on_step(f"deleted {table.name}")
            return
        # A stream's upkeep has put the files together meanwhile: the same rows in others, unless late ones came.
        rows = step.rows
        describe(output.root, table, step, [date.fromisoformat(name) for name in step.partitions])
        if step.cold is not None and rows != step.rows:
            raise UntrustedRunError(
                f"{output.root / table.name}: {step.rows:,} rows are to go where {rows:,} were copied to {step.cold}; something "
                "else writes to these dates. Nothing was deleted"
            )
        record.save(output.root)
    raise UntrustedRunError(
        f"{output.root / table.name}: the commit lost against others {len(attempts())} times; run the same command again"
    )


def _lock(stack: ExitStack, root: Path) -> None:
    """Keeps other retentions, replays and, but for a stream, the output's own runs out."""
    (root / FOLDER).mkdir(exist_ok=True)
    stack.callback(OutputLock(root / FOLDER).release)
    if is_stream(root):
        (root / REPLAYS).mkdir(exist_ok=True)
        stack.callback(OutputLock(root / REPLAYS).release)
        with suppress(
            ConfigError
        ):  # Else the stream is running: it goes on beside; a start from the lake has to wait.
            stack.callback(OutputLock(root).release)
    else:
        stack.callback(OutputLock(root).release)


def _require_quiet(output: Output) -> None:
    if output.what == WAREHOUSE:
        return
    open_ = [record.id for record in records(output.root) if record.state == PREPARED]
    if open_:
        raise ConfigError(
            f"{output.root}: replay {open_[0]} was interrupted; finish it first (`headrace quarantine replay {output.root}`)"
        )
    if (
        output.what == BATCH
        and json.loads((output.root / "manifest.json").read_bytes()).get("status") != "done"
    ):
        raise ConfigError(f"the run into {output.root} has not finished; run the same command again")


def _own_cold(output: Output, folder: Path) -> None:
    """Marks the cold folder as this output's: another output of the same name would mix its rows in."""
    marker, mine = folder / _COLD_OWNER, os.fspath(output.root)
    if marker.is_file():
        owner = json.loads(marker.read_bytes())["output"]
        if owner != mine:
            raise ConfigError(
                f"{folder} is the cold place of {owner}, not of {mine}; name another `cold` in the policy for one of them"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(marker, json.dumps({"output": mine}).encode() + b"\n")


def _vacuum(where: Path, hours: int) -> int:
    return len(
        DeltaTable(os.fspath(where)).vacuum(
            retention_hours=hours, dry_run=False, enforce_retention_duration=False, full=False
        )
    )


def _digest(parts: Sequence[str]) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=4).hexdigest()
