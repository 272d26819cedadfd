"""The second stage: a shard's masked events to the lake's files and window partials."""

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace as with_

import numpy as np
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from headrace.connectors.stream_entries import Entry, ShardEntry
from headrace.pipelines.streaming.bundle_output import BundleOutput
from headrace.pipelines.streaming.poison import run_kernels
from headrace.pipelines.streaming.read_fn import PAYLOAD, Keyed, to_commit
from headrace.pipelines.streaming.seed import has_ids
from headrace.pipelines.streaming.stream_task import StreamTask
from headrace.schemas.columns import EVENT_SCHEMA
from headrace.transforms.batches import concat, conform, drop, replace
from headrace.transforms.beam_shard_state import StatefulShardFn
from headrace.transforms.dedupe_shard import SLOTS, DedupeShard
from headrace.transforms.grouping import Rows
from headrace.transforms.shard_state import ShardState
from headrace.transforms.stream_message import Message, pack_all
from headrace.transforms.window_rows import partial_with_rows, split_partial

MOST_ROWS = 1 << 16
"""Unique rows that are held until the bundle ends; with more the work on them is done at once."""
_MESSAGE = "_message"
"""Column with the place of a row's message in the bundle, while its row goes through the kernels."""


@dataclass(frozen=True)
class _Judged:
    """A message whose rows the shard's state has judged."""

    answer: Message
    """To the window tables, without rows."""
    rows: int
    unique: pa.RecordBatch


class ShardFn(StatefulShardFn, slots=SLOTS):
    """(shard, packed Message) → main: (window shard, packed Messages); ``commit``: (0, packed entries).

    Rows are deduplicated against the shard's state, enriched, held against the rules, and written to files of the lake and the
    quarantine that count from their commit on. Every message is answered with one to each window shard. A bundle
    ends once the sinks have its rows.

    Only the state is worked on message by message; the rest is done once for all rows of the bundle, whatever shard and poll they
    are of. So the answers of a bundle travel together, and one shard's answer brings the partials of all rows that the bundle
    has of a poll: never after the clock of that poll, which waits for the answers of all shards.
    """

    def __init__(self, task: StreamTask) -> None:
        self._task = task

    def setup(self) -> None:
        task = self._task
        self._kernels = task.definition.after_dedupe()
        self._dedupe: dict[int, DedupeShard] = {}
        self._nothing = conform({}, EVENT_SCHEMA, 0)
        self._metrics = task.metrics
        self._output = BundleOutput(task)

    def teardown(self) -> None:
        self._output.close()

    def start_bundle(self) -> None:
        self._entries: list[Entry] = []
        self._judged: list[_Judged] = []
        self._rejects: list[pa.RecordBatch] = []
        self._output.begin()

    def handle(self, key: int, value: bytes, state: ShardState, **more: object) -> Iterator[Keyed]:
        message = Message.unpack(value)
        if message.seed:
            yield from self._seed(key, message, state)
            return
        rows = self._nothing if message.batch is None else message.batch
        payload = None
        if PAYLOAD in rows.schema.names:
            payload = rows.column(PAYLOAD).to_numpy()
            rows = drop(rows, PAYLOAD)
        outcome = self._deduper(key).decide(
            rows,
            state,
            reader=message.reader,
            ingest_position=message.ingest_position,
            payload=payload,
        )
        answer = with_(message, shard=key, batch=None)
        self._judged.append(_Judged(answer, rows.num_rows, outcome.accepted))
        if outcome.rejected.num_rows:
            self._rejects.append(outcome.rejected)
        if sum(judged.unique.num_rows for judged in self._judged) >= MOST_ROWS:
            yield from self._work()

    def _seed(self, key: int, message: Message, state: ShardState) -> Iterator[Keyed]:
        """Takes rows of the lake over into the state; they are in no file and no count of this job."""
        rows = self._nothing if message.batch is None else message.batch
        if has_ids(rows):
            self._deduper(key).seed(rows, state)
            rows = self._nothing
        self._entries.append(ShardEntry(message.reader, message.poll, key, 0, 0))
        answer = with_(message, shard=key, batch=None)
        yield from self._to_windows([([answer], rows)])

    def finish_bundle(self) -> Iterator[WindowedValue | TaggedOutput]:
        for keyed in self._work():
            yield WindowedValue(keyed, MIN_TIMESTAMP, [GlobalWindow()])
        entries = [*self._entries, *self._output.finish()]
        if entries:
            yield to_commit(entries)
        self.start_bundle()

    def _work(self) -> Iterator[Keyed]:
        """Does what is left to do for the messages that were judged, and answers them."""
        judged, rejects = self._judged, self._rejects
        self._judged, self._rejects = [], []
        kept = np.zeros(len(judged), np.int64)
        rows = self._nothing
        messages = np.repeat(
            np.arange(len(judged), dtype=np.int32), [each.unique.num_rows for each in judged]
        )
        if len(messages):
            unique = concat([each.unique for each in judged if each.unique.num_rows])
            rows, of_rules = run_kernels(
                self._kernels, replace(unique, {_MESSAGE: pa.array(messages)}), self._task.definition.key
            )
            rejects += of_rules
            messages = rows.column(_MESSAGE).to_numpy()
            kept = np.bincount(messages, minlength=len(judged))
            rows = drop(rows, _MESSAGE)
        if rejects:
            self._output.reject(concat(rejects))
        self._output.accept(rows)
        for each, accepted in zip(judged, kept.tolist(), strict=True):
            answer = each.answer
            self._entries.append(
                ShardEntry(answer.reader, answer.poll, answer.shard, accepted, each.rows - accepted)
            )
        by_poll: dict[tuple[int, int], list[int]] = {}
        for place, each in enumerate(judged):
            by_poll.setdefault((each.answer.reader, each.answer.poll), []).append(place)
        answers = []
        for places in by_poll.values():
            mine = rows
            if rows.num_rows and len(by_poll) > 1:
                mine = rows.filter(pa.array(np.isin(messages, places)))
            answers.append(([judged[place].answer for place in places], mine))
        if answers:
            yield from self._to_windows(answers)

    def _deduper(self, shard: int) -> DedupeShard:
        if shard not in self._dedupe:
            task = self._task
            self._dedupe[shard] = DedupeShard(
                f"{task.output} {task.job}", shard, readers=task.readers, horizon=task.horizon
            )
        return self._dedupe[shard]

    def _to_windows(self, polls: list[tuple[list[Message], pa.RecordBatch]]) -> Iterator[Keyed]:
        """Sends the answers of some polls to every window shard; the first of a poll brings its rows' partials of all tables."""
        task = self._task
        sent: list[list[Message]] = [[] for _ in range(task.window_keys)]
        for answers, rows in polls:
            parts = self._partials(rows)
            for messages, mine in zip(sent, parts, strict=True):
                messages += [with_(answers[0], batch=None, parts=tuple(mine)), *answers[1:]]
        for window_shard, messages in enumerate(sent):
            yield window_shard, pack_all(messages)

    def _partials(self, rows: pa.RecordBatch) -> list[list[tuple[int, pa.RecordBatch]]]:
        """Returns for each window shard its partials, with the numbers of their tables."""
        parts: list[list[tuple[int, pa.RecordBatch]]] = [[] for _ in range(self._task.window_keys)]
        shared = Rows(rows)
        for number, (_, windows) in enumerate(self._metrics if rows.num_rows else ()):
            found = split_partial(partial_with_rows(shared, windows), windows, self._task.window_shards)
            for mine, part in zip(parts, found, strict=True):
                if part is not None:
                    mine.append((number, part))
        return parts
