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


@pytest.mark.parametrize(
    ("args", "way_out"),
    [
        (("--runner=direct",), "--runner=prism"),
        (PORTABLE, "--runner=flink with the same --job_endpoint"),
        (("--runner=spark", "--job_endpoint=h:1"), "--runner=flink"),
    ],
)
def test_runners_without_streams_refuse_them_with_a_way_out(args: tuple[str, ...], way_out: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare([*args, "--environment_type=LOOPBACK"], FakeJob(), streaming=True)
    assert f"{args[0]}: it can't run streams: " in str(caught.value)
    assert way_out in str(caught.value)


def test_spark_needs_a_job_server_that_runs() -> None:
    assert "it needs the address of a Spark job server" in refusal("--runner=spark")
    for jar in ("--spark_submit_uber_jar", "--spark_job_server_jar=x.jar"):
        assert "start it yourself" in refusal("--runner=spark", "--job_endpoint=h:1", jar)
    assert "no --environment_type" in refusal("--runner=spark", "--job_endpoint=h:1")
    args = ["--runner=SparkRunner", "--job_endpoint=h:1", "--environment_type=LOOPBACK"]
    assert prepare(args, FakeJob()).profile.name == "spark"


@pytest.mark.parametrize(
    ("arg", "reason"),
    [
        ("--checkpointing_interval=3000", "--checkpointing_interval is an option of Flink's job server"),
        ("--object_reuse", "--object_reuse is an option of Flink's job server"),
        ("--flink-rest=http://h:1", "--flink-rest is for streams on Flink only"),
        ("--prism-download", "--prism-download is for --runner=prism only"),
        ("--dry_run=true", "--dry_run is for streams on Dataflow only"),
    ],
)
def test_options_of_another_runner_are_refused(arg: str, reason: str) -> None:
    assert reason in refusal("--runner=direct", arg)


def test_a_job_server_of_unknown_kind_may_be_flink_s() -> None:
    assert prepare([*PORTABLE, "--environment_type=LOOPBACK", "--object_reuse=true"], FakeJob())


def test_every_refusal_to_stream_has_a_runner_that_can() -> None:
    able = {profile.name for profile in PROFILES if not profile.no_stream}
    assert able == {"prism", "flink", "dataflow"}
    assert all(any(f"--runner={name}" in p.no_stream for name in able) for p in PROFILES if p.no_stream)


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
