"""The ledger: what came in, and where every row of it went."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace.connectors.atomic_file import replace_file
from headrace.schemas.errors import ConfigError

FILE = "ledger.json"
_KEYS = {"rows_in", "accepted", "rejected", "balanced"}


@dataclass(frozen=True)
class Ledger:
    """Counts of one run, as data and never as a runner's metrics, which count retries.

    Raises:
        ValueError: a count is not an integer of 0 or more.
    """

    rows_in: int
    """Records that the reader found, counted without decoding them."""
    accepted: int
    """Rows in the committed files of the lake."""
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    """{stage: {reason: rows}} of the committed files of the quarantine."""

    def __post_init__(self) -> None:
        counts: dict[str, Any] = {"rows_in": self.rows_in, "accepted": self.accepted}
        for stage, reasons in self.rejected.items():
            counts.update({f"rejected.{stage}.{reason}": n for reason, n in reasons.items()})
        for name, count in counts.items():
            if type(count) is not int or count < 0:
                raise ValueError(f"{name} is {count!r}; a count is an integer of 0 or more")

    @property
    def total_rejected(self) -> int:
        return sum(sum(reasons.values()) for reasons in self.rejected.values())

    @property
    def balanced(self) -> bool:
        """True if every row that came in is accepted or rejected, and none is twice."""
        return self.rows_in == self.accepted + self.total_rejected

    def as_dict(self) -> dict[str, Any]:
        """Returns exactly what the file holds; stages and reasons without rows are left out."""
        rejected = {s: {r: n for r, n in sorted(by.items()) if n} for s, by in sorted(self.rejected.items())}
        return {
            "rows_in": self.rows_in,
            "accepted": self.accepted,
            "rejected": {stage: by for stage, by in rejected.items() if by},
            "balanced": self.balanced,
        }

    def explain_imbalance(self) -> str:
        """Returns one line that says how many rows are missing or too many and what to do; empty if it balances."""
        if self.balanced:
            return ""
        gap = self.rows_in - self.accepted - self.total_rejected
        rows = f"{abs(gap):,} row{'s' if abs(gap) > 1 else ''}"
        verb = "is" if abs(gap) == 1 else "are"
        what = f"{rows} {verb} missing" if gap > 0 else f"{rows} {verb} there without having come in"
        return (
            f"rows in {self.rows_in:,} ≠ accepted {self.accepted:,} + rejected {self.total_rejected:,}: {what}; "
            "the output can't be trusted. Keep it as evidence, run again with another --output, and report a ledger that "
            "does not balance twice as a bug, with both ledger.json files"
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the file atomically: keys sorted, two spaces of indent, a final newline.

        Raises:
            OutputError: the disk refused; what was there is unchanged.
        """
        text = json.dumps(self.as_dict(), indent=2, sort_keys=True, ensure_ascii=False)
        replace_file(path, text.encode() + b"\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Ledger":
        """Reads what :meth:`write` wrote.

        Raises:
            ConfigError: the file is missing or holds something else; ``balanced`` must be what the counts say.
        """
        try:
            found = json.loads(Path(path).read_bytes())
        except FileNotFoundError:
            raise ConfigError(
                f"{os.fspath(path)} does not exist: the run has not finished; run the same command again"
            ) from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{os.fspath(path)} can't be read as a ledger: {error}") from error
        if (
            not isinstance(found, Mapping)
            or set(found) != _KEYS
            or not isinstance(found["rejected"], Mapping)
        ):
            raise ConfigError(f"{os.fspath(path)} is not a ledger; it must have the keys {sorted(_KEYS)}")
        try:
            rejected = {stage: dict(by) for stage, by in found["rejected"].items()}
            ledger = cls(found["rows_in"], found["accepted"], rejected)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{os.fspath(path)} is not a ledger: {error}") from error
        if found["balanced"] is not ledger.balanced:
            raise ConfigError(
                f"{os.fspath(path)} says balanced is {found['balanced']!r}, its counts say {ledger.balanced}; "
                "it was altered after the run"
            )
        return ledger
