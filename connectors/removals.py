"""What went from an output by policy: the records of ``OUT/retention``, so that its ledger still adds up."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from deltalake import DeltaTable

from headrace.connectors.atomic_file import replace_file
from headrace.connectors.delta_commit import MARKER, committed_files
from headrace.connectors.stream_accounts import Rejected
from headrace.schemas.errors import ConfigError

FOLDER = "retention"
FORMAT = 1
PREPARED, DONE = "prepared", "done"
EVENTS, QUARANTINE = "events", "quarantine"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Count(NamedTuple):
    """How many rows of a table have one partition, hour, run, stage and reason in common."""

    partition: str
    """The date of the table's first partition column."""
    hour: str
    """UTC, ``2026-01-05T12``: of the event's time, of ingest where that is not known; empty if neither is."""
    run: str
    """``replay-ID`` of the replay whose file holds the rows; else empty."""
    stage: str
    """Empty for rows of the lake; so the reason."""
    reason: str
    rows: int


class Origin(NamedTuple):
    """Rows of one origin, and between which positions they lie."""

    origin: str
    rows: int
    first: int
    last: int


@dataclass
class Step:
    """What went, or is to go, from one table."""

    table: str
    """Relative to the output: ``events``, ``metrics/NAME``."""
    kind: str
    """Kind of data of the policy."""
    app_id: str
    """Names the step in the table's log: it is done once its table has this transaction."""
    before: str
    """Dates before this one go."""
    partitions: list[str] = field(default_factory=list)
    """Dates that went; of a table without date partitions those of the rows' own time."""
    files: int = 0
    rows: int = 0
    bytes: int = 0
    cold: str | None = None
    """The table that the rows were moved to; null: they were only deleted."""
    counts: list[Count] = field(default_factory=list)
    """Of ``events`` and ``quarantine``."""
    origins: list[Origin] = field(default_factory=list)
    """Of ``events`` and ``quarantine``."""
    paths: list[str] = field(default_factory=list)
    """The files that go, while the step is not done; relative to the table's folder."""


@dataclass
class RetentionRecord:
    """One application of a policy to an output."""

    id: str
    when: str
    policy: dict[str, Any]
    state: str = PREPARED
    steps: list[Step] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """What was old enough and stayed, and why."""
    headrace: str = ""
    format: int = FORMAT

    def save(self, out: Path) -> None:
        """Writes the record in one step.

        Raises:
            OutputError: the disk refused; what was there is unchanged.
        """
        (out / FOLDER).mkdir(exist_ok=True)
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        replace_file(out / FOLDER / f"{self.id}.json", text.encode("utf-8", "surrogatepass") + b"\n")


def retention_records(out: str | os.PathLike[str]) -> list[RetentionRecord]:
    """Returns the records of an output, the oldest first.

    Raises:
        ConfigError: one is damaged, or of a newer headrace.
    """
    found = []
    for path in sorted((Path(out) / FOLDER).glob("*.json")):
        try:
            fields = json.loads(path.read_text("utf-8", "surrogatepass"))
            if fields["format"] != FORMAT:
                raise ConfigError(
                    f"{path} has format {fields['format']!r}, this headrace knows {FORMAT}; use headrace {fields['headrace']}"
                )
            steps = [
                Step(
                    **{
                        **step,
                        "counts": [Count(*each) for each in step["counts"]],
                        "origins": [Origin(*each) for each in step["origins"]],
                    }
                )
                for step in fields["steps"]
            ]
            found.append(RetentionRecord(**{**fields, "steps": steps}))
        except ConfigError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is damaged ({error!r}); restore it from a copy: it says which rows went by policy"
            ) from error
    return sorted(found, key=lambda record: (record.when, record.id))


def is_applied(out: str | os.PathLike[str], step: Step) -> bool:
    """Returns whether the step's rows are out of its table, by what the table itself says."""
    root = Path(out) / step.table
    if DeltaTable.is_deltatable(os.fspath(root)):
        return DeltaTable(os.fspath(root)).transaction_version(step.app_id) is not None
    marker = root / MARKER
    if marker.is_file():
        return step.app_id in json.loads(marker.read_bytes()).get("retention", [])
    return False


def removed(out: str | os.PathLike[str], table: str) -> list[Step]:
    """Returns what went from a table, the oldest first: only steps that have taken effect.

    Raises:
        ConfigError: a record is damaged.
    """
    return list(_removed(out, table))


def _removed(out: str | os.PathLike[str], table: str) -> Iterator[Step]:
    for record in retention_records(out):
        for step in record.steps:
            if step.table == table and (record.state == DONE or is_applied(out, step)):
                yield step


def removed_reasons(out: str | os.PathLike[str]) -> tuple[int, Rejected]:
    """Returns how many rows went from the lake, and {stage: {reason: rows}} of those that went from the quarantine."""
    accepted = sum(step.rows for step in _removed(out, EVENTS))
    rejected: Rejected = {}
    for step in _removed(out, QUARANTINE):
        for count in step.counts:
            of_stage = rejected.setdefault(count.stage, {})
            of_stage[count.reason] = of_stage.get(count.reason, 0) + count.rows
    return accepted, rejected


def gone_dates(out: str | os.PathLike[str], low_us: int, high_us: int) -> list[str]:
    """Returns the UTC dates with events of [low_us, high_us) µs since 1970 that went from the lake and have not come back.

    What is made from these dates can't be made again.
    """
    gone = {date for step in _removed(out, EVENTS) for date in step.partitions}
    if not gone:
        return []
    first, last = (_EPOCH + timedelta(microseconds=us) for us in (low_us, high_us - 1))
    gone = {date for date in gone if f"{first:%Y-%m-%d}" <= date <= f"{last:%Y-%m-%d}"}
    here = (
        {path.partition("/")[0].partition("=")[2] for path in committed_files(Path(out) / EVENTS)}
        if gone
        else set()
    )
    return sorted(gone - here)
