"""Streams end to end, on real runners and servers, against the simulator's truth and a batch run of the same events."""

import base64
import gzip
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from headrace.runners.servers.flink import FlinkCluster
from headrace.runners.servers.kafka import KafkaServer
from headrace.runners.servers.pubsub import PubSubServer
from headrace.simulator.simulate import simulate
from headrace.transforms.keys import Key
from tests.integration.streams import (
    COMMAND,
    Command,
    Topics,
    require_equal,
    require_whole,
    rows,
    table,
    totals,
    windows,
)
from tests.integration.test_pubsub import Queue
from tests.pipelines.test_batch_truth import classes_of

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("prism_program"),
]

FIXED = "2026-01-05T13:00:00Z"
PLACE = ("origin", "origin_position", "ingest_time")


class Traffic:
    """Simulated events of the last hour, with their truth, whose stale and future ones are so for the next minute too."""

    def __init__(self, events: int, seed: int) -> None:
        start = datetime.now(UTC) - timedelta(hours=1)
        simulation = simulate(events, seed, start=start, span=timedelta(hours=1), fault_rate=0.3)
        self.lines = b"".join(simulation).splitlines()
        self.truth = simulation.summary.to_dict()
        assert len(self.lines) == events


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one key."""
    folder = tmp_path_factory.mktemp("streams")
    Key(folder / "key", create=True)
    return folder


@pytest.fixture
def topics(kafka: KafkaServer) -> Topics:
    return Topics(kafka.address)


def arrived_in_any_order(classes: dict[str, int]) -> dict[str, int]:
    """Whether a repeat is equal or in conflict depends on which came first, and partitions have no order between them."""
    both = classes["duplicate"] + classes["conflict"]
    return {**classes, "duplicate": both, "conflict": 0}


def classes(out: Path) -> dict[str, int]:
    found = totals(out)
    return classes_of({"accepted": found.accepted, "rejected": found.rejected})


def without_own_ids(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events that bring no id get one by their position in a stream, by their content in a batch."""
    return [{**row, "event_id": None} if row["id_generated"] else row for row in rows]


def batch(folder: Path, source: Path, out: Path, *more: str) -> None:
    """Runs the batch pipeline over the same events."""
    command = [*COMMAND, "run", "batch", "--input", str(source), "--output", str(out), "--quiet", *more]
    done = subprocess.run(
        command,
        env=os.environ | {"HEADRACE_KEY_FILE": str(folder / "key")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_kafka_on_prism_is_exact_goes_on_and_feeds_its_sinks(
    folder: Path, tmp_path: Path, topics: Topics
) -> None:
    first, second = Traffic(6000, 51), Traffic(1500, 52)
    source, clean, bad = topics.make("p-in", 3), topics.make("p-clean"), topics.make("p-bad")
    topics.write("p-in", first.lines, 3)
    out = tmp_path / "out"
    command = ["--source", source, "--output", out, "--until", "now", "--readers", "2"]
    sinks = ["--sink", clean, "--quarantine-sink", bad]
    summary = Command(folder, *command, *sinks).wait()
    assert (summary["rows_in"], summary["balanced"], summary["restarts"]) == (6000, True, 0)
    require_whole(out, 6000)
    assert arrived_in_any_order(classes(out)) == arrived_in_any_order(first.truth["classes"])
    assert sum(windows(out, "events_per_minute", "events", "event_type").values()) + sum(
        row["rows"] for row in late(out, "events_per_minute")
    ) == sum(first.truth["event_types"].values())

    accepted = {row["event_id"]: row for row in rows(out, "events")}
    sent = topics.read("p-clean")
    assert {key for key, _ in sent} == set(accepted)
    for key, document in sent[:200]:
        row = accepted[str(key)]
        assert (document["event_id"], document["event_type"]) == (key, row["event_type"])
        assert document["event_time"] == row["event_time"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        assert document.get("user_id") == row["user_id"]
    rejected = {(row["origin"], row["origin_position"]): row for row in rows(out, "quarantine")}
    refused = {(d["origin"], d["origin_position"]): d for _, d in topics.read("p-bad")}
    assert set(refused) == set(rejected)
    for place, document in refused.items():
        row = rejected[place]
        assert (document["stage"], document["reason"]) == (row["stage"], row["reason"])
        sealed = None if row["document"] is None else base64.b64encode(row["document"]).decode()
        assert document.get("document") == sealed

    topics.write("p-in", second.lines, 3)
    assert Command(folder, *command, *sinks).wait()["rows_in"] == 7500
    require_whole(out, 7500)
    assert {key for key, _ in topics.read("p-clean")} == set(table(out, "events")["event_id"].to_pylist())
    assert set(accepted) < set(table(out, "events")["event_id"].to_pylist())


def late(out: Path, name: str) -> list[dict[str, Any]]:
    return rows_of(out / "late" / name)


def rows_of(root: Path) -> list[dict[str, Any]]:
    return table(root.parent, root.name).to_pylist() if root.is_dir() else []


def test_a_stream_on_prism_drains_on_sigterm(folder: Path, tmp_path: Path, topics: Topics) -> None:
    traffic = Traffic(6000, 53)
    source, out = topics.make("t-in"), tmp_path / "out"
    over = threading.Event()

    def produce() -> None:
        for chunk in chunks(traffic.lines):
            topics.write("t-in", chunk)
            over.wait(0.05)

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        stream = Command(folder, "--source", source, "--output", out)
        stream.until(lambda: totals(out).rows_in > 0)
        summary = stream.drain()
    finally:
        over.set()
        producer.join()
    assert "stopping: what is under way is committed first" in stream.log
    assert summary["rows_in"] > 0
    require_whole(out, summary["rows_in"])
    Command(folder, "--source", source, "--output", out, "--until", "now").wait()
    require_whole(out, 6000)
    assert classes(out) == traffic.truth["classes"]


def chunks(lines: list[bytes]) -> Iterator[list[bytes]]:
    return (lines[i : i + 100] for i in range(0, len(lines), 100))


def test_kafka_on_flink_equals_the_batch_and_goes_on_from_its_savepoint(
    folder: Path, tmp_path: Path, topics: Topics, flink: FlinkCluster
) -> None:
    traffic = Traffic(4000, 54)
    source, out = topics.make("f-in"), tmp_path / "out"
    topics.write("f-in", traffic.lines[:2500])
    command = [
        *("--source", source, "--output", out, "--runner", "flink", "--shared-paths"),
        f"--job_endpoint={flink.job_endpoint}",
        f"--flink-rest={flink.rest_url}",
        f"--environment_type=EXTERNAL --environment_config={flink.worker_pool_address}".split(),
    ]
    flat = [word for each in command for word in (each if isinstance(each, list) else [each])]
    stream = Command(folder, *flat)
    stream.until(lambda: totals(out).rows_in >= 2500)
    summary = stream.drain()
    assert summary["state"] and summary["restarts"] == 0
    require_whole(out, 2500)
    topics.write("f-in", traffic.lines[2500:])
    again = Command(folder, *flat, "--until", "now").wait()
    assert again["job"] == summary["job"]
    require_whole(out, 4000)
    assert classes(out) == traffic.truth["classes"]

    lines = tmp_path / "events.jsonl"
    lines.write_bytes(b"".join(line + b"\n" for line in traffic.lines))
    batch(folder, lines, tmp_path / "batch", "--now", traffic.truth["now"])
    require_equal(*(without_own_ids(rows(each, "events", *PLACE)) for each in (out, tmp_path / "batch")))


def test_pubsub_on_prism_acknowledges_what_is_in_the_lake(
    folder: Path, tmp_path: Path, pubsub: PubSubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", str(pubsub.address))
    queue, traffic, out = Queue(pubsub), Traffic(3000, 55), tmp_path / "out"
    for chunk in chunks(traffic.lines):
        queue.publish(*chunk)
    stream = Command(folder, "--source", f"pubsub://project/{queue.name}?lease_seconds=10", "--output", out)
    stream.until(lambda: totals(out).rows_in >= 3000)
    stream.drain()
    require_whole(out, 3000)
    counted = classes(out)
    assert {k: counted[k] for k in ("malformed", "invalid", "unknown_schema")} == {
        k: traffic.truth["classes"][k] for k in ("malformed", "invalid", "unknown_schema")
    }
    assert counted["accepted"] == traffic.truth["classes"]["accepted"]
    source = queue.source()
    reader = source.open(source.start(1)[0])
    end = time.monotonic() + 12  # longer than the lease: what was not acknowledged would come again
    left = []
    while time.monotonic() < end:
        left += reader.poll(1000, 1.0).batch.column("raw").to_pylist()
    reader.close()
    assert left == []


def test_a_directory_on_prism_equals_the_batch(folder: Path, tmp_path: Path) -> None:
    """Files grow, and come compressed, while the stream runs."""
    simulation = simulate(3000, 56, fault_rate=0.3)
    lines = b"".join(simulation).splitlines(keepends=True)
    incoming, out = tmp_path / "in", tmp_path / "out"
    incoming.mkdir()
    grown, packed = incoming / "a.jsonl", incoming / "b.jsonl.gz"
    grown.write_bytes(b"".join(lines[:800]))
    stream = Command(folder, "--source", f"dir:{incoming}?ingest_time={FIXED}", "--output", out)
    stream.until(lambda: totals(out).rows_in >= 800)
    with grown.open("ab") as file:
        file.write(b"".join(lines[800:2000]))
    aside = incoming / "_b.jsonl.gz"
    aside.write_bytes(gzip.compress(b"".join(lines[2000:])))
    aside.rename(packed)
    stream.until(lambda: totals(out).rows_in >= 3000)
    stream.drain()
    require_whole(out, 3000)
    batch(folder, incoming, tmp_path / "batch", "--now", FIXED)
    for name in ("events", "quarantine"):
        require_equal(*(without_own_ids(rows(each, name)) for each in (out, tmp_path / "batch")))
    assert classes(out) == simulation.summary.to_dict()["classes"]


def test_web_logs_in_a_directory_on_prism(folder: Path, tmp_path: Path) -> None:
    simulation = simulate(1000, 57, fault_rate=0.3, families=["weblog"])
    incoming, out = tmp_path / "in", tmp_path / "out"
    incoming.mkdir()
    (incoming / "access.log").write_bytes(b"".join(simulation))
    command = ["--source", f"dir:{incoming}?ingest_time={FIXED}", "--output", out, "--format", "weblog"]
    Command(folder, *command, "--until", "now").wait()
    require_whole(out, 1000)
    assert classes(out) == simulation.summary.to_dict()["classes"]


def test_what_cannot_run_a_stream_is_refused(folder: Path, tmp_path: Path) -> None:
    stream = Command(
        folder, "--source", f"dir:{tmp_path}", "--output", tmp_path / "out", "--runner", "direct"
    )
    assert stream.process.wait(60) == 2
    assert "it can't run streams: it runs bounded input only" in stream.log
    assert "use --runner=prism on this machine, or --runner=flink" in stream.log
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("runner", ["prism", "flink"])
def test_a_batch_leaves_the_same_rows_on_other_runners(
    runner: str, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    simulation = simulate(2000, 58, fault_rate=0.3)
    lines = tmp_path / "events.jsonl"
    lines.write_bytes(b"".join(simulation))
    options = ["--runner", runner]
    if runner == "flink":
        flink: FlinkCluster = request.getfixturevalue("flink")
        options += [
            f"--job_endpoint={flink.job_endpoint}",
            "--environment_type=EXTERNAL",
            f"--environment_config={flink.worker_pool_address}",
            "--shared-paths",
        ]
    for name, more in (("direct", []), (runner, options)):
        batch(folder, lines, tmp_path / name, "--now", FIXED, *more)
    for name in ("events", "quarantine"):
        require_equal(rows(tmp_path / runner, name), rows(tmp_path / "direct", name))
    found = json.loads((tmp_path / runner / "ledger.json").read_bytes())
    assert classes_of(found) == simulation.summary.to_dict()["classes"]
