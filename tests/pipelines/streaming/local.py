"""The stages of a stream over states in memory: any order of delivery, checkpoints, crashes, without a runner."""

import random
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.windowed_value import WindowedValue
from deltalake import DeltaTable

from headrace.pipelines.definition import Definition
from headrace.pipelines.streaming.commit_fn import CommitFn
from headrace.pipelines.streaming.read_fn import TICK, ReadFn
from headrace.pipelines.streaming.reader_state import ReaderState
from headrace.pipelines.streaming.shard_fn import ShardFn
from headrace.pipelines.streaming.stream_task import StreamTask
from headrace.pipelines.streaming.window_fn import WindowFn
from headrace.transforms.keys import Key
from headrace.transforms.shard_state import MemoryState
from headrace.transforms.window_rows import latest_rows
from tests.pipelines.streaming.line_source import LineSource

NOW = datetime(2026, 1, 5, 13, tzinfo=UTC)
NOW_US = round(NOW.timestamp() * 1_000_000)
READ, SHARD, WINDOW, COMMIT = "read", "shard", "window", "commit"
_NEXT = {READ: SHARD, SHARD: WINDOW, WINDOW: COMMIT, COMMIT: ""}

Sent = tuple[str, int, bytes]
"""(stage, key, value) of an element under way."""
Channel = tuple[str, int, str, int]
"""(stage and worker that send, stage and key that receive)."""
Saved = tuple[dict[tuple[str, int], MemoryState], dict[Channel, deque[bytes]]]


def make_task(out: Path, source: LineSource, key: Path, *, readers: int = 1, **changes: Any) -> StreamTask:
    """Returns a task with small numbers that ends at the end of its source, without business rules."""
    out.mkdir(exist_ok=True)
    values: dict[str, Any] = {
        "output": str(out),
        "number": 0,
        "job": "s0001-a",
        "run": "first",
        "source": source,
        "positions": tuple(source.start(readers)),
        "definition": Definition(Key(key)),
        "mapping": None,
        "compression": "zstd",
        "shards": 2,
        "window_shards": 2,
        "horizon": timedelta(hours=24),
        "watermark_delay_us": 30_000_000,
        "idle_us": 60_000_000,
        "allowed_lateness_us": 300_000_000,
        "early_seconds": 0,
        "accumulation": "accumulating",
        "poll_rows": 16_384,
        "poll_seconds": 0.0,
        "commit_us": 1_000_000,
        "poison_attempts": 3,
        "until_us": NOW_US + 1,
    }
    return StreamTask(**{**values, **changes})


class FakeFlink:
    """Answers as Flink's REST interface does to the commit stage."""

    def __init__(self) -> None:
        self.durable: int | None = None

    def job_id(self, name: str) -> str:
        return "0" * 32

    def durable_until(self, job: str, began: int | None = None) -> int | None:
        return self.durable


class Local:
    """Some workers. Between two steps order is kept as Flink's channels do, and no other is.

    Args:
        seed: of the order in which elements move, and of what goes into one bundle.
        flink: what it says is durable is committed, else everything at once.
        workers: of each step; key k is on worker k % workers.
    """

    def __init__(
        self, task: StreamTask, *, seed: int = 0, flink: FakeFlink | None = None, workers: int = 2
    ) -> None:
        self.task = task
        self.now = NOW_US
        self.flink = flink
        self.workers = workers
        self.states: dict[tuple[str, int], MemoryState] = {}
        self.channels: dict[Channel, deque[bytes]] = {}
        self.random = random.Random(seed)
        self.fns: dict[tuple[str, int], Any] = {}

    def fn(self, stage: str, key: int) -> Any:
        """Returns the DoFn that works on the key."""
        at = stage, key % self.workers
        if at not in self.fns:
            task = self.task if self.flink is None else replace(self.task, checkpoints="http://localhost:1")
            self.fns[at] = fn = {
                READ: lambda: ReadFn(task, self.clock, 1e9),
                SHARD: lambda: ShardFn(task),
                WINDOW: lambda: WindowFn(task),
                COMMIT: lambda: CommitFn(task, self.clock),
            }[stage]()
            fn.setup()
            if stage == COMMIT and self.flink is not None:
                fn._rest = self.flink
        return self.fns[at]

    def forget(self) -> None:
        """New processes: nothing is left of the old ones' memory."""
        for fn in self.fns.values():
            fn.teardown()
        self.fns = {}

    def clock(self) -> int:
        return self.now

    def state(self, stage: str, key: int) -> MemoryState:
        return self.states.setdefault((stage, key), MemoryState())

    def reader(self, key: int = 0) -> ReaderState:
        cell = self.state(READ, key).cell
        assert cell is not None
        return ReaderState.decode(cell)

    def bundle(self, stage: str, *elements: tuple[int, bytes]) -> list[Sent]:
        """Runs one bundle of (key, value) of one worker; if it fails, state is as before."""
        fn = self.fn(stage, elements[0][0])
        before = {key: self.state(stage, key).copy() for key, _ in elements}
        found: list[Any] = []
        try:
            fn.start_bundle()
            for key, value in elements:
                found += fn.handle(key, value, self.state(stage, key))
            found += fn.finish_bundle() or ()
        except BaseException:
            self.states |= {(stage, key): state for key, state in before.items()}
            raise
        return [] if stage == COMMIT else list(_sent(stage, found))

    def send(self, stage: str, key: int, sent: Iterable[Sent]) -> None:
        for to, to_key, value in sent:
            self.channels.setdefault((stage, key % self.workers, to, to_key), deque()).append(value)

    def heartbeat(self, reader: int = 0) -> list[Sent]:
        """Lets a reader poll, and returns what it sends; it is also sent."""
        self.now += 250_000
        sent = self.bundle(READ, (reader, b""))
        self.send(READ, reader, sent)
        return sent

    def deliver(self) -> bool:
        """Moves some elements as one bundle; False if there are none."""
        waiting = [channel for channel, queue in self.channels.items() if queue]
        if not waiting:
            return False
        _, _, stage, key = self.random.choice(waiting)
        mine = [c for c in waiting if c[2] == stage and c[3] % self.workers == key % self.workers]
        taken: list[tuple[Channel, int]] = []
        elements = []
        for channel in self.random.sample(mine, self.random.randint(1, len(mine))):
            count = self.random.randint(1, len(self.channels[channel]))
            taken.append((channel, count))
            elements += [(channel[3], value) for value in list(self.channels[channel])[:count]]
        sent = self.bundle(stage, *elements)
        for channel, count in taken:
            for _ in range(count):
                self.channels[channel].popleft()
        self.send(stage, key, sent)
        return True

    def settle(self) -> None:
        """Delivers everything that is under way, and commits it."""
        while self.deliver():
            pass
        self.now += 10_000_000
        self.bundle(COMMIT, (0, TICK))

    def ended(self) -> bool:
        return all(
            (READ, r) in self.states and self.states[READ, r].cell is not None and self.reader(r).ended
            for r in range(self.task.readers)
        )

    def run(self, steps: int = 100_000) -> None:
        """Moves things at random until the readers have ended and everything is committed; or for some steps only."""
        for _ in range(steps):
            if self.ended():
                self.settle()
                return
            self.step()

    def step(self) -> None:
        if self.random.random() < 0.3 or not self.deliver():
            self.heartbeat(self.random.randrange(self.task.readers))

    def checkpoint(self) -> Saved:
        """Returns a copy of all states and of what is under way."""
        return (
            {key: state.copy() for key, state in self.states.items()},
            {channel: deque(queue) for channel, queue in self.channels.items()},
        )

    def restore(self, saved: Saved) -> None:
        """Goes on from a checkpoint, in new processes."""
        self.states = {key: state.copy() for key, state in saved[0].items()}
        self.channels = {channel: deque(queue) for channel, queue in saved[1].items()}
        self.forget()


def latest(out: Path, name: str) -> list[dict[str, Any]]:
    """Returns the rows of a window table that count."""
    return latest_rows(DeltaTable(str(out / "metrics" / name)).to_pyarrow_table()).to_pylist()


def check_windows(out: Path) -> None:
    """Holds the window table of events against the lake: each row of the lake is in one window's final result, or late."""
    expected: Counter[Any] = Counter()
    for row in (
        DeltaTable(str(out / "events")).to_pyarrow_table(columns=["event_time", "event_type"]).to_pylist()
    ):
        expected[row["event_time"].replace(second=0, microsecond=0), row["event_type"]] += 1
    found: Counter[Any] = Counter()
    for row in latest(out, "events_per_minute"):
        assert row["is_final"], row
        assert (row["window_start"], row["event_type"]) not in found
        found[row["window_start"], row["event_type"]] = row["events"]
    if (out / "late" / "events_per_minute").exists():
        for row in DeltaTable(str(out / "late" / "events_per_minute")).to_pyarrow_table().to_pylist():
            found[row["window_start"], row["event_type"]] += row["rows"]
    wrong = {k: (found[k], expected[k]) for k in found | expected if found[k] != expected[k]}
    assert not wrong, wrong


def _sent(stage: str, found: Iterable[Any]) -> Iterable[Sent]:
    for each in found:
        tagged = isinstance(each, TaggedOutput)
        value = each.value if tagged else each
        if isinstance(value, WindowedValue):
            value = value.value
        yield COMMIT if tagged else _NEXT[stage], *value
