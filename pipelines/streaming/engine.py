"""A running job as the supervisor sees it, on a runner that takes checkpoints and on one that does not."""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from headrace.runners.checkpoint_files import newest_checkpoint
from headrace.runners.checkpoint_watch import CheckpointWatch
from headrace.runners.flink import require_effect
from headrace.runners.flink_answers import FlinkError, FlinkNotFoundError, FlinkUnreachableError
from headrace.runners.flink_rest import FlinkRest
from headrace.runners.servers.install import cache_folder
from headrace.runners.servers.prism import PrismServer
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
_LOCAL = ("/", "file:")
APPEAR_SECONDS = 120.0
STALE_SECONDS = 3.5
"""What Flink tells of checkpoints may be 3 s old (rest.cache.checkpoint-statistics.timeout)."""
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
    """A runner whose bundles are final once they end: Prism. A job that fails is over.

    Where no job server is named it starts a Prism of its own, in a session of its own: a Ctrl-C for the launcher does not reach it,
    so it lives until the stream is drained. One that a killed launcher has left behind is ended by the next.
    """

    def __init__(self, options: Options, build: Build) -> None:
        self._options = options
        self._build = build
        self._result: Any = None
        self._prism: PrismServer | None = None

    def recover(self, name: str, state: str | None) -> str | None:
        _end_prism(_prism_of(name))
        return None

    def start(self, name: str, restore: str | None) -> None:
        from apache_beam.options.pipeline_options import PortableOptions, PrismRunnerOptions

        options = self._options(name, None)
        portable, location = options.view_as(PortableOptions), options.view_as(PrismRunnerOptions)
        if not portable.job_endpoint and location.prism_location:
            self._prism = _prism_of(name, Path(location.prism_location))
            portable.job_endpoint = str(self._prism.up())
        self._result = self._build(options, False).run()

    def ended(self) -> str | None:
        if self._prism is not None and not self._prism.alive("prism"):
            lines = self._prism.process("prism").tail().splitlines()
            return f"Prism has ended; its last line: {lines[-1] if lines else ''}"
        state = self._state()
        if state not in _ENDED:
            return None
        try:
            self._result.wait_until_finish()
        except (RuntimeError, grpc.RpcError) as error:
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
        try:
            if self._result is not None and self._state() not in _ENDED:
                self._result.cancel()
        except grpc.RpcError as error:
            _log.warning("the job can't be cancelled: %s", _code(error))
        finally:
            if self._prism is not None:
                _end_prism(self._prism)
                self._prism = None

    def _state(self) -> str:
        """A job whose runner does not answer counts as ended."""
        try:
            return str(self._result.state)
        except grpc.RpcError as error:
            _log.warning("the runner does not answer: %s", _code(error))
            return "UNKNOWN"


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
        self._silent = False
        self._point: str | None = None

    def recover(self, name: str, state: str | None) -> str | None:
        try:
            left = self._rest.job_id(name)
        except FlinkNotFoundError:
            return None if state is None else _newest(state)
        self._rest.cancel(left)
        # Only now, as the job goes on completing checkpoints, and committing them, until it has ended; and what Flink tells of
        # checkpoints may be old.
        point = self._rest.latest_checkpoint_path(left) or state
        if point is not None and not point.startswith(_LOCAL):
            time.sleep(STALE_SECONDS)
            point = self._rest.latest_checkpoint_path(left) or point
        return None if point is None else _newest(point)

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
            except (FlinkNotFoundError, FlinkUnreachableError):
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
            self._look_for_newest()
            return "the JobManager does not know the job any more"
        except FlinkUnreachableError as error:
            if not self._silent:
                _log.warning("%s", error)
            self._silent = True
            return None
        self._silent = False
        if job.state not in ("FAILED", "CANCELED", "FINISHED", "SUSPENDED"):
            return None
        self._look_for_newest()
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

    def _look_for_newest(self) -> None:
        """A checkpoint may have completed, and been committed, after the last look."""
        if self._point is not None:
            self._point = _newest(self._point)


def _prism_of(name: str, binary: Path | None = None) -> PrismServer:
    """Returns the Prism of a job of this machine's user, which may be up, dead or not there."""
    return PrismServer(cache_folder() / "streams" / name, binary=binary)


def _end_prism(prism: PrismServer) -> None:
    prism.down()
    shutil.rmtree(prism.cluster, ignore_errors=True)


def _code(error: grpc.RpcError) -> str:
    code = getattr(error, "code", None)
    return code().name if callable(code) else type(error).__name__


def _newest(state: str) -> str:
    """Returns the newest checkpoint of the job that wrote this one, as a job may have gone on without its launcher."""
    folder, _, name = state.rstrip("/").rpartition("/")
    if not name.startswith("chk-") or not state.startswith(_LOCAL):
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
