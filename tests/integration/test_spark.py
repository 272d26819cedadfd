"""The batch pipeline on a real Spark leaves the rows of the local run."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from headrace.runners.servers.spark import SparkServer
from headrace.simulator.simulate import simulate
from headrace.transforms.keys import Key
from tests.integration.streams import COMMAND, require_equal, rows

pytestmark = pytest.mark.integration


def test_a_batch_on_spark_leaves_the_rows_of_the_local_run(spark: SparkServer, tmp_path: Path) -> None:
    simulation = simulate(6000, 61, fault_rate=0.3)
    source, key = tmp_path / "events.jsonl", tmp_path / "key"
    source.write_bytes(b"".join(simulation))
    Key(key, create=True)
    summary = simulation.summary.to_dict()
    given = ("--now", summary["now"], "--json")

    def run(name: str, *more: str) -> dict[str, object]:
        done = subprocess.run(
            [*COMMAND, *("run", "batch", "--input", source, "--output", tmp_path / name), *given, *more],
            env=os.environ | {"HEADRACE_KEY_FILE": str(key)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return found

    there = run(
        "spark", "--runner=spark", f"--job_endpoint={spark.job_endpoint}", "--environment_type=LOOPBACK"
    )
    here = run("direct")
    assert (there["rows_in"], there["balanced"]) == (6000, True)
    assert there["accepted"] == here["accepted"] == summary["classes"]["accepted"]
    assert there["rejected"] == here["rejected"]
    for name in ("events", "quarantine"):
        require_equal(*(rows(tmp_path / out, name, "ingest_time") for out in ("spark", "direct")))
