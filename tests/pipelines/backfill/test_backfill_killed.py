"""Backfills killed with SIGKILL: the same command, or --resume, leaves what an undisturbed run leaves."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from tests.pipelines.backfill.archives import (
    data_files,
    run,
)
from tests.pipelines.backfill.years import Years

pytestmark = pytest.mark.integration

COMMAND = "from headrace.pipelines.cli import main; main()"
DYING = """
import os, signal
from headrace.pipelines.backfill import backfill, commit_date, finish_dates_fn, read_dates_fn, run_dates
from headrace.pipelines.backfill.backfill_folder import BackfillFolder

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
MOMENTS = {
    "planned": "dying(backfill, 'run_dates', 1)",
    "reading": "dying(read_dates_fn, 'replace_file', 2)",
    "writing": "dying(finish_dates_fn, 'replace_file', 2)",
    "checked": "dying(BackfillFolder, 'save', 2)",
    "before the first commit": "dying(commit_date, 'ensure_table', 1)",
    "between the tables": "dying(commit_date, 'ensure_table', 4)",
    "moved, not committed": "dying(commit_date, 'settle', 2)",
    "committed, without metrics": "dying(backfill, 'finish_dates', 1)",
    "within the metrics": "dying(commit_date, 'finish', 9)",
    "in the second job": "dying(backfill, 'run_dates', 2)",
    "before the ledger": "dying(backfill, 'discard', 1)",
}


@pytest.fixture(scope="module")
def undisturbed(years: Years, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(years.root, out, key, date(2025, 5, 10), date(2025, 5, 13), rows_at_once=100)
    yield out


def command(years: Years, out: Path, key: Path, *options: str, hook: str = "") -> list[str]:
    config = out.parent / "backfill.json"
    config.write_text(json.dumps({"rows_at_once": 100, "key_file": str(key)}))
    words = ["run", "backfill", "--config", str(config), "--output", str(out), "--quiet", *options]
    return [sys.executable, "-c", f"{DYING}{hook}\n{COMMAND}" if hook else COMMAND, *words]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("resume", [True, False])
def test_a_killed_backfill_goes_on(
    moment: str, resume: bool, years: Years, undisturbed: Path, tmp_path: Path, key: Path
) -> None:
    out = tmp_path / "out"
    asked = ["--archive", str(years.root), "--from", "2025-05-10", "--to", "2025-05-13"]
    killed = subprocess.run(
        command(years, out, key, *asked, hook=MOMENTS[moment]), capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    again = command(years, out, key, *(["--resume"] if resume else asked))
    done = subprocess.run(again, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert data_files(out) == data_files(undisturbed)
    ledger = json.loads((out / "ledger.json").read_bytes())
    whole = json.loads((undisturbed / "ledger.json").read_bytes())
    assert ledger == whole
    assert not (out / "_work").exists()


def test_a_backfill_killed_at_any_time_goes_on(
    years: Years, undisturbed: Path, tmp_path: Path, key: Path
) -> None:
    out, random_ = tmp_path / "out", random.Random(3)
    asked = ["--archive", str(years.root), "--from", "2025-05-10", "--to", "2025-05-13"]
    kills = 0
    for _ in range(4):
        process = subprocess.Popen(command(years, out, key, *asked), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (out / "_work").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random_.uniform(0, 1.5))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills
    done = subprocess.run(command(years, out, key, "--resume"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert data_files(out) == data_files(undisturbed)
