import pickle
import socket
from typing import Any

import pytest

from headrace.runners.flink_answers import (
    CheckpointSettings,
    FlinkError,
    FlinkNotFoundError,
    FlinkUnreachableError,
    JobFailure,
    JobSummary,
    Overview,
    Restored,
)
from headrace.runners.flink_rest import FlinkRest
from headrace.schemas.errors import ConfigError, InputError
from tests.runners.flink_server import (
    BACKPRESSURE,
    CHECKPOINTS,
    CHK,
    COMPLETED,
    JOB,
    JOB_DETAILS,
    JOB_SUMMARY,
    NAME,
    RESTORED,
    FlinkServer,
)

STOP, SAVEPOINT = f"POST /jobs/{JOB}/stop", f"GET /jobs/{JOB}/savepoints/t1"
IN_PROGRESS = {"status": {"id": "IN_PROGRESS"}, "operation": None}
SAVED = {"status": {"id": "COMPLETED"}, "operation": {"location": "file:/sp/savepoint-1"}}
NOT_RUNNING = {
    "status": {"id": "COMPLETED"},
    "operation": {
        "failure-cause": {
            "class": "java.util.concurrent.CompletionException",
            "stack-trace": "java.util.concurrent.CompletionException: x\nCaused by: org.apache.flink.runtime.checkpoint."
            "CheckpointException: task is not being executed. Failure reason: Not all required tasks are currently running.\n",
        }
    },
}
NO_FOLDER = {
    "status": {"id": "COMPLETED"},
    "operation": {
        "failure-cause": {
            "class": "java.util.concurrent.CompletionException",
            "stack-trace": "java.util.concurrent.CompletionException: x\n\tat y\nCaused by: java.io.IOException: Failed to create "
            "savepoint directory at file:/proc/x\n\tat z\n",
        }
    },
}


@pytest.mark.parametrize(
    "url", ["", "localhost:8081", "ftp://h:1", "http://", "http://h:x", "http://h:1?a=b", "http://h:1#a"]
)
def test_only_http_addresses_are_taken(url: str) -> None:
    with pytest.raises(ConfigError, match=r"no address of Flink's REST service; give http://HOST:PORT"):
        FlinkRest(url)


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="holds a user or password") as caught:
        FlinkRest("http://me:secret@h:8081")
    assert "secret" not in str(caught.value)


def test_the_client_travels_to_workers() -> None:
    rest = FlinkRest("http://h:8081", 3.0)
    assert pickle.loads(pickle.dumps(rest)) == rest


def test_cluster_and_jobs(flink: FlinkServer) -> None:
    rest = FlinkRest(f"{flink.url}/")
    assert rest.version() == "1.19.3"
    assert rest.overview() == Overview("1.19.3", task_managers=1, slots=2, free_slots=1)
    assert rest.cluster_config()["state.backend.type"] == "rocksdb"
    assert rest.jobs() == [JobSummary(JOB, NAME, "RUNNING", 1795278436108)]
    details = rest.job(JOB)
    assert (details.name, details.state, details.now_ms) == (NAME, "RUNNING", 1795278478877)
    assert (details.running_since_ms, details.max_parallelism) == (1795278437379, 128)
    assert details.vertices["2e8c70"] == "[1]ParDo(Count)"
    assert rest.job_options(JOB)["maxBundleTimeMills"] == "200"
    assert flink.asked[0] == ("GET /overview", None)


def test_a_job_is_found_by_its_name(flink: FlinkServer) -> None:
    old = {**JOB_SUMMARY, "jid": "old", "state": "CANCELED", "start-time": 5}
    flink.on("GET /jobs/overview", {"jobs": [old, JOB_SUMMARY, {**JOB_SUMMARY, "jid": "o", "name": "other"}]})
    assert FlinkRest(flink.url).job_id(NAME) == JOB


def test_no_job_of_a_name_says_how_the_last_one_ended(flink: FlinkServer) -> None:
    jobs = [
        {**JOB_SUMMARY, "jid": jid, "state": state, "start-time": at}
        for jid, state, at in [("first", "FINISHED", 1), ("last", "FAILED", 2)]
    ]
    flink.on("GET /jobs/overview", {"jobs": jobs})
    with pytest.raises(FlinkNotFoundError, match=rf"no job named {NAME} runs on .*, last, is FAILED"):
        FlinkRest(flink.url).job_id(NAME)
    flink.on("GET /jobs/overview", {"jobs": []})
    with pytest.raises(FlinkNotFoundError, match=r"runs on http://127\.0\.0\.1:\d+; look at"):
        FlinkRest(flink.url).job_id(NAME)


def test_two_live_jobs_of_a_name_are_an_error(flink: FlinkServer) -> None:
    flink.on(
        "GET /jobs/overview", {"jobs": [JOB_SUMMARY, {**JOB_SUMMARY, "jid": "two", "state": "RESTARTING"}]}
    )
    with pytest.raises(
        FlinkError, match=rf"2 jobs named {NAME} run on .* \({JOB}, two\); cancel all but one"
    ):
        FlinkRest(flink.url).job_id(NAME)


def test_durable_until_is_the_trigger_of_the_latest_complete_checkpoint(flink: FlinkServer) -> None:
    rest = FlinkRest(flink.url)
    assert rest.durable_until(JOB) == 1795278475798 * 1000
    assert rest.latest_checkpoint_path(JOB) == CHK
    found = rest.checkpoints(JOB)
    assert [c.id for c in found.in_progress] == [10]
    assert (found.completed_count, found.failed_count, found.failed) == (9, 4, None)


def test_a_restore_counts_from_its_time(flink: FlinkServer) -> None:
    latest = {"completed": COMPLETED, "savepoint": None, "failed": None, "restored": RESTORED}
    flink.on(f"GET /jobs/{JOB}/checkpoints", {**CHECKPOINTS, "latest": latest})
    rest = FlinkRest(flink.url)
    assert rest.durable_until(JOB) == 1795278483623 * 1000
    assert rest.checkpoints(JOB).restored == Restored(9, 1795278483623, False, CHK)
    assert rest.durable_until(JOB, began=1795278483623_001) == 1795278483623 * 1000
    assert rest.durable_until(JOB, began=1795278483623_000) is None


def test_savepoints_are_not_proof(flink: FlinkServer) -> None:
    savepoint = {**COMPLETED, "id": 12, "is_savepoint": True, "trigger_timestamp": 1795278999999}
    latest = {"completed": None, "savepoint": savepoint, "failed": None, "restored": None}
    flink.on(f"GET /jobs/{JOB}/checkpoints", {**CHECKPOINTS, "latest": latest, "history": [savepoint]})
    rest = FlinkRest(flink.url)
    assert rest.durable_until(JOB) is None
    assert rest.latest_checkpoint_path(JOB) is None


def test_a_checkpoint_in_the_job_managers_memory_has_no_path(flink: FlinkServer) -> None:
    completed = {**COMPLETED, "external_path": "<checkpoint-not-externally-addressable>"}
    flink.on(
        f"GET /jobs/{JOB}/checkpoints",
        {**CHECKPOINTS, "latest": {"completed": completed}, "history": []},
    )
    assert FlinkRest(flink.url).latest_checkpoint_path(JOB) is None


def test_settings_and_failures(flink: FlinkServer) -> None:
    rest = FlinkRest(flink.url)
    assert rest.checkpoint_settings(JOB) == CheckpointSettings(
        "exactly_once", 1000, 60000, 500, True, "EmbeddedRocksDBStateBackend", "FileSystemCheckpointStorage"
    )
    assert rest.failures(JOB) == [
        JobFailure(
            1795278481585,
            "[1]ParDo(Count) (1/1) - execution #0",
            "org.apache.flink.runtime.jobmaster.JobMasterException: TaskManager with id taskmanager-0-1 is no longer reachable.",
        ),
        JobFailure(1795278481000, "", "java.lang.RuntimeException: no task"),
    ]


def test_backpressure_by_step(flink: FlinkServer) -> None:
    flink.on(f"GET /jobs/{JOB}/vertices/cbc357/backpressure", BACKPRESSURE)
    flink.on(f"GET /jobs/{JOB}/vertices/2e8c70/backpressure", {"status": "deprecated"})
    assert FlinkRest(flink.url).backpressure(JOB) == {"Source: StreamingImpulseSource -> [1]k": "low"}


def test_a_stop_waits_for_savepoint_and_end(flink: FlinkServer) -> None:
    flink.on(STOP, {"request-id": "t1"}, status=202).on(SAVEPOINT, IN_PROGRESS, SAVED)
    flink.on(f"GET /jobs/{JOB}", JOB_DETAILS, {**JOB_DETAILS, "state": "FINISHED"})
    place = FlinkRest(flink.url).stop_with_savepoint(JOB, "file:///sp", drain=True, poll_seconds=0.001)
    assert place == "file:/sp/savepoint-1"
    assert flink.asked[0] == (
        STOP,
        {"targetDirectory": "file:///sp", "drain": True, "formatType": "CANONICAL"},
    )
    assert [request for request, _ in flink.asked[1:]] == [SAVEPOINT, SAVEPOINT, *[f"GET /jobs/{JOB}"] * 2]


def test_a_savepoint_is_asked_for_again_while_tasks_start(flink: FlinkServer) -> None:
    request = f"POST /jobs/{JOB}/savepoints"
    flink.on(request, {"request-id": "t1"}, status=202).on(SAVEPOINT, NOT_RUNNING, SAVED)
    assert (
        FlinkRest(flink.url).savepoint(JOB, "file:///sp", poll_seconds=0.001)
        == SAVED["operation"]["location"]
    )
    assert [asked for asked, _ in flink.asked].count(request) == 2
    assert flink.asked[0][1] == {
        "target-directory": "file:///sp",
        "cancel-job": False,
        "formatType": "CANONICAL",
    }


def test_a_failed_savepoint_says_why(flink: FlinkServer) -> None:
    flink.on(STOP, {"request-id": "t1"}, status=202).on(SAVEPOINT, NO_FOLDER)
    with pytest.raises(
        FlinkError, match=r"did not end it: java\.io\.IOException: Failed to create savepoint"
    ):
        FlinkRest(flink.url).stop_with_savepoint(JOB, "file:///proc/x")


@pytest.mark.parametrize("answer", [IN_PROGRESS, NOT_RUNNING])
def test_a_savepoint_that_takes_too_long(flink: FlinkServer, answer: Any) -> None:
    flink.on(STOP, {"request-id": "t1"}, status=202).on(SAVEPOINT, answer)
    with pytest.raises(FlinkError, match="after the time it was given; look at the job"):
        FlinkRest(flink.url).stop_with_savepoint(JOB, "file:///sp", timeout_seconds=0)


def test_cancelling(flink: FlinkServer) -> None:
    flink.on(f"PATCH /jobs/{JOB}?mode=cancel", {}, status=202)
    flink.on(
        f"GET /jobs/{JOB}",
        JOB_DETAILS,
        {**JOB_DETAILS, "state": "CANCELLING"},
        {**JOB_DETAILS, "state": "CANCELED"},
    )
    rest = FlinkRest(flink.url)
    rest.cancel(JOB, poll_seconds=0.001)
    rest.cancel(JOB)
    assert [asked for asked, _ in flink.asked].count(f"PATCH /jobs/{JOB}?mode=cancel") == 1


def test_flink_s_own_words_are_passed_on(flink: FlinkServer) -> None:
    trace = "org.apache.flink.NotFoundException: x\nCaused by: FlinkJobNotFoundException: Could not find Flink job (0)\n"
    flink.on("GET /jobs/0", {"errors": ["Job could not be found.", trace]}, status=404)
    with pytest.raises(
        FlinkNotFoundError, match=r"Flink refused GET /jobs/0 \(404\): FlinkJobNotFoundException: Could"
    ):
        FlinkRest(flink.url).job("0")
    flink.on("GET /overview", {"errors": ["Service temporarily unavailable due to election"]}, status=503)
    with pytest.raises(FlinkUnreachableError, match="Service temporarily unavailable"):
        FlinkRest(flink.url).version()
    flink.on("GET /overview", b"<html>", status=500)
    with pytest.raises(FlinkError, match=r"Flink refused GET /overview \(500\): HTTP status 500"):
        FlinkRest(flink.url).version()


def test_nobody_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        FlinkUnreachableError, match=rf"127\.0\.0\.1:{port} does not answer \(.*refused\)"
    ) as caught:
        FlinkRest(f"http://127.0.0.1:{port}").version()
    assert isinstance(caught.value, InputError)


def test_an_answer_that_never_comes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        rest = FlinkRest(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=0.05)
        with pytest.raises(FlinkUnreachableError, match="timed out"):
            rest.version()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"hello", "is no JSON; is another service"),
        ([], "holds no object at /; is this Flink"),
        ({"flink-version": 1}, "has no text at /flink-version"),
        ({"flink-version": "1.19", "taskmanagers": True}, "has no whole number at /taskmanagers"),
        ({"flink-version": "1.19", "taskmanagers": "1"}, "has no whole number at /taskmanagers"),
    ],
)
def test_answers_that_are_not_flink_s(flink: FlinkServer, answer: Any, message: str) -> None:
    flink.on("GET /overview", answer)
    with pytest.raises(FlinkError, match=message):
        FlinkRest(flink.url).overview()


def test_a_configuration_that_is_no_list(flink: FlinkServer) -> None:
    flink.on("GET /jobmanager/config", {})
    with pytest.raises(FlinkError, match="/jobmanager/config is no list"):
        FlinkRest(flink.url).cluster_config()


def test_a_service_that_speaks_something_else() -> None:
    from threading import Thread

    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\0\0\x04nonsense\n")

        thread = Thread(target=answer)
        thread.start()
        with pytest.raises(FlinkError, match="does not speak HTTP"):
            FlinkRest(f"http://127.0.0.1:{other.getsockname()[1]}").version()
        thread.join()


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    flink: FlinkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert FlinkRest(flink.url).version() == "1.19.3"
