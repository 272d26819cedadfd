import json
from typing import Any

import pytest

from headrace.runners.flink_answers import (
    Answer,
    Checkpoints,
    CheckpointSettings,
    FlinkError,
    JobDetails,
    JobSummary,
    root_cause,
)
from tests.runners.flink_server import CHECKPOINTS, FAILED, JOB_DETAILS, SETTINGS

WORKER = """java.util.concurrent.ExecutionException: java.lang.RuntimeException: Error received from SDK harness: \
Traceback (most recent call last):
  File "a.py", line 1, in process
    raise OSError(28, "No space left on device")
OSError: [Errno 28] No space left on device

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "b.py", line 2, in f
    g()
{last}

	at java.base/java.util.concurrent.CompletableFuture.reportGet(CompletableFuture.java:396)
Caused by: java.lang.RuntimeException: Error received from SDK harness
"""


@pytest.mark.parametrize(
    ("trace", "cause"),
    [
        ("", ""),
        ("Checkpoint expired before completing.", "Checkpoint expired before completing."),
        ("a.B: one\n\tat x\nCaused by: c.D: two\n\tat y\nCaused by: e.F: three\n\tat z", "e.F: three"),
        (WORKER.replace("{last}", "ValueError: no such key"), "ValueError: no such key"),
        (
            WORKER.replace("{last}", "headrace.schemas.errors.InputError: topic orders is gone"),
            "headrace.schemas.errors.InputError: topic orders is gone",
        ),
    ],
)
def test_the_line_that_tells_most(trace: str, cause: str) -> None:
    assert root_cause(trace) == cause


def test_a_cause_is_cut() -> None:
    found = root_cause("x" * 600)
    assert len(found) == 500 and found.endswith("x…")


def test_what_ends_a_job() -> None:
    states = ("CREATED", "RUNNING", "RESTARTING", "FAILING", "CANCELLING", "FINISHED", "FAILED", "CANCELED")
    assert [s for s in states if JobSummary("i", "n", s, 0).live] == list(states[:5])


def test_a_job_that_never_ran() -> None:
    details = {**JOB_DETAILS, "timestamps": {"RUNNING": 0, "CREATED": 5}}
    assert JobDetails.read(Answer("/jobs/1", details)).running_since_ms is None
    assert JobDetails.read(Answer("/jobs/1", {**JOB_DETAILS, "timestamps": {}})).running_since_ms is None


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("latest",), None, "holds no object at /latest"),
        (("latest", "completed"), [], "holds no object at /latest/completed"),
        (
            ("latest", "completed", "trigger_timestamp"),
            None,
            "no whole number at /latest/completed/trigger_timestamp",
        ),
        (
            ("latest", "completed", "is_savepoint"),
            "false",
            "no true or false at /latest/completed/is_savepoint",
        ),
        (("latest", "restored"), {"id": 1}, "no whole number at /latest/restored/restore_timestamp"),
        (("history",), None, "no list at /history"),
        (("history", 1, "status"), None, "no text at /history/1/status"),
        (("counts", "completed"), 1.5, "no whole number at /counts/completed"),
    ],
)
def test_checkpoints_are_read_strictly(place: tuple[Any, ...], value: Any, message: str) -> None:
    document: Any = json.loads(json.dumps(CHECKPOINTS))
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(FlinkError, match=message):
        Checkpoints.read(Answer("/jobs/1/checkpoints", document))


def test_a_failed_checkpoint_has_its_reason() -> None:
    document = {**CHECKPOINTS, "latest": {"failed": FAILED}}
    found = Checkpoints.read(Answer("/c", document))
    assert found.failed is not None
    assert (found.failed.id, found.failed.failure) == (11, "Checkpoint expired before completing.")


@pytest.mark.parametrize(
    ("enabled", "deleted", "retained"),
    [(True, False, True), (True, True, False), (False, False, False), (False, True, False)],
)
def test_when_checkpoints_are_retained(enabled: bool, deleted: bool, retained: bool) -> None:
    kept = {"enabled": enabled, "delete_on_cancellation": deleted}
    assert CheckpointSettings.read(Answer("/c", {**SETTINGS, "externalization": kept})).retained is retained
