"""The last stage: what the others wrote becomes rows of the tables, exactly once."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam

from headrace.connectors.commit_state import SLOTS, CommitState, Mark, Ready
from headrace.connectors.commit_stream import StreamCommitter
from headrace.pipelines.streaming.read_fn import TICK
from headrace.pipelines.streaming.stream_task import StreamTask
from headrace.runners.flink_answers import FlinkError, FlinkNotFoundError
from headrace.runners.flink_rest import FlinkRest
from headrace.schemas.errors import InputError
from headrace.transforms.beam_shard_state import StatefulShardFn
from headrace.transforms.shard_state import ShardState

LOOK_US = 200_000
"""How often the runner is asked for its last checkpoint, while something waits for one."""
CLOCK_MARGIN_US = 200_000
"""How far the clocks of JobManager and worker may differ: entries younger than a checkpoint's start by less wait for the next."""

_log = logging.getLogger(__name__)


class CommitFn(StatefulShardFn, slots=SLOTS):
    """(0, packed entries) → number of rows that became visible, after each commit.

    Entries are kept in state and committed once the runner can no longer lose them: on Flink once a checkpoint that was
    triggered after their arrival is complete (docs/decisions/0005); on a runner that tries failed bundles again when the bundle
    is final; and at once on one on which a failed bundle ends the job, which then starts anew from the lake. A commit that is
    repeated after a crash changes nothing. After a commit the source is told which records are safe.
    """

    def __init__(self, task: StreamTask, clock: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._task = task
        self._clock = clock

    def setup(self) -> None:
        task = self._task
        self._epoch = secrets.randbits(63)
        self._committer = StreamCommitter(
            task.output, app_id=task.job, lake_schema=task.definition.lake_schema()
        )
        self._rest = FlinkRest(task.checkpoints) if task.checkpoints else None
        self._flink_job: str | None = None
        self._looked_at = 0
        self._mark: Mark | None = None
        self._lock = threading.Lock()

    def start_bundle(self) -> None:
        self._began = self._clock()

    def handle(
        self, key: int, value: bytes, state: ShardState, *, finalizer: Any = None, **more: object
    ) -> Iterator[int]:
        pending = CommitState(state, self._epoch)
        now = self._clock()
        if value != TICK:
            pending.receive(value, now)
        if self._rest is not None:
            yield from self._after_checkpoint(pending, self._rest, now)
        elif now - self._looked_at >= self._task.commit_us:
            self._looked_at = now
            if self._mark is not None:
                pending.drop(self._mark)
            ready = pending.ready(None)
            if not ready.arrivals:
                return
            if finalizer is None:
                yield self._commit(ready)
            else:
                finalizer.register(lambda: self._commit_final(ready))

    def _after_checkpoint(self, pending: CommitState, rest: FlinkRest, now: int) -> Iterator[int]:
        if now - self._looked_at < LOOK_US:
            return
        self._looked_at = now
        durable = self._durable_until(rest)
        if durable is None:
            return
        ready = pending.ready(durable - CLOCK_MARGIN_US)
        if ready.arrivals:
            rows = self._commit(ready)
            if self._mark is not None:
                pending.drop(self._mark)
            yield rows

    def _durable_until(self, rest: FlinkRest) -> int | None:
        """Asks Flink; while it does not answer nothing is committed, and nothing is lost."""
        try:
            if self._flink_job is None:
                self._flink_job = rest.job_id(self._task.job_name)
            return rest.durable_until(self._flink_job, began=self._began)
        except FlinkNotFoundError:
            self._flink_job = None
        except FlinkError as error:
            _log.warning("%s", error)
        return None

    def _commit_final(self, ready: Ready) -> None:
        """Bundles may become final in another order than they ran: what a later one has committed is done."""
        if self._mark is None or ready.arrivals[-1].seq > self._mark.seq:
            self._commit(ready)

    def _commit(self, ready: Ready) -> int:
        with self._lock:
            committed = self._committer.commit(ready, committed_at=self._clock())
            self._mark = committed.mark or self._mark
        if committed.receipts:
            try:
                self._task.source.acknowledge(committed.receipts)
            except InputError as error:
                _log.warning("%s; its records are in the lake all the same", error)
        return committed.accepted + sum(sum(reasons.values()) for reasons in committed.rejected.values())


class FinalizedCommitFn(CommitFn, slots=SLOTS, more={"finalizer": beam.DoFn.BundleFinalizerParam}):
    """The same for a runner that tries failed bundles again and has no checkpoints: commits when the bundle is final.

    A class of its own because Prism sends every bundle of a step with this parameter to be finalized, and Beam's worker answers
    those that asked for nothing with an error.
    """
