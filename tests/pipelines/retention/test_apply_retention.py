"""Old dates go, are accounted for, and nothing that is still needed goes with them."""

import json
import os
import shutil
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

from headrace.connectors.output_lock import OutputLock
from headrace.connectors.removals import retention_records
from headrace.connectors.resume_stream import roll_back
from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.pipelines.cli import app
from headrace.pipelines.ledgers.show_ledger import show_ledger
from headrace.pipelines.ledgers.verify_ledger import verify_ledger
from headrace.pipelines.nightly.nightly import run_nightly
from headrace.pipelines.nightly.nightly_config import NightlyConfig
from headrace.pipelines.retention.apply_retention import Applied, apply_retention
from headrace.pipelines.retention.policy import Ages, Audit, Policy
from headrace.schemas.errors import ConfigError, UntrustedRunError
from tests.pipelines.ledgers.outputs import add_rows, drop_row, make_stream
from tests.pipelines.runs import event, lines, run

pytestmark = pytest.mark.integration

LATER = datetime(2026, 1, 10, 6, tzinfo=UTC)
"""Seven days back is the 3rd, so the 1st and the 2nd go."""
MUCH_LATER = datetime(2026, 3, 10, tzinfo=UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, key: Path) -> dict[str, Path]:
    """The same five days, ten events a day and one that is rejected, as a Delta lake and as a plain one."""
    folder = tmp_path_factory.mktemp("days")
    events = []
    for day in range(1, 6):
        events += [event(100 * day + n, timestamp=f"2026-01-0{day}T10:{n:02d}:00Z") for n in range(10)]
        events.append({"user_id": 1})
    (folder / "in.jsonl").write_bytes(lines(events))
    for name in ("delta", "parquet"):
        run(folder / "in.jsonl", folder / name, key, lake_format=name, max_age_seconds=30 * 86_400)
    return {name: folder / name for name in ("delta", "parquet")}


@pytest.fixture
def out(made: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(made["delta"], tmp_path / "out")
    return tmp_path / "out"


def apply(out: Path, policy: Policy | None = None, now: datetime = LATER, **more: object) -> Applied:
    return apply_retention(policy or Policy(), [out], clock=lambda: now, **more)[0]  # type: ignore[arg-type]


def dates(out: Path, table: str = "events") -> list[str]:
    found = DeltaTable(str(out / table)).to_pyarrow_table().column("event_date").to_pylist()
    return sorted({str(day) for day in found})


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_old_dates_go_and_the_ledger_knows(out: Path) -> None:
    before = show_ledger(out)
    applied = apply(out)
    assert [(s.table, s.partitions, s.rows, s.cold) for s in applied.steps] == [
        ("events", ["2026-01-01", "2026-01-02"], 20, None)
    ]
    assert dates(out) == ["2026-01-03", "2026-01-04", "2026-01-05"]
    seen = verify_ledger(out)
    assert (seen.findings, seen.received, seen.accepted, seen.removed) == ([], 55, 30, 20)
    after = show_ledger(out)
    assert [(p.start, p.accepted, p.rejected) for p in after.periods] == [
        (p.start, p.accepted, p.rejected) for p in before.periods
    ]
    assert (after.total.removed, after.ledger, after.held) == (20, 55, 55)
    record = retention_records(out)[0]
    assert (record.state, record.policy["raw"]["hot_days"], record.steps[0].files > 0) == ("done", 7, True)
    drop_row(out, "events")  # What goes otherwise is found still.
    assert {f.kind for f in verify_ledger(out).findings} == {"hole", "position hole"}


def test_again_it_does_nothing_and_a_dry_run_never_does(out: Path) -> None:
    before = tree(out)
    preview = apply(out, dry_run=True)
    assert tree(out) == before
    assert [s.rows for s in preview.steps] == [s.rows for s in apply(out).steps]
    before = tree(out)
    assert apply(out).steps == []
    assert tree(out) == before


def test_files_leave_the_disk_only_after_the_safety_age(out: Path) -> None:
    def old() -> list[Path]:
        return list((out / "events" / "event_date=2026-01-01").glob("*.parquet"))

    apply(out)
    assert old()  # Readers that have opened the table still find them.
    assert apply(out).unlinked == 0
    policy = Policy()
    object.__setattr__(policy, "safety_hours", 0)  # As if it had passed.
    assert apply(out, policy).unlinked == 2
    assert not old()


def test_moved_to_a_cold_table_and_from_there_for_good(out: Path, tmp_path: Path) -> None:
    whole = DeltaTable(str(out / "events")).to_pyarrow_table()
    policy = Policy(raw=Ages(7, 20, str(tmp_path / "cold")), quarantine=Ages(9, 20, str(tmp_path / "cold")))
    apply(out, policy)
    cold = DeltaTable(str(tmp_path / "cold" / "out" / "events")).to_pyarrow_table()
    both = [*cold.to_pylist(), *DeltaTable(str(out / "events")).to_pyarrow_table().to_pylist()]
    assert cold.num_rows == 20
    assert sorted(map(str, both)) == sorted(map(str, whole.select(cold.column_names).to_pylist()))
    assert verify_ledger(out).findings == []
    last = apply(out, policy, datetime(2026, 1, 22, 1, tzinfo=UTC))  # Twenty days back is the 2nd.
    assert list(last.cold_rows.values()) == [10]
    assert dates(tmp_path / "cold" / "out") == ["2026-01-02", "2026-01-03", "2026-01-04", "2026-01-05"]
    assert DeltaTable(str(tmp_path / "cold" / "out" / "quarantine")).to_pyarrow_table().num_rows == 5
    assert verify_ledger(out).findings == []


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", range(6))
def test_interrupted_anywhere_it_goes_on(out: Path, tmp_path: Path, at: int) -> None:
    ages = Ages(7, 200, str(tmp_path / "cold"))
    policy = Policy(ages, ages, ages, ages)
    said: list[str] = []

    def stop(what: str) -> None:
        said.append(what)
        if len(said) == at + 1:
            raise Killed

    with pytest.raises(Killed):
        apply(out, policy, MUCH_LATER, on_step=stop)
    assert {f.kind for f in verify_ledger(out).findings} == {"interrupted"}
    again = apply(out, policy, MUCH_LATER)
    assert (len(again.finished), again.steps) == (1, [])
    seen = verify_ledger(out)
    assert (seen.findings, seen.accepted, seen.removed) == ([], 0, 55)
    cold = tmp_path / "cold" / "out"
    assert DeltaTable(str(cold / "events")).to_pyarrow_table().num_rows == 50
    assert DeltaTable(str(cold / "quarantine")).to_pyarrow_table().num_rows == 5
    name = "metrics/events_per_minute"
    assert pq.read_table(out / name / "part-0.parquet", partitioning=None).num_rows == 0
    assert DeltaTable(str(cold / name)).to_pyarrow_table().column("events").to_pylist().count(1) == 50


def test_a_plain_lake_gets_a_shorter_list(made: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made["parquet"], out)
    apply(out)
    here = sorted(path.parent.name for path in (out / "events").rglob("*.parquet"))
    assert here == [f"event_date=2026-01-0{day}" for day in (3, 4, 5)]
    listed = json.loads((out / "events" / "_headrace_commit.json").read_bytes())["files"]
    assert sorted(file["path"].partition("/")[0] for file in listed) == here
    seen = verify_ledger(out)
    assert (seen.findings, seen.removed) == ([], 20)


def test_a_stream_keeps_what_it_may_still_write_and_starts_again(tmp_path: Path, key: Path) -> None:
    out = make_stream(tmp_path, key)
    said = json.loads((out / "stream.json").read_bytes())
    said["jobs"][0]["layout"].pop("finished")
    (out / "stream.json").write_text(json.dumps(said))
    running = OutputLock(out)  # As the launcher holds it.
    kept = apply(out, now=MUCH_LATER)
    assert kept.steps == []
    assert any("may still write" in text for text in kept.kept)
    running.release()
    said["jobs"][0]["layout"]["finished"] = True
    (out / "stream.json").write_text(json.dumps(said))
    applied = apply(out, now=MUCH_LATER)
    assert {"events", "quarantine", "metrics/events_per_minute"} <= {step.table for step in applied.steps}
    seen = verify_ledger(out)
    assert (seen.findings, seen.accepted, seen.removed) == ([], 0, 64)
    assert DeltaTable(str(out / "metrics" / "events_per_minute")).to_pyarrow_table().num_rows == 0
    positions = read_stream_ledger(out).positions
    roll_back(out, positions, jobs=["s0001-a"], committed_at=1_773_000_000_000_000)
    assert read_stream_ledger(out).accepted == 54
    assert verify_ledger(out).findings == []


@pytest.mark.parametrize("late", [False, True])
def test_what_a_compaction_or_a_late_row_does_meanwhile_is_seen(
    tmp_path: Path, key: Path, late: bool
) -> None:
    out = make_stream(tmp_path, key)
    policy = Policy(raw=Ages(7, 90, str(tmp_path / "cold")))

    def meanwhile(what: str) -> None:
        if what == "moved events":
            DeltaTable(str(out / "events")).optimize.compact()
            if late:
                rows = DeltaTable(str(out / "events")).to_pyarrow_table()
                add_rows(out, "events", rows.slice(0, 1))

    assert len(DeltaTable(str(out / "events")).file_uris()) > 2
    now = datetime(2026, 1, 20, tzinfo=UTC)
    if late:  # What was not copied must not be deleted.
        with pytest.raises(UntrustedRunError, match="55 rows are to go where 54 were copied"):
            apply(out, policy, now, on_step=meanwhile)
        assert DeltaTable(str(out / "events")).to_pyarrow_table().num_rows == 55
        return
    apply(out, policy, now, on_step=meanwhile)
    assert DeltaTable(str(out / "events")).to_pyarrow_table().num_rows == 0
    assert DeltaTable(str(tmp_path / "cold" / "out" / "events")).to_pyarrow_table().num_rows == 54
    assert verify_ledger(out).findings == []


def test_dates_that_a_warehouse_needs_stay_and_gone_ones_are_not_made_again(
    out: Path, tmp_path: Path
) -> None:
    run_dates(out, tmp_path / "house", 1, 2)
    both = [out, tmp_path / "house"]
    applied = apply_retention(Policy(), both, clock=lambda: LATER)[0]
    assert applied.steps[0].partitions == ["2026-01-01"]
    assert any("events of 2026-01-02: house has not run 2026-01-03" in text for text in applied.kept)
    stale = CliRunner().invoke(
        app, ["run", "nightly", "--stale", "--lake", str(out), "--output", str(tmp_path / "house")]
    )
    assert "2026-01-01" not in stale.stdout
    with pytest.raises(ConfigError, match="went by a retention policy"):
        run_dates(out, tmp_path / "house", 1, 1)
    rows = DeltaTable(str(tmp_path / "house" / "user_sessions")).to_pyarrow_table()
    assert "2026-01-01" in {str(day) for day in rows.column("date").to_pylist()}
    late = apply_retention(Policy(), both, clock=lambda: datetime(2026, 4, 3, tzinfo=UTC))[1]
    assert {s.table for s in late.steps if s.partitions == ["2026-01-01", "2026-01-02"]} >= {
        "user_sessions",
        "cube_geo",
    }
    assert any("user_first_seen stays" in text for text in late.kept)


def run_dates(lake: Path, house: Path, first: int, last: int) -> None:
    run_nightly(NightlyConfig(lake=str(lake), output=str(house)), (date(2026, 1, first), date(2026, 1, last)))


def test_the_command_says_what_would_go(out: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("raw: {hot_days: 1, cold_days: 2}\n")
    args = ["retention", "apply", "--policy", str(tmp_path / "policy.yaml"), str(out)]
    said = CliRunner().invoke(app, [*args, "--dry-run", "--json"])
    steps = {step["table"]: step for step in json.loads(said.stdout)["outputs"][0]["steps"]}
    assert steps["events"]["rows"] == 50
    assert not (out / "retention").exists()
    text = CliRunner().invoke(app, args).stdout
    assert f"{out}: deleted events of 2026-01-01 to 2026-01-05: 50 rows" in text
    assert CliRunner().invoke(app, ["ledger", "verify", str(out)]).exit_code == 0
    assert CliRunner().invoke(app, ["retention", "apply", str(tmp_path)]).exit_code == 2
    assert os.listdir(out / "retention")


def test_two_outputs_of_a_name_can_not_share_a_cold_place(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "b" / "out")
    policy = Policy(raw=Ages(7, 20, str(tmp_path / "cold")))
    apply(out, policy)
    with pytest.raises(ConfigError, match="is the cold place of"):
        apply(tmp_path / "b" / "out", policy)


def test_proofs_are_copied_and_never_taken_out(tmp_path: Path, key: Path, made: dict[str, Path]) -> None:
    stream, batch = make_stream(tmp_path, key), tmp_path / "b" / "batch"
    shutil.copytree(made["delta"], batch)
    policy = Policy(audit=Audit(str(tmp_path / "cold")))
    first = apply_retention(policy, [stream, batch], clock=lambda: LATER)
    assert all(each.audit_files for each in first)
    copies = tmp_path / "cold" / "batch" / "audit"
    for name in ("ledger.json", "manifest.json", f"retention/{retention_records(batch)[0].id}.json"):
        assert (copies / name).read_bytes() == (batch / name).read_bytes()
    rows = DeltaTable(str(tmp_path / "cold" / "out" / "audit" / "ledger")).to_pyarrow_table()
    assert rows.num_rows == read_stream_ledger(stream).commits
    assert [each.audit_files for each in apply_retention(policy, [stream, batch], clock=lambda: LATER)] == [
        0,
        0,
    ]
    (batch / "ledger.json").write_bytes((batch / "ledger.json").read_bytes() + b" ")
    again = apply_retention(policy, [stream, batch], clock=lambda: LATER)
    assert [each.audit_files for each in again] == [0, 1]
