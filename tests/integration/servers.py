"""Real servers for tests, one of each for a session, in a folder of the session's own.

``conftest.py`` imports the fixtures, so that all modules share them: one that two modules import would be made twice. Who kills a
server brings it back, or makes one of its own over ``tmp_path``.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.runners.servers.flink import FlinkCluster
from headrace.runners.servers.kafka import KafkaServer
from headrace.runners.servers.prism import PrismServer, prism_binary
from headrace.runners.servers.pubsub import PubSubServer
from headrace.runners.servers.spark import SparkServer


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A broker; topics make themselves, so take names that no other test takes."""
    server = KafkaServer(tmp_path_factory.mktemp("kafka"))
    server.up()
    yield server
    server.down()


@pytest.fixture(scope="session")
def flink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    """A JobManager, a TaskManager of two slots, a job server and a worker pool."""
    server = FlinkCluster(tmp_path_factory.mktemp("flink"), slots=2, worker_pool=True)
    server.up()
    yield server
    server.down()


@pytest.fixture(scope="session")
def prism_program() -> Path:
    """Prism itself, built if it isn't there: a stream finds it and starts its own."""
    return prism_binary()


@pytest.fixture(scope="session")
def prism(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrismServer]:
    """A Prism that stays."""
    server = PrismServer(tmp_path_factory.mktemp("prism"))
    server.up()
    yield server
    server.down()


@pytest.fixture(scope="session")
def pubsub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PubSubServer]:
    """Google's emulator, or the fake; clients need its address in ``PUBSUB_EMULATOR_HOST``."""
    server = PubSubServer(tmp_path_factory.mktemp("pubsub"))
    server.up()
    yield server
    server.down()


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkServer]:
    """A job server with Spark inside."""
    server = SparkServer(tmp_path_factory.mktemp("spark"))
    server.up()
    yield server
    server.down()
