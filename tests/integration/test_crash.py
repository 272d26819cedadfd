"""Runs killed with SIGKILL at many points: the same command finishes them, and nothing tells them from an undisturbed run."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from headrace.simulator.output import write_events
from headrace.simulator.simulate import simulate
from headrace.transforms.keys import Key

pytestmark = pytest.mark.integration

EVENTS = 100_000
SPLIT_BYTES = 3 << 20
COMMAND = "from headrace.pipelines.cli import main; main()"
DYING = """
import os, signal
from headrace.pipelines import batch, commit
from headrace.connectors.manifest import Manifest

def dying(target, name, calls):
    function = getattr(target, name)
    left = [calls]

    def call(*arguments, **settings):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **settings)

    setattr(target, name, call)

"""
"""Kills the process when a function is called for the given time, before it does anything."""

POLLED: dict[str, str] = {"reading": "stage/*.arrow", "writing": "receipts/*.json", "committing": "complete"}
"""What appears in the work folder; of the last, one."""
HOOKED = {
    "between the tables": "dying(commit, 'ensure_table', 2)",
    "within the second commit": "dying(commit, 'commit_files', 2)",
    "before the ledger": "dying(commit, 'count_reasons', 1)",
    "before the end": "dying(Manifest, 'advance', 2)",
}


@dataclass(frozen=True)
class Job:
    """A command but for its output, and what it leaves."""

    folder: Path
    splits: int

    def command(self, out: Path, hook: str = "") -> list[str]:
        code = f"{DYING}{hook}\n{COMMAND}" if hook else COMMAND
        options = f"run batch --config {self.folder / 'batch.yaml'} --quiet --output {out}"
        return [sys.executable, "-c", code, *options.split()]

    def finish(self, out: Path) -> None:
        done = subprocess.run(self.command(out), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    folder = tmp_path_factory.mktemp("job")
    Key(folder / "key", create=True)
    simulation = simulate(EVENTS, 41, fault_rate=0.2)
    write_events(simulation, folder / "events.jsonl")
    settings = {
        "input": [str(folder / "events.jsonl")],
        "key_file": str(folder / "key"),
        "now": simulation.summary.to_dict()["now"],
        "split_bytes": SPLIT_BYTES,
    }
    (folder / "batch.yaml").write_text(json.dumps(settings))
    job = Job(folder, -(-(folder / "events.jsonl").stat().st_size // SPLIT_BYTES))
    job.finish(folder / "undisturbed")
    yield job


def killed_when(job: Job, out: Path, pattern: str, number: int, delay_seconds: float) -> None:
    """Starts the run, waits until it has made so many files and a little more, and kills it."""
    old = {path: path.stat().st_mtime_ns for path in (out / "_work").rglob("*")}
    process = subprocess.Popen(job.command(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while made(out, pattern, old) < number:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay_seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"


def made(out: Path, pattern: str, old: dict[Path, int]) -> int:
    """Returns how many files of the pattern an earlier run did not leave."""
    new = 0
    for path in (out / "_work").glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # the run may be removing what the one before it left
            new += old.get(path) != path.stat().st_mtime_ns
    return new


def assert_undisturbed(job: Job, out: Path) -> None:
    whole = job.folder / "undisturbed"
    ledger = json.loads((out / "ledger.json").read_bytes())
    assert ledger["balanced"] is True
    assert ledger["rows_in"] == EVENTS
    for name in ("events", "quarantine"):
        found, expected = (DeltaTable(str(o / name)).to_pyarrow_table() for o in (out, whole))
        order = [("origin", "ascending"), ("origin_position", "ascending")]
        assert found.sort_by(order).equals(expected.sort_by(order))
        if name == "events":
            assert pc.count_distinct(found["event_id"]).as_py() == found.num_rows == ledger["accepted"]
    for name in ("ledger.json", "counts.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert metrics(out) == metrics(whole)
    assert not (out / "_work").exists()
    assert not list(out.rglob("*.tmp"))
    assert json.loads((out / "manifest.json").read_bytes())["status"] == "done"


def metrics(out: Path) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in sorted((out / "metrics").rglob("*.parquet"))}


@pytest.mark.parametrize("seed", range(2))
def test_a_run_killed_twice_while_it_works_is_finished(seed: int, job: Job, tmp_path: Path) -> None:
    rng = random.Random(seed)
    out = tmp_path / "out"
    moments = sorted(rng.sample([*POLLED], 2), key=[*POLLED].index) if seed else ["reading", "reading"]
    for moment in moments:
        number = 1 if moment == "committing" else rng.randint(1, job.splits - 2)
        killed_when(job, out, POLLED[moment], number, rng.random() * 0.05 * (moment != "committing"))
    job.finish(out)
    assert_undisturbed(job, out)


@pytest.mark.parametrize("moment", HOOKED)
def test_a_run_killed_while_it_commits_is_finished(moment: str, job: Job, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.run(job.command(out, HOOKED[moment]), capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    committed = [name for name in ("events", "quarantine") if rows_of(out / name)]
    assert committed == (
        ["events"]
        if moment in ("between the tables", "within the second commit")
        else ["events", "quarantine"]
    )
    assert not (out / "ledger.json").exists() or moment == "before the end"
    job.finish(out)
    assert_undisturbed(job, out)


def rows_of(table: Path) -> int:
    """Returns how many rows a reader sees."""
    return (
        int(DeltaTable(str(table)).to_pyarrow_table().num_rows) if DeltaTable.is_deltatable(str(table)) else 0
    )
