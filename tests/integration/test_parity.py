"""The proof of parity on a real runner, and a proof that it proves something."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

from headrace.pipelines.cli import app
from headrace.pipelines.stream_config import StreamConfig
from headrace.pipelines.verify import parity
from headrace.pipelines.verify.stream_apart import run_stream_apart
from headrace.runners.servers.flink import FlinkCluster
from headrace.simulator.simulate import simulate
from headrace.transforms.keys import Key
from headrace.transforms.ready_windows import METRICS
from tests.integration.streams import COMMAND, RUN_SECONDS

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("prism_program"),
]

NOW = "2026-01-05T13:00:00Z"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parity") / "key"
    Key(path, create=True)
    return path


def simulated(path: Path, events: int, seed: int) -> dict[str, Any]:
    """Writes events and returns their truth."""
    simulation = simulate(events, seed, fault_rate=0.3)
    path.write_bytes(b"".join(simulation))
    return simulation.summary.to_dict()


def prove(source: Path, key: Path, *more: object) -> tuple[int, dict[str, Any], str]:
    """Runs the command; returns its exit code, its report and what it said."""
    command = [
        *COMMAND,
        "verify",
        "parity",
        "--input",
        source,
        "--now",
        NOW,
        "--key-file",
        key,
        "--json",
        *more,
    ]
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_SECONDS,
        env=os.environ,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def require_parity(code: int, report: dict[str, Any]) -> None:
    differing = [table for table in report["tables"] if not table["equal"]]
    assert (code, differing, report["late"], report["unfinished"]) == (0, [], {}, {})
    assert report["conflicts"]["one_sided"] == 0 and report["missing"] == []
    assert {table["name"] for table in report["tables"]} == {
        "events",
        "quarantine",
        *(f"metrics/{n}" for n in METRICS),
    }


def test_all_ready_made_metrics_on_prism_and_what_is_changed_afterwards_is_found(
    tmp_path: Path, key: Path
) -> None:
    source, work = tmp_path / "events.jsonl", tmp_path / "work"
    truth = simulated(source, 5000, 61)["classes"]
    code, report, _ = prove(source, key, "--work", work, "--seed", 3)
    require_parity(code, report)
    rows = {table["name"]: table["rows_compared"] for table in report["tables"]}
    conflicts = report["conflicts"]["ids"]
    assert 0 < conflicts <= truth["conflict"]
    assert rows["events"] == truth["accepted"] - conflicts and rows["quarantine"] > 500
    assert report["records"] == 5000 and report["sent"] == 5000 + report["plan"]["copies"]
    assert report["plan"]["repeated"] > 100 and report["plan"]["delayed"] > 500
    for timing in ("early", "on_time", "late", "final"):
        assert sum(firings.get(timing, 0) for firings in report["firings"].values()) > 20, timing

    events = DeltaTable(str(work / "stream" / "events"))
    lost = events.to_pyarrow_table(filters=[("id_generated", "=", False)])["event_id"][0].as_py()
    events.delete(f"event_id = '{lost}'")
    metric = DeltaTable(str(work / "stream" / "metrics" / "conversion_5m"))
    metric.update(updates={"buyers": "buyers + 1"}, predicate="users > 5")
    code, report, _ = prove(source, key, "--work", work, "--seed", 3)
    found = {table["name"]: table for table in report["tables"] if not table["equal"]}
    assert code == 1 and set(found) == {"events", "metrics/conversion_5m"}
    assert found["events"]["only_in_a"] == 1 and not found["events"]["only_in_b"]
    assert set(found["metrics/conversion_5m"]["columns"]) == {"buyers"}
    assert found["metrics/conversion_5m"]["columns"]["buyers"]["largest_absolute"] == 1


def test_a_stream_with_another_metric_on_prism_is_no_parity(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "events.jsonl"
    simulated(source, 600, 62)
    mine = {
        "size_seconds": 600,
        "every_seconds": 60,
        "measures": {"n": "count", "who": {"distinct": "user_id"}},
    }
    config = tmp_path / "mine.json"
    config.write_text(json.dumps({"metrics": {"mine": mine, "geography_1h": None}}))

    def changed(config: StreamConfig, *arguments: Any, **named: Any) -> None:
        other = {**mine, "where": {"event_type": ["page_view", "product_view", "click"]}}
        run_stream_apart(replace(config, metrics={**config.metrics, "mine": other}), *arguments, **named)

    monkeypatch.setattr(parity, "run_stream_apart", changed)
    monkeypatch.setattr(parity, "DELIVERIES", 6)
    given = [
        "--input",
        source,
        "--now",
        NOW,
        "--config",
        config,
        "--key-file",
        key,
        "--work",
        tmp_path / "work",
    ]
    done = CliRunner().invoke(app, ["verify", "parity", *map(str, given), "--json", "--quiet"])
    assert done.exit_code == 1, done.output
    report = json.loads(done.stdout)
    (table,) = (table for table in report["tables"] if not table["equal"])
    assert table["name"] == "metrics/mine" and table["columns"].keys() == {"n", "who"}


def test_parity_on_flink(tmp_path: Path, key: Path, flink: FlinkCluster) -> None:
    source = tmp_path / "events.jsonl"
    simulated(source, 2000, 63)
    code, report, _ = prove(
        source,
        key,
        *(
            "--runner",
            "flink",
            "--shared-paths",
            f"--job_endpoint={flink.job_endpoint}",
            f"--flink-rest={flink.rest_url}",
        ),
        *("--environment_type=EXTERNAL", f"--environment_config={flink.worker_pool_address}"),
    )
    require_parity(code, report)
