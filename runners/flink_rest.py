"""A client of Flink's REST service: what a stream has to know of its job, and how it is drained.

It uses nothing but the standard library, so that the commit stage can ask from any worker.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import BadStatusLine, HTTPException, RemoteDisconnected, UnknownProtocol
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from headrace.runners.flink_answers import (
    Answer,
    Checkpoints,
    CheckpointSettings,
    FlinkError,
    FlinkNotFoundError,
    FlinkUnreachableError,
    JobDetails,
    JobFailure,
    JobSummary,
    Overview,
    root_cause,
)
from headrace.schemas.errors import ConfigError

_LARGEST_ANSWER_BYTES = 64 * 2**20
_STARTING = "Not all required tasks are currently running"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class FlinkRest:
    """The REST service of one Flink cluster. Holds no connection; may be pickled and used by several threads.

    Args:
        url: ``http://HOST:PORT``, perhaps with a path in front of a gateway; without user and password.
        timeout_seconds: for each request.

    Raises:
        ConfigError: the URL has another form.
        FlinkUnreachableError: from every method, if nobody answers in time; it may pass.
        FlinkNotFoundError: from every method about a job, if Flink does not know it.
        FlinkError: from every method, if Flink refuses or its answer can't be understood.
    """

    url: str
    timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if "@" in parts.netloc:
            raise ConfigError(
                "the Flink REST address holds a user or password, which would show in logs; give http://HOST:PORT of a "
                "service in a network that you trust"
            )
        try:
            whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            whole = False
        if not whole or parts.query or parts.fragment:
            raise ConfigError(
                f"{self.url!r} is no address of Flink's REST service; give http://HOST:PORT (Flink's port is 8081 by default)"
            )

    def version(self) -> str:
        """Returns Flink's version, for example 1.19.3."""
        return self.overview().version

    def overview(self) -> Overview:
        """Returns version, TaskManagers and slots."""
        return Overview.read(self._object("/overview"))

    def cluster_config(self) -> dict[str, str]:
        """Returns the JobManager's configuration. Flink hides what looks like a password."""
        path = "/jobmanager/config"
        entries = self._ask(path)
        if not isinstance(entries, list):
            raise FlinkError(f"Flink's answer to {path} is no list; is another service behind {self.url}?")
        items = [Answer(path, entry) for entry in entries]
        return {item.text("key"): item.text("value") for item in items}

    def jobs(self) -> list[JobSummary]:
        """Returns all jobs that the JobManager remembers, ended ones included."""
        return [
            JobSummary(job.text("jid"), job.text("name"), job.text("state"), job.integer("start-time"))
            for job in self._object("/jobs/overview").objects("jobs")
        ]

    def job_id(self, job_name: str) -> str:
        """Returns the id of the one job of this name that has not ended.

        Raises:
            FlinkNotFoundError: there is none.
            FlinkError: there is more than one.
        """
        named = [job for job in self.jobs() if job.name == job_name]
        live = [job for job in named if job.live]
        if len(live) > 1:
            ids = ", ".join(job.id for job in live)
            raise FlinkError(
                f"{len(live)} jobs named {job_name} run on {self.url} ({ids}); cancel all but one, or give each its --job_name"
            )
        if not live:
            last = max(named, key=lambda job: job.started_ms, default=None)
            ended = f"; the last one of this name, {last.id}, is {last.state}" if last else ""
            raise FlinkNotFoundError(
                f"no job named {job_name} runs on {self.url}{ended}; look at the job's log, or start it"
            )
        return live[0].id

    def job(self, job: str) -> JobDetails:
        """Returns state, clock and steps of a job."""
        return JobDetails.read(self._object(f"/jobs/{_part(job)}"))

    def job_options(self, job: str) -> dict[str, str]:
        """Returns the pipeline options with which a job really runs, by their Java names, as text."""
        config = self._object(f"/jobs/{_part(job)}/config").object("execution-config")
        return config.object("user-config").texts()

    def failures(self, job: str, limit: int = 5) -> list[JobFailure]:
        """Returns the last failures of a job, newest first."""
        history = self._object(f"/jobs/{_part(job)}/exceptions?maxExceptions={limit}").object(
            "exceptionHistory"
        )
        return [
            JobFailure(
                entry.integer("timestamp"), entry.maybe_text("taskName"), root_cause(entry.text("stacktrace"))
            )
            for entry in history.objects("entries")
        ]

    def checkpoints(self, job: str) -> Checkpoints:
        """Returns what Flink keeps of a job's checkpoints."""
        return Checkpoints.read(self._object(f"/jobs/{_part(job)}/checkpoints"))

    def checkpoint_settings(self, job: str) -> CheckpointSettings:
        """Returns how a job takes checkpoints; a job without them is refused by Flink."""
        return CheckpointSettings.read(self._object(f"/jobs/{_part(job)}/checkpoints/config"))

    def durable_until(self, job: str, began: int | None = None) -> int | None:
        """Returns the time in µs before which what a step received is in a checkpoint; see :class:`Checkpoints`.

        Args:
            began: when the caller began to process what it wants to publish, in µs. If the job was restored after that, the
                caller is a left-over of the attempt before, what it holds is in no checkpoint, and None is returned.
        """
        found = self.checkpoints(job)
        if began is not None and found.restored is not None and found.restored.restored_ms * 1000 >= began:
            return None
        return found.durable_until

    def latest_checkpoint_path(self, job: str) -> str | None:
        """Returns where the latest complete checkpoint is, for ``--savepoint_path`` of a new job; None if there is none."""
        completed = self.checkpoints(job).completed
        return completed.path or None if completed else None

    def backpressure(self, job: str) -> dict[str, str]:
        """Returns ``ok``, ``low`` or ``high`` by the step's name; steps that were not measured yet are left out."""
        levels = {}
        for vertex, name in self.job(job).vertices.items():
            answer = self._object(f"/jobs/{_part(job)}/vertices/{_part(vertex)}/backpressure")
            level = answer.maybe_text("backpressureLevel") or answer.maybe_text("backpressure-level")
            if level:
                levels[name] = level
        return levels

    def stop_with_savepoint(
        self,
        job: str,
        target: str,
        *,
        drain: bool = False,
        timeout_seconds: float = 120.0,
        poll_seconds: float = 0.2,
    ) -> str:
        """Ends a job with a savepoint and returns where it is, once the job has ended.

        Args:
            target: folder for the savepoint, as the cluster sees it: ``file:///…``, ``s3://…``.
            drain: also tell all steps that the stream ends; a job that starts from such a savepoint begins anew.
            timeout_seconds: for all of it; after it the job still runs, or ends later.

        Raises:
            FlinkError: the savepoint failed, and a job that ran goes on; or it took too long.
        """
        body = {"targetDirectory": target, "drain": drain, "formatType": "CANONICAL"}
        deadline = time.monotonic() + timeout_seconds
        place = self._savepoint(job, "stop", body, deadline, poll_seconds)
        self._await_end(job, deadline, poll_seconds)
        return place

    def savepoint(
        self, job: str, target: str, *, timeout_seconds: float = 120.0, poll_seconds: float = 0.2
    ) -> str:
        """Takes a savepoint of a job that goes on, and returns where it is."""
        body = {"target-directory": target, "cancel-job": False, "formatType": "CANONICAL"}
        return self._savepoint(job, "savepoints", body, time.monotonic() + timeout_seconds, poll_seconds)

    def cancel(self, job: str, *, timeout_seconds: float = 60.0, poll_seconds: float = 0.2) -> None:
        """Ends a job at once, without a savepoint; its retained checkpoints stay. Does nothing to one that has ended."""
        if self.job(job).state in ("FINISHED", "FAILED", "CANCELED"):
            return
        self._ask(f"/jobs/{_part(job)}?mode=cancel", method="PATCH")
        self._await_end(job, time.monotonic() + timeout_seconds, poll_seconds)

    def _savepoint(
        self, job: str, action: str, body: Mapping[str, object], deadline: float, poll_seconds: float
    ) -> str:
        """Triggers a savepoint, again while the job's tasks are only just starting, and waits for it."""
        while True:
            request = self._object(f"/jobs/{_part(job)}/{action}", method="POST", body=body).text(
                "request-id"
            )
            operation = self._await_savepoint(job, request, deadline, poll_seconds)
            failure = operation.optional("failure-cause")
            if failure is None:
                return operation.text("location")
            trace = failure.maybe_text("stack-trace")
            if _STARTING not in trace:
                cause = root_cause(trace) or failure.maybe_text("class")
                raise FlinkError(f"the savepoint of job {job} failed and did not end it: {cause}")
            self._pause(f"tasks of job {job} do not run yet, so it has no savepoint", deadline, poll_seconds)

    def _await_savepoint(self, job: str, request: str, deadline: float, poll_seconds: float) -> Answer:
        while True:
            answer = self._object(f"/jobs/{_part(job)}/savepoints/{_part(request)}")
            if answer.object("status").text("id") == "COMPLETED":
                return answer.object("operation")
            self._pause(f"the savepoint of job {job} is not complete", deadline, poll_seconds)

    def _await_end(self, job: str, deadline: float, poll_seconds: float) -> None:
        while (state := self.job(job).state) not in ("FINISHED", "FAILED", "CANCELED"):
            self._pause(f"job {job} is still {state}", deadline, poll_seconds)

    def _pause(self, what: str, deadline: float, poll_seconds: float) -> None:
        if time.monotonic() >= deadline:
            raise FlinkError(f"{what} after the time it was given; look at the job on {self.url}")
        time.sleep(poll_seconds)

    def _object(self, path: str, *, method: str = "GET", body: Mapping[str, object] | None = None) -> Answer:
        return Answer(path, self._ask(path, method=method, body=body))

    def _ask(self, path: str, *, method: str = "GET", body: Mapping[str, object] | None = None) -> Any:
        request = Request(
            f"{self.url.rstrip('/')}/v1{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Accept": "application/json", "Content-Type": "application/json"},
        )
        try:
            with self._opener().open(request, timeout=self.timeout_seconds) as response:
                content = response.read(_LARGEST_ANSWER_BYTES)
        except HTTPError as error:
            with error:
                raise _refusal(f"{method} {path}", error.code, error.read(65_536)) from None
        except (BadStatusLine, UnknownProtocol) as error:
            if isinstance(error, RemoteDisconnected):
                raise self._unreachable(error) from error
            raise FlinkError(
                f"what answers at {self.url} does not speak HTTP; is another service behind the address?"
            ) from None
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from error
        try:
            return json.loads(content)
        except ValueError as error:
            raise FlinkError(
                f"the answer to {path} of {self.url} is no JSON; is another service behind the address?"
            ) from error

    def _unreachable(self, error: Exception) -> FlinkUnreachableError:
        reason = error.reason if isinstance(error, URLError) else error
        return FlinkUnreachableError(
            f"Flink's REST service at {self.url} does not answer ({_short(reason)}); check that the JobManager runs and that the "
            "address is right and reachable from here"
        )

    def _opener(self) -> Any:
        """A proxy of the environment is passed by for this machine's own addresses."""
        own = urlsplit(self.url).hostname in _LOOPBACK
        return build_opener(ProxyHandler({})) if own else build_opener()


def _part(name: str) -> str:
    return quote(name, safe="")


def _short(reason: object) -> str:
    return str(reason) or type(reason).__name__


def _refusal(request: str, code: int, content: bytes) -> FlinkError:
    """Reads Flink's ``{"errors": [text, stack trace]}``."""
    texts: list[str] = []
    try:
        document = json.loads(content)
        texts = [str(text) for text in document["errors"]]
    except (ValueError, KeyError, TypeError):
        pass
    cause = root_cause("\n".join(texts)) or f"HTTP status {code}"
    kinds = {
        404: FlinkNotFoundError,
        502: FlinkUnreachableError,
        503: FlinkUnreachableError,
        504: FlinkUnreachableError,
    }
    return kinds.get(code, FlinkError)(f"Flink refused {request} ({code}): {cause}")
