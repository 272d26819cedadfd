import logging
import pickle
from types import SimpleNamespace

import grpc
import orjson
import pyarrow as pa
import pytest

from headrace.connectors import write_pubsub
from headrace.connectors.pubsub_options import PubsubSinkOptions
from headrace.connectors.write_kafka import DeliveryError
from headrace.connectors.write_pubsub import PubsubSink, PubsubWriter
from headrace.schemas.errors import ConfigError, InputError
from tests.connectors.fake_pubsub import FakeError, FakeFuture, FakePubsub

Code = grpc.StatusCode
URL = "pubsub://project/topics/out"


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def writer(query: str = "") -> tuple[PubsubWriter, FakePubsub, Clock]:
    service, clock = FakePubsub(), Clock()
    options = PubsubSinkOptions.parse(URL + query)
    made = PubsubWriter(options, service, clock=clock, sleep=clock.sleep)  # type: ignore[arg-type]
    return made, service, clock


def rows(n: int, user: str = "u") -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "event_id": pa.array([f"id-{i}" for i in range(n)]),
            "user_id": pa.array([f"{user}{i % 2}" for i in range(n)]).dictionary_encode(),
            "quantity": pa.array([None if i % 2 else i for i in range(n)], pa.int64()),
        }
    )


def test_rows_become_messages() -> None:
    made, service, _ = writer()
    made.write(rows(2))
    made.flush(1)
    [(topic, messages)] = service.published
    assert topic == "projects/project/topics/out"
    assert [m.data for m in messages] == [
        b'{"event_id":"id-0","quantity":0,"user_id":"u0"}',
        b'{"event_id":"id-1","user_id":"u1"}',
    ]
    assert [dict(m.attributes) for m in messages] == [{"event_id": "id-0"}, {"event_id": "id-1"}]
    assert [m.ordering_key for m in messages] == ["", ""]


def test_rows_without_an_id_have_no_attribute() -> None:
    made, service, _ = writer()
    made.write(pa.RecordBatch.from_pydict({"n": [1]}))
    made.write(pa.RecordBatch.from_pydict({"event_id": pa.array([None], pa.string())}))
    made.write(rows(0))
    assert [[(m.data, dict(m.attributes)) for m in sent] for _, sent in service.published] == [
        [(b'{"n":1}', {})],
        [(b"{}", {})],
    ]


def test_requests_are_bounded_by_number_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    made, service, _ = writer()
    made.write(rows(2300))
    assert [len(sent) for _, sent in service.published] == [1000, 1000, 300]
    monkeypatch.setattr(write_pubsub, "_MOST_BYTES", 450)
    made.write(rows(7, user="x" * 50))
    assert [len(sent) for _, sent in service.published[3:]] == [2, 2, 2, 1]
    made.flush(1)
    documents = [orjson.loads(m.data)["event_id"] for _, sent in service.published[:3] for m in sent]
    assert documents == [f"id-{i}" for i in range(2300)]


def test_ordered_messages_go_one_request_after_the_other() -> None:
    made, service, _ = writer("?ordering-key=user_id")
    made.write(rows(3))
    assert [m.ordering_key for m in service.published[0][1]] == ["u0", "u1", "u0"]
    service.futures[0] = FakeFuture()
    made._sent[0] = made._sent[0]._replace(future=service.futures[0])
    with pytest.raises(DeliveryError, match="3 messages are not known to be delivered: no answer in time"):
        made.write(rows(1))
    assert len(service.published) == 1
    with pytest.raises(ConfigError, match="the rows have no column 'user_id' for the ordering key; name"):
        made.write(pa.RecordBatch.from_pydict({"n": [1]}))


def test_what_passes_is_sent_again() -> None:
    made, service, clock = writer()
    service.fail("publish", FakeError(Code.UNAVAILABLE), FakeError(Code.INTERNAL))
    made.write(rows(3))
    made.flush(10)
    assert [len(sent) for _, sent in service.published] == [3, 3, 3]
    assert clock.slept == [0.1, 0.2]
    service.fail("publish", FakeError(Code.UNAVAILABLE))
    made.write(rows(2))
    made.flush(10)
    assert clock.slept == [0.1, 0.2, 0.1]


def test_what_does_not_pass_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    made, service, clock = writer()
    service.fail("publish", *(FakeError(Code.UNAVAILABLE) for _ in range(9)))
    made.write(rows(3))
    with pytest.raises(
        DeliveryError,
        match="out: 3 messages are not known to be delivered: unavailable: why; they have to be written again",
    ):
        made.flush(60)
    assert clock.slept == [0.1, 0.2, 0.5, 1.0]
    assert "3 messages are not delivered: unavailable: why" in caplog.text

    made, service, clock = writer()
    service.fail("publish", FakeError(Code.UNAVAILABLE), FakeError(Code.UNAVAILABLE))
    made.write(rows(3))
    with pytest.raises(DeliveryError, match="unavailable"):
        made.flush(0.25)
    assert clock.slept == [0.1]

    made, service, _ = writer()
    service.fail("publish", FakeError(Code.PERMISSION_DENIED))
    made.write(rows(1500))
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(DeliveryError, match="1500 messages are not known to be delivered: permission_den"),
    ):
        made.flush(60)

    made, service, _ = writer()
    made.write(rows(3))
    made._sent[0].future.answer = SimpleNamespace(message_ids=["1"])
    with pytest.raises(DeliveryError, match="3 messages are not known to be delivered: 1 of them were taken"):
        made.flush(60)


def test_close_drops_what_was_not_flushed() -> None:
    made, service, _ = writer()
    made.write(rows(1))
    made.close()
    assert service.futures[0].cancelled
    made.flush(0)


def test_check_and_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakePubsub()
    monkeypatch.setattr(write_pubsub, "connected", lambda emulator, endpoint: service)
    sink = PubsubSink(PubsubSinkOptions.parse(URL + "?endpoint=europe-west1-pubsub.googleapis.com:443"))
    sink.check()
    assert pickle.loads(pickle.dumps(sink)) == sink
    assert sink.name == URL
    assert isinstance(sink.open(), PubsubWriter)
    service.fail("topic", FakeError(Code.NOT_FOUND))
    with pytest.raises(InputError, match="Pub/Sub has no topic project/out; check the project and the name"):
        sink.check()
    service.fail("topic", FakeError(Code.UNAVAILABLE))
    with pytest.raises(InputError, match="pubsub://project/topics/out can't be reached: why; check"):
        sink.check()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pubsub://project/out", "is no topic's address; write pubsub://PROJECT/topics/TOPIC"),
        ("pubsub://project/topics/x", "Pub/Sub topic 'x' is no valid name"),
        (URL + "?ordering=a", "Pub/Sub option 'ordering' is not known; did you mean 'ordering_key'?"),
        (URL + "?ordering_key=", "ordering_key=: a value is needed"),
    ],
)
def test_wrong_addresses(url: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        PubsubSinkOptions.parse(url)
    assert message in str(error.value)
