"""The upkeep of a stream's tables beside its committer."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

from headrace.connectors.commit_stream import StreamCommitter
from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.pipelines.cli import app
from headrace.pipelines.streaming import upkeep
from headrace.pipelines.streaming.upkeep import NICENESS, Upkeep, UpkeepProcess, tables_of
from tests.connectors.small_stream import APP, ENRICHED_SCHEMA, Job, SmallStream, late, metric

TABLES = ["events", "quarantine", "ledger", "metrics/per_minute", "late/per_minute"]


def wait_for(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def files(out: Path, table: str) -> int:
    return pa.table(DeltaTable(str(out / table)).get_add_actions()).num_rows


def committed(out: Path, commits: int) -> None:
    stream, job = SmallStream(out), Job()
    committer = StreamCommitter(out, app_id=APP, lake_schema=ENRICHED_SCHEMA)
    for n in range(commits):
        job.receive(*stream.poll(), metric(n), late(1)).commit(committer)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("crowded")
    committed(out, 16)
    return out


@pytest.fixture
def out(crowded: Path, tmp_path: Path) -> Path:
    """An output of 16 commits."""
    shutil.copytree(crowded, tmp_path / "out")
    return tmp_path / "out"


def test_every_table_of_an_output_is_kept_small(out: Path, tmp_path: Path) -> None:
    assert tables_of(tmp_path) == []
    (out / "metrics" / "no_table").mkdir()
    assert tables_of(out) == TABLES
    done = Upkeep(out).look()
    assert {name: (each.removed, each.added) for name, each in done.items()} == {
        "events": (32, 1),
        "quarantine": (32, 1),
        "ledger": (16, 1),
        "metrics/per_minute": (16, 1),
        "late/per_minute": (16, 1),
    }
    assert Upkeep(out).look() == {}
    totals = read_stream_ledger(out)
    assert (totals.rows_in, totals.accepted, totals.commits, totals.balanced) == (160, 128, 16, True)


def test_a_committer_beside_it_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both run at full speed, without a pause between."""
    compact_lake = upkeep.compact_lake
    monkeypatch.setattr(upkeep, "compact_lake", lambda out, name, **_: compact_lake(out, name, min_files=3))
    keeper, over, removed = Upkeep(tmp_path), threading.Event(), []

    def keep() -> None:
        while not over.is_set():
            removed.append(sum(each.removed for each in keeper.look().values()))

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        committed(tmp_path, 12)
    finally:
        over.set()
        thread.join()
    assert sum(removed) > 20
    ids = DeltaTable(str(tmp_path / "events")).to_pyarrow_table(columns=["event_id"]).column(0).to_pylist()
    assert sorted(ids) == sorted(f"topic/0-{p}" for p in range(120) if p % 5)
    totals = read_stream_ledger(tmp_path)
    assert (totals.rows_in, totals.accepted, totals.balanced, totals.drained) == (120, 96, True, True)
    assert DeltaTable(str(tmp_path / "metrics/per_minute")).to_pyarrow_table().num_rows == 24
    assert DeltaTable(str(tmp_path / "late/per_minute")).to_pyarrow_table().num_rows == 12


def test_files_that_nothing_needs_are_deleted_now_and_then(tmp_path: Path) -> None:
    committed(tmp_path, 2)
    orphan = tmp_path / "events" / "event_date=2026-01-05" / "part-orphan.parquet"
    orphan.write_bytes(b"left by a bundle that failed")
    os.utime(orphan, (0, 0))
    now = [0.0]
    keeper = Upkeep(tmp_path, clean_seconds=3600, clock=lambda: now[0])
    keeper.look()
    assert orphan.exists()
    now[0] = 3600
    keeper.look()
    assert not orphan.exists()
    assert files(tmp_path, "events") == 4


@pytest.mark.parametrize("error", [OSError("disk full"), ZeroDivisionError("a bug")])
def test_what_fails_is_logged_and_the_other_tables_are_kept(
    error: Exception, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compact_lake = upkeep.compact_lake

    def failing(folder: Path, name: str, **more: int) -> object:
        if name == "events":
            raise error
        return compact_lake(folder, name, **more)

    monkeypatch.setattr(upkeep, "compact_lake", failing)
    with caplog.at_level(logging.WARNING):
        assert list(Upkeep(out).look()) == TABLES[1:]
    assert "upkeep of table events" in caplog.text and str(error) in caplog.text


@pytest.mark.integration
def test_the_process_works_until_the_stream_ends(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), UpkeepProcess(out, 0.1) as running:
        wait_for(lambda: "table events: 32 small files became 1" in caplog.text)
        assert files(out, "events") == 1
        first = running._process
        assert first is not None
        mine = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, first.pid) == min(19, mine + NICENESS)
        os.kill(first.pid, signal.SIGKILL)
        wait_for(lambda: running._process not in (None, first))
        second = running._process
    assert second is not None and second.poll() == 0
    assert "the upkeep of the tables ended with code -9; it is started again" in caplog.text


def test_no_process_where_none_is_wanted(out: Path) -> None:
    with UpkeepProcess(out, 0) as off:
        assert off._process is None


@pytest.mark.integration
def test_it_ends_with_a_stream_that_was_killed(out: Path) -> None:
    """Its standard input ends with the launcher."""
    process = subprocess.Popen(
        [sys.executable, "-m", upkeep.__name__, str(out), "3600"], stdin=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 0


def test_the_command_compacts_an_output(tmp_path: Path) -> None:
    committed(tmp_path, 3)
    run = CliRunner().invoke
    refused = run(app, ["lake", "compact", str(tmp_path)])
    assert refused.exit_code == 2
    assert "is no stream's output (it has no stream.json); name the OUT of a" in refused.stderr
    (tmp_path / "stream.json").write_text("{}")
    done = run(app, ["lake", "compact", str(tmp_path), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["events"] == {"removed": 6, "added": 1, "deleted": 0}
    again = run(app, ["lake", "compact", str(tmp_path), "--delete-after-hours", "24"])
    assert "events              as it was" in again.stdout
    young = run(app, ["lake", "compact", str(tmp_path), "--delete-after-hours", "0"])
    assert (young.exit_code, "it must be at least 1:00:00" in young.stderr) == (2, True)
