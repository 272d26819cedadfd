"""A worker pool that installs what a job ships: the other end of ``--environment_type=EXTERNAL``.

Beam's own pool installs nothing unless it is given the boot program of Beam's containers, a Go program that is not on PyPI. This
one does that program's work: for each worker that a runner asks for it fetches the staged files, installs the packages among
them (headrace's own sdist is one) into a virtual environment on top of the pool's, and starts Beam's worker in it. Jobs with
equal packages share an environment; the pool's own is never changed.

It needs Beam, pip and nothing of headrace, so that this one file can be copied to a machine that has no headrace::

    python worker_pool.py --port 50000

A package that can't be installed fails the runner's request with pip's message, so the job fails at once and says why.
Whoever reaches the port can run code here: it listens on localhost unless told otherwise; use a network that you trust.

Source: Beam's container contract, https://s.apache.org/beam-fn-api-container-contract, and Beam 2.77's
``sdks/python/container/boot.go``.
"""

import argparse
import hashlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import venv
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc
from apache_beam.portability import common_urns
from apache_beam.portability.api import (
    beam_artifact_api_pb2,
    beam_artifact_api_pb2_grpc,
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
    endpoints_pb2,
)
from apache_beam.runners.worker.channel_factory import GRPCChannelFactory
from apache_beam.utils.thread_pool_executor import shared_unbounded_instance
from google.protobuf import json_format, text_format

GRACE_SECONDS = 5.0
"""How long a worker that is told to stop may take."""
ANSWER_SECONDS = 60.0
"""How long the runner may take to say what a worker needs."""

_REQUIREMENTS = "requirements.txt"
_WORKER = "apache_beam.runners.worker.sdk_worker_main"
_NO_FILES = ("", "__no_artifacts_staged__", "NO_ARTIFACTS_STAGED")
_log = logging.getLogger("headrace.worker_pool")


class BootError(Exception):
    """A worker can't be started; the message goes to the runner."""


class Environments:
    """Virtual environments, one for each set of staged files, over the environment that runs this."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def obtain(self, files: dict[str, bytes], *, isolated_builds: bool = False) -> Path:
        """Returns the environment in which these staged files are installed; makes it if it is new.

        Args:
            files: content by staged name; ``staged/`` in the environment's folder holds them.
            isolated_builds: let pip fetch what builds an sdist, instead of using what is installed.

        Raises:
            BootError: a name that leads out of the folder, or what pip refused, with the end of its output.
        """
        digest = hashlib.sha256(repr(isolated_builds).encode())
        for name, content in sorted(files.items()):
            if name in ("", ".", "..") or Path(name).name != name:
                raise BootError(f"staged file {name!r} is not a plain name")
            digest.update(repr((name, _digest(content))).encode())
        folder = self._folder / digest.hexdigest()[:16]
        with self._lock:
            if not folder.exists():
                try:
                    self._make(folder, files, isolated_builds)
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
        return folder

    def _make(self, folder: Path, files: dict[str, bytes], isolated_builds: bool) -> None:
        staged = folder / "staged"
        staged.mkdir(parents=True)
        for name, content in files.items():
            (staged / name).write_bytes(content)
        venv.create(folder / "venv", symlinks=True)
        below = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in below)
        [packages] = (folder / "venv").glob("lib/python*/site-packages")
        (packages / "_worker_pool.pth").write_text(lines)
        python = python_of(folder)
        build = [] if isolated_builds else ["--no-build-isolation"]
        for name in sorted(files):
            if name == _REQUIREMENTS or name.endswith(f"-{_REQUIREMENTS}"):
                _pip(python, "--find-links", str(staged), "-r", str(staged / name))
        for name in files.get("extra_packages.txt", b"").decode().split():
            _pip(python, "--force-reinstall", "--no-deps", *build, str(staged / name))
            _pip(python, *build, str(staged / name))
        if "workflow.tar.gz" in files:
            _pip(python, *build, str(staged / "workflow.tar.gz"))


def _digest(content: bytes) -> bytes:
    """Returns a hash of a staged file; of an archive that of its members, as each build of one sdist has other times in it."""
    digest = hashlib.sha256()
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in sorted(archive.getmembers(), key=lambda member: member.name):
                data = archive.extractfile(member) if member.isfile() else None
                inside = hashlib.sha256(data.read()).digest() if data is not None else b""
                digest.update(repr((member.name, member.type, member.mode, member.linkname, inside)).encode())
    except (tarfile.TarError, OSError, EOFError, zlib.error):
        return hashlib.sha256(content).digest()
    return digest.digest()


def python_of(folder: Path) -> Path:
    """Returns the interpreter of an environment that :meth:`Environments.obtain` returned."""
    return folder / "venv" / "bin" / "python"


def _pip(python: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install"]
    done = subprocess.run(
        [*command, "-q", "--no-cache-dir", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise BootError(
            f"pip can't install {Path(arguments[-1]).name} on this worker: {done.stdout.strip()[-2000:]}"
        )
    if done.stdout.strip():
        _log.info("pip: %s", done.stdout.strip())


def fetch(stub: Any, dependencies: Iterable[Any]) -> dict[str, bytes]:
    """Returns the content of the staged files by name.

    Args:
        stub: an ``ArtifactRetrievalServiceStub``.
        dependencies: ``ArtifactInformation`` from the provision service.

    Raises:
        BootError: a file without a name, or one whose checksum differs.
    """
    request = beam_artifact_api_pb2.ResolveArtifactsRequest(artifacts=dependencies)
    files: dict[str, bytes] = {}
    for artifact in stub.ResolveArtifacts(request).replacements:
        if artifact.role_urn == common_urns.artifact_roles.STAGING_TO.urn:
            role = beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(artifact.role_payload)
            name = role.staged_name
        elif artifact.role_urn == common_urns.artifact_roles.PIP_REQUIREMENTS_FILE.urn:
            name = f"{len(files)}-{_REQUIREMENTS}"
        else:
            raise BootError(f"staged file of unknown role {artifact.role_urn}")
        parts = stub.GetArtifact(beam_artifact_api_pb2.GetArtifactRequest(artifact=artifact))
        content = b"".join(part.data for part in parts)
        if artifact.type_urn == common_urns.artifact_types.FILE.urn:
            stated = beam_runner_api_pb2.ArtifactFilePayload.FromString(artifact.type_payload).sha256
            found = hashlib.sha256(content).hexdigest()
            if stated and stated != found:
                raise BootError(f"staged file {name} has checksum {found}, not {stated}")
        files[name] = content
    return files


class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts and stops workers for runners.

    Args:
        folder: for environments and the workers' files; its owner removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environments = Environments(folder)
        self._lock = threading.Lock()
        self._workers: dict[str, list[subprocess.Popen[bytes]]] = {}

    def StartWorker(self, request: Any, context: Any) -> Any:
        try:
            self._start(request)
        except (BootError, OSError, grpc.RpcError) as error:
            _log.exception("worker %s was not started", request.worker_id)
            return beam_fn_api_pb2.StartWorkerResponse(error=str(error) or repr(error))
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:
        with self._lock:
            stopped = self._workers.pop(request.worker_id, [])
        _stop(stopped)
        return beam_fn_api_pb2.StopWorkerResponse()

    def close(self) -> None:
        """Stops all workers."""
        with self._lock:
            stopped = [process for processes in self._workers.values() for process in processes]
            self._workers.clear()
        _stop(stopped)

    def _start(self, request: Any) -> None:
        who = (("worker_id", request.worker_id),)
        with GRPCChannelFactory.insecure_channel(request.provision_endpoint.url) as channel:
            stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
            question = beam_provision_api_pb2.GetProvisionInfoRequest()
            info = stub.GetProvisionInfo(question, metadata=who, timeout=ANSWER_SECONDS).info
        options = json.loads(json_format.MessageToJson(info.pipeline_options))
        files: dict[str, bytes] = {}
        if info.dependencies:
            artifacts = info.artifact_endpoint.url or request.artifact_endpoint.url
            with GRPCChannelFactory.insecure_channel(artifacts) as channel:
                service = beam_artifact_api_pb2_grpc.ArtifactRetrievalServiceStub(channel)
                files = fetch(service, info.dependencies)
        elif info.retrieval_token not in _NO_FILES:
            raise BootError("the runner stages files by a retrieval token, as runners did before Beam 2.22")
        isolated = "pip_use_build_isolation" in _experiments(options)
        folder = self._environments.obtain(files, isolated_builds=isolated)
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".json", delete=False) as file:
            json.dump(options, file)
        environment = {
            **os.environ,
            "PATH": f"{python_of(folder).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "VIRTUAL_ENV": str(folder / "venv"),
            "SEMI_PERSISTENT_DIRECTORY": str(folder),
            "PIPELINE_OPTIONS_FILE": file.name,
            "CONTROL_API_SERVICE_DESCRIPTOR": _endpoint(info.control_endpoint, request.control_endpoint),
            "LOGGING_API_SERVICE_DESCRIPTOR": _endpoint(info.logging_endpoint, request.logging_endpoint),
            "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
            **{
                name.upper(): value for name, value in info.metadata.items() if name in ("job_id", "job_name")
            },
        }
        if info.status_endpoint.url:
            environment["STATUS_API_SERVICE_DESCRIPTOR"] = _endpoint(info.status_endpoint)
        started = [
            subprocess.Popen(
                [str(python_of(folder)), "-m", _WORKER],
                env={**environment, "WORKER_ID": worker},
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
            )
            for worker in (request.worker_id, *info.sibling_worker_ids)
        ]
        with self._lock:
            self._workers[request.worker_id] = started
        for process in started:
            _log.info("started worker %s, process %d", request.worker_id, process.pid)
            threading.Thread(target=_watch, args=(request.worker_id, process), daemon=True).start()


def _experiments(options: dict[str, Any]) -> Sequence[str]:
    return options.get("beam:option:experiments:v1") or options.get("options", {}).get("experiments") or ()


def _endpoint(*candidates: Any) -> str:
    """Returns the first endpoint that is given, in the text that Beam's worker reads."""
    url = next((candidate.url for candidate in candidates if candidate.url), "")
    return text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url))


def _watch(worker: str, process: subprocess.Popen[bytes]) -> None:
    code = process.wait()
    level = logging.INFO if code in (0, -signal.SIGTERM) else logging.ERROR
    _log.log(level, "worker %s ended with code %d", worker, code)


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until SIGTERM or Ctrl-C, then stops its workers and removes its environments."""
    parser = argparse.ArgumentParser(description="Worker pool for Beam that installs what jobs ship.")
    parser.add_argument("--port", type=int, default=50000, help="0 picks a free one (default: 50000)")
    parser.add_argument("--host", default="localhost", help="address to listen on (default: localhost)")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with tempfile.TemporaryDirectory(prefix="headrace-workers-", ignore_cleanup_errors=True) as folder:
        pool = WorkerPool(Path(folder))
        server = grpc.server(shared_unbounded_instance())
        beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
        port = server.add_insecure_port(f"{chosen.host}:{chosen.port}")
        server.start()
        print(f"listening on {chosen.host}:{port}", flush=True)
        stopped.wait()
        server.stop(0)
        pool.close()


if __name__ == "__main__":
    main()
