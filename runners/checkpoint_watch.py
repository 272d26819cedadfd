"""An alarm for a job whose checkpoints no longer complete.

Such a job looks healthy: its data flow, its state is RUNNING. But nothing that it does is durable, so the lake is not committed any
more, and after a failure it begins again where it stood long ago.
"""

from headrace.runners.flink_answers import Checkpoints, JobDetails
from headrace.runners.flink_rest import FlinkRest

LATE_INTERVALS = 10
"""So many intervals without a complete checkpoint are too many,"""
LATE_SECONDS = 30
"""but not less time than this: on a busy machine a sound checkpoint may take some seconds."""


class CheckpointWatch:
    """Looks at the age of a running job's latest complete checkpoint, by the JobManager's own clock.

    Args:
        rest: of the cluster.
        job: Flink's id of the job.
    """

    def __init__(self, rest: FlinkRest, job: str) -> None:
        self._rest = rest
        self._job = job
        self._interval_ms: int | None = None

    def look(self) -> str | None:
        """Returns what is wrong, with what is known of the cause; None if a checkpoint is recent enough or the job is not RUNNING.

        Raises:
            FlinkError: Flink can't be asked.
        """
        details = self._rest.job(self._job)
        if details.state != "RUNNING":
            return None
        if self._interval_ms is None:
            self._interval_ms = self._rest.checkpoint_settings(self._job).interval_ms
        checkpoints = self._rest.checkpoints(self._job)
        age = _age_ms(details, checkpoints)
        limit = max(LATE_INTERVALS * self._interval_ms, LATE_SECONDS * 1000)
        if age <= limit:
            return None
        return (
            f"job {details.name}: no checkpoint has completed for {age / 1000:.0f} s (alarm at {limit / 1000:.0f} s), so nothing "
            f"is committed to the lake; {_reason(details, checkpoints)}"
        )


def checkpoint_age_seconds(rest: FlinkRest, job: str) -> float:
    """Returns the time since the latest complete checkpoint of a job, its restoring or its start, whatever was last."""
    return _age_ms(rest.job(job), rest.checkpoints(job)) / 1000


def _age_ms(details: JobDetails, checkpoints: Checkpoints) -> int:
    last = [details.running_since_ms or details.now_ms]
    if checkpoints.completed is not None:
        last.append(checkpoints.completed.triggered_ms)
    if checkpoints.restored is not None:
        last.append(checkpoints.restored.restored_ms)
    return max(0, details.now_ms - max(last))


def _reason(details: JobDetails, checkpoints: Checkpoints) -> str:
    if checkpoints.in_progress:
        oldest = checkpoints.in_progress[0]
        seconds = (details.now_ms - oldest.triggered_ms) / 1000
        return (
            f"checkpoint {oldest.id} is in progress for {seconds:.0f} s, {oldest.acknowledged} of {oldest.subtasks} subtasks "
            "have answered: if it never ends, Flink restarts the job at the checkpoint timeout; if that does not help, cancel the "
            "job and start it again from its last checkpoint"
        )
    if checkpoints.failed is not None and (
        checkpoints.completed is None or checkpoints.failed.id > checkpoints.completed.id
    ):
        cause = checkpoints.failed.failure or "no reason given"
        return (
            f"checkpoint {checkpoints.failed.id} failed ({cause}); mend that, the next one is tried by itself"
        )
    return "none is in progress and none has failed: look at the JobManager's log"
