"""A running job as the supervisor sees it, on a runner that takes checkpoints and on one that does not."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from headrace.runners.checkpoint_files import newest_checkpoint
from headrace.runners.checkpoint_watch import CheckpointWatch
from headrace.runners.flink import require_effect
from headrace.runners.flink_answers import FlinkError, FlinkNotFoundError, FlinkUnreachableError
from headrace.runners.flink_rest import FlinkRest
from headrace.schemas.errors import UntrustedRunError

if TYPE_CHECKING:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

Build = Callable[["PipelineOptions", bool], "beam.Pipeline"]
"""(options, native heartbeats) → pipeline."""
Options = Callable[[str, str | None], "PipelineOptions"]
"""(job name, savepoint or checkpoint to start from) → options, as the runner's profile completes them."""

_ENDED = ("DONE", "FAILED", "CANCELLED", "UNKNOWN")
_PREPARED = ("INITIALIZING", "CREATED")
"""States in which Flink does not yet tell a job's options."""
APPEAR_SECONDS = 120.0
_log = logging.getLogger(__name__)


class Engine(Protocol):
    """One job on one runner."""

    def recover(self, name: str, state: str | None) -> str | None:
        """Ends what a killed launcher left running under this name; returns from where the same job can go on, or None.

        Args:
            state: the last savepoint or checkpoint that the launcher knew.
        """
        ...

    def start(self, name: str, restore: str | None) -> None:
        """Submits the job, from a savepoint or checkpoint if one is given; returns once the runner has it."""
        ...

    def ended(self) -> str | None:
        """Returns why the job is no longer running, or None."""
        ...

    def alarm(self) -> str | None:
        """Returns what is wrong with a job that runs, or None."""
        ...

    def restore_point(self) -> str | None:
        """Returns from where a new job can go on; None: from the lake."""
        ...

    def stop(self) -> str | None:
        """Ends the drained job; returns where its state is, if it is kept."""
        ...

    def cancel(self) -> None:
        """Ends the job at once; nothing if there is none."""
        ...


class BeamEngine:
    """A runner whose bundles are final once they end: Prism. A job that fails is over."""

    def __init__(self, options: Options, build: Build) -> None:
        self._options = options
        self._build = build
        self._result: Any = None

    def recover(self, name: str, state: str | None) -> str | None:
        return None

    def start(self, name: str, restore: str | None) -> None:
        self._result = self._build(self._options(name, None), False).run()

    def ended(self) -> str | None:
        state = str(self._result.state)
        if state not in _ENDED:
            return None
        try:
            self._result.wait_until_finish()
        except RuntimeError as error:
            return str(error)
        return f"the runner ended the job ({state})"

    def alarm(self) -> str | None:
        return None

    def restore_point(self) -> str | None:
        return None

    def stop(self) -> str | None:
        self.cancel()
        return None

    def cancel(self) -> None:
        if self._result is not None and str(self._result.state) not in _ENDED:
            self._result.cancel()


class FlinkEngine:
    """Flink behind a job server; state in checkpoints.

    Args:
        savepoints: folder, as the cluster sees it, for the state of a drained job.
    """

    def __init__(self, options: Options, build: Build, rest: FlinkRest, savepoints: str) -> None:
        self._options = options
        self._build = build
        self._rest = rest
        self._savepoints = savepoints
        self._job: str | None = None
        self._watch: CheckpointWatch | None = None
        self._point: str | None = None

    def recover(self, name: str, state: str | None) -> str | None:
        try:
            left = self._rest.job_id(name)
        except FlinkNotFoundError:
            return None if state is None else _newest(state)
        point = self._rest.latest_checkpoint_path(left) or state
        self._rest.cancel(left)
        return point

    def start(self, name: str, restore: str | None) -> None:
        options = self._options(name, restore)
        self._point = restore
        self._build(options, True).run()
        deadline = time.monotonic() + APPEAR_SECONDS
        while True:
            try:
                self._job = self._rest.job_id(name)
                if self._rest.job(self._job).state not in _PREPARED:
                    break
            except FlinkNotFoundError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.3)
        try:
            require_effect(self._rest, self._job, options)
        except UntrustedRunError:
            self.cancel()
            raise
        self._watch = CheckpointWatch(self._rest, self._job)

    def ended(self) -> str | None:
        assert self._job is not None
        try:
            job = self._rest.job(self._job)
            self._point = self._rest.latest_checkpoint_path(self._job) or self._point
        except FlinkNotFoundError:
            return "the JobManager does not know the job any more"
        except FlinkUnreachableError as error:
            _log.warning("%s", error)
            return None
        if job.state not in ("FAILED", "CANCELED", "FINISHED", "SUSPENDED"):
            return None
        causes = self._rest.failures(self._job, 1)
        return f"the job is {job.state}" + (f": {causes[0].cause}" if causes else "")

    def alarm(self) -> str | None:
        assert self._watch is not None
        try:
            return self._watch.look()
        except FlinkError as error:
            return str(error)

    def restore_point(self) -> str | None:
        return self._point

    def stop(self) -> str | None:
        assert self._job is not None
        return self._rest.stop_with_savepoint(self._job, self._savepoints)

    def cancel(self) -> None:
        if self._job is not None:
            try:
                self._rest.cancel(self._job)
            except FlinkError as error:
                _log.warning("%s", error)


def _newest(state: str) -> str:
    """Returns the newest checkpoint of the job that wrote this one, as a job may have gone on without its launcher."""
    folder, _, name = state.rstrip("/").rpartition("/")
    if not name.startswith("chk-") or not state.startswith(("/", "file:")):
        return state
    checkpoints, _, job = folder.rpartition("/")
    return newest_checkpoint(checkpoints, job) or state


def savepoints_folder(rest: FlinkRest, out: Path) -> str:
    """Returns where the state of drained jobs goes: the cluster's own folder for it, else one in the output."""
    configured = rest.cluster_config()
    for setting in ("execution.checkpointing.savepoint-dir", "state.savepoints.dir"):
        if configured.get(setting):
            return configured[setting]
    return (out / "_savepoints").as_uri()
