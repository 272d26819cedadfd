"""The first stage: a reader's polls to masked events by shard, rejects to quarantine files."""

import time
from collections.abc import Callable, Generator, Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path

import pyarrow as pa
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from headrace.connectors.raw_blocks import Block
from headrace.connectors.stream_entries import Entry, PollEntry, pack
from headrace.connectors.stream_source import Poll, Reader
from headrace.pipelines.streaming.bundle_output import BundleOutput
from headrace.pipelines.streaming.poison import Attempts, quarantine_whole, run_kernels
from headrace.pipelines.streaming.reader_state import ReaderState
from headrace.pipelines.streaming.stream_task import DRAIN, FINISH, HOLD, StreamTask
from headrace.schemas.columns import EVENT_SCHEMA
from headrace.transforms.batches import conform, replace
from headrace.transforms.beam_shard_state import StatefulShardFn
from headrace.transforms.dedupe_records import payload_hashes, rows_by_shard
from headrace.transforms.event_clock import EventClock
from headrace.transforms.shard_state import ShardState
from headrace.transforms.stream_message import Message

COMMIT_KEY = 0
PAYLOAD = "_payload"
"""Column of a message's rows: what tells copies of an event from conflicts, as the shards' dedupe needs it."""
TICK = b""
"""To the commit stage: nothing new, but time has passed."""
BUNDLE_SECONDS = 0.3
"""A bundle's outputs move on when it ends, and Prism puts all heartbeats that queued up into the next one: so a bundle reads for
about this long, and its other heartbeats are passed over. One poll is always made."""
FLINK_BUNDLE_SECONDS = 1.0
"""Flink takes a third of a second from one bundle of a reader to the next, so a reader that has to catch up makes longer ones."""
FETCH_SECONDS = 0.02
"""How long a poll waits for the source. The time between two polls passes outside of bundles, so that no checkpoint waits for it;
what sources fetch by themselves arrives meanwhile."""
TICK_SECONDS = 0.2
"""How often the stages hear of a reader that has nothing to read."""

Keyed = tuple[int, bytes]


def to_commit(entries: list[Entry]) -> TaggedOutput:
    """Returns entries for the commit stage as ``finish_bundle`` emits them."""
    return TaggedOutput("commit", WindowedValue((COMMIT_KEY, pack(entries)), MIN_TIMESTAMP, [GlobalWindow()]))


class ReadFn(StatefulShardFn, slots=0):
    """(reader, heartbeat) → main: (shard, packed Message); ``commit``: (0, packed entries).

    A heartbeat is worth as many polls as there are records for, within the bundle's time. A poll is numbered and sends one message
    to every shard. Position and number are in state: after a crash the reader goes on from the last
    checkpoint and numbers the same polls again.
    """

    def __init__(
        self,
        task: StreamTask,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
        bundle_seconds: float = BUNDLE_SECONDS,
    ) -> None:
        self._task = task
        self._clock = clock
        self._bundle_seconds = bundle_seconds

    def setup(self) -> None:
        task = self._task
        self._kernels = task.definition.before_dedupe(task.source.format, stream=True)
        self._open: dict[int, tuple[Reader, str]] = {}
        self._due: dict[int, float] = {}
        self._seeding: tuple[int, Iterator[pa.RecordBatch]] | None = None
        self._output = BundleOutput(task)

    def start_bundle(self) -> None:
        self._entries: list[Entry] = []
        self._output.begin()
        self._spent: dict[int, float] = {}

    def teardown(self) -> None:
        for reader, _ in self._open.values():
            reader.close()
        self._open.clear()
        self._output.close()

    def handle(
        self, key: int, value: bytes, state: ShardState, **more: object
    ) -> Iterator[Keyed | TaggedOutput]:
        if self._spent.get(key, 0.0) >= self._bundle_seconds:
            return
        began = time.monotonic()
        cell = state.read_cell()
        reader = ReaderState.decode(cell) if cell else ReaderState(self._task.positions[key])
        reader.enter(self._task.run)
        before = reader.poll, reader.position
        while self._spent.get(key, 0.0) + time.monotonic() - began < self._bundle_seconds:
            asked = self._task.control.asked()
            if asked == HOLD or reader.ended or not (yield from self._seeded(key, reader)):
                break
            if not asked and time.monotonic() < self._due.get(key, 0.0):
                break
            full = yield from self._step(key, reader, asked)
            if not full:
                break
        if (reader.poll, reader.position) != before:
            state.write_cell(reader.encode())
        if reader.poll == before[0]:
            yield TaggedOutput("commit", (COMMIT_KEY, TICK))
        self._spent[key] = self._spent.get(key, 0.0) + time.monotonic() - began

    def finish_bundle(self) -> Iterator[TaggedOutput]:
        entries = [*self._entries, *self._output.finish()]
        if entries:
            yield to_commit(entries)
        self.start_bundle()

    def _seeded(self, key: int, reader: ReaderState) -> Generator[Keyed, None, bool]:
        """Sends the next batch of what a new job takes over from the lake; True once there is none left."""
        task = self._task
        if task.seed is None or reader.seeded is None:
            return True
        if key:
            # The first reader seeds for all; the others wait until everything it sent has arrived.
            reader.seeded = None if task.control.seeded else reader.seeded
            return reader.seeded is None
        at, batches = self._seeding or (-1, iter(()))
        self._seeding = None
        if at != reader.seeded:
            batches = islice(task.seed.batches(task.output, task.definition), reader.seeded, None)
        batch = next(batches, None)
        by_shard = {} if batch is None else dict(rows_by_shard(batch, task.shards))
        now = self._clock()
        for shard in range(task.shards):
            yield (
                shard,
                Message(key, shard, reader.poll, None, None, now, by_shard.get(shard), seed=True).pack(),
            )
        self._entries.append(
            PollEntry(
                reader=key,
                poll=reader.poll,
                rows_in=0,
                reads=(),
                rejected_by_reader=0,
                rows_to_shard=dict.fromkeys(range(task.shards), 0),
                read_at=now,
                position=reader.position,
                window_shards=task.window_keys,
            )
        )
        reader.poll += 1
        if batch is None:
            reader.seeded = None
            task.control.tell_seed(reader.poll)
            return True
        reader.seeded += 1
        self._seeding = reader.seeded, batches
        return False

    def _step(self, key: int, reader: ReaderState, asked: str | None) -> Generator[Keyed, None, bool]:
        """One poll, without reading if the launcher asked for an end; returns whether there is surely more to read."""
        task = self._task
        wanted = task.poll_rows
        if task.max_events is not None:
            wanted = min(wanted, -(-task.max_events // task.readers) - reader.rows)
        poll = Poll(self._nothing(), reader.position) if asked else self._poll(key, reader, wanted)
        now = self._clock()
        records = poll.batch.num_rows
        reader.position = poll.position
        reader.rows += records
        if not asked:
            reader.observe_ingest(poll.batch, poll.behind, now)
        final = asked == FINISH or (asked is None and self._at_end(reader, poll))
        reader.ended = final or asked == DRAIN
        silent = not records and not poll.receipt and not reader.ended
        if silent and now - reader.sent_at < TICK_SECONDS * 1e6:
            return False
        accepted, rejected = self._process(key, reader.poll, poll.batch)
        clock = self._event_clock(reader.clock)
        if not asked:
            clock.observe(accepted, poll.behind, now)
            reader.clock = clock.to_json()
            reader.behind = sum(poll.behind.values())
        if accepted.num_rows:
            # Once for all shards: the cost of a column does not depend on its rows while they are few.
            accepted = replace(accepted, {PAYLOAD: pa.array(payload_hashes(accepted))})
        by_shard = dict(rows_by_shard(accepted, task.shards))
        for shard in range(task.shards):
            message = Message(
                key,
                shard,
                reader.poll,
                clock.watermark,
                reader.ingest_position,
                now,
                by_shard.get(shard),
                final,
                clock.idle,
            )
            yield shard, message.pack()
        self._entries.append(
            PollEntry(
                reader=key,
                poll=reader.poll,
                rows_in=sum(read.records for read in poll.reads),
                reads=poll.reads,
                rejected_by_reader=rejected,
                rows_to_shard={
                    shard: by_shard[shard].num_rows if shard in by_shard else 0
                    for shard in range(task.shards)
                },
                read_at=now,
                position=poll.position,
                receipt=poll.receipt,
                watermark=clock.watermark,
                behind=reader.behind,
                final=reader.ended,
                window_shards=task.window_keys,
            )
        )
        reader.poll += 1
        reader.sent_at = now
        return records >= wanted

    def _poll(self, key: int, reader: ReaderState, wanted: int) -> Poll:
        """Reads on at the state's position, with the open reader if it stands there."""
        opened, position = self._open.pop(key, (None, ""))
        if opened is not None and position != reader.position:
            opened.close()
            opened = None
        if opened is None:
            opened = self._task.source.open(reader.position)
        began = time.monotonic()
        try:
            poll = opened.poll(wanted, min(self._task.poll_seconds, FETCH_SECONDS))
        except BaseException:
            opened.close()
            raise
        self._open[key] = (opened, poll.position)
        records = poll.batch.num_rows
        if records < wanted and sum(poll.behind.values()) <= records:
            self._due[key] = began + self._task.poll_seconds
        return poll

    def _at_end(self, reader: ReaderState, poll: Poll) -> bool:
        """True once the reader has come to the end that a trial was given."""
        task = self._task
        if task.max_events is not None and reader.rows >= -(-task.max_events // task.readers):
            return True
        if task.until_us is None or self._clock() < task.until_us:
            return False
        caught_up = poll.batch.num_rows == 0 and not any(poll.behind.values())
        return caught_up or (reader.ingest_position or 0) >= task.until_us

    def _event_clock(self, saved: str) -> EventClock:
        delay, idle = timedelta(microseconds=self._task.watermark_delay_us), self._task.idle_us / 1e6
        return EventClock.from_json(saved, delay, idle) if saved else EventClock(delay, idle)

    def _process(self, key: int, number: int, raw: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
        """Returns the masked events of a poll, and how many of its records were rejected."""
        if not raw.num_rows:
            return self._nothing(), 0
        task = self._task
        attempts = Attempts(Path(task.output) / "_control" / task.job / f"reader-{key}.json")
        begun = attempts.begin(number)
        if begun >= task.poison_attempts:
            accepted, rejects = self._nothing(), [quarantine_whole(raw, task.definition.key, begun)]
        else:
            if task.mapping is not None:
                raw = task.mapping.map_block(Block(raw, 0, raw.num_rows)).raw
            accepted, rejects = run_kernels(self._kernels, raw, task.definition.key)
        attempts.end()
        for batch in rejects:
            self._output.reject(batch)
        rejected = sum(batch.num_rows for batch in rejects)
        return accepted if accepted.num_rows else self._nothing(), rejected

    @staticmethod
    def _nothing() -> pa.RecordBatch:
        return conform({}, EVENT_SCHEMA, 0)
