"""The third stage: partials of one window table to its firings and its late rows."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from headrace.connectors.stream_entries import JOB, EndEntry, Entry, LateEntry, MetricEntry, pack
from headrace.pipelines.streaming.read_fn import COMMIT_KEY, Keyed
from headrace.pipelines.streaming.seed import PANE_BITS, SHARD
from headrace.pipelines.streaming.stream_task import StreamTask
from headrace.transforms.beam_shard_state import StatefulShardFn
from headrace.transforms.shard_state import ShardState
from headrace.transforms.stream_clock import END
from headrace.transforms.stream_message import unpack_all
from headrace.transforms.window_shard import SLOTS, WindowShard


class WindowFn(StatefulShardFn, slots=SLOTS):
    """(window key, packed Messages) → (0, packed entries): results of windows that fired, and rows that came too late."""

    def __init__(self, task: StreamTask) -> None:
        self._task = task

    def setup(self) -> None:
        self._shards: dict[int, WindowShard] = {}

    def handle(self, key: int, value: bytes, state: ShardState, **more: object) -> Iterator[Keyed]:
        metric, window_shard = divmod(key, self._task.window_shards)
        name, _ = self._task.metrics[metric]
        messages = unpack_all(value)
        firing = self._shard(key, metric, window_shard, name).receive_many(messages, state)
        entries: list[Entry] = []
        if firing.rows is not None:
            entries.append(MetricEntry.of(name, self._numbered(firing.rows)))
        if firing.late is not None and not messages[0].seed:
            rows = firing.late.num_rows
            late = firing.late.append_column(JOB, pa.repeat(self._task.job, rows))
            late = late.append_column(SHARD, pa.repeat(pa.scalar(window_shard, pa.int32()), rows))
            entries.append(LateEntry.of(name, late))
        if firing.watermark == END:
            entries.append(EndEntry(key))
        if entries:
            yield COMMIT_KEY, pack(entries)

    def _numbered(self, rows: pa.Table) -> pa.Table:
        """Puts the panes of this job after those of the jobs before it."""
        at = rows.schema.get_field_index("pane_index")
        index = pc.add_checked(
            rows.column(at).cast(pa.int64()), pa.scalar(self._task.number << PANE_BITS, pa.int64())
        )
        return rows.set_column(at, "pane_index", index)

    def _shard(self, key: int, metric: int, window_shard: int, name: str) -> WindowShard:
        if key not in self._shards:
            task = self._task
            self._shards[key] = WindowShard(
                task.metrics[metric][1],
                task.readers,
                task.shards,
                task.allowed_lateness_us,
                task.early_seconds,
                window_shard=window_shard,
                closed_until_us=None if task.seed is None else task.seed.closed[name][window_shard],
            )
        return self._shards[key]
