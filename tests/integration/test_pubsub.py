"""The Pub/Sub source and sink against an emulator: leases that run out, leases that are kept, copies, and what is not there."""

import time
import uuid
from collections.abc import Iterator

import pyarrow as pa
import pytest
from google.pubsub_v1 import types

from headrace.connectors.pubsub_connection import PubsubConnection, PubsubMessage, connected
from headrace.connectors.read_pubsub import PubsubSource, PubsubSourceOptions
from headrace.connectors.stream_source import Poll, Reader
from headrace.connectors.stream_sources import open_source
from headrace.connectors.write_pubsub import PubsubSink, PubsubSinkOptions
from headrace.runners.servers.pubsub import PubSubServer
from headrace.schemas.errors import InputError
from tests.integration.servers import pubsub  # noqa: F401

pytestmark = pytest.mark.integration


class Queue:
    """A topic with one subscription, whose deadline is the shortest that there is."""

    def __init__(self, server: PubSubServer) -> None:
        self.name = f"q-{uuid.uuid4().hex[:8]}"
        self.connection: PubsubConnection = connected(str(server.address), "")
        self.topic = f"projects/project/topics/{self.name}"
        topic, subscription = types.Topic.pb(), types.Subscription.pb()
        path = f"projects/project/subscriptions/{self.name}"
        self.connection._method("Publisher/CreateTopic", topic, topic)(topic(name=self.topic))
        self.connection._method("Subscriber/CreateSubscription", subscription, subscription)(
            subscription(name=path, topic=self.topic, ack_deadline_seconds=10)
        )

    def publish(self, *data: bytes) -> None:
        self.connection.publish(self.topic, [PubsubMessage(data=d) for d in data]).result()

    def source(self, query: str = "") -> PubsubSource:
        return PubsubSource(PubsubSourceOptions.parse(f"pubsub://project/{self.name}{query}"))


@pytest.fixture
def queue(pubsub: PubSubServer, monkeypatch: pytest.MonkeyPatch) -> Queue:  # noqa: F811
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", str(pubsub.address))
    return Queue(pubsub)


def polls(reader: Reader, rows: int, within: float) -> Iterator[Poll]:
    """Polls until so many rows came, or the time is up."""
    end = time.monotonic() + within
    while rows > 0 and time.monotonic() < end:
        poll = reader.poll(1000, min(1.0, within))
        rows -= poll.batch.num_rows
        yield poll


def data(found: list[Poll]) -> list[bytes]:
    return [raw for poll in found for raw in poll.batch.column("raw").to_pylist()]


def test_each_message_once_and_what_a_lost_reader_had_comes_again(queue: Queue, pubsub: PubSubServer) -> None:  # noqa: F811
    lost_queue = Queue(pubsub)
    lost_source = lost_queue.source("?pulls=1")
    lost_queue.publish(b"lost")
    lost = lost_source.open(lost_source.start(1)[0])
    [first] = [poll for poll in polls(lost, 1, 10) if poll.batch.num_rows]
    lost.close()
    second = lost_source.open(first.position)

    source = queue.source()
    source.check()
    expected = [b'{"n":%d}' % i for i in range(5000)]
    for i in range(0, 5000, 1000):
        queue.publish(*expected[i : i + 1000])
    reader = source.open(source.start(1)[0])
    found = list(polls(reader, 5000, 20))
    assert sorted(data(found)) == sorted(expected)
    positions = [p for poll in found for p in poll.batch.column("origin_position").to_pylist()]
    assert len(set(positions)) == 5000
    now = time.time()
    times = [t.timestamp() for poll in found for t in poll.batch.column("ingest_time").to_pylist()]
    assert now - 60 < min(times) <= max(times) <= now + 5
    open_source(source.name).acknowledge([poll.receipt for poll in found])
    source.acknowledge([found[0].receipt])  # may be repeated
    reader.close()

    again = source.open(found[-1].position)
    end = time.monotonic() + 12
    came: list[Poll] = []
    while time.monotonic() < end or (not data(came) and time.monotonic() < end + 25):
        assert again.poll(10, 0.2).batch.num_rows == 0
        came.append(second.poll(10, 0.2))
    assert again.poll(10, 0).behind == {f"project/{queue.name}": 0}
    [copy] = [poll for poll in came if poll.batch.num_rows]
    assert copy.batch.equals(first.batch)
    lost_source.acknowledge([copy.receipt])
    again.close()
    second.close()


def test_leases_are_kept_and_copies_are_known(queue: Queue) -> None:
    source = queue.source("?lease_seconds=10&max_lease_seconds=16")
    queue.publish(b"a", b"b")
    reader = source.open(source.start(1)[0])
    began = time.monotonic()
    first = list(polls(reader, 2, 10))
    assert sorted(data(first)) == [b"a", b"b"]
    # Another reader of the subscription gets nothing while the lease is kept beyond the deadline of 10 s …
    other = source.open(source.start(2)[1])
    assert data(list(polls(other, 1, 13 - (time.monotonic() - began)))) == []
    other.close()
    # … and once it is over, this reader knows the copies: they are no rows, but in a receipt.
    receipts: list[str] = []
    while len(receipts) < 1 and time.monotonic() < began + 35:
        poll = reader.poll(10, 1.0)
        assert poll.batch.num_rows == 0
        receipts += [poll.receipt] if poll.receipt else []
    assert 14 < time.monotonic() - began < 35
    source.acknowledge(receipts)
    reader.close()


def test_what_is_not_there(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = open_source("pubsub://project/missing")
    message = "Pub/Sub has no subscription project/missing; check the project and the name, or create it"
    with pytest.raises(InputError, match=message):
        missing.check()
    reader = missing.open(missing.start(1)[0])
    with pytest.raises(InputError, match=message):
        reader.poll(10, 5)
    reader.close()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    away = open_source(f"pubsub://project/{queue.name}")
    with pytest.raises(InputError, match=r"can't be reached at the emulator at 127\.0\.0\.1:1"):
        away.check()
    reader = away.open(away.start(1)[0])
    assert reader.poll(10, 0.2).batch.num_rows == 0
    reader.close()


def test_the_sink_is_read_back(queue: Queue) -> None:
    sink = PubsubSink(PubsubSinkOptions.parse(f"pubsub://project/topics/{queue.name}"))
    sink.check()
    rows = pa.RecordBatch.from_pydict({"event_id": [f"id-{i}" for i in range(2500)], "n": list(range(2500))})
    writer = sink.open()
    writer.write(rows)
    writer.flush(20)
    pulled = queue.connection.pull(f"projects/project/subscriptions/{queue.name}", 1, 10).result()
    message = pulled.received_messages[0].message
    n = int(message.attributes["event_id"].removeprefix("id-"))
    assert message.data == b'{"event_id":"id-%d","n":%d}' % (n, n)
    source = queue.source()
    reader = source.open(source.start(1)[0])
    found = list(polls(reader, 2499, 20))
    expected = [b'{"event_id":"id-%d","n":%d}' % (i, i) for i in range(2500)]
    assert sorted([*data(found), message.data]) == sorted(expected)
    source.acknowledge([poll.receipt for poll in found])
    reader.close()
    nowhere = PubsubSink(PubsubSinkOptions.parse("pubsub://project/topics/nowhere"))
    with pytest.raises(InputError, match="Pub/Sub has no topic project/nowhere"):
        nowhere.check()
