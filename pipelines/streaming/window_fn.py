"""The third stage: partials of the window tables to their firings and their late rows."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from headrace.connectors.stream_entries import JOB, EndEntry, Entry, LateEntry, MetricEntry, TakenEntry, pack
from headrace.pipelines.streaming.read_fn import COMMIT_KEY, Keyed
from headrace.pipelines.streaming.seed import PANE_BITS, SHARD
from headrace.pipelines.streaming.stream_task import StreamTask
from headrace.transforms.beam_shard_state import StatefulShardFn
from headrace.transforms.shard_state import ShardState
from headrace.transforms.stream_clock import END
from headrace.transforms.stream_message import unpack_all
from headrace.transforms.window_shard import WindowShard
from headrace.transforms.window_state import SLOTS


class WindowFn(StatefulShardFn, slots=SLOTS):
    """(window shard, packed Messages) → (0, packed entries): results of windows that fired, and rows that came too late."""

    def __init__(self, task: StreamTask) -> None:
        self._task = task

    def setup(self) -> None:
        self._shards: dict[int, WindowShard] = {}

    def handle(self, key: int, value: bytes, state: ShardState, **more: object) -> Iterator[Keyed]:
        messages = unpack_all(value)
        firing = self._shard(key).receive_many(messages, state)
        entries: list[Entry] = [
            MetricEntry.of(name, self._numbered(rows)) for name, rows in firing.rows.items()
        ]
        for name, rows in firing.late.items() if not messages[0].seed else ():
            late = rows.append_column(JOB, pa.repeat(self._task.job, rows.num_rows))
            late = late.append_column(SHARD, pa.repeat(pa.scalar(key, pa.int32()), rows.num_rows))
            entries.append(LateEntry.of(name, late))
        if firing.watermark == END:
            entries.append(EndEntry(key))
        before, after = firing.taken
        if entries or before != after:
            yield COMMIT_KEY, pack([*entries, TakenEntry(key, before, after)])

    def _numbered(self, rows: pa.Table) -> pa.Table:
        """Puts the panes of this job after those of the jobs before it."""
        at = rows.schema.get_field_index("pane_index")
        index = pc.add_checked(
            rows.column(at).cast(pa.int64()), pa.scalar(self._task.number << PANE_BITS, pa.int64())
        )
        return rows.set_column(at, "pane_index", index)

    def _shard(self, key: int) -> WindowShard:
        if key not in self._shards:
            task = self._task
            closed = {} if task.seed is None else task.seed.closed
            self._shards[key] = WindowShard(
                dict(task.metrics),
                task.readers,
                task.shards,
                task.allowed_lateness_us,
                task.early_seconds,
                accumulation=task.accumulation,
                window_shard=key,
                closed_until_us={name: ends[key] for name, ends in closed.items()},
            )
        return self._shards[key]
