"""The ledger of backfills: by date, also where dates went by policy and came back."""

import json
import shutil
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from headrace.pipelines.ledgers.show_ledger import show_ledger
from headrace.pipelines.ledgers.verify_ledger import verify_ledger
from headrace.pipelines.retention.apply_retention import apply_retention
from headrace.pipelines.retention.policy import Ages, Policy
from tests.pipelines.backfill.archives import DAY, at, event, run, write_day
from tests.pipelines.ledgers.outputs import drop_row

pytestmark = pytest.mark.integration

FIRST = date(2026, 1, 5)
LAST = FIRST + DAY


@pytest.fixture
def out(tmp_path: Path, key: Path) -> Path:
    for number, day in enumerate((FIRST, LAST)):
        rows = [event(100 * number + n, at(day, 9 + n / 10)) for n in range(30)]
        rows += [event(100 * number, at(day, 9)), event(90 + number, at(day, 10), event_type="nonsense")]
        write_day(tmp_path / "archive", day, rows)
    run(tmp_path / "archive", tmp_path / "out", key, FIRST, LAST)
    return tmp_path / "out"


def test_dates_are_held_against_their_manifests(out: Path, tmp_path: Path) -> None:
    seen = verify_ledger(out)
    assert (seen.findings, seen.kind, seen.accepted) == ([], "backfill", 60)
    assert seen.received == 60 + sum(sum(reasons.values()) for reasons in seen.rejected.values())
    shown = show_ledger(out, per="day")
    assert [(p.start, p.accepted) for p in shown.periods] == [("2026-01-05", 30), ("2026-01-06", 30)]
    shutil.copytree(out, tmp_path / "copy")
    drop_row(tmp_path / "copy", "events")
    findings = verify_ledger(tmp_path / "copy").findings
    assert [(f.kind, f.table, f.rows) for f in findings] == [("hole", "events", 1)]
    assert findings[0].run in (str(FIRST), str(LAST))
    said = json.loads((out / "ledger.json").read_bytes())
    said["accepted"] += 1
    said["dates"][str(FIRST)]["accepted"] += 1
    (out / "ledger.json").write_text(json.dumps(said))
    assert [(f.kind, f.run) for f in verify_ledger(out).findings] == [("ledger", str(FIRST)), ("ledger", "")]


def test_a_date_that_went_and_one_that_was_made_again(out: Path, tmp_path: Path, key: Path) -> None:
    ages = Ages(7, 30, str(tmp_path / "cold"))
    policy = Policy(ages, ages, ages, ages)
    now = datetime(2026, 1, 13, 3, tzinfo=UTC)  # Seven days back is the 6th.
    applied = apply_retention(policy, [out], clock=lambda: now)[0]
    assert {(step.table, *step.partitions) for step in applied.steps} >= {
        ("events", "2026-01-05"),
        ("quarantine", "2026-01-05"),
        ("metrics/events_per_minute", "2026-01-05"),
    }
    assert not (out / "metrics" / "events_per_minute" / "date=2026-01-05").exists()
    assert (out / "metrics" / "events_per_minute" / "date=2026-01-06").exists()
    seen = verify_ledger(out)
    assert (seen.findings, seen.accepted, seen.removed) == ([], 30, 32)
    assert [p.accepted for p in show_ledger(out, per="day").periods] == [30, 30]
    run(tmp_path / "archive", out, key, FIRST, FIRST)
    seen = verify_ledger(out)
    assert (seen.findings, seen.accepted, seen.removed) == ([], 60, 0)
    apply_retention(policy, [out], clock=lambda: now)
    seen = verify_ledger(out)
    assert (seen.findings, seen.accepted, seen.removed) == ([], 30, 32)
