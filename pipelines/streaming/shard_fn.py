"""The second stage: a shard's masked events to the lake's files and window partials."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from headrace.connectors.stream_entries import EVENTS, QUARANTINE, Entry, FilesEntry, ShardEntry
from headrace.connectors.write_lake import PartitionedWriter
from headrace.connectors.write_quarantine import QuarantineWriter
from headrace.pipelines.definition import MASKED_STAGES
from headrace.pipelines.streaming.poison import run_kernels
from headrace.pipelines.streaming.read_fn import Keyed, to_commit
from headrace.pipelines.streaming.seed import has_ids
from headrace.pipelines.streaming.stream_task import StreamTask
from headrace.schemas.columns import EVENT_SCHEMA
from headrace.transforms.batches import conform
from headrace.transforms.beam_shard_state import StatefulShardFn
from headrace.transforms.dedupe_shard import SLOTS, DedupeShard
from headrace.transforms.shard_state import ShardState
from headrace.transforms.stream_message import Message
from headrace.transforms.window_rows import partial_with_rows, split_partial


class ShardFn(StatefulShardFn, slots=SLOTS):
    """(shard, packed Message) → main: (window key, packed Message); ``commit``: (0, packed entries).

    Rows are deduplicated against the shard's state, enriched, held against the rules, and written to files of the lake and the
    quarantine that count from their commit on. Every message is answered with one to each shard of each window table.
    """

    def __init__(self, task: StreamTask) -> None:
        self._task = task

    def setup(self) -> None:
        task = self._task
        self._kernels = task.definition.after_dedupe()
        self._dedupe: dict[int, DedupeShard] = {}
        self._nothing = conform({}, EVENT_SCHEMA, 0)
        self._metrics = task.metrics

    def start_bundle(self) -> None:
        self._entries: list[Entry] = []
        self._lake: PartitionedWriter | None = None
        self._quarantine: QuarantineWriter | None = None

    def handle(self, key: int, value: bytes, state: ShardState, **more: object) -> Iterator[Keyed]:
        message = Message.unpack(value)
        if message.seed:
            yield from self._seed(key, message, state)
            return
        outcome = self._deduper(key).decide(
            self._nothing if message.batch is None else message.batch,
            state,
            reader=message.reader,
            ingest_position=message.ingest_position,
        )
        accepted, rejects = outcome.accepted, [outcome.rejected]
        if accepted.num_rows:
            accepted, of_rules = run_kernels(self._kernels, accepted, self._task.definition.key)
            rejects += of_rules
        rejected = 0
        for batch in rejects:
            if batch.num_rows:
                rejected += batch.num_rows
                self._quarantine_writer().write(batch)
        if accepted.num_rows:
            self._lake_writer().write(accepted)
        self._entries.append(ShardEntry(message.reader, message.poll, key, accepted.num_rows, rejected))
        yield from self._to_windows(key, message, accepted)

    def _seed(self, key: int, message: Message, state: ShardState) -> Iterator[Keyed]:
        """Takes rows of the lake over into the state; they are in no file and no count of this job."""
        rows = self._nothing if message.batch is None else message.batch
        if has_ids(rows):
            self._deduper(key).seed(rows, state)
            rows = self._nothing
        self._entries.append(ShardEntry(message.reader, message.poll, key, 0, 0))
        yield from self._to_windows(key, message, rows)

    def finish_bundle(self) -> Iterator[TaggedOutput]:
        entries = self._entries
        if self._lake is not None:
            entries.append(FilesEntry(EVENTS, tuple(self._lake.close())))
        if self._quarantine is not None:
            entries.append(FilesEntry(QUARANTINE, tuple(self._quarantine.close())))
        if entries:
            yield to_commit(entries)
        self.start_bundle()

    def _deduper(self, shard: int) -> DedupeShard:
        if shard not in self._dedupe:
            task = self._task
            self._dedupe[shard] = DedupeShard(
                f"{task.output} {task.job}", shard, readers=task.readers, horizon=task.horizon
            )
        return self._dedupe[shard]

    def _to_windows(self, shard: int, message: Message, accepted: pa.RecordBatch) -> Iterator[Keyed]:
        task = self._task
        for number, (_, windows) in enumerate(self._metrics):
            parts: list[pa.RecordBatch | None] = [None] * task.window_shards
            if accepted.num_rows:
                parts = split_partial(partial_with_rows(accepted, windows), windows, task.window_shards)
            for window_shard, part in enumerate(parts):
                answer = Message(
                    message.reader,
                    shard,
                    message.poll,
                    message.watermark,
                    message.ingest_position,
                    message.read_at,
                    part,
                    message.final,
                    message.idle,
                    message.seed,
                )
                yield task.window_key(number, window_shard), answer.pack()

    def _lake_writer(self) -> PartitionedWriter:
        if self._lake is None:
            task = self._task
            self._lake = PartitionedWriter(
                Path(task.output) / "events",
                partition="event_date",
                name=f"{task.job}-{uuid4().hex}",
                compression=task.compression,
            )
        return self._lake

    def _quarantine_writer(self) -> QuarantineWriter:
        if self._quarantine is None:
            task = self._task
            self._quarantine = QuarantineWriter(
                Path(task.output) / "quarantine",
                f"{task.job}-{uuid4().hex}",
                masked_stages=MASKED_STAGES,
                compression=task.compression,
            )
        return self._quarantine
