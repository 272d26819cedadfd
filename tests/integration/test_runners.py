"""Real runners that need no cluster: Prism on this machine, and a Dataflow job that is built but not sent."""

import time

import apache_beam as beam
import grpc
import pytest
from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions, PortableOptions
from apache_beam.transforms.periodicsequence import PeriodicImpulse

from headrace.runners.options import prepare
from tests.runners.job import FakeJob

pytestmark = pytest.mark.integration

needs_prism = pytest.mark.usefixtures("prism_program")


def run_on_prism(options: PipelineOptions, seconds: float) -> str:
    start = time.time()
    pipeline = beam.Pipeline(options=options)
    beats = PeriodicImpulse(start_timestamp=start, stop_timestamp=start + seconds, fire_interval=1.0)
    _ = pipeline | beats | "Text" >> beam.Map(str)
    state: str = pipeline.run().wait_until_finish()
    return state


@needs_prism
def test_a_stream_on_prism_outlives_beam_s_timeout() -> None:
    """With Beam's default a stream on Prism ends after 300 s: the control run shows the same with 2 s."""
    options = prepare(["--runner=prism", "--prism_log_level=error"], FakeJob(), streaming=True).options
    assert run_on_prism(options, 5) == "DONE"
    control = prepare(["--runner=prism", "--prism_log_level=error"], FakeJob(), streaming=True).options
    control.view_as(PortableOptions).job_server_timeout = 2
    with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
        run_on_prism(control, 8)


def test_a_dataflow_job_is_built_without_credentials() -> None:
    args = [
        "--runner=dataflow",
        "--project=proj-x",
        "--region=europe-west1",
        "--temp_location=gs://bucket/tmp",
    ]
    _, options = prepare([*args, "--dry_run=true"], FakeJob(), streaming=True)
    pipeline = beam.Pipeline(options=options)
    _ = pipeline | PeriodicImpulse() | "Text" >> beam.Map(str)
    result = pipeline.run()
    assert result.state == "DONE"
    experiments = result.job.options.view_as(DebugOptions).experiments
    assert {"enable_streaming_engine", "use_runner_v2"} <= set(experiments)
