"""Nightly runs killed with SIGKILL at many points: the same command finishes them, and nothing tells them from undisturbed ones."""

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from deltalake import DeltaTable

from headrace.pipelines.nightly.nightly_tables import TABLES
from tests.pipelines.nightly.lakes import (
    FIRST,
    NOON,
    SECOND,
    THIRD,
    add_events,
    event,
    nightly,
    ordered,
    random_events,
)

pytestmark = pytest.mark.integration

DAYS = (FIRST, SECOND, THIRD)
KILLS = 4
COMMAND = "from headrace.pipelines.cli import main; main()"
COUNTING = """
import os, signal, sys
from collections import Counter
from deltalake import DeltaTable
from headrace.pipelines.nightly import nightly

day, calls, moment, log = "", Counter(), {moment!r}, {log!r}

def counted(target, name):
    function = getattr(target, name)

    def call(*arguments, **named):
        if day:
            calls[day, name] += 1
            if log:
                with open(log, "a") as file:
                    file.write(f"{{day}} {{name}} {{calls[day, name]}}\\n")
            if moment == (day, name, calls[day, name]):
                {death}
        return function(*arguments, **named)

    setattr(target, name, call)

def entered(*arguments, **named):
    global day
    day = arguments[3].date.isoformat()
    return whole(*arguments, **named)

whole, nightly.run_day = nightly.run_day, entered
for target, name in (
    (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "fsync"), (DeltaTable, "create"), (DeltaTable, "create_write_transaction")
):
    counted(target, name)
"""
"""Counts, by date, all calls that change what is on disk; kills the process before one of them."""

Rows = dict[tuple[str, str], list[tuple[Any, ...]]]
Moment = tuple[str, str, int]
"""Date, name and number of a call."""


@dataclass(frozen=True)
class Job:
    """Two dates that were run, the third date and late events of the first since then; and a run that takes them in."""

    lake: Path
    before: Path
    whole: Path
    """What the run leaves if nobody disturbs it."""
    moments: list[Moment]
    """All calls of that run which change what is on disk, in order."""
    seconds: float
    """How long it took once it had begun to write."""

    def command(self, out: Path, code: str = "") -> list[str]:
        options = f"run nightly --from {FIRST} --to {THIRD} --lake {self.lake} --output {out} --quiet"
        return [sys.executable, "-c", f"{code}\n{COMMAND}", *options.split()]

    def finish(self, out: Path) -> None:
        done = subprocess.run(self.command(out), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def copy(self, out: Path) -> Path:
        shutil.copytree(self.before, out)
        return out


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("nightly")
    midnight = datetime(2026, 1, 5, tzinfo=UTC)
    add_events(folder / "lake", random_events(600, 1, midnight, 60, users=30), "early")
    newcomers = [event(n, NOON + timedelta(days=1), user_id=f"user-{n}") for n in range(30, 35)]
    add_events(folder / "lake", newcomers, "newcomers")
    nightly(folder, FIRST, SECOND, out="before")
    late = [event(n, NOON + timedelta(minutes=n), user_id=f"user-{n}") for n in range(20, 35)]
    add_events(folder / "lake", late, "late")
    add_events(folder / "lake", random_events(200, 2, midnight + timedelta(days=2), 24, users=30), "more")
    fresh = Job(folder / "lake", folder / "before", folder / "whole", [], 0.0)
    fresh.copy(fresh.whole)
    log = folder / "log"
    code = COUNTING.format(moment=None, log=str(log), death="pass")
    process = subprocess.Popen(fresh.command(fresh.whole, code), stderr=subprocess.PIPE)
    wait_for_work(process, fresh.whole)
    began = time.monotonic()
    error = process.communicate()[1]
    assert process.returncode == 0, error.decode()
    moments = [(day, name, int(n)) for day, name, n in map(str.split, log.read_text().splitlines())]
    return Job(fresh.lake, fresh.before, fresh.whole, moments, time.monotonic() - began)


def wait_for_work(process: subprocess.Popen[bytes], out: Path) -> None:
    deadline = time.monotonic() + 120
    while not any(out.glob("_work/*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def dies(job: Job, out: Path, moment: Moment) -> bool:
    """Runs the command, which kills itself at a moment; returns False if it came to its end before."""
    code = COUNTING.format(moment=moment, log="", death="os.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run(job.command(out, code), capture_output=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode != 0


def logged(out: Path) -> Rows:
    """Returns the rows that a reader of the logs sees, by table and date."""
    found: Rows = {}
    for name in TABLES:
        table = (
            DeltaTable(str(out / name)).to_pyarrow_table() if (out / name / "_delta_log").exists() else None
        )
        for row in table.to_pylist() if table is not None else ():
            found.setdefault((name, row["date"].isoformat()), []).append(tuple(row.values()))
    return {place: ordered(rows) for place, rows in found.items()}


def in_folders(out: Path) -> Counter[tuple[str, str]]:
    """Returns how many rows a reader of the folders sees who does not look at the logs."""
    found: Counter[tuple[str, str]] = Counter()
    for name in TABLES:
        counts = duckdb.sql(
            f"SELECT date::VARCHAR, count(*) FROM read_parquet('{out / name}/*/*.parquet', hive_partitioning = true) GROUP BY ALL"
        ).fetchall()
        found.update({(name, day): rows for day, rows in counts})
    return found


def files(out: Path) -> dict[str, bytes]:
    """Returns everything but the lock."""
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    del found["_lock"]
    return found


def assert_each_table_has_the_old_or_the_new_rows(job: Job, out: Path) -> None:
    old, new, found = (logged(each) for each in (job.before, job.whole, out))
    for place in old.keys() | new.keys() | found.keys():
        assert found.get(place) in (old.get(place), new.get(place)), place


def assert_undisturbed(job: Job, out: Path) -> None:
    rows = logged(job.whole)
    assert logged(out) == rows
    assert in_folders(out) == {place: len(of) for place, of in rows.items()}
    data = re.compile(rf"({'|'.join(TABLES)})/date=\d{{4}}-\d\d-\d\d/part-[-\w]+\.parquet")
    other = re.compile(
        rf"warehouse\.json|_runs/\d{{4}}-\d\d-\d\d\.json|({'|'.join(TABLES)})/_delta_log/\d{{20}}\.json"
    )
    found, whole = files(out), files(job.whole)
    assert {p: b for p, b in found.items() if data.fullmatch(p)} == {
        p: b for p, b in whole.items() if data.fullmatch(p)
    }
    assert [p for p in found if not data.fullmatch(p) and not other.fullmatch(p)] == []
    assert not (out / "_work").exists()


def test_the_undisturbed_run_replaces_and_adds(job: Job) -> None:
    """Else the other tests here would say nothing."""
    old, new = logged(job.before), logged(job.whole)
    for name in ("user_sessions", "user_daily_metrics", "cube_geo", "cohorts", "user_first_seen"):
        assert old[name, FIRST.isoformat()] != new[name, FIRST.isoformat()], name
    assert old["cohorts", SECOND.isoformat()] != new["cohorts", SECOND.isoformat()]
    assert {day for _, day in new} - {day for _, day in old} == {THIRD.isoformat()}
    names = {name for _, name, _ in job.moments}
    assert names == {"replace", "unlink", "rmdir", "fsync", "create_write_transaction"}
    assert_undisturbed(job, job.whole)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_again_and_again_before_it_changes_something_is_finished(
    seed: int, job: Job, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    out = job.copy(tmp_path / "out")
    names = sorted({name for _, name, _ in job.moments})
    chosen = [rng.choice([m for m in job.moments if m[1] == name]) for name in rng.sample(names, KILLS)]
    for number, moment in enumerate(sorted(chosen, key=job.moments.index)):
        if not dies(
            job, out, moment
        ):  # It went on with the commits of the one before, and had fewer calls to make.
            assert_undisturbed(job, out)
            out = job.copy(tmp_path / f"out-{number}")
            assert dies(job, out, moment)
        assert_each_table_has_the_old_or_the_new_rows(job, out)
    job.finish(out)
    assert_undisturbed(job, out)


def test_a_run_killed_from_outside_at_any_moment_is_finished(job: Job, tmp_path: Path) -> None:
    rng = random.Random(7)
    out = job.copy(tmp_path / "out")
    killed = 0
    for part in sorted(rng.random() for _ in range(KILLS)):
        process = subprocess.Popen(job.command(out), stderr=subprocess.PIPE)
        wait_for_work(process, out)
        time.sleep(part * job.seconds)
        process.kill()
        error = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), error.decode()
        killed += process.returncode != 0
        assert_each_table_has_the_old_or_the_new_rows(job, out)
    assert killed >= 2
    job.finish(out)
    assert_undisturbed(job, out)
    before = files(out)
    for _ in range(2):
        job.finish(out)
        assert files(out) == before
