"""Event-time windows of an unbounded PCollection, which :class:`AggregateWindows
<headrace.transforms.aggregate_windows.AggregateWindows>` applies."""

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Literal

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection, TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import Timestamp

from headrace.transforms.beam_shard_state import StatefulShardFn
from headrace.transforms.shard_state import ShardState
from headrace.transforms.window_definitions import Windows
from headrace.transforms.window_shard import Accumulation, WindowShard
from headrace.transforms.window_state import SLOTS

STAGE = "windows"
NAME = "windows"

Rows = Iterator[pa.RecordBatch | TaggedOutput[Literal["late"], pa.RecordBatch]]


class AggregateStream(beam.PTransform):
    """Fires windows as the runner's watermark and clock go on.

    The windows are kept in the state of one key a shard, in the GlobalWindow, where runners drop nothing as late. The guard is the
    :class:`WindowShard <headrace.transforms.window_shard.WindowShard>` itself: a DoFn can't read the watermark, but a timer at the
    time at which a window fires next tells that the watermark has come there.

    Input: (shard, ``partial_with_rows`` of its groups). Output: tagged ``fired`` and ``late``, as in :class:`AggregateWindows`.
    """

    def __init__(
        self,
        windows: Windows,
        allowed_lateness: timedelta,
        early: timedelta,
        accumulation: Accumulation,
    ) -> None:
        super().__init__()
        self._fn = _WindowFn(windows, allowed_lateness, early, accumulation)
        self._fn.shard(0)

    @beam.typehints.no_annotations
    def expand(self, partials: PCollection) -> Any:
        return (
            partials
            | "Unwindowed" >> beam.WindowInto(GlobalWindows())
            | "Fire"
            >> beam.ParDo(self._fn)
            .with_output_types(pa.RecordBatch, late=pa.RecordBatch)
            .with_outputs("late", main="fired")
        )


class _WindowFn(
    StatefulShardFn,
    slots=SLOTS,
    timers={"due": TimeDomain.WATERMARK, "changed": TimeDomain.REAL_TIME},
):
    """(shard, partial) → result rows, and late rows; ``due`` tells the watermark, ``changed`` the time for an early firing."""

    def __init__(
        self, windows: Windows, allowed_lateness: timedelta, early: timedelta, accumulation: Accumulation
    ) -> None:
        self._windows = windows
        self._lateness_us = allowed_lateness // timedelta(microseconds=1)
        self._early_seconds = early.total_seconds()
        self._accumulation = accumulation

    def setup(self) -> None:
        self._shards: dict[int, WindowShard] = {}

    def handle(
        self, key: int, value: pa.RecordBatch, state: ShardState, *, due: Any = None, changed: Any = None
    ) -> Rows:
        yield from self._receive(key, state, due, changed, parts=((0, value),), read_at=_now())

    def fired(
        self,
        timer: str,
        at: Timestamp,
        key: int,
        state: ShardState,
        *,
        due: Any = None,
        changed: Any = None,
    ) -> Rows:
        if timer == "due":
            yield from self._receive(key, state, due, changed, watermark=at.micros, read_at=_now())
        else:
            yield from self._receive(key, state, due, changed, read_at=max(at.micros, _now()))

    def shard(self, key: int) -> WindowShard:
        """Returns a new state machine of a shard, or raises ConfigError."""
        return WindowShard(
            {NAME: self._windows},
            1,
            1,
            self._lateness_us,
            self._early_seconds,
            accumulation=self._accumulation,
            window_shard=key,
        )

    def _receive(self, key: int, state: ShardState, due: Any, changed: Any, **arrived: Any) -> Rows:
        if key not in self._shards:
            self._shards[key] = self.shard(key)
        firing = self._shards[key].receive_next(state, **arrived)
        if firing.due is not None:
            due.set(Timestamp(micros=firing.due))
        if firing.due_at is not None:
            changed.set(Timestamp(micros=firing.due_at))
        for table in firing.rows.values():
            yield from table.drop(["fired_at"]).combine_chunks().to_batches()
        for table in firing.late.values():
            Metrics.counter(f"headrace.{STAGE}", "late").inc(table.num_rows)
            late = table.drop(["reader", "shard", "poll"])
            late = late.append_column("window_shard", pa.repeat(pa.scalar(key, pa.int32()), late.num_rows))
            for batch in late.combine_chunks().to_batches():
                yield TaggedOutput("late", batch)


def _now() -> int:
    """Microseconds since 1970; early firings alone depend on it."""
    return time.time_ns() // 1000
