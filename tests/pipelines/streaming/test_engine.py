"""Engines against runners that are gone, silent or ahead of what was last seen of them."""

import copy
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions

from headrace.pipelines.streaming.engine import BeamEngine, FlinkEngine
from headrace.runners.flink_rest import FlinkRest
from headrace.runners.servers.prism import PrismServer
from tests.runners.flink_server import CHECKPOINTS, JOB, JOB_DETAILS, JOB_SUMMARY, NAME, serve_flink

ENDED = {**JOB_DETAILS, "state": "CANCELED"}
LISTENER = """#!{python}
import socket, sys
port = next(int(word.partition("=")[2]) for word in sys.argv if word.startswith("--job_port="))
listener = socket.create_server(("127.0.0.1", port))
print("serving", flush=True)
while True:
    listener.accept()
"""


class _GoneError(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE


class _Gone:
    """The result of a job whose runner does not answer any more."""

    @property
    def state(self) -> str:
        raise _GoneError

    def cancel(self) -> None:
        raise _GoneError

    def wait_until_finish(self) -> None:
        raise _GoneError


class _Running:
    def __init__(self) -> None:
        self.state = "RUNNING"

    def cancel(self) -> None:
        self.state = "CANCELLED"


def _beam(result: Any, seen: list[PipelineOptions] | None = None, *more: str) -> BeamEngine:
    def build(options: PipelineOptions, native: bool) -> Any:
        assert not native
        if seen is not None:
            seen.append(options)
        return SimpleNamespace(run=lambda: result)

    return BeamEngine(lambda name, restore: PipelineOptions([*more, f"--job_name={name}"]), build)


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that listens as Prism does, in a cache of its own."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    program = tmp_path / "prism"
    program.write_text(LISTENER.format(python=sys.executable))
    program.chmod(0o755)
    return program


def test_a_prism_that_is_gone_has_ended_the_job() -> None:
    engine = _beam(_Gone(), None, "--job_endpoint=127.0.0.1:1")
    engine.start("job", None)
    assert engine.ended() is not None
    engine.cancel()


def test_prism_lives_in_a_session_of_its_own_and_ends_with_the_job(listener: Path, tmp_path: Path) -> None:
    seen: list[PipelineOptions] = []
    engine = _beam(_Running(), seen, f"--prism_location={listener}")
    engine.start("job", None)
    prism = PrismServer(tmp_path / "cache" / "streams" / "job")
    pid = prism.status().pids["prism"]
    assert seen[0].view_as(PortableOptions).job_endpoint == str(prism.address)
    assert os.getsid(pid) == pid
    assert engine.ended() is None
    assert engine.stop() is None
    assert prism.status().state == "down"
    assert not prism.cluster.exists()


def test_a_killed_prism_has_ended_the_job(listener: Path, tmp_path: Path) -> None:
    engine = _beam(_Running(), None, f"--prism_location={listener}")
    engine.start("job", None)
    PrismServer(tmp_path / "cache" / "streams" / "job").kill(signal.SIGKILL)
    assert engine.ended() == "Prism has ended; its last line: serving"
    engine.cancel()
    assert not (tmp_path / "cache" / "streams" / "job").exists()


def test_a_prism_that_a_killed_launcher_left_is_ended(listener: Path, tmp_path: Path) -> None:
    _beam(_Running(), None, f"--prism_location={listener}").start("job", None)
    left = PrismServer(tmp_path / "cache" / "streams" / "job")
    assert left.status().state == "up"
    assert _beam(_Running()).recover("job", None) is None
    assert left.status().state == "down"


def _flink(rest: FlinkRest) -> FlinkEngine:
    return FlinkEngine(
        lambda name, restore: PipelineOptions([]), lambda *given: None, rest, "file:///savepoints"
    )


def _told(folder: Path, number: int) -> dict[str, Any]:
    told = copy.deepcopy(CHECKPOINTS)
    told["latest"]["completed"]["external_path"] = f"file:{folder}/{JOB}/chk-{number}"
    return told


def _checkpoint(folder: Path, number: int) -> str:
    place = folder / JOB / f"chk-{number}"
    place.mkdir(parents=True)
    (place / "_metadata").touch()
    return place.as_uri()


def test_a_left_job_is_cancelled_before_its_checkpoint_is_looked_up(tmp_path: Path) -> None:
    with serve_flink() as server:
        server.on(f"GET /jobs/{JOB}", JOB_DETAILS, ENDED)
        server.on(f"PATCH /jobs/{JOB}?mode=cancel", {})
        server.on(f"GET /jobs/{JOB}/checkpoints", _told(tmp_path, 9))
        _checkpoint(tmp_path, 9)
        newest = _checkpoint(tmp_path, 10)
        assert _flink(FlinkRest(server.url)).recover(NAME, None) == newest
        asked = [request for request, _ in server.asked]
    assert asked.index(f"PATCH /jobs/{JOB}?mode=cancel") < asked.index(f"GET /jobs/{JOB}/checkpoints")


def test_after_a_lost_jobmanager_the_newest_checkpoint_on_disk_counts(tmp_path: Path) -> None:
    with serve_flink() as server:
        server.on(f"GET /jobs/{JOB}/checkpoints", _told(tmp_path, 9))
        server.on("GET /jobs/overview", {"jobs": [JOB_SUMMARY]})
        engine = _flink(FlinkRest(server.url))
        engine._job = JOB
        assert engine.ended() is None
        assert engine.restore_point() == f"file:{tmp_path}/{JOB}/chk-9"
        _checkpoint(tmp_path, 9)
        newest = _checkpoint(tmp_path, 11)
        server.on(f"GET /jobs/{JOB}", {"errors": ["Could not find Flink job"]}, status=404)
        assert engine.ended() == "the JobManager does not know the job any more"
    assert engine.restore_point() == newest


def test_a_silent_jobmanager_is_waited_for_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with serve_flink() as server:
        engine = _flink(FlinkRest(server.url))
        engine._job = JOB
        server.on(f"GET /jobs/{JOB}", {"errors": ["leader election"]}, status=503)
        assert [engine.ended(), engine.ended()] == [None, None]
    assert len(caplog.records) == 1
