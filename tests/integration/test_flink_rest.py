"""A real Flink: are a stream's options in force, and is what its REST service says understood?"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from headrace.runners.checkpoint_files import newest_checkpoint
from headrace.runners.checkpoint_watch import CheckpointWatch, checkpoint_age_seconds
from headrace.runners.checks import check_runner
from headrace.runners.flink import job_name, require_effect
from headrace.runners.flink_answers import FlinkError, FlinkNotFoundError
from headrace.runners.flink_rest import FlinkRest
from headrace.runners.local_cluster import LocalFlink, find_flink
from headrace.runners.options import prepare
from headrace.runners.servers.flink import FlinkCluster
from tests.runners.job import FakeJob

pytestmark = pytest.mark.integration


class _Heartbeat(beam.PTransform):
    """Flink's own source of empty elements."""

    def expand(self, pbegin: Any) -> Any:
        return beam.pvalue.PCollection(pbegin.pipeline, element_type=bytes, is_bounded=False)

    def get_windowing(self, inputs: Any) -> Any:
        return beam.Windowing(beam.window.GlobalWindows())

    def to_runner_api_parameter(self, context: Any) -> tuple[str, bytes]:
        return "flink:transform:streaming_impulse:v1", json.dumps(
            {"interval_ms": 200, "message_count": 0}
        ).encode()


_SEEN: Any = beam.DoFn.StateParam(ReadModifyWriteStateSpec("seen", VarIntCoder()))


class _Count(beam.DoFn):
    def process(self, element: tuple[str, int], seen: Any = _SEEN) -> Iterator[int]:
        seen.write((seen.read() or 0) + 1)
        yield seen.read()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    made = FlinkCluster(tmp_path_factory.mktemp("cluster"))
    made.up()
    yield made
    made.down()


def until(true: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def test_the_cluster_is_found_in_its_folder(
    cluster: FlinkCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HEADRACE_CLUSTER_DIR", str(cluster.cluster))
    assert find_flink() == LocalFlink(cluster.job_endpoint, cluster.rest_url, "")
    monkeypatch.setenv("HEADRACE_CLUSTER_DIR", str(tmp_path))
    assert find_flink() is None


def test_a_stream_is_exact_by_its_options_and_ends_with_a_savepoint(
    cluster: FlinkCluster, tmp_path: Path
) -> None:
    job = FakeJob(paths={"output": str(tmp_path)})
    args = [f"--job_endpoint={cluster.job_endpoint}", f"--flink-rest={cluster.rest_url}"]
    args.append("--environment_type=LOOPBACK")
    assert {f.status for f in check_runner("flink", args)} <= {"ok", "warning"}

    options = prepare(["--runner=flink", *args], job, streaming=True).options
    pipeline = beam.Pipeline(options=options)
    keyed = pipeline | _Heartbeat() | "Key" >> beam.Map(lambda _: ("k", 1)).with_output_types(tuple[str, int])
    _ = keyed | "Count" >> beam.ParDo(_Count())
    began = int(time.time() * 1e6)
    result = pipeline.run()
    ended = threading.Thread(target=result.wait_until_finish)
    ended.start()

    rest = FlinkRest(cluster.rest_url)
    name = job_name(job)
    running = until(lambda: [j.id for j in rest.jobs() if j.name == name and j.state == "RUNNING"])
    assert rest.job_id(name) == running[0]
    require_effect(rest, running[0], options)

    durable = until(lambda: rest.durable_until(running[0]))
    assert began < durable < time.time() * 1e6
    path = rest.latest_checkpoint_path(running[0])
    assert path is not None and "/chk-" in path
    assert newest_checkpoint(cluster.checkpoints_dir, running[0]) is not None
    assert checkpoint_age_seconds(rest, running[0]) < 30
    assert CheckpointWatch(rest, running[0]).look() is None
    assert set(rest.backpressure(running[0]).values()) <= {"ok", "low", "high"}

    with pytest.raises(FlinkError, match="Failed to create savepoint directory"):
        rest.savepoint(running[0], "file:///proc/nowhere")
    place = rest.stop_with_savepoint(running[0], cluster.savepoints_dir.as_uri())
    assert Path(place.removeprefix("file:"), "_metadata").is_file()
    assert rest.job(running[0]).state == "FINISHED"
    with pytest.raises(FlinkNotFoundError, match=f"the last one of this name, {running[0]}, is FINISHED"):
        rest.job_id(name)
    assert rest.failures(running[0]) == []
    ended.join(30)
    assert not ended.is_alive() and result.state == "DONE"
