"""A Kafka broker: one node that is its own controller (KRaft), from Maven's jars."""

import base64
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from headrace.runners.servers.install import run, tool
from headrace.runners.servers.maven import jars
from headrace.runners.servers.processes import HOST, listens
from headrace.runners.servers.server import Server
from headrace.schemas.errors import ConfigError

VERSION = "4.3.1"
ANSWER_SECONDS = 2.0

_LOG_SETTINGS = """status = warn
rootLogger.level = info
rootLogger.appenderRef.out.ref = OUT
appender.out.type = Console
appender.out.name = OUT
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c{1} - %m%n
"""


class KafkaServer(Server):
    """One broker at ``address``, without passwords, for this machine only.

    Topics make themselves when they are first used, with one partition. A killed broker keeps its data; what clients were
    acknowledged survives, for only the process dies and not the machine.

    Args:
        folder: of the cluster.
        port: of the broker.
        settings: the broker's own, over the defaults of :func:`properties`.

    Example::

        kafka = KafkaServer("/tmp/cluster")
        producer = confluent_kafka.Producer({"bootstrap.servers": str(kafka.up())})
    """

    name: ClassVar[str] = "kafka"
    ports: ClassVar[tuple[str, ...]] = ("broker", "controller")
    defaults: ClassVar[dict[str, Any]] = {"settings": {}}

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        port: int | None = None,
        settings: Mapping[str, str | int | bool] | None = None,
    ) -> None:
        super().__init__(folder, port=port, settings=None if settings is None else dict(settings))

    def install(self) -> None:
        tool("java", "Kafka")
        self._jars()

    def roles(self) -> list[str]:
        return ["broker"]

    def configure(self) -> None:
        (self.folder / "log4j2.properties").write_text(_LOG_SETTINGS)
        path = self.folder / "server.properties"
        found = properties(self.port("broker"), self.port("controller"), self.data, self.option("settings"))
        path.write_text("".join(f"{name}={value}\n" for name, value in found.items()))
        if not (self.data / "meta.properties").exists():
            identity = base64.urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
            tool_ = [*self._java(128), "kafka.tools.StorageTool"]
            run(
                [*tool_, "format", "-t", identity, "-c", path],
                what="formatting Kafka's folder",
                cwd=self.folder,
            )

    def command(self, role: str) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        return [*self._java(512), "kafka.Kafka", self.folder / "server.properties"], {}

    def missing(self) -> str:
        if not listens(self.port("broker")):
            return f"nobody listens on {self.address}"
        return _without_metadata(str(self.address))

    def hints(self) -> list[str]:
        return [f"kafka://{self.address}/TOPIC", f"bootstrap.servers={self.address}"]

    def _jars(self) -> Path:
        return jars("kafka", VERSION, "kafka-pom.xml", "45 MB by Maven, about 15 s")

    def _java(self, heap_megabytes: int) -> list[str | Path]:
        return [
            tool("java", "Kafka"),
            f"-Xmx{heap_megabytes}m",
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
            "-cp",
            f"{self._jars()}/*",
        ]


def properties(
    broker: int, controller: int, data: Path, settings: Mapping[str, str | int | bool]
) -> dict[str, str]:
    """Returns the configuration of a single node.

    Args:
        broker: the port for clients.
        controller: the port that the node uses for itself.
        data: where it stores.
        settings: over the defaults.
    """
    found: dict[str, str | int | bool] = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{HOST}:{controller}",
        "listeners": f"PLAINTEXT://{HOST}:{broker},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{broker}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(data),
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        "log.retention.ms": -1,
        **settings,
    }
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in found.items()
    }


def _without_metadata(address: str) -> str:
    """Says why a broker does not answer a question for its metadata; empty if it does."""
    try:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient
    except ModuleNotFoundError as error:
        raise ConfigError("confluent-kafka is not installed; pip install confluent-kafka") from error
    client = AdminClient({"bootstrap.servers": address, "log_level": 0, "socket.timeout.ms": 2000})
    try:
        brokers = client.list_topics(timeout=ANSWER_SECONDS).brokers
    except KafkaException as error:
        return f"no metadata: {error.args[0].name()}"
    return "" if brokers else "the metadata name no broker"
