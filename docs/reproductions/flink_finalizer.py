"""Flink finalizes bundles that are in no checkpoint (Beam 2.70 job server, Flink 1.19.3).

    headrace cluster up flink
    python docs/reproductions/flink_finalizer.py

A stateful step counts heartbeats and, in a bundle finalizer, writes down the count that it reached. The TaskManager is killed right
after a checkpoint has completed, and the job is restored from it. A finalizer is to run once the bundle's state is durable, so no
count may be written down twice with a lower one in between. It is: ``FINALIZED TOO EARLY`` says how far the state fell back behind
what was finalized.

Why: ``ExecutableStageDoFnOperator.notifyCheckpointComplete`` calls ``finalizeAllOutstandingBundles()``, which knows nothing of
checkpoints: it finalizes what ended between the snapshot and its completion too.
"""

import json
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError

import apache_beam as beam
from apache_beam.io.flink.flink_streaming_impulse_source import FlinkStreamingImpulseSource
from apache_beam.options.pipeline_options import PipelineOptions

from headrace.runners.servers.flink import FlinkCluster
from headrace.transforms.beam_shard_state import StatefulShardFn

ROUNDS = 5


class Count(StatefulShardFn, slots=0, more={"finalizer": beam.DoFn.BundleFinalizerParam}):
    """Counts, and writes what it has counted when the bundle is finalized."""

    def __init__(self, path):
        self._path = path

    def handle(self, key, value, state, *, finalizer=None):
        number = int(state.read_cell() or b"0") + 1
        state.write_cell(b"%d" % number)
        self._write("seen", number)
        finalizer.register(lambda: self._write("final", number))
        return []

    def _write(self, what, number):
        with open(self._path, "a") as file:
            file.write(json.dumps([what, number]) + "\n")


def main():
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.touch()
        cluster = FlinkCluster(Path(folder) / "cluster")
        cluster.up()
        try:
            early = run(cluster, log)
        finally:
            cluster.down()
    print(f"FINALIZED TOO EARLY in {early} of {ROUNDS} kills" if early else f"not seen in {ROUNDS} kills")


def run(cluster, log):
    options = PipelineOptions(
        [
            "--runner=PortableRunner",
            f"--job_endpoint={cluster.job_endpoint}",
            "--environment_type=LOOPBACK",
            "--streaming",
            "--job_name=finalizer",
            "--parallelism=1",
            "--checkpointing_interval=3000",
            "--min_pause_between_checkpoints=1500",
            "--finish_bundle_before_checkpointing",
            "--max_bundle_time_mills=20",
        ]
    )
    pipeline = beam.Pipeline(options=options)
    source = FlinkStreamingImpulseSource()
    source.config = {"interval_ms": 2}
    (
        pipeline
        | source
        | beam.Map(lambda _: (0, b"")).with_output_types(tuple[int, bytes])
        | beam.ParDo(Count(str(log)))
    )
    result = pipeline.run()
    job = wait_for(lambda: next((j["jid"] for j in cluster.rest("/jobs/overview")["jobs"]), None))
    early = 0
    for _ in range(ROUNDS):
        done = completed(cluster, job)
        wait_for(lambda before=done: completed(cluster, job) > before)
        time.sleep(0.05)
        cluster.kill_taskmanager(0)
        lines = log.read_text().splitlines()
        final = max((n for what, n in map(json.loads, lines) if what == "final"), default=0)
        cluster.start_taskmanager(0)
        known = len(lines)
        after = wait_for(lambda skip=known: first_seen(log, skip))
        print(f"finalized up to {final}, restored to {after - 1}")
        early += after - 1 < final
    result.cancel()
    return early


def completed(cluster, job):
    with suppress(HTTPError):  # The job is not yet running, or not again.
        return cluster.rest(f"/jobs/{job}/checkpoints")["counts"]["completed"]
    return 0


def first_seen(log, skip):
    lines = [json.loads(line) for line in log.read_text().splitlines()[skip:] if line.endswith("]")]
    return next((n for what, n in lines if what == "seen"), None)


def wait_for(look, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.02)
    sys.exit("timed out")


if __name__ == "__main__":
    main()
