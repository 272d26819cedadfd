"""The Kafka source against a broker in memory."""

import logging
import pickle
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import pytest
from confluent_kafka import KafkaError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.connectors import kafka_reader
from headrace.connectors.kafka_cluster import Clients
from headrace.connectors.kafka_options import KafkaSourceOptions
from headrace.connectors.kafka_partitions import HOUR_MILLIS, KafkaPosition, Partition, aligned
from headrace.connectors.kafka_reader import KafkaReader
from headrace.connectors.kafka_rows import Hand, raw_batch
from headrace.connectors.read_kafka import KafkaSource
from headrace.connectors.stream_source import Poll, Read, Source
from headrace.schemas.columns import RAW_SCHEMA
from headrace.schemas.errors import ConfigError, InputError
from tests.connectors.fake_kafka import APPEND, CREATE, NONE, TOPIC, Broker, FakeClients, event

T = 1_767_607_200_000


def source_of(broker: Broker, query: str = "") -> KafkaSource:
    return KafkaSource(KafkaSourceOptions.parse(f"kafka://b/{TOPIC}{query}"), FakeClients(broker))


def reader_of(broker: Broker, query: str = "", position: str = "") -> KafkaReader:
    source = source_of(broker, query)
    start = KafkaPosition.parse(position or source.start(1)[0])
    return KafkaReader(source.options, start, clients=source.clients, clock=broker.clock)


def offsets(*polls: Poll) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for poll in polls:
        for row in poll.batch.to_pylist():
            found.setdefault(row["origin"], []).append(row["origin_position"])
    return found


def error(code: int) -> KafkaError:
    return KafkaError(code, f"error {code}")


def test_a_poll_returns_rows_reads_position_lag_and_receipt() -> None:
    broker = Broker()
    broker.add(0, b"a", b"b", time=T)
    broker.gap(0)
    broker.add(1, b"c", time=T + 1)
    source: Source = source_of(broker)
    (position,) = source.start(1)
    reader = source.open(position)
    poll = reader.poll(100, 0.01)
    assert poll.batch.schema == RAW_SCHEMA
    assert poll.batch.to_pylist()[2] == {
        "raw": b"c",
        "origin": "events/1",
        "origin_position": 0,
        "ingest_time": datetime(2026, 1, 5, 10, 0, 0, 1000, tzinfo=UTC),
        "fault": None,
    }
    assert poll.reads == (Read("events/0", 0, 2, 2), Read("events/1", 0, 1, 1))
    assert orjson.loads(poll.position) == {
        "reader": 0,
        "readers": 1,
        "topic_id": "id-1",
        "next": {"0": 3, "1": 1},
        "times": {"0": T, "1": T + 1},
    }
    assert poll.behind == {"events/0": 0, "events/1": 0}
    assert orjson.loads(poll.receipt) == {"0": 3, "1": 1}
    empty = reader.poll(100, 0.01)
    assert (empty.batch.num_rows, empty.reads, empty.receipt, empty.position) == (0, (), "", poll.position)
    reader.close()


def test_readers_share_partitions_by_number_and_go_on_from_positions() -> None:
    broker = Broker()
    for p in range(5):
        broker.add(p, *[b"%d" % n for n in range(7)], time=T)
    source = source_of(broker)
    first, second = source.start(2)
    assert orjson.loads(second)["next"] == {"1": 0, "3": 0}
    found: list[Poll] = []
    position = first
    while not found or any(found[-1].behind.values()):
        reader = source.open(position)
        while (poll := reader.poll(4, 0.01)).position == position:
            assert poll.batch.num_rows == 0  # it has not seen all partitions yet
        found.append(poll)
        position = poll.position
        reader.close()
    assert offsets(*found) == {f"events/{p}": list(range(7)) for p in (0, 2, 4)}
    assert max(p.batch.num_rows for p in found) == 4
    assert source.open(second).poll(100, 0.01).batch.num_rows == 14


def test_more_readers_than_partitions() -> None:
    broker = Broker()
    broker.add(0, b"a")
    poll = source_of(broker).open(source_of(broker).start(2)[1]).poll(10, 0.01)
    assert (poll.batch.num_rows, poll.behind) == (0, {})


def test_start_and_resume() -> None:
    broker = Broker(first={0: 2})
    for n in range(6):
        broker.add(0, b"x", time=T + n)
        broker.add(1, b"x", time=T - 10)
    starts = {
        "earliest": {"0": 2, "1": 0},
        "latest": {"0": 6, "1": 6},
        "2026-01-05T10:00:00.003Z": {"0": 3, "1": 6},
    }
    for start, expected in starts.items():
        assert orjson.loads(source_of(broker, f"?start={start}").start(1)[0])["next"] == expected
    resumed = source_of(broker).start(1, {"events/1": 4, "other/0": 1, "file.json": 3})
    assert orjson.loads(resumed[0])["next"] == {"0": 2, "1": 4}
    with pytest.raises(InputError, match=r"partitions \[7\] were read before and are gone"):
        source_of(broker).start(1, {"events/7": 4})
    with pytest.raises(ConfigError, match="0 readers can't read it"):
        source_of(broker).start(0)


def test_a_source_and_its_positions_survive_pickling() -> None:
    source = KafkaSource(KafkaSourceOptions.parse("kafka://b:1/t?format=weblog"))
    again = pickle.loads(pickle.dumps(source))
    assert again == source and hash(again) == hash(source)
    assert (again.name, again.format, again.clients) == ("kafka://b:1/t", "weblog", Clients())
    position = KafkaPosition(1, 2, "x", {1: 5}, {1: T})
    assert KafkaPosition.parse(position.text()) == position
    for text in (
        "",
        "[]",
        '{"reader":0}',
        '{"reader":0,"readers":1,"topic_id":"","next":{"a":1},"times":{}}',
    ):
        with pytest.raises(InputError, match="the position of a Kafka reader is not one"):
            source.open(text)
    with pytest.raises(InputError, match="reader 2 of 2"):
        source.open(KafkaPosition(2, 2, "").text())


def test_faults() -> None:
    broker = Broker()
    broker.add(0, None, b"x" * 11, b"fine", time=T)
    broker.add(0, b"undated", kind=NONE)
    poll = reader_of(broker, "?max_record_bytes=10&ingest_time=create").poll(10, 0.01)
    rows = [(r["raw"], r["fault"], r["ingest_time"] is None) for r in poll.batch.to_pylist()]
    assert rows == [
        (None, "null_value", False),
        (b"x" * 10, "line_too_long", False),
        (b"fine", None, False),
        (b"undated", "no_timestamp", True),
    ]
    assert poll.reads == (Read("events/0", 0, 4, 4),)
    assert raw_batch(Hand([]), TOPIC, 10)[0].num_rows == 0


def test_only_the_broker_s_clock_unless_the_user_says_otherwise() -> None:
    broker = Broker(append_time=False)
    broker.add(0, b"a", time=T)
    broker.add(0, b"b", time=T, kind=CREATE)
    with pytest.raises(
        ConfigError, match=r"CreateTime; set message\.timestamp\.type=LogAppendTime on the topic"
    ):
        source_of(broker).check()
    with pytest.raises(
        InputError, match=r"offset 1 of partition 0 has its producer's timestamp .*ingest_time=create"
    ):
        reader_of(broker).poll(10, 0.01)
    source_of(broker, "?ingest_time=create").check()
    assert reader_of(broker, "?ingest_time=create").poll(10, 0.01).batch.num_rows == 2


def test_check_passes_warns_or_names_what_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker(logs={0: []})
    source_of(broker).check()
    broker.append_time = None
    with caplog.at_level(logging.WARNING, "headrace.kafka"):
        source_of(broker).check()
    assert "not allowed to see the topic's configuration" in caplog.text
    broker.known = False
    with pytest.raises(InputError, match="kafka://b:9092/events: there is no such topic"):
        source_of(broker).check()
    broker.denied = KafkaError.TOPIC_AUTHORIZATION_FAILED
    with pytest.raises(InputError, match="the user may not use the topic; grant Describe"):
        source_of(broker).check()
    broker.denied, broker.known, broker.away = None, True, True
    with pytest.raises(InputError, match="can't be reached: no answer; check the brokers' names"):
        source_of(broker).check()
    broker.callbacks = [error(KafkaError._AUTHENTICATION)]
    with pytest.raises(InputError, match=r"does not let the client in: error -169; check security\.protocol"):
        source_of(broker).check()


def test_options_that_the_client_refuses_are_named_without_their_value() -> None:
    options = KafkaSourceOptions.parse("kafka://b/t?librdkafka.nonsense=hush")
    with pytest.raises(
        ConfigError, match=r'the Kafka client refuses its options: No such .*"nonsense"'
    ) as caught:
        KafkaSource(options).open(KafkaPosition(0, 1, "").text()).poll(1, 0.01)
    assert "hush" not in str(caught.value)


def test_a_broker_that_is_away_gives_empty_polls_and_a_lag_that_is_not_zero() -> None:
    broker = Broker()
    broker.add(0, b"a", b"b")
    reader = reader_of(broker)
    broker.away = True
    for _ in range(3):
        poll = reader.poll(10, 0.5)
        assert (poll.batch.num_rows, poll.behind) == (0, {"events/0": 1})
    broker.away = False
    assert offsets(reader.poll(10, 0.5)) == {"events/0": [0, 1]}
    broker.away = True
    broker.now += 31
    assert reader.poll(10, 0.5).behind == {"events/0": 0}


def test_new_partitions_are_found_and_lost_ones_refused() -> None:
    broker = Broker(logs={0: []})
    reader = reader_of(broker)
    reader.poll(10, 0.01)
    broker.add(1, b"new")
    assert reader.poll(10, 0.01).behind == {"events/0": 0}
    broker.now += 30
    assert offsets(reader.poll(10, 0.01)) == {"events/1": [0]}
    del broker.logs[1]
    broker.now += 30
    with pytest.raises(InputError, match=r"partitions \[1\] are gone; Kafka never removes partitions"):
        reader.poll(10, 0.01)


def test_a_topic_that_is_unknown_for_long_or_made_anew_is_refused() -> None:
    broker = Broker(logs={0: []})
    reader = reader_of(broker)
    reader.poll(10, 0.01)
    broker.known = False
    broker.events = [event(0, 0, KafkaError.UNKNOWN_TOPIC_OR_PART)]
    for _ in range(28):
        reader.poll(10, 1)
    with pytest.raises(InputError, match="there is no such topic"):
        for _ in range(6):
            reader.poll(10, 1)
    broker.known, broker.topic_id = True, "id-2"
    with pytest.raises(InputError, match="the topic was deleted and made anew"):
        reader.poll(10, 1)


def test_offsets_out_of_range(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker(first={0: 3})
    broker.add(0, *[b"x"] * 5)
    position = KafkaPosition(0, 1, "id-1", {0: 1}).text()
    with pytest.raises(
        InputError, match=r"2 offsets from 1 on of partition 0 are no longer kept, the earliest is 3"
    ):
        _until_rows(reader_of(broker, "", position))
    reader = reader_of(broker, "?on_data_loss=skip", position)
    with caplog.at_level(logging.ERROR, "headrace.kafka"):
        assert offsets(_until_rows(reader)) == {"events/0": [3, 4]}
    assert reader.skipped == {"events/0": 2} and "DATA LOSS" in caplog.text
    beyond = KafkaPosition(0, 1, "id-1", {0: 9}).text()
    for query in ("", "?on_data_loss=skip"):
        with pytest.raises(InputError, match="offset 9 of partition 0 lies beyond its end 5"):
            _until_rows(reader_of(broker, query, beyond))


def _until_rows(reader: KafkaReader) -> Poll:
    for _ in range(4):
        if (poll := reader.poll(10, 0.01)).batch.num_rows:
            return poll
    raise AssertionError("no rows")


def test_a_damaged_record_is_refused_or_skipped_once() -> None:
    broker = Broker()
    broker.add(0, *[b"x"] * 3)
    damaged = event(0, 0, KafkaError._BAD_MSG)
    broker.events = [damaged]
    with pytest.raises(InputError, match=r"the record at offset 0 of partition 0 is damaged"):
        reader_of(broker).poll(10, 0.01)
    reader = reader_of(broker, "?on_data_loss=skip")
    log: Any = broker.logs[0]
    broker.events = [damaged, log[1], log[2]]
    found = reader.poll(10, 0.01)
    assert offsets(found, reader.poll(10, 0.01)) == {"events/0": [1, 2]}
    assert reader.skipped == {"events/0": 1}


def test_errors_that_never_pass_and_those_that_do() -> None:
    broker = Broker(logs={0: []})
    reader = reader_of(broker)
    broker.callbacks = [error(KafkaError._ALL_BROKERS_DOWN), error(KafkaError._AUTHENTICATION)]
    broker.events = [event(5, 0, KafkaError._TRANSPORT)]
    assert reader.poll(10, 5).batch.num_rows == 0
    broker.callbacks = [error(KafkaError._AUTHENTICATION)]
    reader.poll(10, 5)
    broker.callbacks = [error(KafkaError._AUTHENTICATION)]
    with pytest.raises(InputError, match="does not let the client in: error -169"):
        reader.poll(10, 5)
    broker.callbacks = [error(KafkaError.TOPIC_AUTHORIZATION_FAILED)]
    with pytest.raises(InputError, match="grant Describe, and Read or Write"):
        reader.poll(10, 1)
    broker.callbacks = [KafkaError(KafkaError._FATAL, "broken", fatal=True)]
    with pytest.raises(InputError, match="the client gave up: broken"):
        reader.poll(10, 1)


def test_a_partition_ahead_is_held_and_paused_until_the_slow_one_has_come() -> None:
    broker = Broker()
    for hour in range(4):
        broker.add(0, b"x", b"x", time=T + hour * HOUR_MILLIS)
        broker.add(1, b"x", b"x", time=T + hour * HOUR_MILLIS + 5)
    reader = reader_of(broker)
    first = reader.poll(6, 0.01)
    assert offsets(first) == {}
    assert orjson.loads(first.position)["next"] == {"0": 0, "1": 0}
    assert first.behind == {"events/0": 8, "events/1": 8}
    assert broker.paused == [("pause", [0])]
    found = [first]
    while any(found[-1].behind.values()):
        found.append(reader.poll(6, 0.01))
        times = [t for _, t in sorted(orjson.loads(found[-1].position)["times"].items())]
        waiting = [t for t, b in zip(times, found[-1].behind.values(), strict=False) if b]
        assert not waiting or max(times) - min(waiting) <= HOUR_MILLIS
        assert found[-1].batch.num_rows <= 6 and len(found) < 20
    assert offsets(*found) == {"events/0": list(range(8)), "events/1": list(range(8))}
    assert [call for call, _ in broker.paused][-1] == "resume"


def test_polls_of_large_records_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_reader, "POLL_BYTES", 10_000)
    broker = Broker()
    broker.add(0, *[b"x" * 1000] * 100)
    reader = reader_of(broker)
    sizes = []
    while sum(sizes) < 100:
        sizes.append(reader.poll(1000, 0.01).batch.num_rows)
    assert max(sizes[1:]) == 10


def test_acknowledge_commits_the_highest_offsets_and_never_goes_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Broker(logs={0: [], 1: []})
    source = source_of(broker, "?group=acknowledge-test")
    source.acknowledge(["", '{"0":5}', '{"0":3,"1":2}'])
    assert broker.committed == {0: 5, 1: 2}
    source.acknowledge(['{"0":4}', ""])
    source.acknowledge([])
    assert broker.committed == {0: 5, 1: 2}
    broker.commit_error = error(KafkaError._NOT_CONFIGURED)
    with caplog.at_level(logging.WARNING, "headrace.kafka"):
        source.acknowledge(['{"0":9}'])
    assert "offsets were not committed to group acknowledge-test (for monitoring only)" in caplog.text


records = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 8)), min_size=1, max_size=30)
states = st.lists(st.tuples(st.booleans(), st.none() | st.integers(0, 8)), min_size=3, max_size=3)


@settings(max_examples=300, deadline=None)
@given(records, states)
def test_alignment_against_one_record_at_a_time(
    hand: list[tuple[int, int]], known: list[tuple[bool, int | None]]
) -> None:
    """The oracle returns the next record of any partition that is not more than an hour ahead, until there is none."""
    half = HOUR_MILLIS // 2
    partitions = {}
    for number, (done, time) in enumerate(known):
        partitions[number] = Partition(number, 10, None if time is None else time * half, 10 if done else 11)
    queues: dict[int, list[tuple[int, int]]] = {0: [], 1: [], 2: []}
    for i, (number, time) in enumerate(hand):
        queues[number].append((i, time * half))
    latest = {n: -1 if p.time is None else p.time for n, p in partitions.items()}
    taken = [False] * len(hand)
    while True:
        heads = {n: max(q[0][1], latest[n]) for n, q in queues.items() if q}
        bound = {
            n: heads[n] if n in heads else latest[n]
            for n, p in partitions.items()
            if n in heads or not p.drained
        }
        unknown = any(t == -1 and n not in heads for n, t in bound.items())
        ready = [n for n, t in heads.items() if not unknown and t <= min(bound.values()) + HOUR_MILLIS]
        if not ready:
            break
        at, _ = queues[ready[0]].pop(0)
        taken[at], latest[ready[0]] = True, heads[ready[0]]
    numbers, times = (np.array(column) for column in zip(*hand, strict=True))
    allowed = aligned(partitions, numbers, times * half)
    assert ([True] * len(hand) if allowed is None else allowed.tolist()) == taken


def test_picking_keeps_arrays_and_messages_together() -> None:
    messages = [Message(TOPIC, n % 2, n, value=b"x", timestamp=(APPEND, n)) for n in range(4)]
    picked = Hand(messages).pick(np.array([False, True, False, True]))
    assert [m.offset() for m in picked.messages] == [1, 3]
    assert (picked.numbers.tolist(), picked.times.tolist(), len(picked)) == ([1, 1], [1, 3], 2)
