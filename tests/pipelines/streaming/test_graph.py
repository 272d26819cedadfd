from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2

from headrace.connectors.stream_ledger import StreamTotals, read_stream_ledger
from headrace.pipelines.streaming.graph import Heartbeats, assemble_stream
from headrace.pipelines.streaming.stream_task import StreamTask
from headrace.simulator.simulate import simulate
from headrace.simulator.summary import SimulationSummary
from headrace.transforms.coders import register_coders
from tests.pipelines.runs import metric, rows, run
from tests.pipelines.streaming.line_source import LineSource
from tests.pipelines.streaming.local import (
    NOW,
    FakeFlink,
    Local,
    check_windows,
    latest,
    make_task,
)
from tests.pipelines.test_batch_truth import classes_of

DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationSummary]:
    simulation = simulate(600, 3, fault_rate=0.5)
    path = tmp_path_factory.mktemp("simulated") / "events.jsonl"
    path.write_bytes(b"".join(simulation))
    assert simulation.summary.now == NOW
    return path, simulation.summary


def truth_of(totals: StreamTotals) -> dict[str, int]:
    return classes_of({"accepted": totals.accepted, "rejected": totals.rejected})


def without(found: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in names} for row in found]


def ids(out: Path) -> list[str]:
    return sorted(row["event_id"] for row in rows(out, "events"))


@pytest.mark.parametrize("retries", [False, True])
def test_rows_wait_for_final_bundles_where_bundles_are_tried_again(
    retries: bool, tmp_path: Path, key: Path
) -> None:
    """On Dataflow. Prism answers with an error to a step that asks for it without need."""
    task = make_task(tmp_path / "out", LineSource("none", NOW), key, retries_bundles=retries)
    pipeline = beam.Pipeline(options=PipelineOptions([]))
    assemble_stream(pipeline | Heartbeats(native=False), task)
    transforms = pipeline.to_runner_api().components.transforms.values()
    asking = [
        each.unique_name
        for each in transforms
        if each.spec.urn == "beam:transform:pardo:v1"
        and beam_runner_api_pb2.ParDoPayload.FromString(each.spec.payload).requests_finalization
    ]
    assert asking == (["Commit"] if retries else [])


@pytest.mark.integration
def test_stream_and_batch_write_the_same(
    simulated: tuple[Path, SimulationSummary], tmp_path: Path, key: Path, warm: None
) -> None:
    path, summary = simulated
    run(path, tmp_path / "batch", key, now=NOW)
    source = LineSource(str(path), NOW, partitions=1, per_poll=90)
    task = make_task(tmp_path / "stream", source, key, watermark_delay_us=DAY_US)
    task = replace(task, definition=replace(task.definition, rules={}))
    Local(task).run()

    totals = read_stream_ledger(tmp_path / "stream")
    assert totals.balanced and totals.drained and not totals.late
    assert totals.rows_in == 600 and truth_of(totals) == summary.to_dict()["classes"]
    for table in ("events", "quarantine"):
        streamed, batched = rows(tmp_path / "stream", table), rows(tmp_path / "batch", table)
        assert [row["origin_position"] + 1 for row in streamed] == [row["origin_position"] for row in batched]
        assert any(row["id_generated"] for row in batched)
        for found, expected in zip(streamed, batched, strict=True):
            names = ["origin", "origin_position", "document"]
            names += ["event_id"] if expected["id_generated"] else []
            (found,), (expected,) = without([found], *names), without([expected], *names)
            assert found == expected
    for name in ("events_per_minute", "revenue_per_minute"):
        added = ("pane_index", "timing", "is_final", "fired_at", "window_shard", "rows")
        found = latest(tmp_path / "stream", name)
        assert all(row["is_final"] for row in found)
        expected = metric(tmp_path / "batch", name).to_pylist()
        order = str
        assert sorted(without(found, *added), key=order) == sorted(expected, key=order)


@pytest.mark.integration
@pytest.mark.parametrize(("readers", "shards", "window_shards"), [(1, 1, 1), (2, 5, 3)])
def test_the_lake_does_not_depend_on_readers_shards_and_order(
    readers: int,
    shards: int,
    window_shards: int,
    simulated: tuple[Path, SimulationSummary],
    tmp_path: Path,
    key: Path,
    warm: None,
) -> None:
    path, summary = simulated
    source = LineSource(str(path), NOW, per_poll=70, acknowledged=str(tmp_path / "receipts"))
    task = make_task(
        tmp_path / "out", source, key, readers=readers, shards=shards, window_shards=window_shards
    )
    Local(task, seed=readers).run()
    classes = truth_of(read_stream_ledger(tmp_path / "out"))
    expected = summary.to_dict()["classes"]
    assert classes["duplicate"] + classes["conflict"] == expected["duplicate"] + expected["conflict"]
    assert {**classes, "duplicate": 0, "conflict": 0} == {**expected, "duplicate": 0, "conflict": 0}
    assert len(set(ids(tmp_path / "out"))) == classes["accepted"]
    check_windows(tmp_path / "out")
    receipts = (tmp_path / "receipts").read_text().splitlines()
    assert len(receipts) == len(set(receipts))


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(3))
def test_crashes_lose_and_double_nothing(
    seed: int, simulated: tuple[Path, SimulationSummary], tmp_path: Path, key: Path, warm: None
) -> None:
    """Checkpoints are taken at any moment, complete later or never, and after a crash the last complete one counts."""
    path, summary = simulated
    flink = FakeFlink()
    source = LineSource(str(path), NOW, per_poll=40, acknowledged=str(tmp_path / "receipts"))
    task = make_task(tmp_path / "out", source, key, readers=2)
    local = Local(task, seed=seed, flink=flink)
    complete = local.checkpoint()
    crashes = 0
    while not local.ended() or crashes < 3:
        for _ in range(local.random.randint(1, 12)):
            local.step()
        local.now += 500_000
        taken, at = local.checkpoint(), local.now
        local.now += 500_000
        for _ in range(local.random.randint(0, 6)):
            local.step()
        if local.random.random() < 0.7:
            complete, flink.durable = taken, at
        for _ in range(local.random.randint(0, 6)):
            local.step()
        if crashes < 3 and local.random.random() < 0.4:
            local.restore(complete)
            local.now += 1_000_000
            crashes += 1
    while local.deliver():
        pass
    flink.durable = local.now + 1_000_000
    local.settle()

    totals = read_stream_ledger(tmp_path / "out")
    assert totals.balanced and totals.drained and totals.rows_in == 600
    assert totals.accepted == summary.classes["accepted"] == len(set(ids(tmp_path / "out")))
    assert len(rows(tmp_path / "out", "quarantine")) == 600 - totals.accepted
    check_windows(tmp_path / "out")


def test_receipts_reach_the_source_only_after_the_commit(
    simulated: tuple[Path, SimulationSummary], tmp_path: Path, key: Path, warm: None
) -> None:
    flink, receipts = FakeFlink(), tmp_path / "receipts"
    source = LineSource(str(simulated[0]), NOW, acknowledged=str(receipts), per_poll=100)
    local = Local(make_task(tmp_path / "out", source, key), flink=flink)
    for _ in range(3):
        local.heartbeat()
    local.settle()
    assert not receipts.exists() and read_stream_ledger(tmp_path / "out").commits == 0
    flink.durable = local.now + 10_000_000
    local.settle()
    assert read_stream_ledger(tmp_path / "out").rows_in == 300
    assert len(receipts.read_text().splitlines()) == 3


def on_runner(task: StreamTask, beats: int) -> StreamTotals:
    register_coders()
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        assemble_stream(pipeline | beam.Create(range(beats), reshuffle=False), task, bundle_seconds=1e9)
    return read_stream_ledger(task.output)


@pytest.mark.integration
@pytest.mark.parametrize("readers", [1, 2])
def test_the_graph_on_a_runner(
    readers: int, simulated: tuple[Path, SimulationSummary], tmp_path: Path, key: Path, warm: None
) -> None:
    path, summary = simulated
    source = LineSource(str(path), NOW, per_poll=100)
    task = make_task(tmp_path / "out", source, key, readers=readers, commit_us=0)
    totals = on_runner(task, 20)
    assert totals.balanced and totals.readers_at_end == readers and totals.rows_in == 600
    assert totals.accepted == summary.classes["accepted"] == len(set(ids(tmp_path / "out")))
    check_windows(tmp_path / "out")


@pytest.mark.parametrize("native", [True, False])
def test_heartbeats_are_flinks_own_where_there_are_such(native: bool, tmp_path: Path, key: Path) -> None:
    (tmp_path / "events").write_bytes(b"")
    task = make_task(tmp_path / "out", LineSource(str(tmp_path / "events"), NOW), key, readers=2)
    pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner", "--streaming"]))
    assemble_stream(pipeline | Heartbeats(native=native), task)
    urns = Counter(t.spec.urn for t in pipeline.to_runner_api().components.transforms.values())
    assert urns["flink:transform:streaming_impulse:v1"] == native
