"""What each server is started with, and when it counts as answering; no server runs."""

import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from headrace.runners.servers import flink as flink_module
from headrace.runners.servers import kafka as kafka_module
from headrace.runners.servers import prism as prism_module
from headrace.runners.servers import pubsub as pubsub_module
from headrace.runners.servers import spark as spark_module
from headrace.runners.servers.catalogue import SERVERS, known_servers, server_class
from headrace.runners.servers.flink import FlinkCluster
from headrace.runners.servers.flink_config import as_yaml, flink_settings
from headrace.runners.servers.kafka import KafkaServer, properties
from headrace.runners.servers.prism import PrismServer
from headrace.runners.servers.processes import spawn
from headrace.runners.servers.pubsub import PubSubServer
from headrace.runners.servers.server import Server
from headrace.runners.servers.spark import SparkServer
from headrace.schemas.errors import ConfigError


@pytest.fixture(autouse=True)
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for the installed artifacts."""
    home = tmp_path / "java"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "java").write_text("#!/bin/sh\nexit 1\n")
    (home / "bin" / "java").chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(home))
    monkeypatch.setattr(kafka_module, "jars", lambda *_: tmp_path / "jars")
    monkeypatch.setattr(flink_module, "install", lambda *_: tmp_path / "flink")
    monkeypatch.setattr(flink_module, "shaded", lambda *_: tmp_path / "job-server.jar")
    monkeypatch.setattr(prism_module, "prism_binary", lambda: tmp_path / "prism")
    monkeypatch.setattr(pubsub_module, "install", lambda *_: tmp_path)
    monkeypatch.setattr(spark_module, "jars", lambda *_: tmp_path / "spark")


def words(server: Server, role: str) -> str:
    return " ".join(map(str, server.command(role)[0]))


def fake(server: Server, *roles: str) -> None:
    """Lets ``sleep`` stand for processes of the server."""
    for role in roles:
        process = spawn(["sleep", "60"], log=server.folder / "log", mark=server._state()["mark"])
        state = server._state()
        state["starts"][role] = 1
        state["processes"][role] = {"pid": process.pid, "started": process.started, "log": str(process.log)}
        server._save(state)


class Rest(BaseHTTPRequestHandler):
    taskmanagers: list[dict[str, Any]] | None = None

    def do_GET(self) -> None:
        self.send_response(200 if self.taskmanagers is not None else 503)
        self.end_headers()
        self.wfile.write(json.dumps({"taskmanagers": self.taskmanagers}).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def rest(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(Rest, "taskmanagers", None)
    with HTTPServer(("127.0.0.1", 0), Rest) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_kafka_is_a_single_node_whose_settings_can_be_changed(tmp_path: Path) -> None:
    found = properties(1111, 2222, tmp_path, {"log.segment.bytes": 1024, "auto.create.topics.enable": False})
    assert found["listeners"] == "PLAINTEXT://127.0.0.1:1111,CONTROLLER://127.0.0.1:2222"
    assert found["controller.quorum.voters"] == "1@127.0.0.1:2222"
    assert found["log.dirs"] == str(tmp_path)
    assert found["log.segment.bytes"] == "1024"
    assert found["auto.create.topics.enable"] == "false"
    assert found["log.retention.ms"] == "-1"


def test_kafka_formats_its_folder_once_and_starts_with_half_a_gigabyte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[list[str]] = []
    monkeypatch.setattr(
        kafka_module, "run", lambda command, **_: runs.append([str(word) for word in command])
    )
    kafka = KafkaServer(tmp_path, settings={"num.partitions": 3})
    kafka._prepare()
    [command] = runs
    assert command[-6:-2] == ["kafka.tools.StorageTool", "format", "-t", command[-3]]
    assert len(command[-3]) == 22
    assert not command[-3].startswith("-")
    assert "num.partitions=3\n" in (kafka.folder / "server.properties").read_text()
    assert (
        f"-Xmx512m -Dlog4j2.configurationFile={kafka.folder}/log4j2.properties -cp {tmp_path}/jars/*"
        in words(kafka, "broker")
    )
    kafka.data.mkdir()
    (kafka.data / "meta.properties").touch()
    kafka._prepare()
    assert len(runs) == 1
    assert kafka.hints() == [f"kafka://{kafka.address}/TOPIC", f"bootstrap.servers={kafka.address}"]


def test_kafka_has_to_answer_for_its_metadata_and_not_only_to_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_module, "run", lambda *_, **__: None)
    monkeypatch.setattr(kafka_module, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        number = deaf.getsockname()[1]
        monkeypatch.setattr("headrace.runners.servers.server.free_ports", lambda *_: [number, 1])
        kafka = KafkaServer(tmp_path)
        kafka._prepare()
        assert kafka.missing() == "no metadata: _TRANSPORT"
    assert kafka.missing() == f"nobody listens on 127.0.0.1:{number}"


def test_flinks_defaults_keep_state_and_can_be_overridden(tmp_path: Path) -> None:
    found = flink_settings(
        rest=1,
        rpc=2,
        slots=4,
        data=tmp_path,
        scratch=tmp_path / "tmp",
        settings={"heartbeat.timeout": 20_000},
    )
    wanted = {
        "taskmanager.numberOfTaskSlots": 4,
        "state.backend.type": "rocksdb",
        "state.backend.incremental": True,
        "state.backend.rocksdb.compaction.style": "UNIVERSAL",
        "state.checkpoints.dir": f"file://{tmp_path}/checkpoints",
        "state.checkpoints.num-retained": 3,
        "state.savepoints.dir": f"file://{tmp_path}/savepoints",
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "restart-strategy.type": "exponential-delay",
        "restart-strategy.exponential-delay.max-backoff": "10 s",
        "restart-strategy.exponential-delay.attempts-before-reset-backoff": 20,
        "rest.cache.checkpoint-statistics.timeout": "200 ms",
        "heartbeat.timeout": 20_000,
    }
    assert {name: found[name] for name in wanted} == wanted
    text = as_yaml(found)
    assert "state.backend.incremental: true\n" in text
    assert text.count("heartbeat.timeout") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rest.port": 8081}, r"Flink setting rest\.port is the cluster's own; leave it out"),
        ({"a": "b\nrest.port: 1"}, "Flink setting 'a' can't be written in one line"),
        ({"a: b": 1}, "Flink setting 'a: b' can't be written in one line"),
    ],
)
def test_a_setting_of_flink_that_would_break_the_cluster_is_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        flink_settings(rest=1, rpc=2, slots=1, data=tmp_path, scratch=tmp_path, settings=settings)
    with pytest.raises(ConfigError, match=message):
        FlinkCluster(tmp_path, settings=settings)._prepare()


def test_flinks_processes(tmp_path: Path) -> None:
    flink = FlinkCluster(tmp_path, slots=1, taskmanagers=2, worker_pool=True)
    flink._prepare()
    assert flink.roles() == ["jobmanager", "taskmanager-0", "taskmanager-1", "job-server", "worker-pool"]
    assert flink.checkpoints_dir.is_dir()
    assert flink.savepoints_dir.is_dir()
    assert f"rest.port: {flink.address.port}\n" in (flink.folder / "conf" / "flink-conf.yaml").read_text()
    assert "-Xmx768m" in words(flink, "jobmanager")
    assert "StandaloneSessionClusterEntrypoint" in words(flink, "jobmanager")
    assert words(flink, "taskmanager-1").endswith("-Dtaskmanager.resource-id=taskmanager-1-1")
    assert "-Xmx1152m" in words(flink, "taskmanager-1")
    assert f"--flink-master {flink.rest_url} --flink-conf-dir {flink.folder}/conf" in words(
        flink, "job-server"
    )
    pool = f"{sys.executable} -m headrace.runners.worker_pool --host 127.0.0.1 --port {flink.port('pool')}"
    assert words(flink, "worker-pool") == pool
    assert flink.command("jobmanager")[1]["FLINK_PLUGINS_DIR"] == str(tmp_path / "flink" / "plugins")
    assert flink.hints() == [
        f"--job_endpoint={flink.job_endpoint}",
        f"--environment_type=EXTERNAL --environment_config={flink.worker_pool_address}",
        f"Flink's REST interface and web page: {flink.rest_url}",
    ]


def test_flink_without_a_pool_says_how_to_get_one(tmp_path: Path) -> None:
    flink = FlinkCluster(tmp_path)
    flink._prepare()
    assert flink.roles() == ["jobmanager", "taskmanager-0", "job-server"]
    with pytest.raises(
        ConfigError, match=r"no worker pool; start it with worker_pool=True \(--worker-pool\)"
    ):
        _ = flink.worker_pool_address
    assert len(flink.hints()) == 2


@pytest.mark.parametrize("options", [{"slots": 0}, {"taskmanagers": 0}])
def test_a_cluster_of_nothing_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"(slots|taskmanagers)=0: a cluster needs at least 1"):
        FlinkCluster(**options)


def test_flink_answers_when_every_living_taskmanager_brings_its_slots(
    tmp_path: Path, rest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.runners.servers.server.free_ports", lambda *_: [rest, 1, rest, 3, 4, 5])
    flink = FlinkCluster(tmp_path, taskmanagers=2)
    flink._prepare()
    assert flink.missing() == ""
    try:
        fake(flink, "jobmanager", "taskmanager-0", "taskmanager-1", "job-server")
        assert flink.missing() == "the REST interface says HTTP Error 503: Service Unavailable"
        Rest.taskmanagers = [
            {"id": "taskmanager-0-1", "slotsNumber": 2},
            {"id": "taskmanager-1-0", "slotsNumber": 2},
        ]
        assert flink.missing() == "taskmanager-1 brings 0 of 2 slots"
        flink.kill_taskmanager(1)
        assert flink.missing() == ""
        assert flink.kill_workers() == 0
        flink.kill_jobmanager()
        assert flink.status().state == "dead"
        assert [*flink.status().pids] == ["taskmanager-0", "job-server"]
        monkeypatch.setattr(Rest, "taskmanagers", None)
        with pytest.raises(ConfigError, match="flink did not start: jobmanager"):
            flink.restart_jobmanager()  # its java is a script that ends at once
        monkeypatch.setattr(Rest, "taskmanagers", [{"id": "taskmanager-0-1", "slotsNumber": 2}])
        fake(flink, "jobmanager")
        state = flink._state()
        state["ports"]["jobs"] = 1
        flink._save(state)
        assert flink.missing() == "job-server does not listen on port 1"
    finally:
        flink.down()


def test_prism_and_the_fake_and_the_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prism = PrismServer(tmp_path)
    prism.install()
    prism._prepare()
    assert (
        words(prism, "prism")
        == f"{tmp_path}/prism --job_port={prism.port('jobs')} --serve_http=false --log_kind=text"
    )
    assert prism.missing() == f"nobody listens on {prism.address}"
    assert prism.hints() == [f"--job_endpoint={prism.job_endpoint}", f"--prism_location={tmp_path}/prism"]
    pubsub = PubSubServer(tmp_path)
    pubsub._prepare()
    monkeypatch.setattr(pubsub_module, "emulator_jar", lambda: None)
    assert pubsub.kind == "fake"
    assert words(pubsub, "pubsub") == f"{tmp_path}/pubsub-fake -port {pubsub.address.port}"
    monkeypatch.setattr(pubsub_module, "emulator_jar", lambda: tmp_path / "emulator.jar")
    assert pubsub.kind == "emulator"
    assert words(pubsub, "pubsub").endswith(f"emulator.jar --host=127.0.0.1 --port={pubsub.address.port}")
    assert pubsub.missing() == f"nobody listens on {pubsub.address}"
    assert pubsub.hints() == [f"PUBSUB_EMULATOR_HOST={pubsub.address}"]
    with pytest.raises(ConfigError, match="kind='x' is unknown; it is one of emulator, fake"):
        PubSubServer(tmp_path, kind="x")  # type: ignore[arg-type]


def test_spark(tmp_path: Path) -> None:
    spark = SparkServer(tmp_path, cores=3)
    spark.install()
    spark._prepare()
    command = words(spark, "job-server")
    for part in (
        "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
        "-Dspark.driver.bindAddress=127.0.0.1",
        f"-cp {tmp_path}/spark/* org.apache.beam.runners.spark.SparkJobServerDriver",
        f"--job-host=127.0.0.1 --job-port={spark.port('jobs')}",
        "--spark-master-url=local[3]",
    ):
        assert part in command
    assert spark.missing() == f"nobody listens on {spark.address}"
    assert spark.hints() == [
        f"--runner=spark --job_endpoint={spark.job_endpoint} --environment_type=LOOPBACK"
    ]


def test_servers_are_known_by_name(tmp_path: Path) -> None:
    assert [*SERVERS] == ["kafka", "flink", "prism", "pubsub", "spark"]
    assert server_class("flink") is FlinkCluster
    with pytest.raises(ConfigError, match=r"unknown server 'kafak'; did you mean 'kafka'\?"):
        server_class("kafak")
    assert known_servers(tmp_path) == []
    PrismServer(tmp_path)._prepare()
    assert known_servers(tmp_path) == ["prism"]
