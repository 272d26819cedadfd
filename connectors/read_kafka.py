"""A Kafka topic as a stream: partitions shared among readers by number, offsets held by the pipeline."""

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from headrace.connectors.kafka_cluster import LOG, Clients, Cluster, NotNowError, no_topic, not_let_in
from headrace.connectors.kafka_options import KafkaSourceOptions
from headrace.connectors.kafka_partitions import KafkaPosition
from headrace.connectors.kafka_reader import KafkaReader
from headrace.connectors.kafka_rows import CREATE_TIME_FIX
from headrace.schemas.errors import ConfigError, InputError

ANSWER_SECONDS = 20.0
"""How long the launcher waits for the cluster."""


@dataclass(frozen=True)
class KafkaSource:
    """A topic of JSON documents or log lines, one a record.

    Reader i of N owns the partitions p with p % N == i. Each record is returned in the order of its partition, and again only if a
    reader is opened at a position before it: exactly once along a chain of positions. Partitions made later are found every
    ``discover_seconds`` and read from their first record. With ``isolation=read_committed`` aborted transactions are left out.

    Args:
        options: from ``KafkaSourceOptions.parse(url)``.
        clients: makes the clients; for tests.
    """

    options: KafkaSourceOptions
    clients: Clients = field(default=Clients(), repr=False)

    @property
    def name(self) -> str:
        return self.options.name

    @property
    def format(self) -> str:
        return self.options.format

    def check(self) -> None:
        cluster = Cluster(self.options, self.clients)
        self._topic(cluster)
        if self.options.ingest_time == "create":
            return
        try:
            stamped = cluster.stamped_by_broker(ANSWER_SECONDS)
        except NotNowError as error:
            raise self._unreachable(error) from None
        if stamped is None:
            LOG.warning(
                "%s: not allowed to see the topic's configuration; whether its timestamps are the broker's shows in the records",
                self.name,
            )
        elif not stamped:
            raise ConfigError(
                f"{self.name}: the topic has message.timestamp.type=CreateTime; {CREATE_TIME_FIX}"
            )

    def start(self, readers: int, resume: Mapping[str, int] | None = None) -> list[str]:
        if readers < 1:
            raise ConfigError(f"{self.name}: {readers} readers can't read it; use 1 or more")
        cluster = Cluster(self.options, self.clients)
        topic_id, partitions = self._topic(cluster)
        first = self._resumed(resume or {}, partitions)
        new = [p for p in partitions if p not in first]
        millis = self.options.start_millis
        if millis is not None:
            found = self._offsets(cluster, new, OffsetSpec.for_timestamp(millis))
            first |= {p: offset for p, offset in found.items() if offset >= 0}
            new = [p for p in new if p not in first]
        earliest = self.options.start == "earliest"
        first |= self._offsets(cluster, new, OffsetSpec.earliest() if earliest else OffsetSpec.latest())
        positions = []
        for reader in range(readers):
            own = {p: first[p] for p in partitions if p % readers == reader}
            positions.append(KafkaPosition(reader, readers, topic_id, own).text())
        return positions

    def open(self, position: str) -> "KafkaReader":
        return KafkaReader(self.options, KafkaPosition.parse(position), clients=self.clients)

    def acknowledge(self, receipts: Sequence[str]) -> None:
        """Commits the offsets to the consumer group, for monitoring only: the stream never reads them.

        Does not wait for the broker; a commit that fails is logged, and the next one makes up for it.
        """
        offsets: dict[int, int] = {}
        for receipt in filter(None, receipts):
            for number, offset in orjson.loads(receipt).items():
                offsets[int(number)] = max(offset, offsets.get(int(number), 0))
        if offsets:
            _committer(self.options, self.clients).commit(offsets)

    def _topic(self, cluster: Cluster) -> tuple[str, tuple[int, ...]]:
        try:
            found = cluster.topic(ANSWER_SECONDS)
        except LookupError:
            raise no_topic(self.name) from None
        except NotNowError as error:
            if refused := cluster.refused():
                raise not_let_in(refused, self.name) from None
            raise self._unreachable(error) from None
        return found.id, found.partitions

    def _unreachable(self, error: NotNowError) -> InputError:
        return InputError(
            f"{self.name} can't be reached: {error}; check the brokers' names and ports, that they run, and security.protocol"
        )

    def _offsets(self, cluster: Cluster, partitions: Sequence[int], spec: Any) -> dict[int, int]:
        found = cluster.offsets(partitions, spec, ANSWER_SECONDS)
        if lacking := [p for p in partitions if p not in found]:
            raise InputError(
                f"{self.name}: no answer about the offsets of partitions {lacking}; do they have a leader?"
            )
        return found

    def _resumed(self, resume: Mapping[str, int], partitions: Sequence[int]) -> dict[int, int]:
        """Returns where partitions go on; other topics in ``resume`` are not this source's."""
        found = {}
        for origin, offset in resume.items():
            topic, _, number = origin.rpartition("/")
            if topic == self.options.topic and number.isdigit():
                found[int(number)] = offset
        if gone := sorted(set(found) - set(partitions)):
            raise InputError(
                f"{self.name}: partitions {gone} were read before and are gone, so this is another topic of the same name; "
                "write its events to a new output"
            )
        return found


class _Committer:
    """Commits offsets to a consumer group, each partition only onwards."""

    def __init__(self, options: KafkaSourceOptions, clients: Clients) -> None:
        self._options = options
        self._consumer = clients.consumer({**options.consumer_settings(), "on_commit": self._done})
        self._highest: dict[int, int] = {}
        self._lock = threading.Lock()

    def commit(self, offsets: Mapping[int, int]) -> None:
        with self._lock:
            new = {p: o for p, o in offsets.items() if o > self._highest.get(p, -1)}
            self._highest |= new
            self._consumer.poll(0)
            if not new:
                return
            try:
                self._consumer.commit(
                    offsets=[TopicPartition(self._options.topic, p, o) for p, o in sorted(new.items())],
                    asynchronous=True,
                )
            except KafkaException as error:
                self._done(error.args[0], [])

    def _done(self, error: KafkaError | None, partitions: Sequence[TopicPartition]) -> None:
        error = error or next((p.error for p in partitions if p.error), None)
        if error:
            LOG.warning(
                "%s: offsets were not committed to group %s (for monitoring only): %s",
                self._options.name,
                self._options.consumer_group,
                error.str(),
            )


@functools.lru_cache(maxsize=8)
def _committer(options: KafkaSourceOptions, clients: Clients) -> _Committer:
    """One a process: making a client costs a connection and threads."""
    return _Committer(options, clients)
