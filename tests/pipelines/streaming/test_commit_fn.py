import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake import DeltaTable

from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.pipelines.definition import Definition
from headrace.pipelines.streaming.commit_fn import CLOCK_MARGIN_US, LOOK_US, CommitFn, FinalizedCommitFn
from headrace.pipelines.streaming.read_fn import TICK
from headrace.pipelines.streaming.stream_task import StreamTask
from headrace.runners.flink_answers import FlinkError, FlinkNotFoundError, FlinkUnreachableError
from headrace.schemas.errors import InputError, UntrustedRunError
from headrace.transforms.keys import Key
from headrace.transforms.shard_state import MemoryState
from tests.connectors.small_stream import NOON, SmallStream
from tests.pipelines.streaming.line_source import LineSource
from tests.pipelines.streaming.local import NOW_US, make_task


class Flink:
    """Answers what it is told to; notes what it is asked."""

    def __init__(self) -> None:
        self.durable: int | None = None
        self.fails: FlinkError | None = None
        self.asked: list[tuple[str, int | None]] = []
        self.names: list[str] = []

    def job_id(self, name: str) -> str:
        self.names.append(name)
        return f"id-{len(self.names)}"

    def durable_until(self, job: str, began: int | None = None) -> int | None:
        self.asked.append((job, began))
        if self.fails is not None:
            raise self.fails
        return self.durable


class Finalizer:
    """Beam's, of one bundle; ``final`` is what a runner calls when the bundle can no longer be taken back."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], object]] = []

    def register(self, callback: Callable[[], object]) -> None:
        self.callbacks.append(callback)

    def final(self) -> None:
        for callback in self.callbacks:
            callback()


class Stage:
    """The commit stage with a small stream before it, and a clock that stands."""

    def __init__(self, out: Path, key: Path, *, flink: Flink | None = None, finalized: bool = False) -> None:
        self.now = NOW_US
        self.state = MemoryState()
        self.stream = SmallStream(out)
        self.receipts = out / "receipts"
        source = LineSource("none", NOON, acknowledged=str(self.receipts))
        self.task: StreamTask = make_task(
            out,
            source,
            key,
            definition=Definition(Key(key)),
            checkpoints="http://localhost:1" if flink else None,
            retries_bundles=finalized,
        )
        self.flink, self.finalized = flink, finalized
        self.fn = self.start()

    def start(self) -> CommitFn:
        """A new process."""
        self.fn = (FinalizedCommitFn if self.finalized else CommitFn)(self.task, lambda: self.now)
        self.fn.setup()
        if self.flink is not None:
            self.fn._rest = self.flink  # type: ignore[assignment]
        return self.fn

    def bundle(self, *values: bytes, finalizer: Finalizer | None = None) -> list[int]:
        self.fn.start_bundle()
        return [
            rows
            for value in values
            for rows in self.fn.handle(
                0, value, self.state, **({"finalizer": finalizer} if finalizer else {})
            )
        ]

    def poll(self) -> list[bytes]:
        self.now += 10_000_000
        return list(self.stream.poll())

    @property
    def rows_in(self) -> int:
        totals = read_stream_ledger(self.task.output, positions=False)
        assert totals.balanced
        return totals.rows_in

    @property
    def acknowledged(self) -> list[str]:
        return self.receipts.read_text().splitlines() if self.receipts.exists() else []


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_without_checkpoints_it_commits_at_once_but_not_more_often_than_asked(out: Path, key: Path) -> None:
    stage = Stage(out, key)
    first, *rest = stage.poll()
    assert stage.bundle(first, *rest) == [
        1
    ]  # The reader's rejected record; the shards' lists came too soon after it.
    assert stage.bundle(*stage.poll()) == [9 + 1]
    stage.now += 10_000_000
    assert stage.bundle(TICK) == [9]
    assert stage.rows_in == 20 and stage.acknowledged == ["receipt 0/0", "receipt 0/1"]
    stage.now += 10_000_000
    assert stage.bundle(TICK) == []


def test_on_flink_it_waits_for_a_checkpoint_that_began_after_the_arrival(out: Path, key: Path) -> None:
    flink = Flink()
    stage = Stage(out, key, flink=flink)
    assert stage.bundle(*stage.poll()) == []
    arrived = stage.now
    for durable in (None, arrived, arrived + CLOCK_MARGIN_US):
        stage.now += LOOK_US
        flink.durable = durable
        assert stage.bundle(TICK) == []
    stage.now += LOOK_US
    flink.durable = arrived + CLOCK_MARGIN_US + 1
    assert stage.bundle(TICK) == [10]
    assert stage.rows_in == 10
    assert flink.names == [stage.task.job_name]


def test_flink_is_asked_at_most_every_fifth_of_a_second(out: Path, key: Path) -> None:
    flink = Flink()
    stage = Stage(out, key, flink=flink)
    stage.bundle(*stage.poll(), TICK, TICK)
    assert len(flink.asked) == 1
    stage.now += LOOK_US
    stage.bundle(TICK, TICK)
    assert len(flink.asked) == 2


def test_flink_is_told_when_the_bundle_began(out: Path, key: Path) -> None:
    """So that a worker that an earlier attempt has left behind publishes nothing."""
    flink = Flink()
    stage = Stage(out, key, flink=flink)
    stage.bundle(*stage.poll())
    assert flink.asked == [("id-1", stage.now)]


@pytest.mark.parametrize("error", [FlinkUnreachableError("nobody answers"), FlinkError("500")])
def test_while_flink_does_not_answer_nothing_is_committed_and_nothing_lost(
    error: FlinkError, out: Path, key: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flink = Flink()
    stage = Stage(out, key, flink=flink)
    flink.durable, flink.fails = NOW_US * 2, error
    with caplog.at_level(logging.WARNING):
        assert stage.bundle(*stage.poll()) == []
    assert str(error) in caplog.text
    flink.fails = None
    stage.now += LOOK_US
    assert stage.bundle(TICK) == [10]
    assert flink.names == [stage.task.job_name]


def test_a_job_that_flink_forgot_is_looked_up_again(
    out: Path, key: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flink = Flink()
    stage = Stage(out, key, flink=flink)
    flink.durable, flink.fails = NOW_US * 2, FlinkNotFoundError("no such job")
    assert stage.bundle(*stage.poll()) == []
    flink.fails = None
    stage.now += LOOK_US
    assert stage.bundle(TICK) == [10]
    assert [job for job, _ in flink.asked] == ["id-1", "id-2"] and not caplog.text


def test_where_bundles_are_tried_again_rows_wait_until_the_bundle_is_final(out: Path, key: Path) -> None:
    stage = Stage(out, key, finalized=True)
    finalizer = Finalizer()
    before = stage.state.copy()
    lists = stage.poll()
    assert stage.bundle(*lists[1:], lists[0], finalizer=finalizer) == []
    assert len(finalizer.callbacks) == 1
    # The bundle fails: its state is taken back, and it is tried again in another process.
    stage.state = before
    stage.start()
    again = Finalizer()
    stage.bundle(*lists, finalizer=again)
    stage.now += 10_000_000
    stage.bundle(TICK, finalizer=again)
    again.final()
    again.final()
    assert stage.rows_in == 10 and stage.acknowledged == ["receipt 0/0"]


def test_a_bundle_that_is_never_said_to_be_final_is_committed_with_a_later_one(out: Path, key: Path) -> None:
    stage = Stage(out, key, finalized=True)
    stage.bundle(*stage.poll(), finalizer=Finalizer())
    stage.bundle(*stage.poll(), finalizer=Finalizer())
    stage.now += 10_000_000
    last = Finalizer()
    stage.bundle(TICK, finalizer=last)
    last.final()
    assert stage.rows_in == 20
    stage.now += 10_000_000
    stage.bundle(TICK, finalizer=Finalizer())
    assert not any(list(stage.state.read_slot(slot)) for slot in range(len(stage.state.slots)))


def test_a_bundle_that_becomes_final_late_changes_nothing(out: Path, key: Path) -> None:
    stage = Stage(out, key, finalized=True)
    early, late = Finalizer(), Finalizer()
    stage.bundle(*stage.poll(), finalizer=early)
    stage.now += 10_000_000
    stage.bundle(TICK, finalizer=late)
    late.final()
    early.final()
    assert stage.rows_in == 10
    assert DeltaTable(str(out / "events")).to_pyarrow_table().num_rows == 8


def test_a_source_that_refuses_a_receipt_does_not_stop_the_stream(
    out: Path, key: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: LineSource, receipts: object) -> None:
        raise InputError("the broker is away")

    monkeypatch.setattr(LineSource, "acknowledge", refuse)
    stage = Stage(out, key)
    stage.bundle(*stage.poll())
    stage.now += 10_000_000
    assert stage.bundle(TICK) == [9]
    assert "the broker is away; its records are in the lake all the same" in caplog.text
    assert stage.rows_in == 10


def test_state_that_is_older_than_the_lake_is_refused(out: Path, key: Path) -> None:
    stage = Stage(out, key)
    old = stage.state.copy()
    stage.bundle(*stage.poll())
    stage.now += 10_000_000
    stage.bundle(TICK)
    stage.state = old
    stage.start()
    with pytest.raises(UntrustedRunError, match="an older savepoint was restored"):
        stage.bundle(stage.poll()[0])
    assert stage.rows_in == 10
