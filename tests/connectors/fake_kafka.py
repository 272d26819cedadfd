"""A broker in memory behind the clients' interface: one topic, its log by partition, and trouble on demand."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from headrace.connectors.kafka_cluster import Clients

TOPIC = "events"
APPEND, CREATE, NONE = 2, 1, 0


@dataclass
class Broker:
    """Offsets are places in the lists; None is a gap (compacted, or a control record)."""

    logs: dict[int, list[Message | None]] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)
    topic_id: str = "id-1"
    away: bool = False
    known: bool = True
    append_time: bool | None = True
    denied: int | None = None
    events: list[Message] = field(default_factory=list)
    """Errors that the next ``consume`` returns first."""
    callbacks: list[KafkaError] = field(default_factory=list)
    """Errors that the next ``consume`` gives to ``error_cb``."""
    committed: dict[int, int] = field(default_factory=dict)
    commit_error: KafkaError | None = None
    paused: list[tuple[str, list[int]]] = field(default_factory=list)
    now: float = 1000.0
    accept: Callable[[bytes], KafkaError | None] = lambda value: None
    queue: int = 1 << 30
    produced: list[tuple[str, bytes, Any]] = field(default_factory=list)

    def add(self, partition: int, *values: bytes | None, time: int = 0, kind: int = APPEND) -> None:
        log = self.logs.setdefault(partition, [])
        for value in values:
            stamp = (kind, -1 if kind == NONE else time)
            log.append(Message(TOPIC, partition, len(log), None, value, timestamp=stamp))

    def gap(self, partition: int, records: int = 1) -> None:
        self.logs.setdefault(partition, []).extend([None] * records)

    def clock(self) -> float:
        return self.now


@dataclass(frozen=True)
class FakeClients(Clients):
    broker: Broker = field(default_factory=Broker, hash=False, compare=False)

    def consumer(self, settings: Mapping[str, Any]) -> Any:
        return FakeConsumer(self.broker, settings)

    def admin(self, settings: Mapping[str, Any]) -> Any:
        return FakeAdmin(self.broker, settings)

    def producer(self, settings: Mapping[str, Any]) -> Any:
        return FakeProducer(self.broker, settings)


class FakeConsumer:
    def __init__(self, broker: Broker, settings: Mapping[str, Any]) -> None:
        self.broker, self.settings = broker, settings
        self.at: dict[int, int] = {}
        self.ended: dict[int, int] = {}
        self.stopped: set[int] = set()
        self.closed = False

    def incremental_assign(self, partitions: Sequence[TopicPartition]) -> None:
        self.at |= {p.partition: p.offset for p in partitions}
        for p in partitions:
            self.ended.pop(p.partition, None)

    def incremental_unassign(self, partitions: Sequence[TopicPartition]) -> None:
        for p in partitions:
            del self.at[p.partition]

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self.stopped |= {p.partition for p in partitions}
        self.broker.paused.append(("pause", [p.partition for p in partitions]))

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self.stopped -= {p.partition for p in partitions}
        self.broker.paused.append(("resume", [p.partition for p in partitions]))

    def consume(self, num_messages: int, timeout: float) -> list[Message]:
        broker = self.broker
        for error in broker.callbacks:
            self.settings["error_cb"](error)
        broker.callbacks.clear()
        found, broker.events = broker.events, []
        if not broker.away:
            for p in sorted(self.at):
                self._read(p, found, num_messages)
        if len(found) < num_messages:
            broker.now += timeout
        return found

    def _read(self, p: int, found: list[Message], most: int) -> None:
        log = self.broker.logs[p]
        if p in self.stopped:
            return
        if not self.broker.first.get(p, 0) <= self.at[p] <= len(log):
            if self.at[p] >= 0:
                found.append(event(p, self.at[p], KafkaError._AUTO_OFFSET_RESET))
            self.at[p] = -1
        while 0 <= self.at[p] < len(log) and len(found) < most:
            message = log[self.at[p]]
            self.at[p] += 1
            if message is not None:
                found.append(message)
        if self.at[p] == len(log) and self.ended.get(p) != len(log) and len(found) < most:
            self.ended[p] = len(log)
            found.append(event(p, len(log), KafkaError._PARTITION_EOF))

    def get_watermark_offsets(self, partition: TopicPartition, cached: bool) -> tuple[int, int]:
        assert cached
        return (-1001, -1001) if self.broker.away else (0, len(self.broker.logs[partition.partition]))

    def poll(self, timeout: float) -> None:
        pass

    def commit(self, offsets: Sequence[TopicPartition], asynchronous: bool) -> None:
        assert asynchronous
        if self.broker.commit_error:
            raise KafkaException(self.broker.commit_error)
        for p in offsets:
            self.broker.committed[p.partition] = p.offset
        self.settings["on_commit"](None, offsets)

    def close(self) -> None:
        self.closed = True


class FakeAdmin:
    def __init__(self, broker: Broker, settings: Mapping[str, Any]) -> None:
        self.broker, self.settings = broker, settings

    def poll(self, timeout: float) -> None:
        for error in self.broker.callbacks:
            self.settings["error_cb"](error)

    def describe_topics(self, topics: Any, request_timeout: float) -> dict[str, "Future[Any]"]:
        found = SimpleNamespace(
            topic_id=self.broker.topic_id, partitions=[SimpleNamespace(id=p) for p in self.broker.logs]
        )
        return {TOPIC: self._future(found)}

    def list_offsets(
        self, wanted: Mapping[TopicPartition, Any], isolation_level: Any, request_timeout: float
    ) -> dict[TopicPartition, "Future[Any]"]:
        return {
            p: self._future(SimpleNamespace(offset=self._offset(p.partition, s))) for p, s in wanted.items()
        }

    def describe_configs(self, resources: Sequence[Any], request_timeout: float) -> dict[Any, "Future[Any]"]:
        stamp = self.broker.append_time
        if stamp is None:
            return {
                resources[0]: self._future(None, KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "denied"))
            }
        entry = SimpleNamespace(value="LogAppendTime" if stamp else "CreateTime")
        return {resources[0]: self._future({"message.timestamp.type": entry})}

    def _offset(self, partition: int, spec: Any) -> int:
        log = self.broker.logs[partition]
        if spec._value == -2:
            return self.broker.first.get(partition, 0)
        if spec._value == -1:
            return len(log)
        later = [m.offset() for m in log if m is not None and m.timestamp()[1] >= spec._value]
        return later[0] if later and later[0] is not None else -1

    def _future(self, value: Any, error: KafkaError | None = None) -> "Future[Any]":
        future: Future[Any] = Future()
        if self.broker.denied is not None:
            error = KafkaError(self.broker.denied, "denied by the broker")
        elif not self.broker.known:
            error = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
        elif self.broker.away:
            error = KafkaError(KafkaError._TIMED_OUT)
        if error:
            future.set_exception(KafkaException(error))
        else:
            future.set_result(value)
        return future


class FakeProducer:
    """Delivers when it is polled or flushed; ``broker.queue`` records fit into it."""

    def __init__(self, broker: Broker, settings: Mapping[str, Any]) -> None:
        self.broker, self.settings = broker, settings
        self.waiting: list[tuple[str, bytes, Any]] = []

    def produce(self, topic: str, value: bytes, key: str | None) -> None:
        if len(value) > 1 << 20:
            raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, "too large"))
        if len(self.waiting) >= self.broker.queue:
            raise BufferError
        self.waiting.append((topic, value, key))

    def poll(self, timeout: float) -> None:
        for record in self.waiting if not self.broker.away else ():
            if error := self.broker.accept(record[1]):
                self.settings["on_delivery"](error, None)
            else:
                self.broker.produced.append(record)
        if not self.broker.away:
            self.waiting = []

    def flush(self, timeout: float) -> int:
        self.poll(timeout)
        return len(self.waiting)

    def purge(self) -> None:
        self.waiting = []


def event(partition: int, offset: int, code: int) -> Message:
    return Message(TOPIC, partition, offset, error=KafkaError(code))
