import ast
import hashlib
import io
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from apache_beam.portability import common_urns
from apache_beam.portability.api import (
    beam_artifact_api_pb2_grpc,
    beam_fn_api_pb2,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
    endpoints_pb2,
)
from apache_beam.runners.portability.artifact_service import ArtifactRetrievalService

from headrace.runners import worker_pool
from headrace.runners.worker_pool import BootError, Environments, WorkerPool, fetch, python_of

ROLES = common_urns.artifact_roles


def artifact(path: Path, name: str, *, sha256: str = "", role: str = ROLES.STAGING_TO.urn) -> Any:
    return beam_runner_api_pb2.ArtifactInformation(
        type_urn=common_urns.artifact_types.FILE.urn,
        type_payload=beam_runner_api_pb2.ArtifactFilePayload(
            path=str(path), sha256=sha256
        ).SerializeToString(),
        role_urn=role,
        role_payload=beam_runner_api_pb2.ArtifactStagingToRolePayload(staged_name=name).SerializeToString(),
    )


def retrieval() -> ArtifactRetrievalService:
    return ArtifactRetrievalService(lambda path: open(path, "rb"), chunk_size=3)


class FakeRunner(beam_provision_api_pb2_grpc.ProvisionServiceServicer):
    """Answers what a worker needs."""

    def __init__(self) -> None:
        self.info = beam_provision_api_pb2.ProvisionInfo()
        self.asked: list[str] = []

    def GetProvisionInfo(self, request: Any, context: Any) -> Any:
        self.asked.append(dict(context.invocation_metadata())["worker_id"])
        return beam_provision_api_pb2.GetProvisionInfoResponse(info=self.info)


@pytest.fixture
def runner() -> Iterator[tuple[FakeRunner, endpoints_pb2.ApiServiceDescriptor]]:
    runner = FakeRunner()
    server = grpc.server(ThreadPoolExecutor(2))
    beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(runner, server)
    beam_artifact_api_pb2_grpc.add_ArtifactRetrievalServiceServicer_to_server(retrieval(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield runner, endpoints_pb2.ApiServiceDescriptor(url=f"localhost:{port}")
    server.stop(0)


def start_request(endpoint: endpoints_pb2.ApiServiceDescriptor) -> Any:
    return beam_fn_api_pb2.StartWorkerRequest(
        worker_id="w1",
        provision_endpoint=endpoint,
        artifact_endpoint=endpoint,
        control_endpoint=endpoint,
        logging_endpoint=endpoint,
    )


def test_the_file_stands_alone() -> None:
    tree = ast.parse(Path(worker_pool.__file__).read_text())
    imported = [
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    ]
    assert "apache_beam.portability" in imported
    assert not [name for name in imported if name.startswith("headrace")]


def test_staged_files_are_fetched_by_name(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    (tmp_path / "r").write_bytes(b"orjson\n")
    digest = hashlib.sha256(b"0123456789").hexdigest()
    found = fetch(
        retrieval(),
        [
            artifact(tmp_path / "x", "workflow.tar.gz", sha256=digest),
            artifact(tmp_path / "r", "", role=ROLES.PIP_REQUIREMENTS_FILE.urn),
        ],
    )
    assert found == {"workflow.tar.gz": b"0123456789", "1-requirements.txt": b"orjson\n"}


def test_a_damaged_or_strange_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0123")
    with pytest.raises(BootError, match=r"staged file a has checksum 1be2e452.*, not 00"):
        fetch(retrieval(), [artifact(tmp_path / "x", "a", sha256="00")])
    with pytest.raises(BootError, match="unknown role beam:other"):
        fetch(retrieval(), [artifact(tmp_path / "x", "a", role="beam:other")])


@pytest.mark.parametrize("name", ["../a", "/a", "a/b", "", ".", ".."])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BootError, match="is not a plain name"):
        Environments(tmp_path).obtain({name: b""})
    assert not list(tmp_path.iterdir())


def test_equal_files_share_an_environment_that_sees_the_pools_libraries(tmp_path: Path) -> None:
    environments = Environments(tmp_path)
    first = environments.obtain({"data.txt": b"1"})
    assert environments.obtain({"data.txt": b"1"}) == first
    assert environments.obtain({"data.txt": b"2"}) != first
    assert (first / "staged" / "data.txt").read_bytes() == b"1"
    code = "import sys, pyarrow; print(sys.prefix)"
    done = subprocess.run([python_of(first), "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(first / "venv")


def test_builds_of_one_sdist_at_different_times_count_as_equal(tmp_path: Path) -> None:
    def sdist(time: int, content: bytes) -> bytes:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            member = tarfile.TarInfo("headrace/a.py")
            member.size, member.mtime = len(content), time
            archive.addfile(member, io.BytesIO(content))
        return packed.getvalue()

    environments = Environments(tmp_path)
    first = environments.obtain({"a.tar.gz": sdist(1, b"x = 1")})
    assert environments.obtain({"a.tar.gz": sdist(2, b"x = 1")}) == first
    assert environments.obtain({"a.tar.gz": sdist(1, b"x = 2")}) != first
    assert environments.obtain({"a.tar.gz": sdist(1, b"x = 1")[:40]}) != first


@pytest.mark.parametrize(("isolated", "flag"), [(True, []), (False, ["--no-build-isolation"])])
def test_requirements_extra_packages_and_the_workflow_are_installed_in_this_order(
    isolated: bool, flag: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(worker_pool, "_pip", lambda python, *arguments: calls.append(arguments))
    names = ("1-requirements.txt", "requirements.txt", "own.whl", "workflow.tar.gz")
    files = {**dict.fromkeys(names, b""), "extra_packages.txt": b"own.whl\n"}
    staged = Environments(tmp_path).obtain(files, isolated_builds=isolated) / "staged"
    assert [list(call) for call in calls] == [
        ["--find-links", str(staged), "-r", str(staged / "1-requirements.txt")],
        ["--find-links", str(staged), "-r", str(staged / "requirements.txt")],
        ["--force-reinstall", "--no-deps", *flag, str(staged / "own.whl")],
        [*flag, str(staged / "own.whl")],
        [*flag, str(staged / "workflow.tar.gz")],
    ]


def test_a_worker_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "GRACE_SECONDS", 0.2)
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        worker_pool._stop([process])
        assert process.returncode == -signal.SIGKILL


@pytest.mark.integration
def test_what_pip_refuses_is_told_to_the_runner_and_leaves_nothing(
    runner: tuple[FakeRunner, Any], tmp_path: Path
) -> None:
    fake, endpoint = runner
    (tmp_path / "broken").write_bytes(b"no archive")
    fake.info.dependencies.append(artifact(tmp_path / "broken", "workflow.tar.gz"))
    folder = tmp_path / "pool"
    folder.mkdir()
    answer = WorkerPool(folder).StartWorker(start_request(endpoint), None)
    assert answer.error.startswith("pip can't install workflow.tar.gz on this worker: ")
    assert fake.asked == ["w1"]
    assert not list(folder.iterdir())


def test_files_by_retrieval_token_are_refused(runner: tuple[FakeRunner, Any], tmp_path: Path) -> None:
    fake, endpoint = runner
    fake.info.retrieval_token = "/some/manifest"
    answer = WorkerPool(tmp_path).StartWorker(start_request(endpoint), None)
    assert "retrieval token" in answer.error


def test_a_runner_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    nowhere = endpoints_pb2.ApiServiceDescriptor(url="localhost:1")
    assert "UNAVAILABLE" in WorkerPool(tmp_path).StartWorker(start_request(nowhere), None).error


def test_a_worker_gets_what_beams_boot_program_sets_and_is_stopped(
    runner: tuple[FakeRunner, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, endpoint = runner
    fake.info.pipeline_options.update({"beam:option:experiments:v1": ["pip_use_build_isolation"]})
    fake.info.metadata["job_id"] = "j1"
    fake.info.runner_capabilities.append("beam:capability")
    fake.info.sibling_worker_ids.append("w2")
    fake.info.status_endpoint.url = "localhost:2"
    seen: list[tuple[list[str], dict[str, str]]] = []
    popen = subprocess.Popen

    def start(command: list[str], **settings: Any) -> Any:
        seen.append((command, settings["env"]))
        return popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    monkeypatch.setattr(subprocess, "Popen", start)
    pool = WorkerPool(tmp_path)
    assert not pool.StartWorker(start_request(endpoint), None).error
    processes = pool._workers["w1"]
    assert [environ["WORKER_ID"] for _, environ in seen] == ["w1", "w2"]
    command, environ = seen[0]
    assert command[1:] == ["-m", "apache_beam.runners.worker.sdk_worker_main"]
    assert environ["CONTROL_API_SERVICE_DESCRIPTOR"] == f'url: "{endpoint.url}"\n'
    assert environ["STATUS_API_SERVICE_DESCRIPTOR"] == 'url: "localhost:2"\n'
    assert environ["RUNNER_CAPABILITIES"] == "beam:capability"
    assert environ["JOB_ID"] == "j1"
    assert "pip_use_build_isolation" in Path(environ["PIPELINE_OPTIONS_FILE"]).read_text()
    assert Path(command[0]).is_relative_to(environ["SEMI_PERSISTENT_DIRECTORY"])
    pool.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="w1"), None)
    assert [process.returncode for process in processes] == [-signal.SIGTERM] * 2
    pool.close()


@pytest.mark.integration
def test_the_command_listens_on_this_machine_until_it_is_told_to_stop() -> None:
    command = [sys.executable, worker_pool.__file__, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline().startswith("listening on localhost:")
        process.terminate()
        assert process.wait(30) == 0
