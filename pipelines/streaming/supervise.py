"""Keeping a stream running: start, watch, restart, drain."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from headrace.connectors.atomic_file import OutputError
from headrace.connectors.stream_ledger import StreamTotals, read_stream_ledger
from headrace.connectors.stream_output import JobRecord, StreamOutput
from headrace.pipelines.logs import without_values
from headrace.pipelines.streaming.engine import Engine
from headrace.pipelines.streaming.start import FINISHED
from headrace.pipelines.streaming.stream_progress import StreamProgress
from headrace.pipelines.streaming.stream_task import DRAIN, HOLD, SEEDED, StreamTask
from headrace.schemas.errors import HeadraceError, UntrustedRunError

if TYPE_CHECKING:
    from headrace.pipelines.streaming.telemetry import Event, Telemetry

LOOK_SECONDS = 0.5
DRAIN_SECONDS = 300.0
RESTARTS = 20
"""In a row without a commit between them."""
PAUSE_SECONDS = 5.0
"""At most, before a job is started again; after the first failure one second."""
MOST_IN_FLIGHT = 400_000
"""Rows that are read and in no table yet, beyond which the readers wait until it is half as many."""
ALARM_SECONDS = 30.0
"""How often an alarm that lasts is told."""

_log = logging.getLogger(__name__)


class Supervisor:
    """Runs one job until it has ended as it should.

    Args:
        engine: the runner.
        on_progress: called about twice a second.
        telemetry: told the same.
    """

    def __init__(
        self,
        engine: Engine,
        task: StreamTask,
        record: JobRecord,
        output: StreamOutput,
        *,
        stop: threading.Event,
        on_progress: Callable[[StreamProgress], None] | None = None,
        telemetry: "Telemetry | None" = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine, self._task, self._record, self._output = engine, task, record, output
        self._stop = stop
        self._on_progress = on_progress
        self._telemetry = telemetry
        self._clock = clock
        self._began = time.monotonic()
        self._phase = "starting"
        self._unsaved = False
        self._commits_before = 0
        self._polls_before: dict[int, int] = {}
        self._seen: list[tuple[float, int]] = []
        self.restarts = 0

    def run(self, restore: str | None) -> None:
        """Returns once everything that was read is committed and the job has ended.

        Args:
            restore: savepoint or checkpoint to start from; None: from the task's positions.

        Raises:
            UntrustedRunError: the ledger does not balance, or the drain did not end in time.
            HeadraceError: the runner gave the job up.
        """
        self._task.control.clear()
        self._polls_before = {number: reader.done for number, reader in self._totals().readers.items()}
        in_a_row = 0
        with ExitStack() as stack:
            stack.callback(self._engine.cancel)
            while True:
                self._engine.start(self._task.job_name, restore)
                before = self._commits_before = self._totals().commits
                reason = self._watch()
                if reason is None:
                    break
                in_a_row = 0 if self._totals().commits > before else in_a_row + 1
                restore = self._engine.restore_point()
                if restore is None or in_a_row >= RESTARTS:
                    raise HeadraceError(
                        f"the job has ended: {without_values(reason)}. What is committed is whole; the same command goes on "
                        "from there"
                    )
                self.restarts += 1
                self._tell("restart")
                self._phase = "restarting"
                _log.error("the job has ended: %s; restart %d from %s", reason, self.restarts, restore)
                time.sleep(min(PAUSE_SECONDS, 2.0**in_a_row))
            stack.pop_all()
        self._tell("stop")
        if self._task.control.asked() != DRAIN:
            self._record.layout[FINISHED] = True
        self._remember(self._engine.stop())
        self._output.save()
        self._report()

    def _tell(self, event: "Event") -> None:
        if self._telemetry is not None:
            self._telemetry.event(event)

    def _remember(self, state: str | None) -> None:
        """Saves where the job's state is, for the next launcher; a full disk is no reason to end a job that can wait for room."""
        if state is None or (state == self._record.state and not self._unsaved):
            return
        self._record.state = state
        try:
            self._output.save()
        except OutputError as error:
            if not self._unsaved:
                _log.error("%s", error)
            self._unsaved = True
        else:
            self._unsaved = False

    def _watch(self) -> str | None:
        """Returns None once the job is drained, or why it is no longer running."""
        deadline = None
        quiet_until = 0.0
        while True:
            totals = self._report()
            if not totals.balanced:
                raise UntrustedRunError(
                    f"the ledger does not balance: {totals.fault or totals.equation}. Nothing is committed any more; the job is "
                    "cancelled. Keep the output as evidence and report it as a bug; to go on, start with --rebuild-state-from OUT"
                )
            if self._drained(totals):
                return None
            self._let_others_read(totals)
            self._hold_readers(totals)
            reason = self._engine.ended()
            if reason is not None:
                return reason
            self._remember(self._engine.restore_point())
            alarm = self._engine.alarm()
            if alarm and time.monotonic() >= quiet_until:
                _log.error("%s", alarm)
                self._tell("alarm")
                quiet_until = time.monotonic() + ALARM_SECONDS
            if self._stop.is_set() and deadline is None:
                self._task.control.ask(DRAIN)
                self._phase = "draining"
                deadline = time.monotonic() + DRAIN_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                raise UntrustedRunError(
                    f"what was read is not committed {DRAIN_SECONDS:.0f} s after the readers were told to stop; the job is "
                    "cancelled. Nothing is lost: the same command goes on from the last checkpoint, or from the lake"
                )
            time.sleep(LOOK_SECONDS)

    def _drained(self, totals: StreamTotals) -> bool:
        """True once the ledger has the last poll of every reader in this run, all rows of all polls, and, at the end of the stream,
        the last results of all windows."""
        task = self._task
        if task.until_us is None and task.max_events is None and task.control.asked() in (None, HOLD):
            return False  # The end of the run before may be committed only now.
        ended = [
            number
            for number, reader in totals.readers.items()
            if reader.final and reader.done > self._polls_before.get(number, 0)
        ]
        if not totals.drained or len(ended) != task.readers:
            return False
        return task.control.asked() == DRAIN or totals.windows_ended >= task.window_keys

    def _let_others_read(self, totals: StreamTotals) -> None:
        """Tells the readers that wait for the first one's seed when all of it has arrived."""
        task = self._task
        if task.seed is None or task.readers == 1 or task.control.seeded:
            return
        polls = task.control.seed_polls()
        if polls is not None and 0 in totals.readers and totals.readers[0].done >= polls:
            task.control.ask(SEEDED)

    def _hold_readers(self, totals: StreamTotals) -> None:
        """Lets the readers wait for the stages after them where the runner does not: it would keep what they read in its memory.

        Only without checkpoints: there the workers end with this process, and nobody else could let them go on.
        """
        task = self._task
        if task.checkpoints is None:
            least = MOST_IN_FLIGHT // 2 if task.control.asked() == HOLD else MOST_IN_FLIGHT
            task.control.hold(totals.in_flight > least)

    def _totals(self) -> StreamTotals:
        return read_stream_ledger(self._output.out, positions=False)

    def _report(self) -> StreamTotals:
        totals = self._totals()
        now = self._clock()
        if totals.commits > self._commits_before and self._phase in ("starting", "restarting"):
            self._phase = "running"
        if not self._seen or self._seen[-1][1] != totals.rows_in:
            self._seen = [*self._seen[-9:], (now, totals.rows_in)]
        rate = None
        if len(self._seen) > 1:
            (first, rows), (last, more) = self._seen[0], self._seen[-1]
            rate = (more - rows) / max(last - first, now - last, 1e-3)
        progress = StreamProgress(
            rows=totals.rows_in,
            accepted=totals.accepted,
            rejected=sum(sum(reasons.values()) for reasons in totals.rejected.values()),
            rows_per_second=rate,
            behind=totals.behind,
            watermark_delay_seconds=None if totals.watermark is None else now - totals.watermark.timestamp(),
            committed_seconds=None if totals.last_commit is None else now - totals.last_commit.timestamp(),
            elapsed_seconds=time.monotonic() - self._began,
            phase=self._phase,
        )
        if self._on_progress is not None:
            self._on_progress(progress)
        if self._telemetry is not None:
            self._telemetry.update(progress, totals)
        return totals
