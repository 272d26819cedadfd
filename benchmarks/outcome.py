"""What a run came to, read from its committed files: the basis on which runs are compared.

``python -m benchmarks.outcome OUT`` prints it as JSON. Every subject writes ``OUT/events`` (a Delta table, or folders of Parquet)
and ``OUT/quarantine``; nothing that a subject says about itself is used.
"""

import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlparse

import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable


@dataclass(frozen=True)
class Outcome:
    """Counts that must not differ between exact subjects."""

    accepted: int
    rejected: dict[str, int] = field(default_factory=dict)
    """Class of rejection to rows: malformed, unknown_schema, invalid, stale, future, duplicate, conflict, rule."""
    revenue: dict[str, str] = field(default_factory=dict)
    """Currency to decimal text."""


def rejection_class(stage: str, reason: str) -> str:
    """Returns the class of a rejection; subjects name their reasons as they like within a class."""
    if stage == "decode":
        return "unknown_schema" if reason == "unknown_schema" else "malformed"
    if stage == "validate":
        return "invalid"
    known = {"stale": "stale", "future": "future", "duplicate": "duplicate", "duplicate_conflict": "conflict"}
    return known.get(reason, "rule")


def read_outcome(output: Path) -> Outcome:
    """Reads the Parquet files of a finished run."""
    accepted = 0
    revenue: Counter[str] = Counter()
    for path in _files(output / "events"):
        table = pq.ParquetFile(path).read(["currency", "revenue"])
        accepted += table.num_rows
        table = table.filter(pc.is_valid(table["revenue"]))
        for row in table.group_by("currency").aggregate([("revenue", "sum")]).to_pylist():
            revenue[row["currency"] or ""] += row["revenue_sum"]
    rejected: Counter[str] = Counter()
    for path in _files(output / "quarantine"):
        table = pq.ParquetFile(path).read(["stage", "reason"])
        for row in table.group_by(["stage", "reason"]).aggregate([([], "count_all")]).to_pylist():
            rejected[rejection_class(row["stage"], row["reason"])] += row["count_all"]
    return Outcome(
        accepted,
        dict(sorted(rejected.items())),
        {currency: f"{amount.normalize():f}" for currency, amount in sorted(revenue.items())},  # type: ignore[attr-defined]
    )


def _files(table: Path) -> list[str]:
    if (table / "_delta_log").is_dir():
        return [unquote(urlparse(uri).path) for uri in DeltaTable(table).file_uris()]
    return sorted(map(str, table.rglob("*.parquet")))


if __name__ == "__main__":
    print(json.dumps(asdict(read_outcome(Path(sys.argv[1])))))
