import json
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import grpc
import numpy as np
import pytest
from google.auth.exceptions import DefaultCredentialsError
from google.pubsub_v1 import types

from headrace.connectors import pubsub_connection, pubsub_leases, pubsub_reader, read_pubsub
from headrace.connectors.pubsub_connection import (
    PubsubConnection,
    PubsubMessage,
    PullResponse,
    connected,
    in_requests,
)
from headrace.connectors.pubsub_leases import LeaseKeeper, Leases
from headrace.connectors.pubsub_messages import identity_of, positions_of
from headrace.connectors.pubsub_options import PubsubSourceOptions
from headrace.connectors.pubsub_reader import PubsubReader, unpacked_receipt
from headrace.connectors.read_pubsub import PubsubSource
from headrace.schemas.columns import RAW_SCHEMA
from headrace.schemas.errors import ConfigError, InputError
from tests.connectors.fake_pubsub import FakeError, FakePubsub

Code = grpc.StatusCode
URL = "pubsub://project/orders"
MakeReader = Callable[..., PubsubReader]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> FakePubsub:
    fake = FakePubsub()
    monkeypatch.setattr(read_pubsub, "connected", lambda emulator, endpoint: fake)
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(read_pubsub, "_BETWEEN_SECONDS", 0.0)
    return fake


@pytest.fixture
def make(service: FakePubsub) -> Iterator[MakeReader]:
    readers = []

    def open_one(query: str = "") -> PubsubReader:
        found = PubsubSource(PubsubSourceOptions.parse(URL + query))
        reader = found.open(found.start(1)[0])
        readers.append(reader)
        return reader

    yield open_one
    for reader in readers:
        reader.close()


def source() -> PubsubSource:
    return PubsubSource(PubsubSourceOptions.parse(URL))


def ids(n: int, start: int = 100) -> list[tuple[str, bytes]]:
    return [(str(i), b'{"n":%d}' % i) for i in range(start, start + n)]


def test_messages_become_rows(service: FakePubsub, make: MakeReader) -> None:
    service.add(("7", b'{"a":1}'), ("x-1", b""), ("8", b"y" * 100), seconds=1_767_607_200)
    poll = make("?max_record_bytes=50").poll(100, 0.0)
    assert poll.batch.schema.equals(RAW_SCHEMA)
    hashed = positions_of(["x-1"])[0].as_py()
    time = datetime(2026, 1, 5, 10, 0, 0, 5, UTC)
    assert poll.batch.to_pylist() == [
        {"raw": raw, "origin": "project/orders", "origin_position": at, "ingest_time": time, "fault": fault}
        for raw, at, fault in (
            (b'{"a":1}', 7, None),
            (b"", hashed, None),
            (b"y" * 50, 8, "line_too_long"),
        )
    ]
    assert [(r.origin, r.first, r.next, r.records) for r in poll.reads] == [
        ("project/orders", 7, hashed + 1, 3)
    ]
    assert unpacked_receipt(poll.receipt)[1] == [(1, ["ack-1", "ack-2", "ack-3"])]


@pytest.mark.parametrize(
    ("message_id", "position"),
    [
        ("0", 0),
        ("12", 12),
        (str((1 << 63) - 1), (1 << 63) - 1),
        (str(1 << 63), None),
        ("9" * 30, None),
        ("012", None),
        ("-1", None),
        ("+1", None),
        ("1.0", None),
        (" 1", None),
        ("١", None),
        ("", None),
        ("projects/x", None),
    ],
)
def test_positions_of_message_ids(message_id: str, position: int | None) -> None:
    found = positions_of([message_id])[0].as_py()
    assert positions_of(["5", message_id]).to_pylist() == [5, found]
    assert 0 <= found < 1 << 63
    if position is None:
        assert found > 1 << 32
        assert identity_of(message_id) == message_id
    else:
        assert found == position == identity_of(message_id)


def test_a_poll_takes_no_more_than_asked_and_keeps_the_rest(service: FakePubsub, make: MakeReader) -> None:
    service.add(*ids(2500))
    reader = make()
    sizes, found = [], []
    for most in (700, 1000, 10, 5000):
        poll = reader.poll(most, 0.2)
        sizes.append(poll.batch.num_rows)
        found += poll.batch.column("origin_position").to_pylist()
    assert sizes == [700, 1000, 10, 790]
    assert found == list(range(100, 2600))


def test_open_pulls_are_kept_and_few(service: FakePubsub, make: MakeReader) -> None:
    reader = make("?pulls=3")
    for _ in range(5):
        assert reader.poll(10_000, 0.0).batch.num_rows == 0
    assert len(service.pulls) == 3
    service.add(*ids(5))
    poll = reader.poll(10_000, 0.0)
    assert poll.batch.num_rows == 5
    assert len(service.pulls) == 4
    small = FakePubsub()
    one = PubsubReader(reader._options, source().start(1)[0], small)  # type: ignore[arg-type]
    one.poll(50, 0.0)
    assert len(small.pulls) == 1
    one.close()
    assert small.pulls[0].cancelled


def test_a_known_message_is_acknowledged_but_not_returned(service: FakePubsub, make: MakeReader) -> None:
    reader = make()
    service.add(("1", b"a"), ("2", b"b"))
    first = reader.poll(10, 0.2)
    service.add(("1", b"a"), ("3", b"c"), ("3", b"c"))
    second = reader.poll(10, 0.2)
    assert first.batch.column("raw").to_pylist() == [b"a", b"b"]
    assert second.batch.column("raw").to_pylist() == [b"c"]
    assert second.reads[0].records == 1
    service.add(("2", b"b"))
    third = reader.poll(10, 0.2)
    assert third.batch.num_rows == 0 and third.reads == ()
    assert len({first.position, second.position, third.position}) == 3
    assert reader.poll(10, 0.0).position == third.position
    source().acknowledge([first.receipt, second.receipt, "", third.receipt])
    assert [ack_id for ids in service.acknowledged for ack_id in ids] == [f"ack-{i}" for i in range(1, 7)]


def test_a_reader_opened_anew_returns_everything(service: FakePubsub, make: MakeReader) -> None:
    old = make()
    service.add(("1", b"a"))
    poll = old.poll(10, 0.2)
    old.close()
    service.add(("1", b"a"))
    again = source().open(poll.position)
    try:
        assert again.poll(10, 0.2).batch.column("raw").to_pylist() == [b"a"]
        assert json.loads(again.poll(10, 0.0).position)["polls"] == 2
    finally:
        again.close()


def test_the_memory_is_bounded(
    service: FakePubsub, make: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub_reader, "_MOST_REMEMBERED", 3)
    reader = make()
    service.add(*ids(5))
    reader.poll(10, 0.2)
    assert list(reader._seen) == [102, 103, 104]


def test_large_messages_end_a_poll(
    service: FakePubsub, make: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub_reader, "_MOST_BYTES", 2000)
    service.add(*((str(i), b"x" * 10) for i in range(1000)))
    service.add(*((str(i), b"x" * 10) for i in range(1000, 1500)))
    reader = make()
    assert reader.poll(16_000, 1.0).batch.num_rows == 1000
    assert reader.poll(16_000, 1.0).batch.num_rows == 500


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (Code.NOT_FOUND, "Pub/Sub has no subscription project/orders; check the project and the name"),
        (Code.PERMISSION_DENIED, "denies access to subscription project/orders; grant roles/pubsub.subscr"),
        (Code.UNAUTHENTICATED, "denies access to subscription project/orders"),
        (Code.FAILED_PRECONDITION, "refuses subscription project/orders: failed_precondition: why"),
    ],
)
def test_what_is_refused_for_good(
    service: FakePubsub, make: MakeReader, code: grpc.StatusCode, message: str
) -> None:
    reader = make()
    service.fail("pull", FakeError(code))
    with pytest.raises(InputError, match=message):
        reader.poll(10, 0.2)
    service.fail("subscription", FakeError(code))
    with pytest.raises(InputError, match=message):
        source().check()


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.INTERNAL])
def test_what_passes_is_waited_for(service: FakePubsub, make: MakeReader, code: grpc.StatusCode) -> None:
    reader = make("?pulls=1")
    service.fail("pull", FakeError(code))
    poll = reader.poll(10, 0.0)
    assert (poll.batch.num_rows, poll.receipt) == (0, "")
    reader._paused_until = 0.0
    service.add(("1", b"a"))
    assert reader.poll(10, 0.2).batch.num_rows == 1
    assert len(service.pulls) >= 2


def test_pauses_grow_while_the_service_is_away(service: FakePubsub) -> None:
    now = [0.0]
    reader = PubsubReader(
        PubsubSourceOptions.parse(URL + "?pulls=1"),
        source().start(1)[0],
        service,  # type: ignore[arg-type]
        clock=lambda: now[0],
    )
    pauses = []
    for _ in range(8):
        service.fail("pull", FakeError(Code.UNAVAILABLE))
        reader._pull(10)
        reader._await(0)
        pauses.append(round(reader._paused_until - now[0], 3))
        now[0] = reader._paused_until
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert reader._behind() == 0
    reader.close()


def test_close_gives_back_what_no_poll_returned(service: FakePubsub, make: MakeReader) -> None:
    service.add(*ids(5))
    reader = make("?pulls=1")
    reader._pull(5)
    reader.poll(3, 1.0)
    reader.close()
    assert service.modified == [(["ack-4", "ack-5"], 0)]
    reader.close()
    assert len(service.modified) == 1


def test_behind_tells_what_is_known(service: FakePubsub) -> None:
    now = [0.0]
    options = PubsubSourceOptions.parse(URL + "?pulls=1")
    reader = PubsubReader(options, source().start(1)[0], service, clock=lambda: now[0])  # type: ignore[arg-type]
    assert reader.poll(10, 0.0).behind == {"project/orders": 1}
    now[0] = 0.5
    assert reader.poll(10, 0.0).behind == {"project/orders": 0}
    service.add(*ids(5))
    reader._await(0)
    assert reader._behind() == 5
    reader.close()


def test_acknowledge_tries_again_and_never_raises(
    service: FakePubsub, make: MakeReader, caplog: pytest.LogCaptureFixture
) -> None:
    reader = make()
    service.add(*ids(3))
    receipt = reader.poll(10, 0.2).receipt
    service.fail("acknowledge", FakeError(Code.UNAVAILABLE), FakeError(Code.UNAVAILABLE))
    source().acknowledge([receipt])
    assert service.acknowledged == [["ack-1", "ack-2", "ack-3"]]
    service.fail("acknowledge", FakeError(Code.INVALID_ARGUMENT))
    with caplog.at_level(logging.WARNING):
        source().acknowledge([receipt])
    assert "pubsub://project/orders: 3 messages were not acknowledged and will be delivered again" in (
        caplog.text
    )
    assert "INVALID_ARGUMENT" in caplog.text


def test_acknowledging_ends_the_lease_in_this_process(service: FakePubsub, make: MakeReader) -> None:
    reader = make("?pulls=1")
    service.add(*ids(5))
    reader._pull(5)
    first, second = reader.poll(3, 1.0), reader.poll(3, 1.0)
    assert len(reader._leases._leases) == 1
    source().acknowledge([first.receipt])
    assert len(reader._leases._leases) == 1  # two of the pull are still out
    source().acknowledge([second.receipt])
    assert len(reader._leases._leases) == 0
    other = json.loads(first.receipt)
    source().acknowledge([json.dumps(["another process", other[1]])])
    assert len(service.acknowledged) == 3


def test_requests_are_cut_by_number_and_size() -> None:
    assert [len(part) for part in in_requests(["a"] * 2500)] == [1000, 1000, 500]
    assert [len(part) for part in in_requests(["a" * 1000] * 500)] == [398, 102]
    assert list(in_requests([])) == []


def test_leases_are_renewed_less_and_less_often_and_end(caplog: pytest.LogCaptureFixture) -> None:
    leases = Leases(60, 600)
    leases.add(1, ["a", "b"], 0.0, 10.0)
    renewals = []
    while (due := leases.next_due()) != 600.0:
        assert due is not None
        renewals += [(due, seconds) for _, seconds, _ in leases.due(due)]
    assert renewals[0] == (5.0, 60)
    assert len(renewals) == 7
    covered = 10.0
    for at, seconds in renewals:
        assert at < covered  # before it was over
        covered = at + seconds
    assert 600 <= covered <= 601
    assert caplog.text == ""
    leases.add(2, ["c"], 600.0, 10.0)
    with caplog.at_level(logging.WARNING):
        assert [pull for pull, _, _ in leases.due(605.0)] == [2]
    assert "2 messages were not acknowledged within 600 s and will be delivered again" in caplog.text
    assert len(leases) == 1


def test_leases_are_released_in_parts() -> None:
    leases = Leases(60, 600)
    leases.add(1, ["a", "b", "c"], 0.0, 20.0)
    leases.release(1, 2)
    leases.release(9, 1)
    assert leases.due(9.9) == []
    assert leases.due(10.0) == [(1, 60, ["a", "b", "c"])]
    leases.postpone(1, 10.0)
    leases.postpone(9, 10.0)
    assert leases.next_due() == 11.0
    leases.release(1, 1)
    assert leases.next_due() is None


def test_the_keeper_renews_in_the_background(caplog: pytest.LogCaptureFixture) -> None:
    service = FakePubsub()
    renewed = threading.Semaphore(0)

    class Noticing:
        def modify(self, *args: Any, **more: Any) -> None:
            try:
                service.modify(*args, **more)
            finally:
                renewed.release()

    service.fail("modify", FakeError(Code.UNAVAILABLE), FakeError(Code.INVALID_ARGUMENT))
    now = [100.0]
    keeper = LeaseKeeper(Noticing(), "s", Leases(60, 600), clock=lambda: now[0])
    with caplog.at_level(logging.WARNING):
        keeper.add(1, ["a"], 0.0)
        assert renewed.acquire(timeout=5)  # fails, and will be tried again
        now[0] = 102.0
        keeper.add(2, ["b"], 0.0)
        assert renewed.acquire(timeout=5) and renewed.acquire(timeout=5)
        now[0] = 140.0
        keeper.add(3, ["c"], 0.0)
        for _ in range(3):
            assert renewed.acquire(timeout=5)
    assert "the lease of 1 messages of s can't be renewed: INVALID_ARGUMENT" in caplog.text
    assert ["c"] in [ack_ids for ack_ids, _ in service.modified]
    keeper.close()
    keeper._thread.join(5)
    assert not keeper._thread.is_alive()


def test_check_and_pickle(service: FakePubsub) -> None:
    source().check()
    again = pickle.loads(pickle.dumps(source()))
    assert again == source()
    assert (again.name, again.format) == ("pubsub://project/orders", "json")
    service.fail("subscription", FakeError(Code.UNAVAILABLE, "refused"))
    with pytest.raises(InputError, match="can't be reached at Google Cloud: refused; check that it runs"):
        source().check()
    service.info.push_config.push_endpoint = "https://x"
    with pytest.raises(InputError, match="can't be pulled from: it is detached, or pushes"):
        source().check()
    with pytest.raises(ConfigError, match="0 readers can't read it"):
        source().start(0)
    assert len(set(source().start(3, {"project/orders": 5}))) == 3


@pytest.mark.parametrize("position", ["", "[]", "{}", '{"v":2}', '{"v":1,"pubsub":[0],"polls":1}'])
def test_position_of_something_else(service: FakePubsub, position: str) -> None:
    with pytest.raises(InputError, match="a position in a Pub/Sub subscription can't be read"):
        source().open(position)


def test_an_unknown_ack_deadline_is_taken_for_the_shortest(service: FakePubsub, make: MakeReader) -> None:
    service.fail("subscription", FakeError(Code.PERMISSION_DENIED))
    assert make()._deadline == 10
    service.info.ack_deadline_seconds = 45
    assert make()._deadline == 45


def test_the_emulator_of_the_environment_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", " 127.0.0.1:9 ")
    options = PubsubSourceOptions.parse(URL)
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST")
    assert options.emulator == "127.0.0.1:9"
    assert pickle.loads(pickle.dumps(options)).emulator == "127.0.0.1:9"
    first = connected("127.0.0.1:9", "")
    assert connected("127.0.0.1:9", "") is first
    assert connected("127.0.0.1:8", "") is not first
    first.close()
    pubsub_connection._connections.clear()


def test_missing_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: Any, **more: Any) -> None:
        raise DefaultCredentialsError("none")

    monkeypatch.setattr(pubsub_connection.grpc_helpers, "create_channel", none)
    with pytest.raises(InputError, match="no credentials for Google Cloud: run 'gcloud auth application-d"):
        PubsubConnection("", "")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pubsub://p", "is no subscription's address; write pubsub://PROJECT/SUBSCRIPTION"),
        ("pubsub://project/topics/t", "a topic can't be read itself, create a subscription to it"),
        ("pubsub://p!/sub", "Pub/Sub project 'p!' is no valid name"),
        ("pubsub://project/1x", "Pub/Sub subscription '1x' is no valid name"),
        (URL + "?pull=1", "Pub/Sub option 'pull' is not known; did you mean 'pulls'?"),
        (URL + "?pulls=0", "pulls=0: use a whole number from 1 to 64"),
        (URL + "?lease-seconds=5", "lease_seconds=5: use a whole number from 10 to 600"),
        (URL + "?lease_seconds=60&max_lease_seconds=30", "max_lease_seconds=30 is less than lease_seconds"),
        (URL + "?format=csv", "format=csv: use one of json, weblog"),
    ],
)
def test_wrong_addresses(url: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        PubsubSourceOptions.parse(url)
    assert message in str(error.value)


def test_names_of_a_session_do_not_live_on() -> None:
    keeper = LeaseKeeper(FakePubsub(), "s", Leases(60, 600))
    pubsub_leases.register("x", keeper)
    pubsub_leases.released("x", [(1, 1)])
    pubsub_leases.released("y", [(1, 1)])
    keeper.close()
    keeper._thread.join(5)
    del keeper
    assert "x" not in pubsub_leases._keepers


def test_rows_do_not_depend_on_how_they_were_pulled(service: FakePubsub, make: MakeReader) -> None:
    service.add(*ids(50))
    first = make()
    whole = first.poll(100, 0.2).batch
    first.close()
    service.add(*ids(50))
    reader = make("?pulls=1")
    parts = [reader.poll(7, 0.2).batch for _ in range(8)]
    assert sum(p.num_rows for p in parts) == 50
    found = np.concatenate([p.column("origin_position").to_numpy() for p in parts])
    assert found.tolist() == whole.column("origin_position").to_pylist()


def test_requests_on_the_wire() -> None:
    asked: dict[str, Any] = {}

    class Answers(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, call: Any) -> Any:
            method = call.method.removeprefix("/google.pubsub.v1.")

            def answer(request: bytes, context: Any) -> bytes:
                asked[method] = request, dict(call.invocation_metadata)["x-goog-request-params"]
                return bytes(answers.get(method, b""))

            return grpc.unary_unary_rpc_method_handler(answer)

    received = [{"ack_id": "a", "message": {"data": b"x", "message_id": "5"}}]
    answers = {
        "Subscriber/Pull": PullResponse(received_messages=received).SerializeToString(),
        "Publisher/Publish": types.PublishResponse.pb()(message_ids=["7"]).SerializeToString(),
        "Subscriber/GetSubscription": types.Subscription.pb()(ack_deadline_seconds=33).SerializeToString(),
    }
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Answers()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    connection = PubsubConnection(f"127.0.0.1:{port}", "")
    path = "projects/project/subscriptions/orders"
    answer = connection.pull(path, 17, 5).result()
    assert [(r.ack_id, r.message.data) for r in answer.received_messages] == [("a", b"x")]
    connection.acknowledge(path, ["a"])
    connection.modify(path, ["a", "b"], 60)
    assert connection.subscription(path).ack_deadline_seconds == 33
    connection.topic("projects/project/topics/out")
    published = connection.publish("projects/project/topics/out", [PubsubMessage(data=b"z")]).result()
    assert list(published.message_ids) == ["7"]
    connection.close()
    server.stop(None)
    requests = {
        "Subscriber/Pull": types.PullRequest.pb()(subscription=path, max_messages=17),
        "Subscriber/Acknowledge": types.AcknowledgeRequest.pb()(subscription=path, ack_ids=["a"]),
        "Subscriber/ModifyAckDeadline": types.ModifyAckDeadlineRequest.pb()(
            subscription=path, ack_ids=["a", "b"], ack_deadline_seconds=60
        ),
        "Subscriber/GetSubscription": types.GetSubscriptionRequest.pb()(subscription=path),
        "Publisher/GetTopic": types.GetTopicRequest.pb()(topic="projects/project/topics/out"),
    }
    for method, request in requests.items():
        field = "topic" if "Topic" in method else "subscription"
        assert asked[method] == (request.SerializeToString(), f"{field}={getattr(request, field)}")
