"""The figures of a stream's benchmark: from tables' logs, notes and samples to rates, lag, latency and cost."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.stream_figures import (
    Checkpoint,
    Figures,
    at,
    checkpoint_figures,
    commits_of,
    costs,
    lag,
    latencies,
    ledger_series,
    percentiles,
    pipeline_cost,
    rate,
    reached,
    report,
    worked_off,
)
from benchmarks.stream_processes import Sample, Sampler, Usage, role, slope
from benchmarks.stream_producer import Burst, due, produce

BEGAN = 1_767_600_000.0
SERIES = [(BEGAN, 0), (BEGAN + 2, 200), (BEGAN + 4, 600)]


def write_commit(table: Path, version: int, visible: float, adds: dict[str, bool]) -> None:
    log = table / "_delta_log"
    log.mkdir(parents=True, exist_ok=True)
    actions = [{"commitInfo": {}}, *({"add": {"path": p, "dataChange": d}} for p, d in adds.items())]
    path = log / f"{version:020d}.json"
    path.write_text("\n".join(json.dumps(action) for action in actions))
    os.utime(path, (visible, visible))


def write_rows(path: Path, columns: dict[str, pa.Array]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def ingest(*seconds: float) -> pa.Array:
    times = [datetime.fromtimestamp(BEGAN + s, UTC) for s in seconds]
    return pa.array(times, pa.timestamp("us", tz="UTC"))


def test_latency_is_from_ingest_to_the_log_entry_of_each_row(tmp_path: Path) -> None:
    table = tmp_path / "events"
    write_rows(table / "event_date=2026-01-05" / "a b.parquet", {"ingest_time": ingest(0, 1)})
    write_rows(table / "b.parquet", {"ingest_time": ingest(2, 9)})
    write_rows(table / "compacted.parquet", {"ingest_time": ingest(0, 1, 2)})
    write_commit(table, 0, BEGAN, {})
    write_commit(table, 1, BEGAN + 3, {"event_date=2026-01-05/a%20b.parquet": True})
    write_commit(table, 2, BEGAN + 4, {"b.parquet": True, "gone.parquet": True})
    write_commit(table, 3, BEGAN + 9, {"compacted.parquet": False})
    found, gone = latencies(table, BEGAN + 0.5, BEGAN + 5)
    assert (sorted(found.tolist()), gone) == ([2.0, 2.0], 1)
    assert [len(files) for _, files in commits_of(table)] == [0, 1, 2, 0]


def test_ledger_series_has_the_total_of_each_commit(tmp_path: Path) -> None:
    for number, total in enumerate((5, 70)):
        write_rows(tmp_path / "ledger" / f"{number}.parquet", {"total_rows_in": pa.array([total])})
        write_commit(tmp_path / "ledger", number, BEGAN + number, {f"{number}.parquet": True})
    assert ledger_series(tmp_path) == [(BEGAN, 5), (BEGAN + 1, 70)]


def test_percentiles() -> None:
    assert percentiles(np.arange(101) / 10) == {"p50": 5.0, "p95": 9.5, "p99": 9.9, "max": 10.0}
    assert percentiles(np.empty(0)) == {}


@pytest.mark.parametrize(
    ("time", "between", "before"),
    [(-1, 0, 0), (0, 0, 0), (1, 100, 0), (3, 400, 200), (4, 600, 600), (9, 600, 600)],
)
def test_totals_at_a_time(time: float, between: float, before: int) -> None:
    assert at(SERIES, BEGAN + time) == between
    assert reached(SERIES, BEGAN + time) == before


def test_rate_is_that_between_the_points_inside() -> None:
    assert rate(SERIES, BEGAN + 1, BEGAN + 5) == 200
    assert rate(SERIES, BEGAN + 3, BEGAN + 5) == 0


def test_lag_counts_what_is_written_and_not_committed() -> None:
    committed = [(BEGAN + 3, 100), (BEGAN + 5, 600)]
    lags = lag(SERIES, committed, [BEGAN + s for s in (0, 2, 4, 5)])
    assert lags == [(BEGAN, 0), (BEGAN + 2, 200), (BEGAN + 4, 500), (BEGAN + 5, 0)]
    assert worked_off(lags, BEGAN + 2, usual=200) == 0
    assert worked_off(lags, BEGAN + 3, usual=200) == 2
    assert worked_off(lags, BEGAN + 3, usual=-1) is None


def test_burst() -> None:
    burst = Burst.parse("10:5:3")
    warm = Burst(0, 4, 0.25)
    assert [due(t, 100, [burst]) for t in (0, 10, 12, 15, 20)] == [0, 1000, 1600, 2500, 3000]
    assert [due(t, 100, [warm, burst]) for t in (0, 4, 10, 12, 20)] == [0, 100, 700, 1300, 2700]
    for wrong in ("1:2", "x:1:1", "-1:1:1", "1:0:1"):
        with pytest.raises(ValueError):
            Burst.parse(wrong)


def test_producer_keeps_the_rate_and_sends_everything() -> None:
    now = [BEGAN]
    sent: list[tuple[int, bytes]] = []
    written: list[float] = []

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def send(number: int, line: bytes) -> None:
        sent.append((number, line))
        written.append(now[0])

    lines = [b"%d" % i for i in range(1000)]
    notes = list(produce(lines, send, 500, [], clock=lambda: now[0], sleep=sleep))
    assert sent == list(enumerate(lines))
    assert notes[-1][1] == 1000
    assert written[-1] - BEGAN == pytest.approx(2, abs=0.05)
    assert [round(n / (t - BEGAN) / 500, 1) for t, n in notes[:-1]] == [1.0] * (len(notes) - 1)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["/home/x/prism-v2/prism", "--job_port", "1"], "prism"),
        (["python", "-c", "… # headrace.pipelines.cli", "run", "stream", "--runner", "prism"], "launcher"),
        (["/venv/bin/python", "-m", "apache_beam.runners.worker.sdk_worker_main"], "python worker"),
        (["python", "-m", "headrace.runners.worker_pool", "--port", "1"], "worker pool"),
        (["java", "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"], "flink taskmanager"),
        (["java", "-jar", "/c/flink-job-server.jar"], "flink job server"),
        (["java", "kafka.Kafka", "server.properties"], "kafka"),
        (["sleep", "1"], "other"),
        ([], "other"),
    ],
)
def test_role(command: list[str], name: str) -> None:
    assert role(command) == name


def test_cost_is_cpu_by_event_committed_meanwhile() -> None:
    cpu = [(0, 1.0, 100e6), (2, 1.2, 110e6), (4, 1.6, 130e6)]
    samples = [Sample(BEGAN + t, seconds, round(size), 1) for t, seconds, size in cpu]
    usage = Usage({"prism": samples, "kafka": samples, "idle": samples[:1]})
    found = costs(usage, SERIES, BEGAN, BEGAN + 4)
    assert found == {"prism": 1000.0, "kafka": 1000.0}
    assert pipeline_cost(found) == 1000.0
    assert usage.memory("prism", BEGAN, BEGAN + 4) == (100, 130, pytest.approx(450))
    assert usage.memory("idle", BEGAN, BEGAN + 4) == (0, 0, 0)
    assert costs(usage, SERIES, BEGAN + 9, BEGAN + 10) == {}


def test_slope() -> None:
    assert slope([0, 1, 2], [5, 7, 9]) == 2
    assert slope([1, 1], [5, 9]) == 0


def test_sampler_sees_this_process() -> None:
    sampler = Sampler([os.getpid()])
    sampler.look()
    sampler.look()
    (name,) = {n for n, found in sampler.usage.samples.items() if found[0].rss_bytes > 1e7}
    first, second = sampler.usage.samples[name][:2]
    assert 0 < first.cpu_seconds <= second.cpu_seconds


def test_checkpoints() -> None:
    found = [Checkpoint(BEGAN + i, i, 1000 + i, 50 + i, 0.1 * i) for i in range(1, 6)]
    assert checkpoint_figures(found) == {
        "checkpoints": 5,
        "first state bytes": 1001,
        "last state bytes": 1005,
        "first metadata bytes": 51,
        "last metadata bytes": 55,
        "median seconds": pytest.approx(0.3),
        "longest seconds": 0.5,
    }
    assert checkpoint_figures([]) == {}


def test_report() -> None:
    figures = Figures(
        runner="flink",
        produced=1000,
        committed=1000,
        accepted=900,
        balanced=False,
        wanted_rate=100,
        rate=99.5,
        lag_median=42,
        lag_slope=50,
        latency={"p50": 1.0, "p95": 2.5},
        cpu={"launcher": 30.0, "flink taskmanager": 12.5, "kafka": 8.0},
        memory={"launcher": (100.0, 101.0, 0.5)},
        burst={"worked off after seconds": None},
        files_gone=2,
        checkpoints={"last state bytes": 12345},
    )
    told = report(figures)
    for part in (
        "NOT BALANCED",
        "lag               42 events (median), +50 a second",
        "p50 1.00 s, p95 2.50 s",
        "without 2 files",
        "worked off after seconds: not in this run",
        "last state bytes      12,345",
        "launcher                   30.0       100      101     0.5",
        "stream in all              42.5",
    ):
        assert part in told
    assert json.loads(json.dumps(figures.as_json()))["rate"] == 99.5
