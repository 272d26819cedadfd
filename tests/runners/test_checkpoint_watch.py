from typing import Any

import pytest

from headrace.runners.checkpoint_watch import CheckpointWatch, checkpoint_age_seconds
from headrace.runners.flink_rest import FlinkRest
from tests.runners.flink_server import (
    CHECKPOINTS,
    COMPLETED,
    FAILED,
    IN_PROGRESS,
    JOB,
    JOB_DETAILS,
    NAME,
    RESTORED,
    SETTINGS,
    FlinkServer,
)

START = 1795278437379
DONE = 1795278475798


def show(server: FlinkServer, now: int, *, history: list[Any], state: str = "RUNNING", **latest: Any) -> None:
    server.on(f"GET /jobs/{JOB}", {**JOB_DETAILS, "state": state, "now": now})
    server.on(f"GET /jobs/{JOB}/checkpoints", {**CHECKPOINTS, "latest": latest, "history": history})


def test_recent_checkpoints_are_quiet(flink: FlinkServer) -> None:
    watch = CheckpointWatch(FlinkRest(flink.url), JOB)
    show(flink, DONE + 30_000, history=[COMPLETED], completed=COMPLETED)
    assert watch.look() is None
    show(flink, DONE + 30_001, history=[COMPLETED], completed=COMPLETED)
    text = watch.look()
    assert text == (
        f"job {NAME}: no checkpoint has completed for 30 s (alarm at 30 s), so nothing is committed to the lake; none is in "
        "progress and none has failed: look at the JobManager's log"
    )
    assert [asked for asked, _ in flink.asked].count(f"GET /jobs/{JOB}/checkpoints/config") == 1


def test_a_checkpoint_that_never_ends_is_named(flink: FlinkServer) -> None:
    stuck = {**IN_PROGRESS, "trigger_timestamp": DONE + 3000}
    later = {**IN_PROGRESS, "id": 11, "trigger_timestamp": DONE + 9000}
    show(flink, DONE + 45_000, history=[later, stuck, COMPLETED], completed=COMPLETED)
    text = CheckpointWatch(FlinkRest(flink.url), JOB).look()
    assert text is not None
    assert "no checkpoint has completed for 45 s" in text
    assert "checkpoint 10 is in progress for 42 s, 1 of 2 subtasks have answered" in text


@pytest.mark.parametrize("latest", [{"completed": COMPLETED, "failed": FAILED}, {"failed": FAILED}])
def test_the_reason_of_a_failed_checkpoint_is_told(flink: FlinkServer, latest: dict[str, Any]) -> None:
    show(flink, DONE + 100_000, history=[FAILED], **latest)
    text = CheckpointWatch(FlinkRest(flink.url), JOB).look()
    assert text is not None and "checkpoint 11 failed (Checkpoint expired before completing.)" in text


def test_a_failure_before_the_last_success_is_old_news(flink: FlinkServer) -> None:
    show(flink, DONE + 100_000, history=[], completed=COMPLETED, failed={**FAILED, "id": 3})
    text = CheckpointWatch(FlinkRest(flink.url), JOB).look()
    assert text is not None and "none has failed" in text


def test_a_job_that_does_not_run_is_not_late(flink: FlinkServer) -> None:
    show(flink, DONE + 1_000_000, history=[], state="RESTARTING", completed=COMPLETED)
    assert CheckpointWatch(FlinkRest(flink.url), JOB).look() is None


@pytest.mark.parametrize(
    ("latest", "now", "age"),
    [
        ({}, START + 7_000, 7.0),
        ({"completed": COMPLETED}, DONE + 2_500, 2.5),
        ({"completed": COMPLETED, "restored": RESTORED}, 1795278483623 + 4_000, 4.0),
        ({"completed": COMPLETED}, DONE - 5, 0.0),
    ],
)
def test_age_counts_from_checkpoint_restore_or_start(
    flink: FlinkServer, latest: dict[str, Any], now: int, age: float
) -> None:
    show(flink, now, history=[], **latest)
    assert checkpoint_age_seconds(FlinkRest(flink.url), JOB) == age


def test_rare_checkpoints_may_be_older(flink: FlinkServer) -> None:
    flink.on(f"GET /jobs/{JOB}/checkpoints/config", {**SETTINGS, "interval": 60_000})
    watch = CheckpointWatch(FlinkRest(flink.url), JOB)
    show(flink, DONE + 600_000, history=[COMPLETED], completed=COMPLETED)
    assert watch.look() is None
    show(flink, DONE + 600_001, history=[COMPLETED], completed=COMPLETED)
    assert "(alarm at 600 s)" in str(watch.look())
