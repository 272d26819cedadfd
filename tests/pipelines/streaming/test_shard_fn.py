from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.connectors.stream_entries import FilesEntry, ShardEntry, unpack
from headrace.transforms.dedupe_records import payload_hashes, rows_by_shard
from headrace.transforms.stream_message import Message, unpack_all
from tests.pipelines.runs import event, lines
from tests.pipelines.streaming.line_source import LineSource
from tests.pipelines.streaming.local import COMMIT, NOW, SHARD, WINDOW, Local, Sent, make_task


@pytest.fixture
def local(tmp_path: Path, key: Path, warm: None) -> Local:
    path = tmp_path / "events"
    path.write_bytes(lines([event(n % 25) for n in range(30)]))
    source = LineSource(str(path), NOW, partitions=1, per_poll=15)
    return Local(make_task(tmp_path / "out", source, key), workers=1)


def messages(sent: list[Sent]) -> list[tuple[int, bytes]]:
    return [(key, value) for stage, key, value in sent if stage == SHARD]


def answers(sent: list[Sent]) -> list[tuple[int, Message]]:
    return [(key, m) for stage, key, value in sent if stage == WINDOW for m in unpack_all(value)]


def counts(sent: list[Sent]) -> dict[tuple[int, int], tuple[int, int]]:
    """{(poll, shard): (accepted, rejected)}; what is counted is what the files of the same list hold."""
    found = {}
    for stage, _, value in sent:
        if stage != COMMIT:
            continue
        entries = unpack(value)
        shards = [e for e in entries if isinstance(e, ShardEntry)]
        files = {e.table: sum(f.rows for f in e.files) for e in entries if isinstance(e, FilesEntry)}
        assert files.get("events", 0) == sum(e.accepted for e in shards)
        assert files.get("quarantine", 0) == sum(e.rejected for e in shards)
        found.update({(e.poll, e.shard): (e.accepted, e.rejected) for e in shards})
    return found


def test_every_message_is_answered_to_every_window_shard(local: Local) -> None:
    sent = local.bundle(SHARD, *messages(local.heartbeat()))
    found = answers(sent)
    assert sorted((key, m.shard, m.poll) for key, m in found) == [
        (key, shard, 0) for key in range(2) for shard in range(2)
    ]
    assert all(m.final is False and m.watermark is not None for _, m in found)
    tables = [name for name, _ in local.task.metrics]
    counted = Counter(dict.fromkeys(tables, 0))
    for _, m in found:
        for number, part in m.parts:
            counted[tables[number]] += sum(part.column("rows").to_pylist())
    assert counted["events_per_minute"] == counted["active_users_1h"] == 15
    assert max(counted.values()) == 15
    assert sum(accepted for accepted, _ in counts(sent).values()) == 15


def test_messages_of_one_bundle_are_counted_poll_by_poll(local: Local) -> None:
    both = messages(local.heartbeat()) + messages(local.heartbeat())
    sent = local.bundle(SHARD, *both)
    found = counts(sent)
    assert sorted(found) == [(poll, shard) for poll in range(2) for shard in range(2)]
    assert [sum(found[poll, s][i] for s in range(2)) for poll in range(2) for i in range(2)] == [15, 0, 10, 5]
    assert sorted({(m.shard, m.poll) for _, m in answers(sent)}) == sorted((s, p) for p, s in found)


def test_a_bundle_that_is_tried_again_gives_the_same(local: Local) -> None:
    first = messages(local.heartbeat())
    local.bundle(SHARD, *first)
    second = messages(local.heartbeat())
    before = {key: local.state(SHARD, key).copy() for key in range(2)}
    once = counts(local.bundle(SHARD, *second))
    local.states |= {(SHARD, key): state for key, state in before.items()}
    assert counts(local.bundle(SHARD, *second)) == once
    assert sum(rejected for _, rejected in once.values()) == 5


def test_seeded_ids_are_known_and_not_counted(local: Local) -> None:
    sent = local.heartbeat()
    for shard, value in messages(sent):
        batch = Message.unpack(value).batch
        assert batch is not None
        ids = pa.RecordBatch.from_arrays(
            [batch.column("event_id"), batch.column("ingest_time"), pa.array(payload_hashes(batch))],
            names=["event_id", "ingest_time", "payload"],
        )
        assert [s for s, _ in rows_by_shard(ids, 2)] == [shard]
        seeded = local.bundle(SHARD, (shard, Message(0, shard, 9, None, None, 0, ids, seed=True).pack()))
        assert counts(seeded) == {(9, shard): (0, 0)}
        assert all(m.seed and not m.parts for _, m in answers(seeded))
    found = counts(local.bundle(SHARD, *messages(sent)))
    assert [sum(v[i] for v in found.values()) for i in range(2)] == [0, 15]
