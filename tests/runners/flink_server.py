"""A server on loopback that gives the answers it was given, and what Flink 1.19.3 answered to them, shortened."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

JOB = "df15f770bbc97d3cc602b66372a9ec7c"
NAME = "headrace-a25f4d8224e1"
CHK = f"file:/data/checkpoints/{JOB}/chk-9"

OVERVIEW = {
    "taskmanagers": 1,
    "slots-total": 2,
    "slots-available": 1,
    "jobs-running": 1,
    "jobs-finished": 0,
    "jobs-cancelled": 0,
    "jobs-failed": 0,
    "flink-version": "1.19.3",
    "flink-commit": "5ce84a7",
}
JOB_SUMMARY = {
    "jid": JOB,
    "name": NAME,
    "state": "RUNNING",
    "start-time": 1795278436108,
    "end-time": -1,
    "duration": 42769,
    "last-modification": 1795278437379,
    "tasks": {"total": 2, "running": 2},
}
JOB_DETAILS = {
    "jid": JOB,
    "name": NAME,
    "isStoppable": False,
    "state": "RUNNING",
    "start-time": 1795278436108,
    "end-time": -1,
    "duration": 42769,
    "maxParallelism": 128,
    "now": 1795278478877,
    "timestamps": {
        "FINISHED": 0,
        "RESTARTING": 0,
        "INITIALIZING": 1795278436108,
        "CREATED": 1795278436957,
        "RUNNING": 1795278437379,
    },
    "vertices": [
        {"id": "cbc357", "name": "Source: StreamingImpulseSource -> [1]k", "parallelism": 1},
        {"id": "2e8c70", "name": "[1]ParDo(Count)", "parallelism": 1},
    ],
    "status-counts": {"RUNNING": 2},
    "plan": {},
}
COMPLETED = {
    "className": "completed",
    "id": 9,
    "status": "COMPLETED",
    "is_savepoint": False,
    "savepointFormat": None,
    "trigger_timestamp": 1795278475798,
    "latest_ack_timestamp": 1795278475880,
    "state_size": 49491,
    "end_to_end_duration": 82,
    "num_subtasks": 2,
    "num_acknowledged_subtasks": 2,
    "checkpoint_type": "CHECKPOINT",
    "tasks": {},
    "external_path": CHK,
    "discarded": False,
}
IN_PROGRESS = {
    "className": "in_progress",
    "id": 10,
    "status": "IN_PROGRESS",
    "is_savepoint": False,
    "savepointFormat": None,
    "trigger_timestamp": 1795278478798,
    "latest_ack_timestamp": 1795278478830,
    "state_size": 1969,
    "end_to_end_duration": 32,
    "num_subtasks": 2,
    "num_acknowledged_subtasks": 1,
    "checkpoint_type": "CHECKPOINT",
    "tasks": {},
}
FAILED = {
    **COMPLETED,
    "className": "failed",
    "id": 11,
    "status": "FAILED",
    "trigger_timestamp": 1795278479798,
    "num_acknowledged_subtasks": 1,
    "failure_timestamp": 1795278539798,
    "failure_message": "Checkpoint expired before completing.",
}
RESTORED = {"id": 9, "restore_timestamp": 1795278483623, "is_savepoint": False, "external_path": CHK}
CHECKPOINTS = {
    "counts": {"restored": 0, "total": 14, "in_progress": 1, "completed": 9, "failed": 4},
    "summary": {"state_size": {"min": 47424, "max": 55025, "avg": 51030}},
    "latest": {"completed": COMPLETED, "savepoint": None, "failed": None, "restored": None},
    "history": [IN_PROGRESS, COMPLETED],
}
SETTINGS = {
    "mode": "exactly_once",
    "interval": 1000,
    "timeout": 60000,
    "min_pause": 500,
    "max_concurrent": 1,
    "externalization": {"enabled": True, "delete_on_cancellation": False},
    "state_backend": "EmbeddedRocksDBStateBackend",
    "checkpoint_storage": "FileSystemCheckpointStorage",
    "unaligned_checkpoints": False,
    "tolerable_failed_checkpoints": 0,
}
JOB_CONFIG = {
    "jid": JOB,
    "name": NAME,
    "execution-config": {
        "execution-mode": "PIPELINED",
        "restart-strategy": "Cluster level default restart strategy",
        "job-parallelism": 1,
        "object-reuse-mode": False,
        "user-config": {
            "finishBundleBeforeCheckpointing": "true",
            "maxBundleTimeMills": "200",
            "checkpointingInterval": "1000",
        },
    },
}
EXCEPTIONS = {
    "root-exception": "…",
    "timestamp": 1795278481585,
    "all-exceptions": [],
    "truncated": False,
    "exceptionHistory": {
        "entries": [
            {
                "exceptionName": "org.apache.flink.runtime.jobmaster.JobMasterException",
                "stacktrace": "org.apache.flink.runtime.jobmaster.JobMasterException: TaskManager with id taskmanager-0-1 is no "
                "longer reachable.\n\tat org.apache.flink.runtime.jobmaster.JobMaster.notify(JobMaster.java:1496)\n",
                "timestamp": 1795278481585,
                "failureLabels": {},
                "taskName": "[1]ParDo(Count) (1/1) - execution #0",
                "endpoint": "127.0.0.1:35343",
                "taskManagerId": "taskmanager-0-1",
                "concurrentExceptions": [],
            },
            {
                "exceptionName": "java.lang.RuntimeException",
                "stacktrace": "java.lang.RuntimeException: no task",
                "timestamp": 1795278481000,
                "taskName": None,
                "concurrentExceptions": [],
            },
        ],
        "truncated": False,
    },
}
BACKPRESSURE = {"status": "ok", "backpressureLevel": "low", "backpressure-level": "low", "subtasks": []}
CLUSTER_CONFIG = [
    {"key": "state.backend.type", "value": "rocksdb"},
    {"key": "state.backend.rocksdb.compaction.style", "value": "UNIVERSAL"},
    {"key": "state.checkpoints.dir", "value": "s3://bucket/checkpoints"},
    {"key": "restart-strategy.type", "value": "exponential-delay"},
    {"key": "rest.cache.checkpoint-statistics.timeout", "value": "200 ms"},
    {"key": "heartbeat.timeout", "value": "10000"},
]

Reply = tuple[int, Any]


class FlinkServer:
    """Answers ``METHOD /path`` with its replies one after the other; the last one stays."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.replies: dict[str, list[Reply]] = {}
        self.asked: list[tuple[str, Any]] = []
        """Every request with its body."""

    def on(self, request: str, *answers: Any, status: int = 200) -> "FlinkServer":
        """Sets what a request is answered with: JSON values, or bytes as they are."""
        self.replies[request] = [(status, copy.deepcopy(answer)) for answer in answers]
        return self

    def reply(self, request: str) -> Reply:
        found = self.replies.get(request)
        if not found:
            return 404, {"errors": [f"Not found: {request}"]}
        return found.pop(0) if len(found) > 1 else found[0]


@contextmanager
def serve_flink() -> Iterator[FlinkServer]:
    """Runs a server that knows one job."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            request = f"{self.command} {self.path.removeprefix('/v1')}"
            server.asked.append((request, body))
            status, answer = server.reply(request)
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = FlinkServer(f"http://127.0.0.1:{http.server_address[1]}")
    server.on("GET /overview", OVERVIEW)
    server.on("GET /jobmanager/config", CLUSTER_CONFIG)
    server.on("GET /jobs/overview", {"jobs": [JOB_SUMMARY]})
    server.on(f"GET /jobs/{JOB}", JOB_DETAILS)
    server.on(f"GET /jobs/{JOB}/config", JOB_CONFIG)
    server.on(f"GET /jobs/{JOB}/checkpoints", CHECKPOINTS)
    server.on(f"GET /jobs/{JOB}/checkpoints/config", SETTINGS)
    server.on(f"GET /jobs/{JOB}/exceptions?maxExceptions=5", EXCEPTIONS)
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
