"""The Kafka sink against a producer in memory."""

import pickle
from datetime import UTC, date, datetime
from decimal import Decimal

import orjson
import pyarrow as pa
import pytest
from confluent_kafka import KafkaError

from headrace.connectors.kafka_options import KafkaSinkOptions
from headrace.connectors.write_kafka import DeliveryError, KafkaSink, rows_as_json
from headrace.schemas.columns import ENRICHED_SCHEMA, MONEY, TIME
from headrace.schemas.errors import ConfigError, InputError
from headrace.transforms.batches import conform
from tests.connectors.fake_kafka import TOPIC, Broker, FakeClients


def sink_of(broker: Broker, query: str = "") -> KafkaSink:
    return KafkaSink(KafkaSinkOptions.parse(f"kafka://b/{TOPIC}{query}"), FakeClients(broker))


def ids(*names: str) -> pa.RecordBatch:
    return pa.record_batch({"event_id": list(names)})


def test_a_row_is_canonical_json() -> None:
    batch = pa.record_batch(
        {
            "price": pa.array(
                [Decimal("12.340000000"), Decimal("0E-9"), Decimal("1E-9"), Decimal("100"), None], MONEY
            ),
            "at": pa.array([datetime(2026, 1, 5, 10, tzinfo=UTC)] + [None] * 4, TIME),
            "day": pa.array([date(2026, 1, 5)] + [None] * 4),
            "kind": pa.array(["a", None, "b", "a", None]).dictionary_encode(),
            "is_bot": pa.array([True, None, False, None, None]),
            "quantity": pa.array([1 << 62, None, None, None, None]),
            "text": pa.array(['é"\n', None, None, None, None]),
            "raw": pa.array([b"\xff", b"b", None, None, None]),
            "share": pa.array([0.1, None, None, None, None]),
        }
    )
    assert [r.decode() for r in rows_as_json(batch)] == [
        '{"at":"2026-01-05T10:00:00.000000Z","day":"2026-01-05","is_bot":true,"kind":"a","price":"12.34",'
        '"quantity":4611686018427387904,"raw":"/w==","share":0.1,"text":"é\\"\\n"}',
        '{"price":"0","raw":"b"}',
        '{"is_bot":false,"kind":"b","price":"0.000000001"}',
        '{"kind":"a","price":"100"}',
        "{}",
    ]
    assert rows_as_json(batch.slice(2, 1)) == [rows_as_json(batch)[2]]
    assert rows_as_json(batch.select([])) == [b"{}"] * 5


def test_enriched_rows_are_written_with_their_id_as_key() -> None:
    broker = Broker(queue=2)
    columns = {"event_id": pa.array(["b", "a", "c"]), "event_type": pa.array(["view", None, "view"])}
    writer = sink_of(broker).open()
    writer.write(conform(columns, ENRICHED_SCHEMA, 3))
    writer.write(conform({}, ENRICHED_SCHEMA, 0))
    writer.flush(1)
    assert [(topic, orjson.loads(value), key) for topic, value, key in broker.produced] == [
        (TOPIC, {"event_id": "b", "event_type": "view"}, "b"),
        (TOPIC, {"event_id": "a"}, "a"),
        (TOPIC, {"event_id": "c", "event_type": "view"}, "c"),
    ]
    writer.close()


def test_the_key_is_a_column_that_must_be_there() -> None:
    broker = Broker()
    with pytest.raises(ConfigError, match="no column 'user_id' for the key; name another with key=COLUMN"):
        sink_of(broker, "?key=user_id").open().write(ids("a"))
    for query, key in (("?key=", None), ("?key=number", "7")):
        writer = sink_of(broker, query).open()
        writer.write(pa.record_batch({"number": [7]}))
        writer.flush(1)
        assert broker.produced.pop() == (TOPIC, b'{"number":7}', key)


def test_what_is_not_delivered_is_an_error_and_stays_one() -> None:
    broker = Broker(
        accept=lambda value: KafkaError(KafkaError._MSG_TIMED_OUT, "late") if b"bad" in value else None
    )
    writer = sink_of(broker).open()
    with pytest.raises(
        DeliveryError, match="1 records were not delivered: late; they have to be written again"
    ):
        writer.write(ids("good", "bad"))
    assert len(broker.produced) == 1
    with pytest.raises(DeliveryError):
        writer.flush(1)


def test_a_record_that_the_client_refuses_and_a_broker_that_is_away() -> None:
    broker = Broker()
    with pytest.raises(DeliveryError, match="1 records were not delivered: too large"):
        sink_of(broker).open().write(ids("x" * (2 << 20)))
    broker.away = True
    writer = sink_of(broker).open()
    writer.write(ids("a", "b"))
    with pytest.raises(DeliveryError, match="2 records are not delivered after 1 s"):
        writer.flush(1)
    writer.close()


def test_check_names_what_is_wrong() -> None:
    broker = Broker(logs={0: []})
    sink_of(broker).check()
    broker.known = False
    with pytest.raises(InputError, match="there is no such topic; make it first"):
        sink_of(broker).check()
    broker.known, broker.away = True, True
    with pytest.raises(InputError, match="kafka://b:9092/events can't be reached"):
        sink_of(broker).check()
    broker.callbacks = [KafkaError(KafkaError._SSL, "no certificate")]
    with pytest.raises(InputError, match="does not let the client in: no certificate"):
        sink_of(broker).check()


def test_a_sink_pickles() -> None:
    sink = KafkaSink(KafkaSinkOptions.parse("kafka://b/t"))
    assert pickle.loads(pickle.dumps(sink)) == sink
    assert sink.name == "kafka://b:9092/t"
