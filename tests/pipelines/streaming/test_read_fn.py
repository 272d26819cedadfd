from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.connectors.map_fields import compile_mapping
from headrace.connectors.stream_entries import FilesEntry, PollEntry, unpack
from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.pipelines.streaming.read_fn import TICK, TICK_SECONDS
from headrace.pipelines.streaming.stream_task import DRAIN, FINISH
from headrace.transforms.base import Outcome
from headrace.transforms.stream_message import Message
from tests.pipelines.runs import event, lines, rows
from tests.pipelines.streaming.line_source import LineSource
from tests.pipelines.streaming.local import COMMIT, NOW, NOW_US, READ, SHARD, Local, Sent, make_task


@pytest.fixture
def source(tmp_path: Path) -> LineSource:
    path = tmp_path / "events"
    bad = event(100, timestamp="never")
    path.write_bytes(lines([*(event(number) for number in range(20)), bad]))
    return LineSource(str(path), NOW, partitions=2, per_poll=6)


@pytest.fixture
def local(source: LineSource, tmp_path: Path, key: Path, warm: None) -> Local:
    return Local(make_task(tmp_path / "out", source, key, shards=3))


def messages(sent: list[Sent]) -> list[Message]:
    return [Message.unpack(value) for stage, _, value in sent if stage == SHARD]


def entries(sent: list[Sent]) -> list[Any]:
    return [e for stage, _, value in sent if stage == COMMIT and value != TICK for e in unpack(value)]


def polls(sent: list[Sent]) -> list[PollEntry]:
    return [e for e in entries(sent) if isinstance(e, PollEntry)]


def ids(sent: list[Sent]) -> list[str]:
    return sorted(
        i for m in messages(sent) if m.batch is not None for i in m.batch.column("event_id").to_pylist()
    )


def test_every_poll_sends_one_message_to_every_shard(local: Local) -> None:
    sent = local.heartbeat()
    assert [(m.reader, m.shard, m.poll) for m in messages(sent)] == [(0, shard, 0) for shard in range(3)]
    assert [key for stage, key, _ in sent if stage == SHARD] == [0, 1, 2]
    (poll,) = polls(sent)
    assert (poll.reader, poll.poll, poll.rows_in, poll.rejected_by_reader) == (0, 0, 6, 0)
    assert sum(poll.rows_to_shard.values()) == 6 == len(ids(sent))
    assert sum(read.records for read in poll.reads) == 6 and poll.behind == 15
    assert poll.receipt and not poll.final
    assert [m.poll for m in messages(local.heartbeat())] == [1, 1, 1]


def test_after_a_crash_the_same_polls_come_again(local: Local) -> None:
    first = local.heartbeat()
    saved = local.checkpoint()
    second, third = local.heartbeat(), local.heartbeat()
    local.restore(saved)
    again = local.heartbeat(), local.heartbeat()
    for before, after in zip((second, third), again, strict=True):
        assert ids(before) == ids(after) and not set(ids(before)) & set(ids(first))
        assert [(p.poll, p.reads, p.position) for p in polls(before)] == [
            (p.poll, p.reads, p.position) for p in polls(after)
        ]


def test_a_reader_that_is_ahead_of_the_state_is_opened_again(local: Local) -> None:
    """The bundle after the poll has failed: the process has read on, the state has not."""
    saved = local.state(READ, 0).copy()
    lost = local.heartbeat()
    local.states[READ, 0] = saved
    assert ids(local.heartbeat()) == ids(lost)
    assert local.reader().poll == 1


def test_rejected_rows_are_quarantined_and_counted(local: Local) -> None:
    for _ in range(4):
        sent = local.heartbeat()
    (poll,) = polls(sent)
    assert (poll.rows_in, poll.rejected_by_reader) == (3, 1)
    (files,) = [e for e in entries(sent) if isinstance(e, FilesEntry)]
    assert (files.table, files.files[0].rows) == ("quarantine", 1)
    assert files.files[0].stats["by_reason"] == {"validate": {"format": 1}}


def test_the_end_of_a_trial_by_time(local: Local) -> None:
    for _ in range(4):
        assert not any(m.final for m in messages(local.heartbeat()))
    last = local.heartbeat()
    assert all(m.final for m in messages(last)) and polls(last)[0].final and polls(last)[0].rows_in == 0
    assert local.reader().ended
    assert [value for _, _, value in local.heartbeat()] == [TICK]


def test_a_reader_waits_between_two_polls_unless_more_is_there_than_it_has_just_read(
    source: LineSource, tmp_path: Path, key: Path, warm: None
) -> None:
    task = make_task(tmp_path / "out", source, key, until_us=None, poll_seconds=3600.0)
    local = Local(task)
    assert [poll.rows_in for _ in range(6) for poll in polls(local.heartbeat())] == [6, 6, 6]
    assert [entries(local.heartbeat()) for _ in range(3)] == [[], [], []]
    task.control.ask(DRAIN)
    assert [poll.rows_in for poll in polls(local.heartbeat())] == [0]
    assert local.reader().ended


def test_until_is_not_before_its_time(source: LineSource, tmp_path: Path, key: Path, warm: None) -> None:
    local = Local(make_task(tmp_path / "out", source, key, until_us=NOW_US + 60_000_000))
    for _ in range(8):
        local.heartbeat()
    assert not local.reader().ended
    local.now += 60_000_000
    local.heartbeat()
    assert local.reader().ended


@pytest.mark.parametrize("readers", [1, 2])
def test_the_end_of_a_trial_by_number(
    readers: int, source: LineSource, tmp_path: Path, key: Path, warm: None
) -> None:
    local = Local(make_task(tmp_path / "out", source, key, readers=readers, max_events=8, until_us=None))
    local.run()
    totals = read_stream_ledger(tmp_path / "out")
    assert (totals.rows_in, totals.readers_at_end) == (8, readers)


@pytest.mark.parametrize(("asked", "final"), [(DRAIN, False), (FINISH, True)])
def test_the_launcher_ends_the_reading(asked: str, final: bool, local: Local) -> None:
    local.heartbeat()
    local.task.control.ask(asked)
    sent = local.heartbeat()
    assert [m.final for m in messages(sent)] == [final] * 3
    (poll,) = polls(sent)
    assert (poll.rows_in, poll.final, poll.receipt) == (0, True, "")
    assert local.reader().ended and [v for _, _, v in local.heartbeat()] == [TICK]
    local.task.control.clear()
    assert [v for _, _, v in local.heartbeat()] == [TICK]


def test_the_next_run_reads_on(local: Local, source: LineSource, tmp_path: Path, key: Path) -> None:
    local.heartbeat()
    local.task.control.ask(DRAIN)
    local.heartbeat()
    local.task.control.clear()
    saved = local.checkpoint()
    local.task = make_task(tmp_path / "out", source, key, shards=3, run="second")
    local.restore(saved)
    sent = local.heartbeat()
    assert [p.poll for p in polls(sent)] == [2] and len(ids(sent)) == 6


def test_a_reader_with_nothing_to_read_is_heard_now_and_then(
    source: LineSource, tmp_path: Path, key: Path, warm: None
) -> None:
    local = Local(make_task(tmp_path / "out", source, key, shards=3, until_us=None))
    for _ in range(4):
        local.heartbeat()
    step = round(TICK_SECONDS * 1e6) // 2
    kinds = []
    for _ in range(6):
        local.now += step
        kinds.append(len(local.bundle(READ, (0, b""))))
    assert kinds == [1, 4, 1, 4, 1, 4]


def test_records_are_mapped(tmp_path: Path, key: Path, warm: None) -> None:
    path = tmp_path / "events"
    path.write_bytes(
        b'{"nr": "00000000-0000-4000-8000-000000000001", "at": "2026-01-05T12:00:00Z", "what": "click", "who": "jane"}\n'
    )
    mapping = compile_mapping(
        {
            "metadata.event_id": "nr",
            "metadata.timestamp": "at",
            "payload.event_type": "what",
            "user.id": "who",
        }
    )
    local = Local(make_task(tmp_path / "out", LineSource(str(path), NOW, partitions=1), key, mapping=mapping))
    local.run()
    totals = read_stream_ledger(tmp_path / "out")
    assert (totals.rows_in, totals.accepted) == (1, 1), totals.rejected
    (row,) = rows(tmp_path / "out", "events")
    assert (row["event_id"][-1], row["event_type"]) == ("1", "click") and row["user_id"] != "jane"


class Bug:
    """A stage that fails on some events."""

    name = "validate"

    def __init__(self, *ids: str) -> None:
        self.counts: Counter[str] = Counter()
        self.ids = ids

    def setup(self) -> None: ...

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        found = batch.column("event_id").to_pylist()
        if not self.ids or set(self.ids) & set(found):
            raise RuntimeError("jane.doe@example.org")
        return Outcome(batch, batch.slice(0, 0))


def with_bug(local: Local, bug: Bug, after: int = 1) -> None:
    """Puts a stage behind the first ones of the reader."""
    fn = local.fn(READ, 0)
    fn._kernels = [*fn._kernels[:after], bug, *fn._kernels[after:]]


def test_just_the_events_on_which_a_stage_fails_are_poison(local: Local) -> None:
    with_bug(local, Bug(event(3)["event_id"], event(8)["event_id"]))
    local.run()
    totals = read_stream_ledger(local.task.output)
    assert totals.balanced and totals.rejected["validate"]["poison"] == 2
    assert (totals.rows_in, totals.accepted) == (21, 18)
    poison = [r for r in rows(Path(local.task.output), "quarantine") if r["reason"] == "poison"]
    opened = [local.task.definition.key.unseal(r["document"]) for r in poison]
    assert sorted(opened) == sorted(lines([event(n)]).strip() for n in (3, 8))
    for path in Path(local.task.output).rglob("*.parquet"):
        content = pa.OSFile(str(path)).read()
        assert b"user-" not in content and b"jane.doe" not in content


def test_a_poll_that_fails_each_time_is_quarantined_whole(local: Local) -> None:
    """More events fail than can be poison: the bundle fails, and so it does after each restart."""
    path = Path(local.task.source.path)  # type: ignore[attr-defined]
    path.write_bytes(lines(event(n) for n in range(100)))
    local.task.source.__dict__["per_poll"] = 80
    for _ in range(local.task.poison_attempts):
        with_bug(local, Bug())
        with pytest.raises(RuntimeError):
            local.heartbeat()
        local.forget()
    local.run()
    totals = read_stream_ledger(local.task.output)
    assert totals.balanced and totals.rejected == {"decode": {"poison": 80}}
    assert (totals.rows_in, totals.accepted) == (100, 20)
