import pytest

from headrace.runners.options import prepare
from headrace.runners.profiles import PROFILES, find_profile
from headrace.schemas.errors import ConfigError
from tests.runners.job import FakeJob

PORTABLE = ("--runner=portable", "--job_endpoint=host:8099")


def refusal(*args: str, job: FakeJob | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare(args, job or FakeJob())
    return str(caught.value)


def test_names_and_beam_classes_find_the_same_profile_in_any_case() -> None:
    for profile in PROFILES:
        assert find_profile(profile.name.upper()) is profile
        assert find_profile(profile.beam_runner.lower()) is profile
    assert find_profile("DirectRunner").beam_runner == "FnApiRunner"


def test_an_unknown_runner_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"--runner=dierct is unknown; did you mean 'direct'\?"):
        find_profile("dierct")


@pytest.mark.parametrize("runner", ["prism", "flink", "dataflow", "spark", "FlinkRunner"])
def test_runners_that_are_not_ready_are_refused_with_a_way_out(runner: str) -> None:
    text = refusal(f"--runner={runner}")
    assert text.startswith(f"--runner={runner.removesuffix('Runner').lower()}: ")
    assert "--runner=direct" in text


def test_a_batch_refuses_streaming_and_jars() -> None:
    assert "--streaming does not belong to a batch run" in refusal("--streaming")
    assert "--output_executable_path only writes a jar" in refusal("--output_executable_path=x.jar")


def test_direct_refuses_workers_that_would_have_no_effect() -> None:
    assert "add --direct_running_mode=multi_processing" in refusal("--direct_num_workers=2")
    assert "--direct_num_workers=0 has no effect" in refusal("--direct_num_workers", "0")
    assert prepare(["--direct_num_workers=2", "--direct_running_mode=multi_processing"], FakeJob())


def test_portable_needs_an_endpoint_and_an_environment() -> None:
    assert "add --job_endpoint=HOST:PORT" in refusal("--runner=PortableRunner")
    assert "no --environment_type; say where workers run: LOOPBACK" in refusal(*PORTABLE)
    assert "unknown --environment_type=LOOP" in refusal(*PORTABLE, "--environment_type=LOOP")


def test_local_paths_are_refused_where_workers_are_elsewhere() -> None:
    text = refusal(*PORTABLE, "--environment_type=EXTERNAL")
    assert "input[0] in/*.jsonl, output /data/out" in text
    assert "--shared-paths" in text and "--environment_type=LOOPBACK" in text


@pytest.mark.parametrize("paths", [{"output": "file:///data/out"}, {"output": "C:out"}])
def test_file_urls_are_local_paths(paths: dict[str, str]) -> None:
    assert paths["output"] in refusal(*PORTABLE, "--environment_type=DOCKER", job=FakeJob(paths=paths))


@pytest.mark.parametrize(
    ("kind", "job"),
    [
        ("LOOPBACK", FakeJob()),
        ("loopback", FakeJob()),
        ("EXTERNAL", FakeJob(shared_paths=True)),
        ("DOCKER", FakeJob(paths={"input[0]": "s3://bucket/in", "output": "gs://bucket/out"})),
    ],
)
def test_portable_runs_where_the_paths_reach(kind: str, job: FakeJob) -> None:
    assert prepare([*PORTABLE, f"--environment_type={kind}"], job).profile.name == "portable"
