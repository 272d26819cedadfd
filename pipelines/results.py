"""Reading back what a run left: its ledger, counts and headline metrics."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.connectors.atomic_file import replace_file
from headrace.connectors.ledger import Ledger
from headrace.transforms.ready_windows import METRICS
from headrace.transforms.window_definitions import Windows

COUNTS_FILE = "counts.json"
TOP = 10


@dataclass(frozen=True)
class Loaded:
    """What :func:`load_result` found."""

    ledger: Ledger
    counts: dict[str, int]
    top_event_types: list[tuple[str, int]]
    revenue: list[tuple[str, Decimal]]
    warnings: list[str]


def save_counts(out: Path, counts: Mapping[str, int]) -> None:
    """Saves what was counted beside the rows, next to the ledger."""
    replace_file(out / COUNTS_FILE, json.dumps(dict(counts), indent=2).encode() + b"\n")


def load_result(out: Path, metrics: Mapping[str, Windows] = METRICS) -> Loaded:
    """Reads the result of a finished run from its output.

    Args:
        metrics: the run's window tables; where a ready-made one is missing or another, what is read from it stays empty.
    """
    saved = json.loads((out / COUNTS_FILE).read_bytes())
    ledger = Ledger.load(out / "ledger.json")
    warnings = []
    for reason in ("truncated_input", "broken_block"):
        lost = ledger.rejected.get("decode", {}).get(reason, 0)
        if lost:
            warnings.append(
                f"{lost:,} inputs or blocks could not be read to their end ({reason}); what they held besides is unknown: "
                f"`headrace explain` names them, fetch these files again"
            )
    ready = {name for name, windows in metrics.items() if windows == METRICS.get(name)}
    top = _top_types(out) if "events_per_minute" in ready else []
    return Loaded(ledger, saved, top, _revenue(out) if "revenue_per_minute" in ready else [], warnings)


def _top_types(out: Path) -> list[tuple[str, int]]:
    table = pq.read_table(out / "metrics" / "events_per_minute" / "part-0.parquet", partitioning=None)
    total = table.group_by("event_type").aggregate([("events", "sum")])
    total = total.sort_by([("events_sum", "descending"), ("event_type", "ascending")]).slice(0, TOP)
    return [(row["event_type"] or "(none)", row["events_sum"]) for row in total.to_pylist()]


def _revenue(out: Path) -> list[tuple[str, Decimal]]:
    table = pq.read_table(out / "metrics" / "revenue_per_minute" / "part-0.parquet", partitioning=None)
    table = table.filter(pc.is_valid(table["revenue"]))
    total = table.group_by("currency").aggregate([("revenue", "sum")]).sort_by("currency")
    return [(row["currency"] or "(none)", row["revenue_sum"]) for row in total.to_pylist()]
