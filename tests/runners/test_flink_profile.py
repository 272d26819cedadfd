from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.portability.api import beam_job_api_pb2
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.runner import create_runner

from headrace.runners import flink as module
from headrace.runners.declared_options import FLINK_OPTIONS, FlinkOptions, HeadraceOptions, flag
from headrace.runners.flink import job_name, require_effect, rest_address
from headrace.runners.flink_rest import FlinkRest
from headrace.runners.local_cluster import LocalFlink
from headrace.runners.options import Prepared, prepare
from headrace.schemas.errors import ConfigError, UntrustedRunError
from tests.runners.flink_server import JOB, JOB_CONFIG, SETTINGS, FlinkServer
from tests.runners.job import FakeJob

SERVER = ("--runner=flink", "--job_endpoint=host:8099")
BATCH = (*SERVER, "--environment_type=LOOPBACK")
STREAM = (*BATCH, "--flink-rest=http://host:8081")

pytestmark = pytest.mark.usefixtures("bare_machine")


def stream(*args: str, job: FakeJob | None = None) -> Prepared:
    return prepare([*STREAM, *args], job or FakeJob(), streaming=True)


def refusal(*args: str, streaming: bool = True, job: FakeJob | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare(args, job or FakeJob(), streaming)
    return str(caught.value)


class JobService:
    """A job server as far as the question for its options goes."""

    def __init__(self, *described: beam_job_api_pb2.PipelineOptionDescriptor) -> None:
        self.described = described

    def DescribePipelineOptions(self, request: Any, timeout: float) -> Any:
        return beam_job_api_pb2.DescribePipelineOptionsResponse(options=self.described)


def sent(prepared: Prepared, *described: Any) -> dict[str, Any]:
    """What Beam would send to the job server, by option."""
    runner = create_runner(prepared.profile.beam_runner)
    handle = runner.create_job_service_handle(JobService(*described), prepared.options)
    assert isinstance(handle, JobServiceHandle)
    options = handle.get_pipeline_options()
    return {key.removeprefix("beam:option:").removesuffix(":v1"): options[key] for key in options}


EXPECTED = {
    "finish_bundle_before_checkpointing": True,
    "max_bundle_time_mills": "200",
    "checkpointing_interval": "1000",
    "min_pause_between_checkpoints": "500",
    "checkpoint_timeout_millis": "60000",
    "externalized_checkpoints_enabled": True,
    "retain_externalized_checkpoints_on_cancellation": True,
    "max_parallelism": "128",
    "streaming": True,
}


def test_what_a_stream_needs_is_sent_to_a_job_server_that_describes_nothing() -> None:
    options = sent(stream())
    assert {name: options[name] for name in EXPECTED} == EXPECTED
    assert {o.name for o in FLINK_OPTIONS} & set(options) == set(EXPECTED) - {"max_parallelism", "streaming"}
    assert options["job_name"] == job_name(FakeJob())


def test_what_a_job_server_describes_changes_nothing() -> None:
    kinds = beam_job_api_pb2.PipelineOptionType
    of = {bool: kinds.BOOLEAN, int: kinds.INTEGER, str: kinds.STRING}
    described = [
        beam_job_api_pb2.PipelineOptionDescriptor(
            name=option.name,
            type=of[option.kind],
            description="100 %",
            default_value="true" if option.name == "fail_on_checkpointing_errors" else "",
        )
        for option in FLINK_OPTIONS
    ]
    assert sent(stream(), *described) == sent(stream())


def test_stronger_values_are_the_user_s() -> None:
    args = ["--checkpointing_interval=10000", "--min_pause_between_checkpoints", "5000"]
    args += ["--max_bundle_time_mills=1000", "--checkpoint_timeout_millis=120000", "--parallelism=4"]
    args += ["--max_parallelism=256", "--job_name=mine", "--fail_on_checkpointing_errors=false"]
    args += ["--finish_bundle_before_checkpointing", "--savepoint_path=file:/sp/1"]
    options = sent(stream(*args))
    assert options["checkpointing_interval"] == "10000"
    assert options["min_pause_between_checkpoints"] == "5000"
    assert options["max_bundle_time_mills"] == "1000"
    assert options["checkpoint_timeout_millis"] == "120000"
    assert (options["parallelism"], options["max_parallelism"]) == ("4", "256")
    assert (options["job_name"], options["savepoint_path"]) == ("mine", "file:/sp/1")
    assert options["fail_on_checkpointing_errors"] is False


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("--finish_bundle_before_checkpointing=false", "without it a stream stalls or loses rows"),
        ("--externalized_checkpoints_enabled=False", "the state is gone with the job"),
        ("--retain_externalized_checkpoints_on_cancellation=false", "gone with a cancelled job"),
        ("--max_bundle_time_mills=1001", "give 1 to 1000 (milliseconds), or leave it out for 200"),
        ("--max_bundle_time_mills=0", "give 1 to 1000"),
        ("--checkpointing_interval=999", "some never ended; give 1000 at least"),
        ("--checkpointing_interval=-1", "give 1000 at least"),
        ("--min_pause_between_checkpoints=0", "may never end; give 500 at least"),
        ("--checkpoint_timeout_millis=9999", "give 10000 to 600000"),
        ("--checkpoint_timeout_millis=600001", "leaves a stuck one unnoticed"),
        ("--checkpointing_interval=70000", "--checkpoint_timeout_millis=60000 is shorter than"),
        ("--checkpointing_mode=AT_LEAST_ONCE", "counts rows twice after a restart"),
        ("--num_concurrent_checkpoints=2", "only if they come one by one"),
        ("--unaligned_checkpoint_enabled", "no run has shown that it keeps a stream exact"),
        ("--force_unaligned_checkpoint_enabled=true", "no run has shown"),
        ("--shutdown_sources_after_idle_ms=0", "no checkpoint completes once a source is shut down"),
        ("--allow_non_restored_state", "dropped without a word"),
        ("--attached_mode=false", "the launcher has to stay"),
        ("--number_of_execution_retries=0", "ends the job at its first failure"),
        ("--state_backend=rocksdb", "set state.backend.type and state.checkpoints.dir there"),
        (
            "--state_backend_storage_path=file:///x",
            "--state_backend_storage_path: the cluster's configuration",
        ),
        ("--max_parallelism=0", "give 1 to 32768"),
        ("--parallelism=129", "--parallelism=129 is more than --max_parallelism=128"),
        ("--flink_submit_uber_jar", "submits past a job server"),
    ],
)
def test_a_stream_refuses_what_would_lose_rows(arg: str, message: str) -> None:
    text = refusal(*STREAM, arg)
    assert text.startswith("--runner=flink: ")
    assert message in text


def test_values_of_no_meaning_are_refused_by_the_parser() -> None:
    assert "'no' is neither true nor false" in refusal(*STREAM, "--finish_bundle_before_checkpointing=no")
    assert "invalid int value" in refusal(*STREAM, "--checkpointing_interval=3s")
    assert flag("TRUE") is True


def test_a_stream_needs_flink_s_rest_address() -> None:
    assert "add --flink-rest=http://HOST:PORT" in refusal(*BATCH)
    assert (
        rest_address(prepare([*BATCH, "--flink_rest", "host:1"], FakeJob(), True).options) == "http://host:1"
    )
    found = prepare([*BATCH, "--flink_master=jobs:8081"], FakeJob(), True).options
    assert rest_address(found) == "http://jobs:8081"
    assert "add --flink-rest" in refusal(*BATCH, "--flink_master=[local]")
    assert "is no address of Flink's REST service" in refusal(*BATCH, "--flink-rest=ftp://host")
    secret = refusal(*BATCH, "--flink-rest=http://a:hidden@host:1")
    assert "holds a user or password" in secret and "hidden" not in secret


def test_a_job_server_is_needed(tmp_path: Path) -> None:
    text = refusal("--runner=flink", "--environment_type=LOOPBACK")
    assert (
        "it needs a job server; add --job_endpoint=HOST:PORT" in text and "headrace cluster up flink" in text
    )
    assert "--job_endpoint=embed runs in this process" in refusal("--runner=flink", "--job_endpoint=embed")
    jar = ("--runner=flink", "--environment_type=LOOPBACK", f"--flink_job_server_jar={tmp_path / 'j.jar'}")
    assert "is no file on this machine; nothing is downloaded" in refusal(*jar)
    (tmp_path / "j.jar").touch()
    assert "would run an engine inside the job server" in refusal(*jar)
    options = prepare([*jar, "--flink_master=h:8081"], FakeJob(), True).options
    assert options.view_as(PortableOptions).job_endpoint is None
    assert rest_address(options) == "http://h:8081"


def test_a_cluster_of_this_machine_is_taken_if_no_address_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    found = LocalFlink("127.0.0.1:5", "http://127.0.0.1:6", "")
    monkeypatch.setattr(module, "find_flink", lambda: found)
    options = prepare(["--runner=flink", "--environment_type=LOOPBACK"], FakeJob(), True).options
    assert options.view_as(PortableOptions).job_endpoint == "127.0.0.1:5"
    assert rest_address(options) == "http://127.0.0.1:6"
    given = prepare(STREAM, FakeJob(), True).options
    assert (given.view_as(PortableOptions).job_endpoint, rest_address(given)) == (
        "host:8099",
        "http://host:8081",
    )


def test_where_workers_run_has_to_be_said() -> None:
    assert "no --environment_type; say where workers run: LOOPBACK" in refusal(
        *SERVER, "--flink-rest=http://h:1"
    )
    text = refusal(*SERVER, "--environment_type=EXTERNAL", "--flink-rest=http://h:1")
    assert "output /data/out" in text and "--shared-paths" in text


def test_a_batch_needs_no_rest_and_gets_no_stream_options() -> None:
    profile, options = prepare([*BATCH, "--parallelism=2", "--object_reuse"], FakeJob())
    assert profile.name == "flink"
    assert options.view_as(StandardOptions).runner == "FlinkRunner"
    own = options.view_as(FlinkOptions)
    assert (own.checkpointing_interval, own.finish_bundle_before_checkpointing, own.object_reuse) == (
        None,
        None,
        True,
    )
    assert options.view_as(FlinkRunnerOptions).max_parallelism == -1
    assert options.view_as(GoogleCloudOptions).job_name is None
    assert options.view_as(HeadraceOptions).flink_rest is None


def test_a_batch_refuses_options_without_effect() -> None:
    text = refusal(*BATCH, "--checkpointing_interval=3000", streaming=False)
    assert text == "--runner=flink: --checkpointing_interval has no effect on a batch; leave it out"
    assert "set state.backend.type" in refusal(*BATCH, "--state_backend=rocksdb", streaming=False)
    assert "--flink-rest is for streams on Flink only" in refusal(*STREAM, streaming=False)


def test_the_job_is_named_by_its_output() -> None:
    one = job_name(FakeJob(paths={"output": "gs://a/out"}))
    assert one == "headrace-3d0e0beed60c"
    assert one != job_name(FakeJob(paths={"output": "gs://b/out"}))
    assert job_name(FakeJob(paths={"output": "out"})) == job_name(
        FakeJob(paths={"output": str(Path("out").absolute())})
    )


def test_flink_is_asked_whether_the_options_have_an_effect(flink: FlinkServer) -> None:
    options = stream().options
    rest = FlinkRest(flink.url)
    require_effect(rest, JOB, options)
    flink.on(
        f"GET /jobs/{JOB}/config", {"execution-config": {**JOB_CONFIG["execution-config"], "user-config": {}}}
    )
    kept = {"enabled": True, "delete_on_cancellation": True}
    flink.on(
        f"GET /jobs/{JOB}/checkpoints/config",
        {**SETTINGS, "mode": "at_least_once", "interval": 500, "externalization": kept},
    )
    with pytest.raises(UntrustedRunError) as caught:
        require_effect(rest, JOB, options)
    text = str(caught.value)
    for part in (
        "checkpointing_interval is 500, not 1000",
        "retain_externalized_checkpoints_on_cancellation is false, not true",
        "checkpointing_mode is at_least_once, not exactly_once",
        "finish_bundle_before_checkpointing is not set, not true",
        "max_bundle_time_mills is not set, not 200",
    ):
        assert part in text
    assert "min_pause" not in text
