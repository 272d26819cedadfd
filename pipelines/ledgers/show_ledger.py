"""Received = accepted + rejected by the hour or day, over all runs into an output."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from headrace.connectors.removals import EVENTS, QUARANTINE, Count, removed
from headrace.pipelines.ledgers.accounts import BACKFILL
from headrace.pipelines.ledgers.held_rows import hold
from headrace.pipelines.ledgers.verify_ledger import gone_dates, look
from headrace.schemas.errors import ConfigError

UNKNOWN = "unknown"
"""In place of the hour of rows that have neither a time of their own nor one of ingest."""


@dataclass
class Period:
    """One hour or day."""

    start: str
    """ISO 8601, UTC: ``2026-01-05T12`` or ``2026-01-05``."""
    accepted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """Rows by stage, or by stage and reason, ``validate/type``."""
    recovered: int = 0
    """Of the accepted ones, those that a replay has brought back; of a stream only until its files are compacted."""
    removed: int = 0
    """Of all of them, those that have gone by policy since."""

    @property
    def total_rejected(self) -> int:
        return sum(self.rejected.values())

    @property
    def received(self) -> int:
        return self.accepted + self.total_rejected

    @property
    def share(self) -> float:
        """Part of 1 that was rejected; 0 of nothing."""
        return self.total_rejected / self.received if self.received else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "start": self.start,
            "received": self.received,
            "accepted": self.accepted,
            "rejected": dict(sorted(self.rejected.items())),
            "rejected_share": round(self.share, 6),
            "recovered": self.recovered,
            "removed": self.removed,
        }


@dataclass(frozen=True)
class Shown:
    """The table, and what the ledgers say of the whole output."""

    output: Path
    kind: str
    periods: list[Period]
    total: Period
    ledger: int
    """Rows received by the ledgers, less rows in flight; of the whole output, whatever span was asked for."""
    held: int
    """The same, by the tables and what went by policy."""
    in_flight: int

    def as_dict(self) -> dict[str, Any]:
        """Returns all of it as plain JSON values."""
        return {
            "output": str(self.output),
            "kind": self.kind,
            "periods": [period.as_dict() for period in self.periods],
            "total": {k: v for k, v in self.total.as_dict().items() if k != "start"},
            "ledger_received": self.ledger,
            "tables_received": self.held,
            "in_flight": self.in_flight,
        }


def show_ledger(
    output: Path,
    *,
    per: Literal["hour", "day"] = "hour",
    by: Literal["stage", "reason"] = "stage",
    since: str | None = None,
    until: str | None = None,
) -> Shown:
    """Counts the rows of both tables by the hour of their event time; by that of ingest where the event's is not known.

    Replays are in it by themselves: what they recovered is counted as accepted, what failed again by its new reason. Rows that went
    by policy are counted from the records of ``OUT/retention``.

    Args:
        since: ISO 8601 time; without a zone UTC; a date is its midnight. Whole hours count.
        until: likewise, not included.

    Raises:
        ConfigError: no output of a run, or a time that is none or not at a full hour (or day).
    """
    bounds = [_hour(text, name, per) for name, text in (("--since", since), ("--until", until))]
    if bounds[0] and bounds[1] and bounds[0] >= bounds[1]:
        raise ConfigError(f"--since {since} is not before --until {until}; nothing lies between them")
    out = Path(output).absolute()
    seen = look(out)
    if seen.files.broken:
        table, path, wrong = seen.files.broken[0]
        raise ConfigError(f"{out / table / path} {wrong}; `headrace ledger verify` says what is missing")
    with hold(seen.files) as held:
        cells = {name: held.counts(name) for name in (EVENTS, QUARANTINE)}
    gone = {name: list(_gone(out, seen.account.kind, name, cells[name])) for name in (EVENTS, QUARANTINE)}
    periods: dict[str, Period] = {}
    for source, is_gone in ((cells, False), (gone, True)):
        for name in (EVENTS, QUARANTINE):
            _add(periods, source, name, per, by, is_gone=is_gone)
    rows = sum(cell.rows for source in (cells, gone) for each in source.values() for cell in each)
    chosen = [p for _, p in sorted(periods.items()) if _within(p.start, *bounds)]
    return Shown(
        out,
        seen.account.kind,
        chosen,
        _total(chosen),
        seen.account.rows_in - seen.account.in_flight,
        rows,
        seen.account.in_flight,
    )


def _gone(out: Path, kind: str, table: str, held: Iterable[Count]) -> Iterable[Count]:
    if kind == BACKFILL:
        for date, step in gone_dates(out, table, held).items():
            yield from (count for count in step.counts if count.partition == date)
        return
    for step in removed(out, table):
        yield from step.counts


def _add(
    periods: dict[str, Period],
    source: Mapping[str, Iterable[Count]],
    table: str,
    per: str,
    by: str,
    *,
    is_gone: bool,
) -> None:
    for cell in source[table]:
        start = (cell.hour if per == "hour" else cell.hour[:10]) or UNKNOWN
        period = periods.setdefault(start, Period(start))
        if table == EVENTS:
            period.accepted += cell.rows
            period.recovered += cell.rows if cell.run else 0
        else:
            name = cell.stage if by == "stage" else f"{cell.stage}/{cell.reason}"
            period.rejected[name] = period.rejected.get(name, 0) + cell.rows
        period.removed += cell.rows if is_gone else 0


def _total(periods: Iterable[Period]) -> Period:
    total = Period("")
    for period in periods:
        total.accepted += period.accepted
        total.recovered += period.recovered
        total.removed += period.removed
        for name, rows in period.rejected.items():
            total.rejected[name] = total.rejected.get(name, 0) + rows
    return total


def _within(start: str, since: str | None, until: str | None) -> bool:
    if start == UNKNOWN:
        return since is None and until is None
    return (since is None or start >= since[: len(start)]) and (until is None or start < until[: len(start)])


def _hour(text: str | None, name: str, per: str) -> str | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{name} {text!r} is no time; write ISO 8601, for example 2026-01-05T10:00:00Z or 2026-01-05"
        ) from None
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    if at.minute or at.second or at.microsecond or (per == "day" and at.hour):
        raise ConfigError(
            f"{name} {text} is not at a full {per} of UTC, and the ledger is by the {per}; give a full one"
        )
    return at.strftime("%Y-%m-%dT%H")


def as_text(shown: Shown) -> str:
    """Returns the table, aligned, and below it what the ledgers say."""
    names = sorted(shown.total.rejected)
    head = ["", "received", "accepted", *names, "rejected", "share"]
    lines = [head]
    for period in [*shown.periods, shown.total]:
        counts = [
            period.received,
            period.accepted,
            *(period.rejected.get(n, 0) for n in names),
            period.total_rejected,
        ]
        lines.append([period.start or "total", *(f"{n:,}" for n in counts), _share(period)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    total = shown.total
    notes = []
    if total.recovered:
        notes.append(f"{total.recovered:,} of the accepted rows were brought back by replays")
    if total.removed:
        notes.append(f"{total.removed:,} of these rows have gone by policy since (retention)")
    if shown.in_flight:
        notes.append(f"{shown.in_flight:,} rows are read and not yet in a table")
    if shown.ledger == shown.held:
        notes.append(f"The ledger of the whole output says {shown.ledger:,} received; the tables agree.")
    else:
        notes.append(
            f"The ledger of the whole output says {shown.ledger:,} received, the tables {shown.held:,}: they do NOT agree; "
            "`headrace ledger verify` says where."
        )
    return "\n".join([*(text.rstrip() for text in texts), "", *notes])


def _share(period: Period) -> str:
    """Never says 0 % or 100 % of what is not nothing or all."""
    text = f"{period.share:.1%}"
    if text == "0.0%" and period.total_rejected:
        return "<0.1%"
    return ">99.9%" if text == "100.0%" and period.accepted else text
