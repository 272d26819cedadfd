"""Running the batch pipeline in tests and reading what it left."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import DeltaTable

from headrace.pipelines.batch import run_batch
from headrace.pipelines.config import BatchConfig
from headrace.pipelines.summary import BatchResult

NOW = datetime(2026, 1, 5, 13, tzinfo=UTC)
"""The reference time of handmade events."""


def run(inputs: Iterable[Path] | Path, out: Path, key: Path, **settings: Any) -> BatchResult:
    """Runs the pipeline in this process, without business rules unless they are given."""
    paths = [inputs] if isinstance(inputs, Path) else list(inputs)
    settings = {"now": NOW, "rules": {}, **settings}
    beam_args = settings.pop("beam_args", ())
    config = BatchConfig(input=[str(p) for p in paths], output=str(out), key_file=str(key), **settings)
    return run_batch(config, beam_args=beam_args)


def table(out: Path, name: str) -> pa.Table:
    """Returns the committed rows of ``events`` or ``quarantine``, in order of origin and position, the partition included."""
    root = out / name
    if DeltaTable.is_deltatable(str(root)):
        found = DeltaTable(str(root)).to_pyarrow_table()
    else:
        date = pa.schema([("event_date" if name == "events" else "ingest_date", pa.date32())])
        found = ds.dataset(
            root, format="parquet", partitioning=ds.partitioning(date, flavor="hive")
        ).to_table()
    return found.sort_by([("origin", "ascending"), ("origin_position", "ascending")])


def rows(out: Path, name: str, *but: str) -> list[dict[str, Any]]:
    """Returns the rows of :func:`table` as Python values, without the columns ``but``."""
    return [{k: v for k, v in row.items() if k not in but} for row in table(out, name).to_pylist()]


def metric(out: Path, name: str) -> pa.Table:
    return pq.read_table(out / "metrics" / name / "part-0.parquet", partitioning=None)


def ledger(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "ledger.json").read_bytes())
    return found


def files(out: Path, *tables: str) -> dict[str, bytes]:
    """Returns the content of every data file below these folders of the output, by path."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for name in tables or ("events", "quarantine", "metrics")
        for path in sorted((out / name).rglob("*.parquet"))
    }


def event(number: int, **changes: Any) -> dict[str, Any]:
    """Returns a valid event of the family ``interaction``."""
    return {
        "event_id": f"00000000-0000-4000-8000-{number:012d}",
        "user_id": f"user-{number % 7}",
        "timestamp": f"2026-01-05T12:{number // 60 % 60:02d}:{number % 60:02d}Z",
        "event_type": "click",
        **changes,
    }


def lines(events: Iterable[dict[str, Any]]) -> bytes:
    """Returns JSON lines."""
    return b"".join(json.dumps(e).encode() + b"\n" for e in events)
