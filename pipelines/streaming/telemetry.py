"""What a running stream tells the outside: metrics, health and readiness."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from types import TracebackType
from typing import Literal, Self

from headrace.pipelines.streaming.health_server import HealthServer, Verdict
from headrace.pipelines.streaming.stream_progress import StreamProgress
from headrace.pipelines.streaming.telemetry_export import Export, endpoint_of
from headrace.pipelines.streaming.telemetry_figures import Counts, Moment, Totals
from headrace.schemas.errors import ConfigError

CALL_SECONDS = 300.0
"""Within which the launcher must look at its job again after it has begun to start, restart or stop it."""
RATIO_SECONDS = 60.0
"""Over which the share of rejected rows is taken."""

Event = Literal["restart", "stop", "alarm"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Seen:
    """The launcher's last look at the job. Replaced, never changed: other threads read it without a lock."""

    at: float
    counts: Counts
    phase: str
    rows_per_second: float | None
    rejected_ratio: float | None
    commit_latency: float | None
    commit_interval: float | None


class Telemetry:
    """Metrics for Prometheus and OpenTelemetry, ``/healthz`` and ``/readyz`` of one launcher; serves while it is entered.

    Healthy: the launcher looked at its job within ``stale_after_seconds`` (within five minutes after it has begun to start, restart
    or stop the job). Ready: the job has committed since it was started, and that within ``commit_within_seconds``, or it runs and
    its source had nothing left at the last commit. Every count but those of events is of the committed ledger, so it goes on where
    it was when the launcher is started again. Ages grow on their own between two looks.

    Args:
        job: name of the job.
        source: name of the source, without secrets.
        port: serves HTTP there; 0: on a free port; None: not.
        host: address to serve on.
        otlp_endpoint: base URL of an OpenTelemetry collector (OTLP over HTTP); None: as ``OTEL_EXPORTER_OTLP_ENDPOINT`` says.
        clock: seconds since 1970.

    Raises:
        ConfigError: a wrong port or endpoint; on entering: the port is in use, or packages for OpenTelemetry are missing.
    """

    def __init__(
        self,
        job: str,
        source: str,
        port: int | None,
        host: str = "127.0.0.1",
        otlp_endpoint: str | None = None,
        stale_after_seconds: float = 60,
        clock: Callable[[], float] = time.time,
        *,
        commit_within_seconds: float = 120,
    ) -> None:
        if port is not None and not 0 <= port <= 65535:
            raise ConfigError(f"--metrics-port is {port}; a port is a number from 0 (a free one) to 65535")
        self._info = {"stream_job": job, "source": source, "version": version("headrace")}
        self._host, self._wanted_port = host, port
        self._endpoint = endpoint_of(otlp_endpoint, os.environ)
        self._stale_after = stale_after_seconds
        self._commit_within = commit_within_seconds
        self._clock = clock
        self._seen: _Seen | None = None
        self._finished: deque[tuple[float, int, int]] = deque()
        self._lock = threading.Lock()
        self._events = {"restart": 0, "stop": 0, "alarm": 0}
        self._began = self._called = clock()
        self._server: HealthServer | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._began = self._called = self._clock()
            if self._wanted_port is not None:
                self._server = HealthServer(
                    self._host, self._wanted_port, self.moment, self.health, self.readiness
                )
                stack.callback(self._server.close)
                _log.info("metrics and health are served on %s port %d", self._host, self._server.port)
            if self._endpoint is not None:
                stack.callback(Export(self._endpoint, self._info, self.moment).close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._server = None

    @property
    def port(self) -> int | None:
        """The port that is served on; None: none is."""
        return None if self._server is None else self._server.port

    def update(self, progress: StreamProgress, totals: Totals) -> None:
        """Takes the figures of a look at the job. Never waits for anyone who reads them."""
        now = self._clock()
        counts = Counts.of(totals)
        last = self._seen
        latency = None if last is None else last.commit_latency
        interval = None if last is None else last.commit_interval
        before = None if last is None else last.counts.committed_at
        if counts.committed_at is not None and counts.committed_at != before:
            if before is not None:
                interval = counts.committed_at - before
            if counts.watermark is not None:
                latency = counts.committed_at - counts.watermark
        self._seen = _Seen(
            at=now,
            counts=counts,
            phase=progress.phase,
            rows_per_second=progress.rows_per_second,
            rejected_ratio=self._ratio(now, counts),
            commit_latency=latency,
            commit_interval=interval,
        )

    def _ratio(self, now: float, counts: Counts) -> float | None:
        """Returns the share of rejected rows among those of the last minute's commits."""
        rejected = counts.total_rejected
        finished = counts.accepted + rejected
        seen = self._finished
        if seen and (finished < seen[-1][1] or rejected < seen[-1][2]):
            seen.clear()  # What was not safe was rolled back.
        if not seen or seen[-1][1] != finished:
            seen.append((now, finished, rejected))
        while len(seen) > 1 and seen[1][0] <= now - RATIO_SECONDS:
            seen.popleft()
        _, first, first_rejected = seen[0]
        return (rejected - first_rejected) / (finished - first) if finished > first else None

    def event(self, what: Event) -> None:
        """Notes that the job is about to be restarted or stopped, or that an alarm was raised.

        ``restart`` and ``stop`` give the launcher five minutes until the next :meth:`update`.

        Raises:
            ValueError: there is no such event.
        """
        if what not in self._events:
            raise ValueError(f"event {what!r} is unknown; there are {', '.join(self._events)}")
        with self._lock:
            self._events[what] += 1
            if what != "alarm":
                self._called = self._clock()
            if what == "restart":
                self._began = self._called

    def health(self) -> Verdict:
        """Returns whether the launcher still looks at its job."""
        now, seen, called = self._clock(), self._seen, self._called
        if seen is None or called >= seen.at:
            age = now - called
            reason = f"the launcher has been starting or stopping its job for {age:.0f} s, at most {CALL_SECONDS:.0f} s are allowed"
            return Verdict(age < CALL_SECONDS, reason)
        age = now - seen.at
        reason = (
            f"the launcher looked at its job {age:.0f} s ago, at most {self._stale_after:g} s are allowed"
        )
        return Verdict(age < self._stale_after, reason)

    def readiness(self) -> Verdict:
        """Returns whether the job does its work."""
        healthy = self.health()
        if not healthy.well:
            return healthy
        now, seen = self._clock(), self._seen
        if seen is None:
            return Verdict(False, "the job is starting")
        if seen.phase == "draining":
            return Verdict(False, "the job is draining: it reads no more")
        counts = seen.counts
        if not counts.balanced:
            return Verdict(False, "the ledger does not balance: the output can't be trusted")
        if counts.committed_at is not None:
            age = now - counts.committed_at
            since_start = counts.committed_at >= self._began
            if since_start and age < self._commit_within:
                return Verdict(True, f"the last commit is {age:.0f} s old")
            if seen.phase == "running" and counts.behind == 0:
                return Verdict(True, f"the source is idle; the last commit is {age:.0f} s old")
            if since_start:
                allowed = (
                    f"at most {self._commit_within:g} s are allowed while {counts.behind or 0:,} records wait"
                )
                return Verdict(False, f"the last commit is {age:.0f} s old, {allowed}")
        return Verdict(False, f"the job ({seen.phase}) has not committed since it was started")

    def moment(self) -> Moment:
        """Returns all figures as of now."""
        seen = self._seen
        if seen is None:
            return Moment(
                now=self._clock(),
                updated=self._called,
                info=self._info,
                restarts=self._events["restart"],
                alarms=self._events["alarm"],
            )
        return Moment(
            now=self._clock(),
            updated=seen.at,
            info=self._info,
            counts=seen.counts,
            rows_per_second=seen.rows_per_second,
            rejected_ratio=seen.rejected_ratio,
            commit_latency=seen.commit_latency,
            commit_interval=seen.commit_interval,
            up=seen.phase in ("running", "draining"),
            ready=self.readiness().well,
            restarts=self._events["restart"],
            alarms=self._events["alarm"],
        )
