"""What a look at an output's ledger can find."""

from dataclasses import asdict, dataclass
from typing import Any

HOLE, EXCESS = "hole", "excess"
"""A table has fewer, or more, rows than its ledger says."""
POSITION_HOLE, POSITION_TWICE, POSITION_EXCESS = "position hole", "position twice", "position not read"
DUPLICATE = "duplicate"
LEDGER = "ledger"
"""Ledgers or records contradict themselves or each other: one was altered."""
FILE = "file"
"""A committed file is missing or damaged."""
INTERRUPTED = "interrupted"
"""A commit, a replay or a retention has not come to its end; the message says what finishes it."""


@dataclass(frozen=True)
class Finding:
    """One thing that does not add up."""

    kind: str
    message: str
    """For a person: where, how many, and against what."""
    rows: int = 0
    """By how many rows; 0 where it is not about a number of rows."""
    table: str = ""
    run: str = ""
    """The replay, the date of a backfill, or the stream's job; empty for the output as a whole."""
    stage: str = ""
    reason: str = ""
    origin: str = ""
    position: int | None = None
    """The first one that it is about."""

    def as_dict(self) -> dict[str, Any]:
        """Returns what is set, as plain JSON values."""
        return {k: v for k, v in asdict(self).items() if v not in ("", None) and (k, v) != ("rows", 0)}
