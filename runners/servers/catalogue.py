"""The local servers by their names."""

from pathlib import Path

from headrace.runners.servers.flink import FlinkCluster
from headrace.runners.servers.kafka import KafkaServer
from headrace.runners.servers.prism import PrismServer
from headrace.runners.servers.pubsub import PubSubServer
from headrace.runners.servers.server import Server
from headrace.runners.servers.spark import SparkServer
from headrace.runners.suggest import suggest
from headrace.schemas.errors import ConfigError

SERVERS: dict[str, type[Server]] = {
    server.name: server for server in (KafkaServer, FlinkCluster, PrismServer, PubSubServer, SparkServer)
}


def server_class(name: str) -> type[Server]:
    """Returns the server of this name.

    Raises:
        ConfigError: there is none; names those that there are.
    """
    if name not in SERVERS:
        raise ConfigError(f"unknown server {name!r}; {suggest(name, SERVERS)}")
    return SERVERS[name]


def known_servers(folder: Path | None = None) -> list[str]:
    """Returns the names of the servers that were started in a cluster folder and not taken down."""
    return [name for name, server in SERVERS.items() if (server(folder).folder / "state.json").exists()]
