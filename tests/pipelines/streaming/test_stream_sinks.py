"""The stages of a stream with sinks beside the lake, against brokers in memory."""

import base64
from pathlib import Path

import orjson
import pytest

from headrace.connectors.kafka_options import KafkaSinkOptions
from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.connectors.write_kafka import DeliveryError, KafkaSink
from headrace.simulator.simulate import simulate
from headrace.transforms.keys import Key
from tests.connectors.fake_kafka import TOPIC, Broker, FakeClients
from tests.pipelines.runs import rows
from tests.pipelines.streaming.line_source import LineSource
from tests.pipelines.streaming.local import NOW, SHARD, Local, make_task


def stream(folder: Path, key: Path, events: int = 160) -> tuple[Local, Broker, Broker]:
    """Returns a stream, and the brokers that get its accepted and its rejected rows."""
    path, clean, bad = folder / "events.jsonl", Broker(), Broker()
    path.write_bytes(b"".join(simulate(events, 3, fault_rate=0.5)))
    sinks = [
        KafkaSink(KafkaSinkOptions.parse(f"kafka://b/{TOPIC}"), FakeClients(broker))
        for broker in (clean, bad)
    ]
    source = LineSource(str(path), NOW, per_poll=40)
    task = make_task(folder / "out", source, key, sinks=(sinks[0],), quarantine_sinks=(sinks[1],))
    return Local(task, seed=5), clean, bad


def test_sinks_get_every_row_with_its_id_as_key(tmp_path: Path, key: Path, warm: None) -> None:
    local, clean, bad = stream(tmp_path, key)
    local.run()
    events = {row["event_id"]: row for row in rows(tmp_path / "out", "events")}
    assert {sent for _, _, sent in clean.produced} == set(events)
    assert len(clean.produced) == len(events) == read_stream_ledger(tmp_path / "out").accepted
    for _, value, sent in clean.produced:
        document = orjson.loads(value)
        assert document["event_id"] == sent
        assert document.get("user_id") == events[sent]["user_id"]
        assert document["event_type"] == events[sent]["event_type"]
    rejected = {(row["origin"], row["origin_position"]): row for row in rows(tmp_path / "out", "quarantine")}
    documents = [orjson.loads(value) for _, value, _ in bad.produced]
    assert {(d["origin"], d["origin_position"]) for d in documents} == set(rejected)
    assert len(documents) == len(rejected)
    secret = Key(key)
    for document in documents:
        row = rejected[document["origin"], document["origin_position"]]
        assert (document["stage"], document["reason"]) == (row["stage"], row["reason"])
        assert "user_id" not in document
        if row["document"] is not None:
            sealed = base64.b64decode(document["document"])
            assert secret.unseal(sealed) == secret.unseal(row["document"])


@pytest.mark.parametrize("which", ["clean", "bad"])
def test_a_sink_that_is_away_holds_the_bundle_up_and_loses_nothing(
    which: str, tmp_path: Path, key: Path, warm: None
) -> None:
    local, clean, bad = stream(tmp_path, key)
    away = clean if which == "clean" else bad
    away.away = True
    failed = 0
    while failed < 3:
        try:
            local.step()
        except DeliveryError:
            failed += 1
    assert read_stream_ledger(tmp_path / "out").accepted == 0
    assert away.produced == []
    away.away = False
    local.run()
    ids = {row["event_id"] for row in rows(tmp_path / "out", "events")}
    assert {sent for _, _, sent in clean.produced} == ids
    places = {(row["origin"], row["origin_position"]) for row in rows(tmp_path / "out", "quarantine")}
    sent = [orjson.loads(value) for _, value, _ in bad.produced]
    assert {(d["origin"], d["origin_position"]) for d in sent} == places
    totals = read_stream_ledger(tmp_path / "out")
    assert (totals.rows_in, totals.balanced, totals.drained) == (160, True, True)


def test_a_bundle_ends_after_its_rows_are_delivered(tmp_path: Path, key: Path, warm: None) -> None:
    local, clean, bad = stream(tmp_path, key)
    bad.away = True
    with pytest.raises(DeliveryError, match=r"records are not delivered after 240 s; is a broker away\?"):
        local.heartbeat()
    bad.away = False
    before = local.heartbeat()
    assert len(bad.produced) > 0
    clean.away = True
    messages = [(key, value) for stage, key, value in before if stage == SHARD and key == 0]
    with pytest.raises(DeliveryError):
        local.bundle(SHARD, *messages)
    assert local.state(SHARD, 0).cell is None
