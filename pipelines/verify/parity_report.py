"""What a proof of parity found."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from headrace.pipelines.verify.compare_parity import ParityTables


@dataclass(frozen=True)
class ParityReport:
    """What was run, and whether both gave the same rows."""

    seed: int
    runner: str
    now: datetime
    settings: dict[str, Any]
    """Of the stream."""
    records: int
    unreadable: int
    """Records that could not be read from their files, and so not be sent; they are in the batch's quarantine only."""
    sent: int
    plan: dict[str, Any]
    """What the plan did: shuffled, delayed, repeated, copies, deliveries, files, largest_disorder_seconds."""
    found: ParityTables
    seconds: dict[str, float]
    """What batch, stream (with the plan) and comparison took; next to nothing where it was done before."""
    work: Path

    @property
    def equal(self) -> bool:
        return self.found.equal

    def as_dict(self) -> dict[str, Any]:
        """Returns it as plain JSON values."""
        found = self.found
        return {
            "equal": self.equal,
            "seed": self.seed,
            "runner": self.runner,
            "now": self.now.isoformat().replace("+00:00", "Z"),
            "settings": self.settings,
            "records": self.records,
            "unreadable": self.unreadable,
            "sent": self.sent,
            "plan": self.plan,
            "tables": [table.as_dict() for table in found.tables],
            "rejected": {name: {"batch": a, "stream": b} for name, (a, b) in found.rejected.items()},
            "conflicts": {
                "ids": found.conflicts,
                "one_sided": found.one_sided_conflicts,
                "examples": found.examples_of_conflicts,
            },
            "firings": found.firings,
            "late": found.late,
            "unfinished": found.unfinished,
            "missing": found.missing,
            "seconds": self.seconds,
            "work": str(self.work),
        }
