import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

from headrace.runners import checks
from headrace.runners.checks import (
    check_address,
    check_credentials,
    check_prism,
    check_runner,
    require_mode,
)
from headrace.runners.finding import Finding
from headrace.runners.flink import STREAM_OPTIONS
from headrace.runners.flink_answers import Overview
from headrace.runners.flink_checks import check_config, check_slots, check_version, milliseconds
from headrace.runners.job_server import check_job_server
from headrace.schemas.errors import ConfigError
from tests.runners.flink_server import CLUSTER_CONFIG, FlinkServer
from tests.runners.test_prism_profile import BUILD_INFO, program

pytestmark = pytest.mark.usefixtures("bare_machine")

PRISM = b"#!/bin/sh\necho 'Usage: -job_port int'\nexit 0\n" + BUILD_INFO


class JobServer(beam_job_api_pb2_grpc.JobServiceServicer):
    def __init__(self, names: list[str]) -> None:
        self.names = names

    def DescribePipelineOptions(self, request: Any, context: Any) -> Any:
        described = [beam_job_api_pb2.PipelineOptionDescriptor(name=name) for name in self.names]
        return beam_job_api_pb2.DescribePipelineOptionsResponse(options=described)


@contextmanager
def job_server(names: list[str]) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    beam_job_api_pb2_grpc.add_JobServiceServicer_to_server(JobServer(names), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def dead_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def config(**changes: str | None) -> dict[str, Finding]:
    found = {entry["key"]: entry["value"] for entry in CLUSTER_CONFIG}
    for key, value in changes.items():
        found.pop(key, None)
        if value is not None:
            found[key] = value
    return {finding.name: finding for finding in check_config(found)}


def test_a_cluster_that_is_fit_for_a_stream(flink: FlinkServer) -> None:
    with job_server([*STREAM_OPTIONS, "other"]) as endpoint:
        args = [f"--job_endpoint={endpoint}", f"--flink-rest={flink.url}", "--environment_type=LOOPBACK"]
        found = check_runner("FlinkRunner", args)
    assert [(f.name, f.status) for f in found] == [
        (name, "ok")
        for name in (
            "options",
            "job server",
            "flink",
            "slots",
            "state backend",
            "rocksdb merging",
            "checkpoint folder",
            "restart strategy",
            "checkpoint news",
            "heartbeat",
        )
    ]
    assert found[1].detail == f"answers at {endpoint}, {len(STREAM_OPTIONS) + 1} options"
    assert found[3].detail == "1 of 2 free on 1 TaskManagers"


def test_what_is_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ANSWER_SECONDS", 0.1)
    address = dead_address()
    args = [f"--job_endpoint={address}", f"--flink-rest=http://{address}", "--environment_type=EXTERNAL"]
    found = {f.name: f for f in check_runner("flink", [*args, f"--environment_config={address}"])}
    assert found["options"].status == "ok"
    assert found["job server"].detail == f"nobody answers at {address} within 0.1 s"
    assert "headrace cluster up flink" in found["job server"].fix
    assert found["flink"].status == "wrong" and "does not answer" in found["flink"].detail
    assert found["worker pool"].status == "wrong" and "worker_pool --port" in found["worker pool"].fix


def test_options_that_the_runner_refuses_are_a_finding() -> None:
    found = check_runner("flink", ["--job_endpoint=embed"])
    assert found == [
        Finding(
            "options",
            "wrong",
            "--job_endpoint=embed runs in this process and not on Flink; use --runner=direct, or name a job server",
        )
    ]
    with pytest.raises(ConfigError, match="unknown option --job_endpiont; did you mean '--job_endpoint'"):
        check_runner("flink", ["--job_endpiont=x"])


def test_a_batch_on_flink_does_not_ask_for_checkpoints() -> None:
    with job_server([]) as endpoint:
        args = [f"--job_endpoint={endpoint}", "--environment_type=LOOPBACK"]
        assert [(f.name, f.status) for f in check_runner("flink", args, mode="batch")] == [
            ("options", "ok"),
            ("job server", "ok"),
        ]
        found = check_runner("flink", [*args, "--flink-rest=http://127.0.0.1:1"])[1]
    assert (
        found.status == "wrong"
        and "does not know finish_bundle_before_checkpointing, max_bundle" in found.detail
    )


def test_what_answers_but_is_no_job_server() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    found = check_job_server(f"127.0.0.1:{port}", 5)
    server.stop(0).wait()
    assert found.detail == f"what answers at 127.0.0.1:{port} is no job server of Beam (UNIMPLEMENTED)"


def test_portable_and_spark_ask_the_job_server() -> None:
    with job_server(["a"]) as endpoint:
        for name in ("portable", "spark"):
            found = check_runner(name, [f"--job_endpoint={endpoint}", "--environment_type=LOOPBACK"])
            assert [f.status for f in found] == ["ok", "ok"]
    assert [f.name for f in check_runner("portable")] == ["options"]


def test_a_worker_pool_needs_an_address() -> None:
    args = ["--job_endpoint=embed", "--environment_type=EXTERNAL"]
    assert check_runner("flink", args)[-1].detail == "EXTERNAL workers need its address"
    with socket.create_server(("127.0.0.1", 0)) as pool:
        address = f"127.0.0.1:{pool.getsockname()[1]}"
        option = f"--environment_option=external_service_address={address}"
        assert check_runner("flink", [*args, option])[-1] == Finding(
            "worker pool", "ok", f"answers at {address}"
        )
    assert check_address("pool", "host", "x").detail == "host is no HOST:PORT"
    assert check_address("pool", "h:99999", "x").status == "wrong"


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ("1.19.3", "ok"),
        ("1.17.2", "warning"),
        ("1.20-SNAPSHOT", "warning"),
        ("<unknown>", "wrong"),
        ("1.16.1", "wrong"),
        ("2.0.0", "wrong"),
    ],
)
def test_flink_versions(found: str, status: str) -> None:
    assert check_version(found).status == status


def test_slots_have_to_suffice() -> None:
    overview = Overview("1.19.3", 1, 2, 1)
    assert check_slots(overview).status == "ok"
    assert check_slots(overview, -1).status == "ok"
    assert check_slots(overview, 2) == Finding(
        "slots",
        "wrong",
        "1 of 2 free on 1 TaskManagers; a job needs 2, and waits until it has them",
        "start a TaskManager, cancel a job, or lower --parallelism",
    )


@pytest.mark.parametrize(
    ("key", "value", "name", "status", "words"),
    [
        ("state.backend.type", None, "state backend", "warning", "not set, so hashmap"),
        ("state.backend.type", "hashmap", "state backend", "warning", "hashmap: a stream's dedupe state"),
        ("state.backend.rocksdb.compaction.style", None, "rocksdb merging", "warning", "LEVEL: all of a stream's"),
        ("state.backend.rocksdb.compaction.style", "universal", "rocksdb merging", "ok", "by size"),
        ("state.checkpoints.dir", None, "checkpoint folder", "wrong", "die with it"),
        ("state.checkpoints.dir", "file:///c", "checkpoint folder", "ok", "same folder on all machines"),
        ("restart-strategy.type", None, "restart strategy", "ok", "for ever"),
        ("restart-strategy.type", "none", "restart strategy", "wrong", "the first failure ends a stream"),
        ("restart-strategy.type", "fixed-delay", "restart strategy", "warning", "with 1 attempts, counted over"),
        ("restart-strategy.type", "failure-rate", "restart strategy", "ok", "failure-rate"),
        ("rest.cache.checkpoint-statistics.timeout", None, "checkpoint news", "warning", "up to 3 s old"),
        ("rest.cache.checkpoint-statistics.timeout", "2 min", "checkpoint news", "warning", "up to 2 min"),
        ("rest.cache.checkpoint-statistics.timeout", "soon", "checkpoint news", "warning", "up to soon"),
        ("heartbeat.timeout", None, "heartbeat", "warning", "after 50 s only"),
    ],
)  # fmt: skip
def test_the_cluster_s_configuration(key: str, value: str | None, name: str, status: str, words: str) -> None:
    found = config(**{key: value})[name]
    assert found.status == status and words in found.detail
    assert bool(found.fix) == (status != "ok")


def test_enough_restarts_are_enough() -> None:
    more = {"restart-strategy.fixed-delay.attempts": "2147483647", "restart-strategy.type": "fixed-delay"}
    assert config(**more)["restart strategy"].status == "ok"


def test_older_names_of_settings_count() -> None:
    found = config(**{"state.backend.type": None, "state.backend": "rocksdb"})
    assert found["state backend"].status == "ok"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10000", 10_000), ("200 ms", 200), ("3 s", 3000), ("2min", 120_000), ("1 hours", 3_600_000), ("x", None), ("1 y", None)],
)  # fmt: skip
def test_durations_as_flink_writes_them(text: str, expected: int | None) -> None:
    assert milliseconds(text) == expected


def test_prism_is_run(bare_machine: Path) -> None:
    binary = program(bare_machine / "prism", PRISM)
    found = check_runner("prism", [f"--prism_location={binary}"])
    assert found == [
        Finding("options", "ok", "fit for a stream"),
        Finding("prism", "ok", f"{binary} runs; version 2.77.0"),
    ]


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (PRISM.replace(b"v2.77.0", b"v2.60.0"), "warning", "is 2.60.0, Beam is 2.77.0"),
        (PRISM.replace(b"mod\t", b"x"), "warning", "its version is not noted"),
        (b"#!/bin/sh\necho hello\n", "wrong", "runs, but is no Prism"),
        (b"\x7fELF of another machine", "wrong", "does not run: "),
    ],
)
def test_other_prisms(tmp_path: Path, content: bytes, status: str, words: str) -> None:
    found = check_prism(program(tmp_path / "prism", content))
    assert (found.status, words in found.detail) == (status, True)


def test_without_prism_both_options_and_program_are_wrong() -> None:
    assert [(f.name, f.status) for f in check_runner("prism")] == [("options", "wrong"), ("prism", "wrong")]


def test_a_prism_that_runs_already_is_asked() -> None:
    with job_server([]) as endpoint:
        assert check_runner("prism", [f"--job_endpoint={endpoint}"])[1].name == "job server"


def test_direct_runs_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [f.status for f in check_runner("direct")] == ["ok", "ok"]
    assert check_runner("direct", mode="stream")[0].status == "wrong"
    monkeypatch.setattr(checks, "version", lambda name: "2.70.0")
    assert check_runner("direct")[1].detail == "2.70.0 is installed; 2.77 is needed"


def test_dataflow_is_checked_without_asking_google() -> None:
    args = ["--project=p-x", "--region=r", "--temp_location=gs://b/t"]
    found = check_runner("dataflow", args)
    assert [(f.name, f.status) for f in found] == [
        ("options", "ok"),
        ("google cloud", "ok"),
        ("credentials", "warning"),
        ("running", "warning"),
    ]
    assert check_runner("dataflow")[0].status == "wrong"


def test_credentials(bare_machine: Path) -> None:
    path = bare_machine / ".config/gcloud/application_default_credentials.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"type": "authorized_user", "refresh_token": "hidden"}))
    assert check_credentials({}) == Finding("credentials", "ok", f"{path} is there")
    moved = {"CLOUDSDK_CONFIG": str(path.parent)}
    assert check_credentials(moved).status == "ok"
    named = {"GOOGLE_APPLICATION_CREDENTIALS": str(bare_machine / "key.json")}
    assert check_credentials(named).status == "wrong"
    (bare_machine / "key.json").write_text("{}")
    assert "is no credentials file" in check_credentials(named).detail
    (bare_machine / "key.json").write_text("{")
    assert "can't be read as JSON" in check_credentials(named).detail


def test_modes() -> None:
    assert (require_mode("stream"), require_mode("batch")) == ("stream", "batch")
    with pytest.raises(ConfigError, match="--for=both: give stream or batch"):
        require_mode("both")
