"""Sessions of an unbounded PCollection; :class:`Sessionize <headrace.transforms.sessionize.Sessionize>` applies it."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Literal

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection, TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.utils.timestamp import Timestamp

from headrace.transforms.beam_shard_state import StatefulShardFn
from headrace.transforms.session_definitions import Sessions
from headrace.transforms.session_shard import SLOTS, SessionFiring, SessionShard
from headrace.transforms.shard_state import ShardState

STAGE = "sessions"
BATCH_ROWS = 16_384

Rows = Iterator[pa.RecordBatch | TaggedOutput[Literal["late"], pa.RecordBatch]]


class SessionizeStream(beam.PTransform):
    """Gives out sessions as the runner's watermark finishes them.

    The guard against late rows is the :class:`SessionShard <headrace.transforms.session_shard.SessionShard>`, in the GlobalWindow,
    where runners drop nothing: a timer at the time at which a session may be finished tells that the watermark has come there.

    Input: (shard, rows of its keys). Output: tagged ``finished`` and ``late``.
    """

    def __init__(self, sessions: Sessions, allowed_lateness: timedelta) -> None:
        super().__init__()
        SessionShard(sessions, allowed_lateness)
        self._fn = _SessionFn(sessions, allowed_lateness)

    @beam.typehints.no_annotations
    def expand(self, rows: PCollection) -> Any:
        return rows | "Finish" >> beam.ParDo(self._fn).with_output_types(
            pa.RecordBatch, late=pa.RecordBatch
        ).with_outputs("late", main="finished")


class _SessionFn(StatefulShardFn, slots=SLOTS, timers={"due": TimeDomain.WATERMARK}):
    """(shard, rows) → sessions, and late rows; ``due`` tells the watermark."""

    def __init__(self, sessions: Sessions, allowed_lateness: timedelta) -> None:
        self._sessions = sessions
        self._lateness = allowed_lateness

    def setup(self) -> None:
        self._shards: dict[int, SessionShard] = {}

    def handle(self, key: int, value: pa.RecordBatch, state: ShardState, *, due: Any = None) -> Rows:
        yield from self._rows(self._shard(key).add(value, state), due)

    def fired(self, timer: str, at: Timestamp, key: int, state: ShardState, *, due: Any = None) -> Rows:
        yield from self._rows(self._shard(key).advance(at.micros, state), due)

    def _shard(self, key: int) -> SessionShard:
        if key not in self._shards:
            self._shards[key] = SessionShard(self._sessions, self._lateness)
        return self._shards[key]

    def _rows(self, firing: SessionFiring, due: Any) -> Rows:
        if firing.due is not None:
            due.set(Timestamp(micros=firing.due))
        if firing.sessions is not None:
            Metrics.counter(f"headrace.{STAGE}", "finished").inc(firing.sessions.num_rows)
            yield from firing.sessions.to_batches(max_chunksize=BATCH_ROWS)
        if firing.late is not None:
            Metrics.counter(f"headrace.{STAGE}", "late").inc(firing.late.num_rows)
            yield TaggedOutput("late", firing.late)
