"""The Kafka source and sink against a real broker, which is killed, restarted, and asked for what it does not have."""

import logging
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
)

from headrace.connectors.kafka_options import KafkaSinkOptions, KafkaSourceOptions
from headrace.connectors.kafka_reader import KafkaReader
from headrace.connectors.read_kafka import KafkaSource
from headrace.connectors.stream_source import Poll, Source
from headrace.connectors.write_kafka import DeliveryError, KafkaSink
from headrace.runners.servers.kafka import KafkaServer
from headrace.schemas.errors import ConfigError, InputError

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    settings = {"log.cleaner.backoff.ms": 200, "log.initial.task.delay.ms": 200, "message.max.bytes": 8 << 20}
    server = KafkaServer(tmp_path_factory.mktemp("kafka"), settings=settings)
    server.up()
    yield server
    server.down()


@pytest.fixture(scope="module")
def admin(kafka: KafkaServer) -> AdminClient:
    return AdminClient({"bootstrap.servers": str(kafka.address), "log_level": 0})


@pytest.fixture
def topic(admin: AdminClient) -> Callable[..., str]:
    def make(partitions: int = 1, name: str = "", **config: str) -> str:
        name = name or f"t-{uuid.uuid4().hex[:8]}"
        settings = {"message.timestamp.type": "LogAppendTime"} | {
            k.replace("_", "."): v for k, v in config.items()
        }
        admin.create_topics([NewTopic(name, partitions, 1, config=settings)])[name].result(20)
        return name

    return make


def source(kafka: KafkaServer, name: str, query: str = "") -> KafkaSource:
    return KafkaSource(KafkaSourceOptions.parse(f"kafka://{kafka.address}/{name}{query}"))


def produce(kafka: KafkaServer, name: str, values: dict[int, list[bytes | None]], **more: Any) -> None:
    """Writes values by partition."""
    producer = Producer(
        {"bootstrap.servers": str(kafka.address), "acks": "all", "message.max.bytes": 8 << 20}
    )
    for partition, records in values.items():
        for record in records:
            producer.produce(name, record, partition=partition, **more)
    assert producer.flush(20) == 0


def polls(reader: KafkaReader, done: Callable[[list[Poll]], bool], seconds: float = 25) -> list[Poll]:
    """Polls until ``done``; fails if that takes too long."""
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    found: list[Poll] = []
    while not (found and done(found)):
        assert datetime.now(UTC) < end, [p.behind for p in found[-3:]]
        found.append(reader.poll(1000, 0.3))
    return found


def drained(found: list[Poll]) -> bool:
    return not any(found[-1].behind.values())


def values(found: list[Poll]) -> dict[str, list[tuple[int, bytes]]]:
    """Returns (offset, value) of all rows by origin, in order."""
    rows: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
    for poll in found:
        assert sum(r.records for r in poll.reads) == poll.batch.num_rows
        for row in poll.batch.to_pylist():
            rows[row["origin"]].append((row["origin_position"], row["raw"]))
    return dict(rows)


def numbered(partitions: int, records: int, first: int = 0) -> dict[int, list[bytes | None]]:
    return {p: [b'{"p":%d,"n":%d}' % (p, n) for n in range(first, records)] for p in range(partitions)}


@pytest.mark.parametrize("readers", [1, 2])
def test_each_record_is_read_once_and_in_order_from_positions(
    kafka: KafkaServer, topic: Callable[..., str], readers: int
) -> None:
    name = topic(4)
    written = numbered(4, 2500)
    produce(kafka, name, written)
    stream: Source = source(kafka, name)
    stream.check()
    rows: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
    for position in stream.start(readers):
        while True:  # a new reader for each poll: only the position is carried on
            reader = stream.open(position)
            found = polls(reader, lambda f: bool(f[-1].batch.num_rows) or drained(f))  # type: ignore[arg-type]
            reader.close()
            position = found[-1].position
            for origin, read in values(found).items():
                rows[origin] += read
            if drained(found):
                break
    assert rows == {f"{name}/{p}": list(enumerate(written[p])) for p in range(4)}


def test_resume_wins_and_start_says_where_the_others_begin(
    kafka: KafkaServer, topic: Callable[..., str]
) -> None:
    name = topic(2)
    produce(kafka, name, numbered(2, 5))
    (position,) = source(kafka, name, "?start=latest").start(1, {f"{name}/1": 3, "other/0": 1})
    produce(kafka, name, numbered(2, 6, 5))
    reader = source(kafka, name).open(position)
    found = values(polls(reader, drained))
    reader.close()
    assert {origin: [o for o, _ in rows] for origin, rows in found.items()} == {
        f"{name}/0": [5],
        f"{name}/1": [3, 4, 5],
    }
    (position,) = source(kafka, name, "?start=2020-01-01T00:00:00Z").start(1)
    assert orjson.loads(position)["next"] == {"0": 0, "1": 0}
    (position,) = source(kafka, name, "?start=2100-01-01T00:00:00Z").start(1)
    assert orjson.loads(position)["next"] == {"0": 6, "1": 6}


def test_a_new_partition_is_found_and_read_from_its_beginning(
    kafka: KafkaServer, admin: AdminClient, topic: Callable[..., str]
) -> None:
    name = topic(1)
    stream = source(kafka, name, "?discover_seconds=1&start=latest")
    first, second = (stream.open(position) for position in stream.start(2))
    assert drained(polls(first, drained)) and not second.poll(10, 0.1).behind
    admin.create_partitions([NewPartitions(name, 2)])[name].result(20)
    produce(kafka, name, {1: [b"new"]})
    found = polls(second, lambda f: bool(f[-1].batch.num_rows))
    assert values(found) == {f"{name}/1": [(0, b"new")]}
    assert values([first.poll(10, 0.1)]) == {}
    first.close(), second.close()


def test_a_killed_broker_that_comes_back_loses_and_doubles_nothing(
    kafka: KafkaServer, topic: Callable[..., str]
) -> None:
    name = topic(2)
    produce(kafka, name, numbered(2, 3000))
    stream = source(kafka, name)
    (position,) = stream.start(1)
    reader = stream.open(position)
    found = polls(reader, lambda f: sum(p.batch.num_rows for p in f) >= 1000)
    kafka.kill()
    away = [reader.poll(100, 0.2) for _ in range(3)]
    fresh = stream.open(away[-1].position)  # a restored worker while the broker is away
    assert fresh.poll(100, 0.1).batch.num_rows == 0
    fresh.close()
    kafka.restart()
    produce(kafka, name, numbered(2, 3500, 3000))
    count = lambda f: sum(p.batch.num_rows for p in [*found, *away, *f]) >= 7000  # noqa: E731
    found += away + polls(reader, lambda f: count(f) and drained(f))
    reader.close()
    assert values(found) == {f"{name}/{p}": list(enumerate(numbered(2, 3500)[p])) for p in range(2)}


def test_only_committed_transactions_are_read_and_control_records_leave_no_lag(
    kafka: KafkaServer, topic: Callable[..., str]
) -> None:
    name = topic(2)
    producer = Producer({"bootstrap.servers": str(kafka.address), "transactional.id": name, "log_level": 0})
    producer.init_transactions(20)
    for value, end in ((b"kept", "commit"), (b"aborted", "abort")):
        producer.begin_transaction()
        for partition in range(2):
            producer.produce(name, value, partition=partition)
        producer.flush(20)
        getattr(producer, f"{end}_transaction")(20)
    producer.begin_transaction()
    producer.produce(name, b"open", partition=0)
    producer.flush(20)
    stream = source(kafka, name)
    (position,) = stream.start(1)
    reader = stream.open(position)
    found = polls(reader, drained)
    assert values(found) == {f"{name}/{p}": [(0, b"kept")] for p in range(2)}
    assert orjson.loads(found[-1].position)["next"] == {"0": 4, "1": 4}
    again = stream.open(found[-1].position)
    assert drained(polls(again, drained))
    again.close()
    producer.commit_transaction(20)
    found = polls(reader, lambda f: any(p.batch.num_rows for p in f) and drained(f))
    assert values(found) == {f"{name}/0": [(4, b"open")]}
    reader.close()


def test_offsets_that_retention_took_are_refused_or_skipped_loudly(
    kafka: KafkaServer, admin: AdminClient, topic: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    name = topic(1)
    (position,) = source(kafka, name).start(1)
    produce(kafka, name, numbered(1, 10))
    for future in admin.delete_records([TopicPartition(name, 0, 7)]).values():
        future.result(20)
    reader = source(kafka, name).open(position)
    fix = r"7 offsets from 0 on of partition 0 are no longer kept, the earliest is 7: .*retention\.ms.*on_data_loss=skip"
    with pytest.raises(InputError, match=fix):
        polls(reader, drained)
    reader.close()
    reader = source(kafka, name, "?on_data_loss=skip").open(position)
    with caplog.at_level(logging.ERROR, "headrace.kafka"):
        found = polls(reader, lambda f: any(p.batch.num_rows for p in f) and drained(f))
    assert [o for o, _ in values(found)[f"{name}/0"]] == [7, 8, 9]
    assert reader.skipped == {f"{name}/0": 7}
    assert "DATA LOSS: 7 offsets from 0" in caplog.text
    reader.close()


def test_a_topic_made_anew_is_refused(
    kafka: KafkaServer, admin: AdminClient, topic: Callable[..., str]
) -> None:
    name = topic(1)
    produce(kafka, name, numbered(1, 3))
    stream = source(kafka, name, "?discover_seconds=1")
    reader = stream.open(stream.start(1)[0])
    position = polls(reader, drained)[-1].position
    (beyond,) = stream.start(1, {f"{name}/0": 50})
    lost = stream.open(beyond)
    with pytest.raises(InputError, match="offset 50 of partition 0 lies beyond its end 3"):
        polls(lost, lambda f: False)
    lost.close()
    admin.delete_topics([name])[name].result(20)
    with pytest.raises(InputError, match="there is no such topic"):
        stream.start(1)
    assert reader.poll(10, 0.1).batch.num_rows == 0
    topic(1, name)
    produce(kafka, name, numbered(1, 30))
    other = stream.open(position)
    for one in (other, reader):
        with pytest.raises(InputError, match="deleted and made anew"):
            polls(one, lambda f: False)
        one.close()


def test_a_compacted_topic_is_read_past_its_gaps_and_tombstones_are_faults(
    kafka: KafkaServer, topic: Callable[..., str]
) -> None:
    name = topic(
        1,
        cleanup_policy="compact",
        segment_ms="100",
        min_cleanable_dirty_ratio="0.001",
        max_compaction_lag_ms="100",
    )
    for n in range(20):
        produce(kafka, name, {0: [b"%d" % n]}, key=b"same")
    stream = source(kafka, name)
    end = datetime.now(UTC) + timedelta(seconds=30)
    while True:
        produce(kafka, name, {0: [b"other"]}, key=b"other")
        reader = stream.open(stream.start(1)[0])
        found = polls(reader, drained)
        reader.close()
        read = [read for poll in found for read in poll.reads]
        if sum(r.records for r in read) < read[-1].next - read[0].first:
            break
        assert datetime.now(UTC) < end, "the broker did not compact"
    produce(kafka, name, {0: [None]}, key=b"same")
    reader = stream.open(found[-1].position)
    found = polls(reader, drained)
    reader.close()
    (row,) = [row for poll in found for row in poll.batch.to_pylist()]
    assert (row["raw"], row["fault"]) == (None, "null_value")


def test_a_record_that_is_too_long_is_cut(kafka: KafkaServer, topic: Callable[..., str]) -> None:
    name = topic(1, max_message_bytes=str(8 << 20))
    produce(kafka, name, {0: [b"x" * (3 << 20), b"short"]})
    stream = source(kafka, name, "?max_record_bytes=1000000")
    reader = stream.open(stream.start(1)[0])
    found = polls(reader, drained)
    reader.close()
    rows = [row for poll in found for row in poll.batch.to_pylist()]
    assert [(len(row["raw"]), row["fault"]) for row in rows] == [(65_536, "line_too_long"), (5, None)]


def test_a_partition_far_ahead_waits_for_the_slowest(kafka: KafkaServer, topic: Callable[..., str]) -> None:
    name = topic(2, message_timestamp_type="CreateTime")
    day = int(datetime(2026, 1, 5, tzinfo=UTC).timestamp() * 1000)
    for hour in range(12):
        for partition in range(2):
            stamp = day + hour * 3_600_000 + partition * 60_000
            produce(kafka, name, {partition: [b"%d" % hour] * 300}, timestamp=stamp)
    stream = source(kafka, name, "?ingest_time=create")
    reader = stream.open(stream.start(1)[0])
    found: list[Poll] = []
    while not (found and drained(found)):
        assert len(found) < 300
        found.append(reader.poll(250, 0.5))
        times = {p: orjson.loads(found[-1].position)["times"].get(p) for p in "01"}
        waiting = [times[p] for p in "01" if found[-1].behind[f"{name}/{p}"]]
        if waiting and times["0"] and times["1"]:
            assert max(times.values()) - min(waiting) <= 3_600_000
    reader.close()
    rows = values(found)
    assert {origin: [o for o, _ in read] for origin, read in rows.items()} == {
        f"{name}/{p}": list(range(3600)) for p in range(2)
    }


def test_create_time_needs_consent(kafka: KafkaServer, admin: AdminClient, topic: Callable[..., str]) -> None:
    name = topic(1, message_timestamp_type="CreateTime")
    stamp = 1_767_607_200_123
    produce(kafka, name, {0: [b"old"]}, timestamp=stamp)
    with pytest.raises(
        ConfigError, match=r"CreateTime; set message\.timestamp\.type=LogAppendTime .*ingest_time=create"
    ):
        source(kafka, name).check()
    entry = ConfigEntry(
        "message.timestamp.type", "LogAppendTime", incremental_operation=AlterConfigOpType.SET
    )
    resource = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=[entry])
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(20)
    stream = source(kafka, name)
    reader = stream.open(stream.start(1)[0])
    with pytest.raises(
        InputError, match="the record at offset 0 of partition 0 has its producer's timestamp"
    ):
        polls(reader, drained)
    reader.close()
    stream = source(kafka, name, "?ingest_time=create")
    stream.check()
    reader = stream.open(stream.start(1)[0])
    (row,) = [row for poll in polls(reader, drained) for row in poll.batch.to_pylist()]
    assert row["ingest_time"] == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=stamp)
    reader.close()


def test_what_can_not_be_reached_is_named_without_secrets(
    kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="/nowhere: there is no such topic"):
        source(kafka, "nowhere").check()
    monkeypatch.setenv("SECRET", "hush-hush")
    query = "?security.protocol=sasl_plaintext&username=me&password_env=SECRET"
    with pytest.raises(InputError, match=r"does not let the client in: .*check security\.protocol") as caught:
        source(kafka, "nowhere", query).check()
    assert "hush" not in str(caught.value)


def test_acknowledged_offsets_show_in_the_group(kafka: KafkaServer, topic: Callable[..., str]) -> None:
    name = topic(2)
    produce(kafka, name, numbered(2, 10))
    stream = source(kafka, name, "?group=lag")
    reader = stream.open(stream.start(1)[0])
    receipts = [poll.receipt for poll in polls(reader, drained)]
    reader.close()
    stream.acknowledge(receipts)
    stream.acknowledge(receipts[:1])  # late and again
    group = Consumer({"bootstrap.servers": str(kafka.address), "group.id": "lag"})
    end = datetime.now(UTC) + timedelta(seconds=15)
    while True:
        committed = group.committed([TopicPartition(name, p) for p in range(2)], timeout=10)
        if [c.offset for c in committed] == [10, 10]:
            break
        assert datetime.now(UTC) < end, committed
    group.close()


def test_rows_come_back_from_the_sink(kafka: KafkaServer, topic: Callable[..., str]) -> None:
    name = topic(3)
    sink = KafkaSink(KafkaSinkOptions.parse(f"kafka://{kafka.address}/{name}"))
    sink.check()
    ids = [str(uuid.UUID(int=n)) for n in range(500)]
    writer = sink.open()
    for _ in range(2):
        writer.write(pa.record_batch({"event_id": ids, "quantity": list(range(500))}))
    writer.flush(20)
    writer.close()
    stream = source(kafka, name)
    reader = stream.open(stream.start(1)[0])
    rows = values(polls(reader, drained))
    reader.close()
    found = [(origin, orjson.loads(raw)) for origin, read in rows.items() for _, raw in read]
    assert sorted((row["event_id"], row["quantity"]) for _, row in found) == sorted(
        (id_, n) for n, id_ in enumerate(ids) for _ in range(2)
    )
    places = defaultdict(set)
    for origin, row in found:
        places[row["event_id"]].add(origin)
    assert {len(p) for p in places.values()} == {1}


def test_a_record_that_the_broker_refuses_is_a_delivery_error(
    kafka: KafkaServer, topic: Callable[..., str]
) -> None:
    name = topic(1, max_message_bytes="1000")
    writer = KafkaSink(KafkaSinkOptions.parse(f"kafka://{kafka.address}/{name}?compression=none")).open()
    writer.write(pa.record_batch({"event_id": ["a", "b"], "query": ["x" * 5000, "y"]}))
    with pytest.raises(DeliveryError, match="records were not delivered: Broker: Message size too large"):
        writer.flush(20)
    writer.close()
