"""Each local server for real: brought up, used, killed, told dead, brought back, and taken down without a trace."""

import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer

from headrace.runners.servers.flink import FlinkCluster
from headrace.runners.servers.kafka import KafkaServer
from headrace.runners.servers.prism import PrismServer, prism_binary
from headrace.runners.servers.processes import marked, start_of
from headrace.runners.servers.pubsub import Kind, PubSubServer, emulator_jar
from headrace.runners.servers.server import Server

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in ("java", "mvn", "go")),
        reason="java, mvn and go are needed",
    ),
]

JOB = """
import sys
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

def write(row):
    with open(sys.argv[1], "a") as file:
        print(*row, file=file)

with beam.Pipeline(options=PipelineOptions(sys.argv[2:])) as pipeline:
    rows = pipeline | beam.Create(range(100)) | "Key" >> beam.Map(lambda x: (x % 2, x))
    rows | beam.CombinePerKey(sum) | "Write" >> beam.Map(write)
"""


@pytest.fixture(scope="module")
def own_flink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    """A cluster that nobody else uses, for it is taken apart."""
    server = FlinkCluster(tmp_path_factory.mktemp("own_flink"), slots=2, worker_pool=True)
    server.up()
    yield server
    server.down()


def run_job(folder: Path, *flags: str) -> None:
    """Runs a small pipeline and looks at what it wrote."""
    command = [sys.executable, "-c", JOB, str(folder / "out"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted((folder / "out").read_text().splitlines()) == ["0 2450", "1 2500"]


def produce(server: KafkaServer, topic: str, *values: bytes) -> None:
    producer = Producer({"bootstrap.servers": str(server.address)})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(30) == 0


def consume(server: KafkaServer, topic: str, count: int) -> list[bytes]:
    settings = {
        "bootstrap.servers": str(server.address),
        "auto.offset.reset": "earliest",
        "group.id": uuid.uuid4().hex,
    }
    consumer = Consumer(settings)
    consumer.subscribe([topic])
    found: list[bytes] = []
    deadline = time.monotonic() + 30
    while len(found) < count and time.monotonic() < deadline:
        message = consumer.poll(1)
        if message is not None and message.error() is None:
            found.append(message.value())
    consumer.close()
    return found


def assert_gone(server: Server) -> None:
    """Takes a server down; nothing of it is left."""
    mark, pids = server._state()["mark"], server.status().pids
    assert pids
    assert server.down()
    assert [pid for pid in pids.values() if start_of(pid) is not None] == []
    assert marked(mark) == []
    assert not server.folder.exists()
    assert server.status().state == "down"


def test_kafka_keeps_what_it_acknowledged_when_it_is_killed(tmp_path: Path) -> None:
    server = KafkaServer(tmp_path)
    address = server.up()
    assert server.status().state == "up"
    produce(server, "events", b"1", b"2")
    server.kill()
    status = server.status()
    assert (status.state, status.pids) == ("dead", {})
    assert "Kafka Server started" in status.detail
    assert server.restart() == address
    produce(server, "events", b"3")
    assert consume(server, "events", 3) == [b"1", b"2", b"3"]
    server.pause()
    assert server.status().state == "paused"
    server.resume()
    assert_gone(server)


def test_flink_runs_a_python_job_in_this_process(own_flink: FlinkCluster, tmp_path: Path) -> None:
    overview = own_flink.rest("/overview")
    assert (overview["taskmanagers"], overview["slots-total"]) == (1, 2)
    job = [
        "--runner=PortableRunner",
        f"--job_endpoint={own_flink.job_endpoint}",
        "--environment_type=LOOPBACK",
    ]
    run_job(tmp_path, *job)
    assert own_flink.rest("/overview")["jobs-finished"] == overview["jobs-finished"] + 1


def test_flink_loses_and_gets_back_a_taskmanager_and_the_jobmanager(own_flink: FlinkCluster) -> None:
    before = own_flink.status()
    own_flink.kill_taskmanager()
    assert own_flink.status().state == "dead"
    own_flink.start_taskmanager()
    assert own_flink.status().state == "up"
    own_flink.kill_jobmanager()
    assert "jobmanager" not in own_flink.status().pids
    assert own_flink.restart_jobmanager() == own_flink.address
    after = own_flink.status()
    assert (after.state, after.address) == ("up", before.address)
    assert after.pids["job-server"] == before.pids["job-server"]
    assert own_flink.rest("/overview")["slots-total"] == 2
    config = {entry["key"]: entry["value"] for entry in own_flink.rest("/jobmanager/config")}
    assert config["execution.checkpointing.externalized-checkpoint-retention"] == "RETAIN_ON_CANCELLATION"
    assert config["state.checkpoints.dir"] == own_flink.checkpoints_dir.as_uri()
    assert own_flink.kill_workers() == 0


def test_flink_goes_down_whole(own_flink: FlinkCluster) -> None:
    assert own_flink.worker_pool_address
    assert_gone(own_flink)


def test_prism_runs_a_python_job(tmp_path: Path) -> None:
    prism = PrismServer(tmp_path)
    prism.up()
    run_job(
        tmp_path,
        "--runner=PortableRunner",
        f"--job_endpoint={prism.job_endpoint}",
        "--environment_type=LOOPBACK",
    )
    prism.kill()
    assert prism.status().state == "dead"
    prism.up()
    assert_gone(prism)


def test_beams_prism_runner_takes_the_binary_without_a_download(tmp_path: Path) -> None:
    run_job(tmp_path, "--runner=PrismRunner", f"--prism_location={prism_binary()}")


@pytest.mark.parametrize("kind", ["emulator", "fake"])
def test_pubsub_takes_and_gives_messages(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "emulator" and emulator_jar() is None:
        pytest.skip("Google's emulator is not on this machine")
    from google.cloud import pubsub_v1

    server = PubSubServer(tmp_path, kind=kind)
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", str(server.up()))
    publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
    topic, subscription = "projects/project/topics/events", "projects/project/subscriptions/reader"
    publisher.create_topic(name=topic)
    subscriber.create_subscription(name=subscription, topic=topic)
    publisher.publish(topic, b"1", id="a").result(30)
    [received] = subscriber.pull(subscription=subscription, max_messages=10, timeout=30).received_messages
    assert (received.message.data, dict(received.message.attributes)) == (b"1", {"id": "a"})
    subscriber.acknowledge(subscription=subscription, ack_ids=[received.ack_id])
    subscriber.close()
    publisher.stop()
    server.kill()
    assert server.status().state == "dead"
    server.up()
    assert_gone(server)
