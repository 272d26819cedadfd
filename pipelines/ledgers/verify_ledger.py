"""Holding the rows that an output's tables have against every ledger and record of it."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace.connectors.removals import DONE as RETENTION_DONE
from headrace.connectors.removals import (
    EVENTS,
    FOLDER,
    QUARANTINE,
    Step,
    is_applied,
    removed,
    retention_records,
)
from headrace.connectors.removals import Count as Cell
from headrace.connectors.stream_accounts import Rejected, add_rejected
from headrace.connectors.stream_ledger import open_ledger
from headrace.pipelines.ledgers.accounts import BACKFILL, STREAM, Account, Date, read_account
from headrace.pipelines.ledgers.check_positions import check_copies, check_positions
from headrace.pipelines.ledgers.findings import EXCESS, FILE, HOLE, INTERRUPTED, LEDGER, Finding
from headrace.pipelines.ledgers.held_rows import Files, hold, open_files
from headrace.pipelines.ledgers.stream_rows import commits_beyond, read_stream_rows
from headrace.schemas.errors import ConfigError

_LOOKS, _WAITS, _PAUSE_SECONDS = 40, 8, 0.25


@dataclass
class Verified:
    """What the ledgers say, what the tables hold, and what does not add up."""

    output: Path
    kind: str
    received: int
    """By the ledgers, less rows in flight."""
    accepted: int
    """Rows of the lake."""
    rejected: Rejected
    """Rows of the quarantine."""
    removed: int
    """Rows that went by policy."""
    in_flight: int
    unplaced: int
    """Rows without a position, which could not be held against what was read."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.findings


@dataclass(frozen=True)
class Look:
    """One consistent look at an output: its account, and the files that its tables had then."""

    account: Account
    files: Files
    beyond: list[Finding]


def look(out: Path, *, pause: Callable[[float], None] = time.sleep) -> Look:
    """Reads account and file lists of the same moment; beside a running stream it looks again until nothing is committed meanwhile.

    Raises:
        ConfigError: as :func:`read_account`; or a stream commits too often for a look between two commits.
    """
    for turn in range(_LOOKS):
        before = _version(out)
        account = read_account(out)
        files = open_files(out)
        beyond = commits_beyond(out, read_stream_rows(out)) if account.kind == STREAM else []
        # A commit that is under way ends soon; one that was interrupted stays.
        if _version(out) != before or (beyond and turn < _WAITS):
            pause(_PAUSE_SECONDS)
            continue
        return Look(account, files, beyond)
    raise ConfigError(
        f"{out}: the stream has committed during each of {_LOOKS} looks; try again, or while it is idle"
    )


def verify_ledger(output: Path, *, limit: int = 20) -> Verified:
    """Counts the rows of both tables and holds them against ledgers, replays and retention; then ids and positions.

    Reads the committed files only: hour, stage, reason, origin, position and id, never a document. Changes nothing.

    Args:
        limit: how many places of a kind are named; their number is told in full.

    Raises:
        ConfigError: no output of a run, or a record that is damaged beyond reading.
        UntrustedRunError: a file of a stream's ledger is missing.
    """
    out = Path(output).absolute()
    seen = look(out)
    account = seen.account
    findings = [*_broken(seen.files), *_unfinished(out), *_altered(out), *account.findings, *seen.beyond]
    with hold(seen.files) as held:
        cells = {name: held.counts(name) for name in (EVENTS, QUARANTINE)}
        findings += list(
            _by_date(out, account, cells) if account.kind == BACKFILL else _counts(out, account, cells)
        )
        findings += check_copies(held, account, limit)
        unplaced = held.without_position()
        if account.kind != BACKFILL:
            gone = {name: removed(out, name) for name in (EVENTS, QUARANTINE)}
            findings += check_positions(held, account, gone, unplaced, limit)
    accepted = sum(cell.rows for cell in cells[EVENTS])
    return Verified(
        out,
        account.kind,
        account.rows_in - account.in_flight,
        accepted,
        reasons_of(cells[QUARANTINE]),
        sum(step.rows for name in (EVENTS, QUARANTINE) for step in _gone(out, account, name, cells[name])),
        account.in_flight,
        unplaced,
        findings,
    )


def reasons_of(cells: Iterable[Cell]) -> Rejected:
    """Returns {stage: {reason: rows}}."""
    found: Rejected = {}
    for cell in cells:
        add_rejected(found, {cell.stage: {cell.reason: cell.rows}})
    return found


def gone_dates(out: Path, table: str, held: Iterable[Cell]) -> dict[str, Step]:
    """Returns the dates of a backfill that are gone by policy: those that went, and that the table has not got back."""
    have = {cell.partition for cell in held}
    found: dict[str, Step] = {}
    for step in removed(out, table):
        for date in step.partitions:
            if date not in have:
                found[date] = step
    return found


def _gone(out: Path, account: Account, table: str, held: Iterable[Cell]) -> Iterator[Step]:
    if account.kind != BACKFILL:
        yield from removed(out, table)
        return
    dates = gone_dates(out, table, held)
    for date, step in dates.items():
        rows = sum(cell.rows for cell in step.counts if cell.partition == date)
        yield Step(table, step.kind, step.app_id, step.before, [date], rows=rows)


def _counts(out: Path, account: Account, cells: Mapping[str, list[Cell]]) -> Iterator[Finding]:
    """The tables of a batch or a stream against their ledger."""
    runs = Counter[str]()
    for cell in [*cells[EVENTS], *(c for step in removed(out, EVENTS) for c in step.counts)]:
        runs[cell.run] += cell.rows
    if account.kind == STREAM:  # Its files are compacted, so they no longer say which run they are of.
        yield from _one(EVENTS, "", "", "", account.accepted, sum(runs.values()))
    else:
        others = sum(account.recovered.values())
        for run in sorted({"", *account.recovered, *runs}):
            said = account.accepted - others if not run else account.recovered.get(run, 0)
            yield from _one(EVENTS, run, "", "", said, runs[run])
    held = reasons_of(cells[QUARANTINE])
    add_rejected(held, account.removed_rejected)
    yield from _reasons("", account.rejected, held)


def _by_date(out: Path, account: Account, cells: Mapping[str, list[Cell]]) -> Iterator[Finding]:
    """The tables of backfills against the manifest of each date."""
    dates = {name: gone_dates(out, name, cells[name]) for name in (EVENTS, QUARANTINE)}
    accepted = Counter[str]()
    for cell in cells[EVENTS]:
        accepted[cell.partition] += cell.rows
    held: dict[str, list[Cell]] = {}
    for cell in cells[QUARANTINE]:
        held.setdefault(cell.partition, []).append(cell)
    unfinished = {finding.run for finding in account.findings if finding.kind == INTERRUPTED}
    for date in sorted({*account.dates, *accepted, *held} - unfinished):
        said = account.dates.get(date, Date(0, {}))
        if date not in dates[EVENTS]:
            yield from _one(EVENTS, date, "", "", said.accepted, accepted[date])
        if date not in dates[QUARANTINE]:
            yield from _reasons(date, said.rejected, reasons_of(held.get(date, [])))


def _reasons(run: str, said: Rejected, held: Rejected) -> Iterator[Finding]:
    for stage in sorted({*said, *held}):
        one, two = said.get(stage, {}), held.get(stage, {})
        for reason in sorted({*one, *two}):
            yield from _one(QUARANTINE, run, stage, reason, one.get(reason, 0), two.get(reason, 0))


def _one(table: str, run: str, stage: str, reason: str, said: int, held: int) -> Iterator[Finding]:
    if said == held:
        return
    what = table + (f", {stage}/{reason}" if stage else "") + (f", {run}" if run else "")
    gap = abs(said - held)
    word = f"row{'s' if gap > 1 else ''} {'missing' if said > held else 'too many'}"
    text = f"{what}: the ledger says {said:,}, the table holds {held:,} (with what went by policy): {gap:,} {word}"
    yield Finding(HOLE if said > held else EXCESS, text, gap, table, run, stage, reason)


def _broken(files: Files) -> list[Finding]:
    return [
        Finding(FILE, f"{table}/{path} {wrong}; its rows are counted as missing", table=table)
        for table, path, wrong in files.broken
    ]


def _unfinished(out: Path) -> Iterator[Finding]:
    for record in retention_records(out):
        if record.state != RETENTION_DONE:
            open_ = [step.table for step in record.steps if not is_applied(out, step)]
            text = (
                f"retention {record.id} was interrupted (to do: {', '.join(open_) or 'its end'}); `headrace retention apply` "
                "finishes it"
            )
            yield Finding(INTERRUPTED, text, run=record.id)


def _altered(out: Path) -> Iterator[Finding]:
    """Holds the records of what went by policy against themselves."""
    for record in retention_records(out):
        for step in record.steps:
            counted = sum(count.rows for count in step.counts)
            if step.table in (EVENTS, QUARANTINE) and counted != step.rows:
                text = f"{FOLDER}/{record.id}.json: {step.rows:,} rows of {step.table} went, its counts are of {counted:,}"
                yield Finding(LEDGER, text, step.rows - counted, step.table, record.id)


def _version(out: Path) -> int | None:
    table = open_ledger(out)
    return None if table is None else table.version()
