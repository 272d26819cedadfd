"""What Flink's REST service answers, read strictly: a field that is missing or of another type is an error, never a guess.

Source: Flink 1.19, REST API, https://nightlies.apache.org/flink/flink-docs-release-1.19/docs/ops/rest_api/. Times are
milliseconds since 1970 by the JobManager's clock.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.schemas.errors import InputError

TERMINAL = ("FINISHED", "FAILED", "CANCELED", "SUSPENDED")
"""States of a job that does not go on."""

_LONGEST_CAUSE = 500


class FlinkError(InputError):
    """Flink refused, or answered what can't be understood; asking again does not help."""


class FlinkNotFoundError(FlinkError):
    """Flink does not know the job: it has not started yet, or is forgotten."""


class FlinkUnreachableError(FlinkError):
    """Nobody answers at the address, or not in time, or the service is starting; it may pass."""


class Answer:
    """One JSON object of an answer.

    Args:
        path: of the request, for messages.
        value: the decoded JSON.
        at: where in the answer, as a JSON pointer.

    Raises:
        FlinkError: from every method, if the field is not as it should be.
    """

    def __init__(self, path: str, value: object, at: str = "") -> None:
        if not isinstance(value, dict):
            raise FlinkError(f"Flink's answer to {path} holds no object at {at or '/'}{_HINT}")
        self._path = path
        self._value: Mapping[str, Any] = value
        self._at = at

    def integer(self, key: str) -> int:
        """Returns a whole number."""
        value = self._value.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "whole number")
        return value

    def text(self, key: str) -> str:
        """Returns a text."""
        value = self._value.get(key)
        if not isinstance(value, str):
            raise self._wrong(key, "text")
        return value

    def boolean(self, key: str) -> bool:
        """Returns true or false."""
        value = self._value.get(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def object(self, key: str) -> "Answer":
        """Returns an object."""
        return Answer(self._path, self._value.get(key), f"{self._at}/{key}")

    def optional(self, key: str) -> "Answer | None":
        """Returns an object; None if it is null or missing."""
        return None if self._value.get(key) is None else self.object(key)

    def objects(self, key: str) -> "list[Answer]":
        """Returns a list of objects."""
        value = self._value.get(key)
        if not isinstance(value, list):
            raise self._wrong(key, "list")
        return [Answer(self._path, item, f"{self._at}/{key}/{i}") for i, item in enumerate(value)]

    def maybe_text(self, key: str) -> str:
        """Returns a text; empty if it is null or missing."""
        return "" if self._value.get(key) is None else self.text(key)

    def texts(self) -> dict[str, str]:
        """Returns all fields as texts, as they would be typed."""
        return {
            key: str(value).lower() if isinstance(value, bool) else str(value)
            for key, value in self._value.items()
            if value is not None
        }

    def _wrong(self, key: str, wanted: str) -> FlinkError:
        return FlinkError(f"Flink's answer to {self._path} has no {wanted} at {self._at}/{key}{_HINT}")


_HINT = "; is this Flink 1.17 to 1.20, and no other service behind the address?"


@dataclass(frozen=True)
class Overview:
    """A cluster."""

    version: str
    task_managers: int
    slots: int
    free_slots: int

    @classmethod
    def read(cls, answer: Answer) -> "Overview":
        return cls(
            answer.text("flink-version"),
            answer.integer("taskmanagers"),
            answer.integer("slots-total"),
            answer.integer("slots-available"),
        )


@dataclass(frozen=True)
class JobSummary:
    """A job in the list of jobs."""

    id: str
    name: str
    state: str
    started_ms: int

    @property
    def live(self) -> bool:
        """False once it can't go on."""
        return self.state not in TERMINAL


@dataclass(frozen=True)
class JobDetails:
    """A job."""

    name: str
    state: str
    now_ms: int
    """The JobManager's clock at the answer."""
    running_since_ms: int | None
    """When it last came to RUNNING; None: never."""
    max_parallelism: int
    vertices: Mapping[str, str]
    """Names of the steps by their id."""

    @classmethod
    def read(cls, answer: Answer) -> "JobDetails":
        times = answer.object("timestamps")
        running = times.integer("RUNNING") if "RUNNING" in times.texts() else 0
        return cls(
            answer.text("name"),
            answer.text("state"),
            answer.integer("now"),
            running or None,
            answer.integer("maxParallelism"),
            {vertex.text("id"): vertex.text("name") for vertex in answer.objects("vertices")},
        )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint or savepoint that was triggered."""

    id: int
    status: str
    """IN_PROGRESS, COMPLETED or FAILED."""
    savepoint: bool
    triggered_ms: int
    acknowledged: int
    """Subtasks that have answered."""
    subtasks: int
    path: str = ""
    """Where it is, if it is complete and kept outside the JobManager."""
    failure: str = ""

    @classmethod
    def read(cls, answer: Answer) -> "Checkpoint":
        path = answer.maybe_text("external_path")
        return cls(
            answer.integer("id"),
            answer.text("status"),
            answer.boolean("is_savepoint"),
            answer.integer("trigger_timestamp"),
            answer.integer("num_acknowledged_subtasks"),
            answer.integer("num_subtasks"),
            "" if path.startswith("<") else path,  # <checkpoint-not-externally-addressable>
            root_cause(answer.maybe_text("failure_message")),
        )


@dataclass(frozen=True)
class Restored:
    """The checkpoint or savepoint from which a job last started."""

    id: int
    restored_ms: int
    savepoint: bool
    path: str


@dataclass(frozen=True)
class Checkpoints:
    """What Flink keeps of a job's checkpoints. It is up to ``rest.cache.checkpoint-statistics.timeout`` (3 s) old."""

    completed: Checkpoint | None
    """The latest complete one, savepoints aside."""
    failed: Checkpoint | None
    restored: Restored | None
    in_progress: tuple[Checkpoint, ...]
    """Oldest first."""
    completed_count: int
    failed_count: int

    @classmethod
    def read(cls, answer: Answer) -> "Checkpoints":
        latest = answer.object("latest")
        completed, failed, restored = (
            latest.optional("completed"),
            latest.optional("failed"),
            latest.optional("restored"),
        )
        counts = answer.object("counts")
        history = [Checkpoint.read(item) for item in answer.objects("history")]
        running = [checkpoint for checkpoint in history if checkpoint.status == "IN_PROGRESS"]
        return cls(
            Checkpoint.read(completed) if completed else None,
            Checkpoint.read(failed) if failed else None,
            Restored(
                restored.integer("id"),
                restored.integer("restore_timestamp"),
                restored.boolean("is_savepoint"),
                restored.maybe_text("external_path"),
            )
            if restored
            else None,
            tuple(sorted(running, key=lambda checkpoint: checkpoint.id)),
            counts.integer("completed"),
            counts.integer("failed"),
        )

    @property
    def durable_until(self) -> int | None:
        """Time in µs since 1970: what a step received before it is in a checkpoint; None: nothing is yet.

        What is in state when a checkpoint is triggered is in that checkpoint, and what is in state when a job is restored came
        from the checkpoint that it is restored from. A savepoint does not count until a job starts from it.
        """
        times = []
        if self.completed is not None:
            times.append(self.completed.triggered_ms)
        if self.restored is not None:
            times.append(self.restored.restored_ms)
        return max(times) * 1000 if times else None


@dataclass(frozen=True)
class CheckpointSettings:
    """How a job takes checkpoints."""

    mode: str
    """exactly_once or at_least_once."""
    interval_ms: int
    timeout_ms: int
    min_pause_ms: int
    retained: bool
    """True if checkpoints outlive the job, a cancelled one too."""
    state_backend: str
    storage: str

    @classmethod
    def read(cls, answer: Answer) -> "CheckpointSettings":
        kept = answer.object("externalization")
        return cls(
            answer.text("mode"),
            answer.integer("interval"),
            answer.integer("timeout"),
            answer.integer("min_pause"),
            kept.boolean("enabled") and not kept.boolean("delete_on_cancellation"),
            answer.maybe_text("state_backend"),
            answer.maybe_text("checkpoint_storage"),
        )


@dataclass(frozen=True)
class JobFailure:
    """One entry of a job's exception history."""

    at_ms: int
    task: str
    """The step that failed; empty: the job as a whole."""
    cause: str
    """The root cause, shortened."""


_OURS = re.compile(r"^headrace\.schemas\.errors\.\w+: .+", re.MULTILINE)
_PYTHON = re.compile(r"^Traceback \(most recent call last\):\n(?:[ \t].*\n)*(\S.*)", re.MULTILINE)
_JAVA = re.compile(r"^Caused by: (.+)", re.MULTILINE)


def root_cause(trace: str) -> str:
    """Returns the line of a Java stack trace that tells most, in at most 500 characters.

    An error of headrace in a worker comes first, then the last Python error, then Java's last ``Caused by``, then the first line.
    """
    for pattern in (_OURS, _PYTHON, _JAVA):
        found = pattern.findall(trace)
        if found:
            line = found[-1]
            break
    else:
        line = trace.strip().partition("\n")[0]
    line = line.strip()
    return line if len(line) <= _LONGEST_CAUSE else f"{line[: _LONGEST_CAUSE - 1]}…"
