"""The quarantine of real runs: nothing stands out in uniform faults, a bad release does, and the page's examples work."""

import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from headrace.pipelines.quarantine.documents import Unsealer
from headrace.pipelines.quarantine.patterns import CHANGED_TYPE, Pattern
from headrace.pipelines.quarantine.summary import summarise
from headrace.simulator.simulate import simulate
from headrace.transforms.keys import Key
from tests.pipelines.quarantine.planted import selected
from tests.pipelines.runs import run

PAGE = Path(__file__).parents[3] / "docs" / "quarantine.md"


def simulated(events: int, seed: int, **settings: Any) -> tuple[list[bytes], datetime]:
    simulation = simulate(events, seed, **settings)
    data = b"".join(simulation)
    return data.splitlines(keepends=True), datetime.fromisoformat(simulation.summary.to_dict()["now"])


def quarantine_of(folder: Path, lines: list[bytes], now: datetime, key: Path) -> Path:
    (folder / "events.jsonl").write_bytes(b"".join(lines))
    run(folder / "events.jsonl", folder / "out", key, now=now)
    return folder / "out"


def release(line: bytes) -> bytes:
    """Returns the event as a new release sends it, if it is an envelope of the web shop: quantity as text, a new app version."""
    try:
        event = orjson.loads(line)
        properties, context = event["payload"]["properties"], event["context"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return line
    if (
        not isinstance(properties, dict)
        or not isinstance(context, dict)
        or event["metadata"].get("source") != "web-sdk"
    ):
        return line
    context["app_version"] = "2026.2.0"
    if "price" in properties:
        properties["price"] = {"value": str(properties["price"])}
    return orjson.dumps(event) + b"\n"


@pytest.mark.integration
@pytest.mark.parametrize("seed", [1, 2])
def test_uniform_faults_of_the_simulator_are_no_pattern(tmp_path: Path, key: Path, seed: int) -> None:
    lines, now = simulated(60_000, seed, fault_rate=0.01 * 10 ** (seed - 1), span="20h")
    out = quarantine_of(tmp_path, lines, now, key)
    for unsealer in (None, Unsealer(Key(key))):
        found = summarise(out, unsealer=unsealer)
        assert found.rows > 200
        assert [p.sentence for p in found.patterns] == []


@pytest.mark.integration
def test_a_bad_release_is_found_in_a_file(tmp_path: Path, key: Path) -> None:
    lines, now = simulated(20_000, 3, fault_rate=0.01, span="20h")
    half = len(lines) // 2
    out = quarantine_of(tmp_path, lines[:half] + [release(line) for line in lines[half:]], now, key)
    found = summarise(out, unsealer=Unsealer(Key(key)))
    changed = [p for p in found.patterns if p.kind == CHANGED_TYPE]
    assert len(changed) == 1, [p.sentence for p in found.patterns]
    pattern: Pattern = changed[0]
    assert pattern.group.pointer == "/payload/properties/price"
    assert selected(out, pattern.where).num_rows == pattern.rows > 50
    assert "app_version 2026.2.0 appears first at the same time" in pattern.sentence
    positions = selected(out, pattern.where)["origin_position"].to_pylist()
    assert sum(p > half for p in positions) == len(positions)


@pytest.mark.integration
def test_the_examples_of_the_page_run(tmp_path: Path) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 3
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
    }
    for code in blocks:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    assert orjson.loads((tmp_path / "summary.json").read_bytes())["rows"] > 1000
    assert len((tmp_path / "stale.jsonl").read_bytes().splitlines()) > 100
    assert (tmp_path / "quarantine.html").stat().st_size > 10_000
