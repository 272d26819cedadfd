"""Workers in other processes and in an environment without headrace give the rows that this process gives."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.bare_environment import BUILDERS, ROOT, clean_environ, make_bare_environment, run

pytestmark = pytest.mark.integration

HEADRACE = Path(sys.executable).with_name("headrace")
EVENTS = 3000
STARTED_SECONDS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds simulated events, their truth and a key."""
    folder = tmp_path_factory.mktemp("data")
    simulate = ["simulate", "--events", str(EVENTS), "--seed", "7"]
    run(HEADRACE, *simulate, "--output", "events.jsonl", "--truth", "truth.json", cwd=folder)
    run(HEADRACE, "key", "create", "key", cwd=folder)
    return folder


def batch(folder: Path, output: str, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the batch pipeline on the simulated events."""
    now = json.loads((folder / "truth.json").read_text())["now"]
    command = [
        "run",
        "batch",
        "--input",
        "events.jsonl",
        "--output",
        output,
        "--key-file",
        "key",
        "--now",
        now,
    ]
    return run(HEADRACE, *command, "--json", "--quiet", *options, cwd=folder, code=code)


@pytest.fixture(scope="module")
def reference(folder: Path) -> dict[str, pa.Table]:
    """What FnApiRunner gives in one process."""
    assert json.loads(batch(folder, "direct").stdout)["balanced"] is True
    return content(folder / "direct")


def content(out: Path) -> dict[str, pa.Table]:
    """Returns every table of an output and its ledger, in one order of rows."""
    found = {"ledger": pa.table({"text": [(out / "ledger.json").read_text()]})}
    for name in ("events", "quarantine"):
        table = deltalake.DeltaTable(out / name).to_pyarrow_table()
        found[name] = table.sort_by([("origin", "ascending"), ("origin_position", "ascending")])
    for metric in sorted((out / "metrics").iterdir()):
        table = pq.read_table(metric)
        plain = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
        found[metric.name] = table.sort_by([(name, "ascending") for name in plain])
    return found


def assert_same_rows(out: Path, reference: Mapping[str, pa.Table]) -> None:
    found = content(out)
    assert list(found) == list(reference)
    assert found["events"].num_rows + found["quarantine"].num_rows == EVENTS
    for name, table in found.items():
        assert table.equals(reference[name]), name


@contextmanager
def server(
    log: Path, ready: Callable[[str], str | None], *command: str | Path, cwd: Path, **environ: str
) -> Iterator[str]:
    """Runs a server until the block ends; yields the port, which ``ready`` finds in its log once it listens."""
    environment = {**clean_environ(), **environ}
    with log.open("wb") as sink:
        words = [str(part) for part in command]
        process = subprocess.Popen(words, cwd=cwd, env=environment, stdout=sink, stderr=sink)
    try:
        deadline = time.monotonic() + STARTED_SECONDS
        while (port := ready(text := log.read_text(errors="replace"))) is None:
            assert process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def said(pattern: str) -> Callable[[str], str | None]:
    """Ready when the log has a match; its group is the port."""
    return lambda text: found[1] if (found := re.search(pattern, text)) else None


def listens(port: str) -> Callable[[str], str | None]:
    """Ready when the port takes a connection."""

    def ready(text: str) -> str | None:
        with socket.socket() as probe:
            return None if probe.connect_ex(("localhost", int(port))) else port

    return ready


@contextmanager
def job_server(tmp_path: Path) -> Iterator[str]:
    """Runs Beam's local job server; yields the options that lead to it."""
    module = "apache_beam.runners.portability.local_job_service_main"
    ready = said(r"Listening for beam jobs on port (\d+)")
    with server(tmp_path / "jobs.log", ready, sys.executable, "-m", module, cwd=tmp_path) as port:
        yield f"--job_endpoint=localhost:{port}"


def remote(jobs: str, pool_port: str) -> list[str]:
    pool = ["--environment_type=EXTERNAL", f"--environment_config=localhost:{pool_port}"]
    return ["--runner=portable", "--shared-paths", jobs, *pool]


def beam_pool(tmp_path: Path, python: Path, *options: str, **environ: str) -> AbstractContextManager[str]:
    """Runs the worker pool that comes with Beam, which starts the ``python`` that it finds in PATH."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    module = ["-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    return server(
        tmp_path / "pool.log", listens(port), python, *module, *options, cwd=tmp_path, PATH=path, **environ
    )


def test_workers_that_lack_headrace_get_it_from_the_job(
    folder: Path, reference: dict[str, pa.Table], tmp_path: Path
) -> None:
    python = make_bare_environment(tmp_path / "worker", without=BUILDERS)
    shutil.copy(ROOT / "runners" / "worker_pool.py", tmp_path / "worker")
    log, scratch = tmp_path / "pool.log", tmp_path / "scratch"
    scratch.mkdir()
    start = [python, "worker_pool.py", "--port", "0"]
    with (
        job_server(tmp_path) as jobs,
        server(
            log, said(r"listening on localhost:(\d+)"), *start, cwd=tmp_path / "worker", TMPDIR=str(scratch)
        ) as port,
    ):
        batch(folder, "shipped", *remote(jobs, port))
    assert_same_rows(folder / "shipped", reference)

    workers = [int(pid) for pid in re.findall(r"started worker \S+, process (\d+)", log.read_text())]
    assert workers
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert not list(scratch.glob("headrace-workers-*"))
    run(python, "-c", "import headrace", cwd=tmp_path, code=1)


def test_a_pool_that_installs_nothing_is_named_with_the_fix(folder: Path, tmp_path: Path) -> None:
    python = make_bare_environment(tmp_path / "worker")
    with job_server(tmp_path) as jobs, beam_pool(tmp_path, python) as port:
        done = batch(folder, "lacking", *remote(jobs, port), code=2)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: the workers lack headrace.")
    assert "worker_pool.py --port" in last
    assert not (folder / "lacking" / "ledger.json").exists()


@pytest.mark.skipif("HEADRACE_BEAM_BOOT" not in os.environ, reason="HEADRACE_BEAM_BOOT names no boot program")
def test_boot_program_of_beam_installs_the_package(
    folder: Path, reference: dict[str, pa.Table], tmp_path: Path
) -> None:
    python = make_bare_environment(tmp_path / "worker", without=BUILDERS)
    boot = tmp_path / "boot"
    boot.write_text(f'#!/bin/sh\nexec "$HEADRACE_BEAM_BOOT" --semi_persist_dir={tmp_path} "$@" >&2\n')
    boot.chmod(0o755)
    option = f"--container_executable={boot}"
    here = {"RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT": "1"}
    with job_server(tmp_path) as jobs, beam_pool(tmp_path, python, option, **here) as port:
        batch(folder, "booted", *remote(jobs, port))
    assert_same_rows(folder / "booted", reference)


def test_two_processes_of_the_direct_runner_give_the_same_rows(
    folder: Path, reference: dict[str, pa.Table]
) -> None:
    batch(
        folder,
        "processes",
        "--runner=direct",
        "--direct_running_mode=multi_processing",
        "--direct_num_workers=2",
    )
    assert_same_rows(folder / "processes", reference)
