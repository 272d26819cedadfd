import os
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import (
    DebugOptions,
    PipelineOptions,
    PortableOptions,
    PrismRunnerOptions,
    StandardOptions,
)
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import create_runner

from headrace.runners.options import prepare, with_package
from headrace.runners.prism_binary import find_prism, is_prism, prism_version
from headrace.schemas.errors import ConfigError
from tests.runners.job import FakeJob

BUILD_INFO = b"\0path\tgithub.com/apache/beam/sdks/v2/go/cmd/prism\nmod\tgithub.com/apache/beam/sdks/v2\tv2.77.0\th1:x=\n\0"


@pytest.fixture
def home(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(bare_machine / "bin"))
    return bare_machine


def program(path: Path, content: bytes = BUILD_INFO) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)
    return path


def options_of(*args: str, streaming: bool = True, job: FakeJob | None = None) -> PipelineOptions:
    return prepare(["--runner=prism", *args], job or FakeJob(), streaming).options


def refusal(*args: str, streaming: bool = True) -> str:
    with pytest.raises(ConfigError) as caught:
        options_of(*args, streaming=streaming)
    return str(caught.value)


def test_the_order_in_which_prism_is_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_prism() is None
    beam = program(home / ".apache_beam/cache/prism/bin/apache_beam-v2.77.0-prism-linux-amd64")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert find_prism() == beam
    in_path = program(home / "bin/prism")
    assert find_prism() == in_path
    old = program(home / ".cache/headrace/prism-v2.77.0-1/prism")
    os.utime(old, (1, 1))
    assert find_prism() == old
    new = program(home / ".cache/headrace/prism-v2.77.0-2/bin/prism")
    assert find_prism() == new
    named = program(home / "named")
    monkeypatch.setenv("HEADRACE_PRISM", str(named))
    assert find_prism() == named
    given = program(home / "given")
    assert find_prism(str(given)) == given


def test_another_program_of_that_name_is_passed_by(home: Path) -> None:
    other = program(home / "bin/prism", b"#!/bin/sh\n")
    assert not is_prism(other)
    assert find_prism() is None
    assert not is_prism(program(home / "bin/prism", b""))


def test_what_is_named_excludes_all_others(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(home / "bin/prism")
    assert find_prism(str(home / "nothing")) is None
    monkeypatch.setenv("HEADRACE_PRISM", str(home / "nothing"))
    assert find_prism() is None
    assert "HEADRACE_PRISM=" in refusal() and "is no program that may be executed" in refusal()


def test_the_version_is_what_go_noted(home: Path) -> None:
    assert prism_version(program(home / "p")) == "2.77.0"
    assert prism_version(program(home / "p", b"mod\tgithub.com/apache/beam/sdks/v2\t(devel)\t\n")) == ""


def test_without_prism_the_error_says_how_to_get_it(home: Path) -> None:
    text = refusal()
    assert text.startswith("--runner=prism: Prism was not found (neither named by HEADRACE_PRISM, nor in ")
    assert (
        "headrace cluster up prism" in text and "--prism_location=FILE" in text and "--prism-download" in text
    )
    assert f"--prism_location={home}/x is no program" in refusal(f"--prism_location={home}/x")
    assert options_of("--prism-download").view_as(PrismRunnerOptions).prism_location is None
    assert "Prism was not found" in refusal("--prism_download=false")


def test_what_prism_always_gets(home: Path) -> None:
    binary = program(home / "bin/prism")
    for streaming in (True, False):
        options = options_of("--experiments=mine", streaming=streaming)
        assert options.view_as(PrismRunnerOptions).prism_location == str(binary)
        assert options.view_as(DebugOptions).experiments == ["mine", "prism_disable_sdf_split"]
        assert options.view_as(PortableOptions).environment_type == "LOOPBACK"
        assert options.view_as(PortableOptions).job_server_timeout == 31_536_000
        assert options.view_as(StandardOptions).streaming is streaming
        assert type(create_runner(options.view_as(StandardOptions).runner)).__name__ == "PrismRunner"
    again = options_of("--experiments=prism_disable_sdf_split", "--job_server_timeout=99000000")
    assert again.view_as(DebugOptions).experiments == ["prism_disable_sdf_split"]
    assert again.view_as(PortableOptions).job_server_timeout == 99_000_000


def test_the_experiment_is_sent_as_prism_reads_it(home: Path) -> None:
    program(home / "bin/prism")
    handle = PortableRunner().create_job_service_handle(None, options_of())
    sent = handle.encode_pipeline_options(handle.options.get_all_options(retain_unknown_options=True))
    assert list(sent["beam:option:experiments:v1"]) == ["prism_disable_sdf_split"]
    assert sent["beam:option:streaming:v1"] is True


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        ("prism_disable_sdf_split=false", "without a value only"),
        ("prism_enable_sdf_split", "process rows twice"),
        ("prism_disable_rtc", "stops the clock"),
    ],
)
def test_contrary_experiments_are_refused(home: Path, experiment: str, message: str) -> None:
    program(home / "bin/prism")
    assert message in refusal(f"--experiments={experiment}")


def test_a_batch_may_stop_the_clock(home: Path) -> None:
    program(home / "bin/prism")
    assert options_of("--experiments=prism_disable_rtc", streaming=False)


def test_a_prism_that_runs_already_needs_no_binary(home: Path) -> None:
    options = options_of("--job_endpoint=localhost:8073")
    assert options.view_as(PrismRunnerOptions).prism_location is None


def test_workers_elsewhere_need_paths_that_they_reach(home: Path) -> None:
    program(home / "bin/prism")
    assert "output /data/out" in refusal("--environment_type=EXTERNAL")
    assert options_of("--environment_type=EXTERNAL", job=FakeJob(shared_paths=True))


def test_workers_of_this_process_get_no_package(tmp_path: Path) -> None:
    assert with_package(["--runner=prism"], tmp_path) == ["--runner=prism"]
    assert len(with_package(["--runner=prism", "--environment_type=EXTERNAL"], tmp_path)) == 3
