"""Every tampering with an output is found, exactly, and an output that nobody touched is clean."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

from headrace.connectors.resume_stream import roll_back
from headrace.connectors.stream_ledger import open_ledger, read_stream_ledger
from headrace.pipelines.cli import app
from headrace.pipelines.config import BatchConfig
from headrace.pipelines.ledgers.verify_ledger import Verified, verify_ledger
from headrace.pipelines.replay.run_replay import run_replay
from headrace.schemas.errors import ConfigError
from tests.pipelines.ledgers.outputs import (
    add_rows,
    change_ledger,
    change_stream_ledger,
    drop_row,
    make_batch,
    make_stream,
)
from tests.pipelines.replay.damaged import FIXES, load, write_events
from tests.pipelines.runs import run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, key: Path) -> dict[str, Path]:
    found = {}
    for name, make in (("batch", make_batch), ("stream", make_stream)):
        found[name] = make(tmp_path_factory.mktemp(name), key)
    return found


@pytest.fixture(params=["batch", "stream"])
def out(request: pytest.FixtureRequest, made: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(made[request.param], tmp_path / "out")
    return tmp_path / "out"


Found = set[tuple[str, str, str, int]]


def found(out: Path) -> Found:
    return {(f.kind, f.table, f.reason, f.rows) for f in verify_ledger(out).findings}


def test_an_untouched_output_is_clean(out: Path) -> None:
    seen = verify_ledger(out)
    assert seen.findings == []
    assert (seen.received, seen.accepted) == (64, 54)
    assert seen.rejected == {"dedupe": {"duplicate": 4}, "validate": {"required": 6}}


def test_a_row_that_is_dropped_is_a_hole_at_its_position(out: Path) -> None:
    place = drop_row(out, "events", 20)
    seen = verify_ledger(out)
    assert {(f.kind, f.table, f.rows) for f in seen.findings} == {
        ("hole", "events", 1),
        ("position hole", "", 1),
    }
    hole = next(f for f in seen.findings if f.kind == "position hole")
    position = place.column("origin_position")[0].as_py()
    if verify_kind(seen) == "stream":  # Offsets are dense; lines of a file may be blank.
        assert (hole.origin, hole.position) == (place.column("origin")[0].as_py(), position)
    else:
        assert f":{position}" in hole.message


def verify_kind(seen: Verified) -> str:
    return seen.kind


def test_a_rejected_row_that_is_dropped_is_named_by_stage_and_reason(out: Path) -> None:
    drop_row(out, "quarantine")
    seen = verify_ledger(out)
    counts = [f for f in seen.findings if f.table]
    assert [(f.kind, f.table, f.rows) for f in counts] == [("hole", "quarantine", 1)]
    assert (counts[0].stage, counts[0].reason) in {("dedupe", "duplicate"), ("validate", "required")}
    assert [f.kind for f in seen.findings if not f.table] == ["position hole"]


def test_a_row_that_is_doubled_is_an_excess_a_duplicate_and_a_position_twice(out: Path) -> None:
    whole = DeltaTable(str(out / "events")).to_pyarrow_table()
    add_rows(out, "events", whole.slice(7, 1))
    assert found(out) == {
        ("excess", "events", "", 1),
        ("duplicate", "events", "", 1),
        ("position twice", "", "", 1),
    }


def test_a_row_that_changes_tables_is_a_hole_and_an_excess(out: Path) -> None:
    rows = DeltaTable(str(out / "quarantine")).to_pyarrow_table()
    gone = drop_row(out, "events", 3)
    moved = rows.slice(0, 1)
    for name in gone.column_names:
        at = moved.column_names.index(name) if name in moved.column_names else -1
        if at >= 0 and name in ("origin", "origin_position", "event_time", "ingest_time"):
            moved = moved.set_column(at, name, gone.column(name).cast(moved.schema.field(name).type))
    add_rows(out, "quarantine", moved)
    reason = moved.column("reason")[0].as_py()
    assert found(out) == {("hole", "events", "", 1), ("excess", "quarantine", reason, 1)}


def test_a_missing_file_is_named(out: Path) -> None:
    table = DeltaTable(str(out / "events"))
    path = Path(table.file_uris()[0].removeprefix("file://"))
    os.unlink(path)
    seen = verify_ledger(out)
    assert [f.table for f in seen.findings if f.kind == "file"] == ["events"]
    assert path.name in next(f.message for f in seen.findings if f.kind == "file")
    assert any(f.kind == "hole" and f.table == "events" for f in seen.findings)


def test_a_ledger_that_was_altered(made: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(made["batch"], tmp_path / "batch")
    change_ledger(tmp_path / "batch", accepted=-1)
    assert found(tmp_path / "batch") == {("ledger", "", "", 1), ("excess", "events", "", 1)}
    shutil.copytree(made["stream"], tmp_path / "stream")
    change_stream_ledger(tmp_path / "stream", 0, "accepted", 2)
    assert found(tmp_path / "stream") == {("ledger", "", "", -2)}


@pytest.mark.parametrize(
    "change", [lambda r: r.update(recovered=r["recovered"] - 1), lambda r: r["taken"].popitem()]
)
def test_replays_change_sides_and_their_records_are_held_against_themselves(
    tmp_path: Path, key: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    _, bad = write_events(tmp_path, 300)
    out = tmp_path / "out"
    run(bad, out, key)
    config = BatchConfig(key_file=str(key), rules={})
    fixes = load(tmp_path)[:2]
    result = run_replay(out, config, fixes=fixes, fixes_text=FIXES)
    assert result.record.recovered
    assert result.record.failed
    assert verify_ledger(out).findings == []
    run(bad, out, key)  # A rerun changes nothing.
    assert verify_ledger(out).findings == []
    path = out / "replays" / result.record.id / "replay.json"
    said = json.loads(path.read_bytes())
    change(said)
    path.write_text(json.dumps(said))
    assert {f.run for f in verify_ledger(out).findings if f.kind == "ledger"} == {
        f"replay-{result.record.id}"
    }


def test_a_batch_ledger_that_is_not_what_the_replay_left(tmp_path: Path, key: Path) -> None:
    _, bad = write_events(tmp_path, 300)
    out = tmp_path / "out"
    run(bad, out, key)
    run_replay(out, BatchConfig(key_file=str(key), rules={}), fixes=load(tmp_path), fixes_text=FIXES)
    change_ledger(out, rows_in=1, accepted=1)
    assert {f.kind for f in verify_ledger(out).findings} == {"ledger", "hole", "position hole"}


def test_a_roll_back_is_followed(made: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(made["stream"], tmp_path / "out")
    out = tmp_path / "out"
    positions = read_stream_ledger(out).positions
    ledger = open_ledger(out)
    assert ledger is not None
    roll_back(out, positions, jobs=["s0001-a"], committed_at=1_767_618_000_000_000)
    assert verify_ledger(out).findings == []


def test_the_command_ends_with_three_and_names_what_is_wrong(made: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(made["batch"], tmp_path / "out")
    runner = CliRunner()
    done = runner.invoke(app, ["ledger", "verify", str(tmp_path / "out")])
    assert (done.exit_code, "clean" in done.stdout) == (0, True)
    drop_row(tmp_path / "out", "events")
    done = runner.invoke(app, ["ledger", "verify", str(tmp_path / "out"), "--json"])
    said = json.loads(done.stdout)
    assert (done.exit_code, said["clean"], len(said["findings"])) == (3, False, 2)
    assert runner.invoke(app, ["ledger", "verify", str(tmp_path)]).exit_code == 2


def test_no_output(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no output of a batch, a stream or a backfill"):
        verify_ledger(tmp_path)
