"""What the ledgers of an output say that its tables hold: of a batch, a stream or backfills, with their replays."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from deltalake import DeltaTable

from headrace.connectors.ledger import FILE as LEDGER_FILE
from headrace.connectors.manifest import FILE as MANIFEST_FILE
from headrace.connectors.manifest import load_manifest
from headrace.connectors.removals import EVENTS, QUARANTINE, removed, removed_reasons
from headrace.connectors.stream_accounts import Rejected, add_rejected
from headrace.connectors.stream_output import FILE as STREAM_FILE
from headrace.pipelines.backfill.backfill_folder import STATE, BackfillFolder
from headrace.pipelines.ledgers.findings import INTERRUPTED, LEDGER, Finding
from headrace.pipelines.ledgers.stream_rows import read_stream_rows
from headrace.pipelines.replay.replay_folder import DONE, PREPARED, ReplayRecord, records
from headrace.schemas.errors import ConfigError

BATCH, STREAM, BACKFILL = "batch", "stream", "backfill"
_KINDS = {MANIFEST_FILE: BATCH, STREAM_FILE: STREAM}


@dataclass
class Date:
    """What a backfill's manifest says of one date."""

    accepted: int
    rejected: Rejected


@dataclass
class Account:
    """What has to be in the tables, less what went by policy; and what in the ledgers themselves is wrong."""

    kind: str
    rows_in: int = 0
    """Records read, of all runs; of a backfill without those outside of its dates."""
    accepted: int = 0
    rejected: Rejected = field(default_factory=dict)
    removed_accepted: int = 0
    removed_rejected: Rejected = field(default_factory=dict)
    recovered: dict[str, int] = field(default_factory=dict)
    """Replay → rows of the lake in files of its own; empty where files are rewritten (a stream's are compacted)."""
    dates: dict[str, Date] = field(default_factory=dict)
    """Of backfills: by date."""
    ranges: dict[str, list[tuple[int, int]]] | None = None
    """Origin → [first, next) of positions that were read and are done; None where no ledger has them."""
    inputs: dict[str, int] = field(default_factory=dict)
    """Of a batch: origin → bytes."""
    records: int = 0
    """Records that hold a position: those read, and done."""
    in_flight: int = 0
    drained: bool = True
    """False while a stream has polls that are not done: their rows may be in tables beyond ``ranges``."""
    within: timedelta | None = None
    """Copies of an id are looked for within this ingest time; None: in all rows."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def total_rejected(self) -> int:
        return total(self.rejected)


def total(reasons: Mapping[str, Mapping[str, int]]) -> int:
    return sum(sum(of_stage.values()) for of_stage in reasons.values())


def kind_of(out: Path) -> str:
    """Returns what made an output.

    Raises:
        ConfigError: no run did.
    """
    for name, kind in _KINDS.items():
        if (out / name).is_file():
            return kind
    if (out / STATE / "output.json").is_file():
        return BACKFILL
    if not out.is_dir():
        raise ConfigError(f"output {out} does not exist; name the --output of a run")
    raise ConfigError(
        f"{out} has no ledger: it is no output of a batch, a stream or a backfill; name the --output of one"
    )


def read_account(out: Path) -> Account:
    """Reads all ledgers and records of an output.

    Raises:
        ConfigError: it is no output of a run, its run has not finished, or a record is damaged beyond reading.
        UntrustedRunError: a file of a stream's ledger is missing or damaged.
    """
    kind = kind_of(out)
    account = {BATCH: _batch, STREAM: _stream, BACKFILL: _backfill}[kind](out)
    if kind != BACKFILL:  # A backfill brings dates back that went; they are told from its tables.
        account.removed_accepted, account.removed_rejected = removed_reasons(out)
    return account


def is_committed(out: Path, table: str, app_id: str) -> bool:
    """Returns whether a table's log has a commit of this application."""
    root = os.fspath(out / table)
    return DeltaTable.is_deltatable(root) and DeltaTable(root).transaction_version(app_id) is not None


def _batch(out: Path) -> Account:
    manifest = load_manifest(out)
    if manifest.status != "done":
        raise ConfigError(
            f"the run into {out} has not finished (its manifest says {manifest.status}); run the same command again"
        )
    account = Account(BATCH, inputs={each.origin: each.size_bytes for each in manifest.inputs})
    said, findings = _ledger_file(out / LEDGER_FILE)
    account.findings += findings
    account.rows_in, account.accepted = said["rows_in"], said["accepted"]
    account.rejected = {stage: dict(reasons) for stage, reasons in said["rejected"].items()}
    last: ReplayRecord | None = None
    for record in records(out):
        account.findings += _check(record)
        if record.state == DONE and record.ledger is not None:
            last = record
        if record.state == PREPARED:
            _apply_unfinished(out, account, record, included=record.ledger == said)
        if record.recovered and (record.state == DONE or is_committed(out, EVENTS, f"replay-{record.id}")):
            account.recovered[f"replay-{record.id}"] = record.recovered
    if last is not None and last.ledger != said and not any(f.kind == INTERRUPTED for f in account.findings):
        account.findings.append(
            Finding(
                LEDGER,
                f"{LEDGER_FILE} is not what replay {last.id} left it as: {_differences(last.ledger or {}, said)}",
                run=f"replay-{last.id}",
            )
        )
    account.records = account.accepted + account.total_rejected
    return account


def _stream(out: Path) -> Account:
    found = read_stream_rows(out)
    account = Account(
        STREAM,
        rows_in=found.rows_in,
        accepted=found.accepted,
        rejected=found.rejected,
        ranges=found.ranges,
        in_flight=found.in_flight,
        drained=found.drained,
        within=timedelta(hours=24),
        findings=list(found.findings),
        records=found.records_done,
    )
    for record in records(out):
        account.findings += _check(record)
        # A roll-back counts what is there; so what replays before it have changed is in its totals.
        if record.state == DONE and (found.rolled_back_at is None or record.started > found.rolled_back_at):
            account.accepted += record.recovered
            add_rejected(account.rejected, record.taken, -1)
            add_rejected(account.rejected, record.failed)
        elif record.state == PREPARED:
            _apply_unfinished(out, account, record, included=False)
    return account


def _backfill(out: Path) -> Account:
    account = Account(BACKFILL)
    folder = BackfillFolder(out, None)
    said = json.loads((out / LEDGER_FILE).read_bytes()) if (out / LEDGER_FILE).is_file() else {"dates": {}}
    here = {count.partition for step in removed(out, EVENTS) for count in step.counts}
    for day, manifest in folder.manifests():
        name = day.isoformat()
        if manifest.state != "done":
            account.findings.append(
                Finding(
                    INTERRUPTED,
                    f"date {name} was being committed; `headrace run backfill --resume` finishes it",
                    run=name,
                )
            )
            continue
        account.dates[name] = Date(manifest.accepted, manifest.rejected)
        account.accepted += manifest.accepted
        add_rejected(account.rejected, manifest.rejected)
        other = said["dates"].get(name)
        mine = {"accepted": manifest.accepted, "rejected": manifest.rejected}
        if other is not None and other != mine:
            account.findings.append(
                Finding(
                    LEDGER,
                    f"{LEDGER_FILE} and the manifest of {name} differ: {_differences(mine, other)}"
                    + (" (the date went by policy and was made again)" if name in here else ""),
                    run=name,
                )
            )
    if said.get("from"):
        rejected = total(said["rejected"])
        if said["rows_in"] != said["accepted"] + rejected + said["outside"]:
            account.findings.append(
                Finding(
                    LEDGER,
                    f"{LEDGER_FILE}: rows in {said['rows_in']:,} ≠ accepted {said['accepted']:,} + rejected {rejected:,} + "
                    f"outside {said['outside']:,}",
                    said["rows_in"] - said["accepted"] - rejected - said["outside"],
                )
            )
    account.rows_in = account.accepted + account.total_rejected
    return account


def _ledger_file(path: Path) -> tuple[dict[str, Any], list[Finding]]:
    """Reads a batch's ledger also where it does not balance, which is a finding and no reason to stop."""
    try:
        said = json.loads(path.read_bytes())
        rows_in, accepted = int(said["rows_in"]), int(said["accepted"])
        rejected = total(said["rejected"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} can't be read as a ledger ({error!r}); restore it from a copy") from error
    balanced = rows_in == accepted + rejected
    if balanced and said.get("balanced") is True:
        return said, []
    text = f"rows in {rows_in:,} {'=' if balanced else '≠'} accepted {accepted:,} + rejected {rejected:,}"
    message = f"{path.name}: {text}, and it says balanced is {said.get('balanced')!r}; it was altered, or its run lost rows"
    return said, [Finding(LEDGER, message, rows_in - accepted - rejected)]


def _check(record: ReplayRecord) -> list[Finding]:
    """Holds a replay's record against itself."""
    taken, failed = total(record.taken), total(record.failed)
    if taken == record.recovered + failed:
        return []
    text = f"replays/{record.id}: it took {taken:,} rows, of which {record.recovered:,} recovered and {failed:,} failed again"
    return [Finding(LEDGER, text, taken - record.recovered - failed, run=f"replay-{record.id}")]


def _apply_unfinished(out: Path, account: Account, record: ReplayRecord, *, included: bool) -> None:
    """Adds what a replay that was interrupted has done so far: table by table, by their logs."""
    app_id = f"replay-{record.id}"
    account.findings.append(
        Finding(
            INTERRUPTED,
            f"replay {record.id} is prepared and not done; `headrace quarantine replay` finishes it before anything else",
            run=app_id,
        )
    )
    if included:
        return
    if record.recovered and is_committed(out, EVENTS, app_id):
        account.accepted += record.recovered
    if is_committed(out, QUARANTINE, app_id):
        add_rejected(account.rejected, record.taken, -1)
        add_rejected(account.rejected, record.failed)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Returns the counts that differ, by name."""
    one, two = _flat(before), _flat(after)
    names = [name for name in sorted({*one, *two}) if one.get(name, 0) != two.get(name, 0)]
    return (
        ", ".join(f"{name} was {one.get(name, 0):,}, is {two.get(name, 0):,}" for name in names) or "nothing"
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, int]:
    found: dict[str, int] = {}
    for key, each in value.items():
        if isinstance(each, Mapping):
            found |= _flat(each, f"{prefix}{key}.")
        else:
            found[prefix + key] = int(each)
    return found
