"""Sinks by their addresses, and the outlet of a stage, against a broker in memory."""

import base64
import dataclasses
import pickle
from datetime import UTC, datetime

import orjson
import pyarrow as pa
import pytest
from confluent_kafka import KafkaError

from headrace.connectors.stream_sinks import REJECT_COLUMNS, Outlet, open_sink, reject_rows
from headrace.connectors.write_kafka import DeliveryError, KafkaSink, rows_as_json
from headrace.connectors.write_pubsub import PubsubSink
from headrace.schemas.columns import ENRICHED_SCHEMA, RAW_SCHEMA
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import conform
from headrace.transforms.rejects import rejected
from tests.connectors.fake_kafka import TOPIC, Broker, FakeClients


def outlet(*brokers: Broker) -> Outlet:
    sinks = []
    for broker in brokers:
        sink = open_sink(f"kafka://b/{TOPIC}")
        assert isinstance(sink, KafkaSink)
        sinks.append(dataclasses.replace(sink, clients=FakeClients(broker)))
    return Outlet(sinks, flush_seconds=0)


def ids(*names: str) -> pa.RecordBatch:
    return pa.record_batch({"event_id": list(names)})


def keys(broker: Broker) -> list[str]:
    return [key for _, _, key in broker.produced]


def test_an_address_names_a_sink() -> None:
    kafka, pubsub = (
        open_sink("kafka://b:9092/clean?compression=zstd"),
        open_sink("pubsub://proj/topics/clean"),
    )
    assert isinstance(kafka, KafkaSink) and isinstance(pubsub, PubsubSink)
    assert (kafka.name, pubsub.name) == ("kafka://b:9092/clean", "pubsub://proj/topics/clean")
    assert pickle.loads(pickle.dumps((kafka, pubsub))) == (kafka, pubsub)
    assert isinstance(open_sink("kafka://b/t?key=user_id", ENRICHED_SCHEMA.names), KafkaSink)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "clean",
            "the sink has no scheme; known are kafka://host:port/topic and pubsub://PROJECT/topics/TOPIC",
        ),
        ("file:out", "no sink is called file:; known are kafka"),
        ("pubsub://proj/subscription", "is no topic's address"),
        ("kafka://b/t?key=users", "kafka://b:9092/t: key=users is none of the columns that the sink gets"),
        ("pubsub://proj/topics/topic?ordering_key=users", "ordering_key=users is none of the columns"),
    ],
)
def test_what_is_no_sink_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_sink(url, ENRICHED_SCHEMA.names)
    assert message in str(caught.value)


def test_a_rejected_row_has_no_personal_data_in_clear() -> None:
    sealed = bytes(range(256))
    raw = conform(
        {
            "raw": pa.array([b'{"email":"jane@example.com"}'] * 2),
            "origin": pa.array(["orders/1"] * 2),
            "origin_position": pa.array([7, 8]),
            "ingest_time": pa.array([datetime(2026, 1, 5, 12, tzinfo=UTC)] * 2, pa.timestamp("us", "UTC")),
        },
        RAW_SCHEMA,
        2,
    )
    rows = rejected(raw, "decode", "malformed_json", message="ends early", documents=pa.array([sealed, None]))
    found = reject_rows(rows)
    assert tuple(found.schema.names) == REJECT_COLUMNS
    first, second = map(orjson.loads, rows_as_json(found))
    assert base64.b64decode(first.pop("document")) == sealed
    assert first == {
        "attempt": 1,
        "ingest_time": "2026-01-05T12:00:00.000000Z",
        "message": "ends early",
        "origin": "orders/1",
        "origin_position": 7,
        "reason": "malformed_json",
        "stage": "decode",
    }
    assert "document" not in second and second["origin_position"] == 8


def test_every_sink_gets_every_row_when_the_bundle_ends() -> None:
    first, second = Broker(), Broker()
    out = outlet(first, second)
    out.flush()
    out.write(ids())
    assert out._writers == []
    out.write(ids("a", "b"))
    writers = list(out._writers)
    out.write(ids("c"))
    out.flush()
    assert keys(first) == keys(second) == ["a", "b", "c"]
    out.write(ids("d"))
    out.flush()
    assert out._writers == writers
    assert keys(second)[-1] == "d"
    Outlet(()).write(ids("a"))


def test_a_sink_that_is_away_fails_the_bundle_and_gets_its_rows_on_the_next_try() -> None:
    here, away = Broker(), Broker(away=True)
    out = outlet(here, away)
    out.write(ids("a"))
    with pytest.raises(DeliveryError, match=r"1 records are not delivered after 0 s; is a broker away\?"):
        out.flush()
    assert out._writers == []
    away.away = False
    out.write(ids("a"))
    out.flush()
    assert (keys(here), keys(away)) == (["a", "a"], ["a"])


def test_a_row_that_is_refused_fails_the_bundle() -> None:
    error = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, "too large")
    broker = Broker(accept=lambda value: error if b"big" in value else None)
    out = outlet(broker)
    with pytest.raises(DeliveryError, match="1 records were not delivered: too large"):
        out.write(ids("a", "big"))
    assert out._writers == []
