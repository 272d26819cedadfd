import pytest
from apache_beam.options import pipeline_options

from headrace.runners.options import prepare
from headrace.schemas.errors import ConfigError
from tests.runners.job import FakeJob

pytestmark = pytest.mark.usefixtures("bare_machine")

WHOLE = ("--runner=dataflow", "--project=proj-x", "--region=europe-west1", "--temp_location=gs://bucket/tmp")
REMOTE = FakeJob(paths={"output": "gs://bucket/out"})


def refusal(*args: str, streaming: bool = True, job: FakeJob | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare(args, job or FakeJob(), streaming)
    return str(caught.value)


def test_missing_options_are_named_at_once() -> None:
    text = refusal("--runner=DataflowRunner", "--temp_location=/tmp", "--staging_location=s3://b/x")
    assert text == (
        "--runner=dataflow: it needs --project=PROJECT, --region=REGION (for example europe-west1), "
        "--temp_location=gs://BUCKET/PATH, not /tmp, --staging_location=gs://BUCKET/PATH, not s3://b/x"
    )


def test_running_is_refused_and_says_honestly_why() -> None:
    local = refusal(*WHOLE)
    assert "this version writes the lake to paths only" in local
    assert (
        "Paths of this machine: input[0] in/*.jsonl, output /data/out; build and check the job with --dry-run"
        in local
    )
    assert "write a template with --template_location" in refusal(*WHOLE, job=REMOTE)


def test_a_dry_run_is_let_through() -> None:
    _, options = prepare([*WHOLE, "--dry_run=TRUE"], FakeJob(), streaming=True)
    assert options.view_as(pipeline_options.TestOptions).dry_run is True
    assert options.view_as(pipeline_options.StandardOptions).runner == "DataflowRunner"


def test_a_template_needs_remote_paths() -> None:
    template = (*WHOLE, "--template_location=gs://bucket/template")
    assert prepare(template, REMOTE, True).profile.name == "dataflow"
    assert "Paths of this machine" in refusal(*template)


@pytest.mark.parametrize(
    "arg",
    [
        "--dataflow_service_options=streaming_mode_at_least_once",
        "--experiments=disable_runner_v2",
        "--experiments=disable_streaming_engine",
    ],
)
def test_weaker_modes_are_refused(arg: str) -> None:
    assert f"{arg.partition('=')[2]} " in refusal(*WHOLE, "--dry_run=true", arg)


def test_workers_are_containers() -> None:
    assert "--environment_type=LOOPBACK does not exist there" in refusal(
        *WHOLE, "--environment_type=LOOPBACK"
    )


def test_batches_are_refused() -> None:
    text = refusal(*WHOLE, streaming=False)
    assert (
        "it can't run batches: this version writes the lake to paths only" in text
        and "--runner=direct" in text
    )
    assert "can't run batches" in refusal(*WHOLE, "--dry_run=true", streaming=False)


@pytest.mark.parametrize("value", ["yes", "1"])
def test_dry_run_is_true_or_false(value: str) -> None:
    assert f"--dry_run={value}: give true or false" in refusal(*WHOLE, f"--dry_run={value}")
    assert "Paths of this machine" in refusal(*WHOLE, "--dry_run=false")
