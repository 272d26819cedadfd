"""Every ready-made window table against a plain DuckDB query over the lake, on simulated and on real events."""

from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from benchmarks.window_queries import QUERIES
from headrace.simulator.simulate import simulate
from headrace.transforms.ready_windows import METRICS
from tests.pipelines.runs import run

LOG = Path(__file__).parents[2].parent / "shared" / "data" / "apache-access.log.gz"


def sorted_rows(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return sorted(found, key=lambda row: [(v is None, str(v)) for v in row])


def oracle(db: duckdb.DuckDBPyConnection, name: str) -> list[tuple[Any, ...]]:
    found = db.execute(QUERIES[name]).fetchall()
    if name != "order_values_1h":
        return found
    unit = Decimal("1e-9")
    return [(*row[:3], (row[3] / row[4]).quantize(unit), *row[5:]) for row in found]


def without_zone(table: pa.Table, name: str) -> pa.Table:
    """DuckDB has no time zones without an extension."""
    times = table.column(name).cast(pa.timestamp("us"))
    return table.set_column(table.schema.get_field_index(name), name, times)


def require_equal(out: Path) -> dict[str, int]:
    """Holds every table against its query; returns how many rows each has."""
    events = without_zone(DeltaTable(str(out / "events")).to_pyarrow_table(), "event_time")
    db = duckdb.connect()
    db.register("events", events)
    sizes = {}
    for name, windows in METRICS.items():
        table = pq.read_table(out / "metrics" / name / "part-0.parquet", partitioning=None)
        table = without_zone(without_zone(table, "window_start"), "window_end")
        ends = {row["window_end"] - row["window_start"] for row in table.to_pylist()}
        assert ends <= {windows.size}
        found = sorted_rows([tuple(row.values()) for row in table.drop(["window_end"]).to_pylist()])
        expected = sorted_rows(oracle(db, name))
        sizes[name] = len(found)
        assert len(found) == len(expected), name
        for row, other in zip(found, expected, strict=True):
            for one, two in zip(row, other, strict=True):
                if isinstance(one, float) and two is not None:
                    limit = 0.004 if name == "order_values_1h" else 1e-12
                    assert one == pytest.approx(float(two), rel=limit), (name, row, other)
                else:
                    assert one == two, (name, row, other)
    return sizes


@pytest.mark.integration
def test_simulated_events(tmp_path: Path, key: Path, warm: None) -> None:
    simulation = simulate(6000, 21, fault_rate=0.1, span=timedelta(hours=3))
    source = tmp_path / "events.jsonl"
    source.write_bytes(b"".join(simulation))
    now = datetime.fromisoformat(simulation.summary.to_dict()["now"])
    run(source, tmp_path / "out", key, now=now, split_bytes=1 << 20)
    sizes = require_equal(tmp_path / "out")
    assert min(sizes.values()) > 0


@pytest.mark.integration
def test_a_real_log(tmp_path: Path, key: Path, warm: None) -> None:
    now = datetime.fromisoformat("2015-05-20T23:59:59Z")
    run(LOG, tmp_path / "out", key, now=now, format="weblog", max_age_seconds=10 * 86_400)
    sizes = require_equal(tmp_path / "out")
    assert sizes["events_per_minute"] == 266
