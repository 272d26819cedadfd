from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from headrace.pipelines.backfill.backfill_config import BackfillConfig
from headrace.pipelines.backfill.plan_backfill import BackfillPlan, differences, plan_backfill
from headrace.schemas.errors import ConfigError, InputError
from tests.pipelines.backfill.archives import DAY, at, event, write_day

FIRST = date(2026, 1, 1)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Ten dates of twenty rows, two row groups each."""
    for n in range(10):
        day = FIRST + DAY * n
        write_day(tmp_path, day, [event(n * 50 + i, at(day, i)) for i in range(20)])
    return tmp_path


def plan(archive: Path, first: int, last: int, **settings: Any) -> BackfillPlan:
    config = BackfillConfig(
        archive=str(archive),
        output="out",
        first=(FIRST + DAY * first).isoformat(),
        last=(FIRST + DAY * last).isoformat(),
        **settings,
    )
    return plan_backfill(config)


def origins(plan_: BackfillPlan, day: int) -> list[str]:
    return [p.file.origin[3:13] for p in plan_.files_of(FIRST + DAY * day)]


def test_folders_around_a_date_are_read(archive: Path) -> None:
    found = plan(archive, 4, 5)
    assert [p.file.date for p in found.files] == [FIRST + DAY * n for n in (3, 4, 5, 6)]
    assert origins(found, 4) == ["2026-01-04", "2026-01-05", "2026-01-06"]
    wide = plan(archive, 4, 4, max_age_seconds=3 * 86_400, max_ahead_seconds=0)
    assert origins(wide, 4) == ["2026-01-05", "2026-01-06", "2026-01-07", "2026-01-08"]


def test_row_groups_that_can_not_hold_the_dates_are_left_out(archive: Path) -> None:
    found = plan(archive, 4, 5)
    splits = found.splits(list(found.dates))
    assert [(s.split.index, s.split.origin[3:13], s.groups) for s in splits] == [
        (0, "2026-01-05", (0, 1)),
        (1, "2026-01-06", (0, 1)),
    ]
    assert {s.reach for s in splits} == {(FIRST + DAY * (n - 1), FIRST + DAY * (n + 1)) for n in (4, 5)}
    assert sum(s.rows for s in splits) == 40
    assert all(s.skip == {0: ("legacy",), 1: ("legacy",)} for s in splits)
    mapping = {
        "event_id": "event_id",
        "event_time": "timestamp",
        "user_id": "user_id",
        "event_type": {"value": "x"},
    }
    assert len(plan(archive, 4, 5, mapping=mapping).splits(list(found.dates))) == 4


def test_jobs_are_neighbouring_dates_with_so_many_rows(archive: Path) -> None:
    found = plan(archive, 1, 8)
    days = [FIRST + DAY * n for n in (1, 2, 3, 4, 6, 7, 8)]
    jobs = found.jobs(days, 50)
    assert [[d.day - 1 for d in job] for job in jobs] == [[1, 2], [3, 4], [6, 7], [8]]
    assert [len(job) for job in found.jobs(days, 1)] == [1] * 7
    assert [len(job) for job in found.jobs(days, 10**6)] == [4, 3]


def test_a_date_has_its_own_fingerprint(archive: Path) -> None:
    wide, narrow = plan(archive, 2, 7), plan(archive, 4, 4)
    day = FIRST + DAY * 4
    assert wide.fingerprint(day, {"a": 1}) == narrow.fingerprint(day, {"a": 1})
    assert wide.fingerprint(day, {"a": 2}) != wide.fingerprint(day, {"a": 1})
    assert wide.fingerprint(day, {}) != wide.fingerprint(day + DAY, {})
    write_day(archive, day + DAY, [event(999, at(day))], part=1)
    again = plan(archive, 2, 7)
    changed = [d for d in again.dates if again.fingerprint(d, {}) != wide.fingerprint(d, {})]
    assert changed == [day, day + DAY, day + 2 * DAY]
    assert differences(wide.inputs(), again.inputs()) == [f"dt={day + DAY}/part-1.parquet is new"]
    assert differences(again.inputs(), wide.inputs()) == [f"dt={day + DAY}/part-1.parquet is gone"]


def test_files_that_change_while_they_are_read_are_named(archive: Path) -> None:
    found = plan(archive, 4, 5)
    found.require_unchanged()
    write_day(archive, FIRST + DAY * 5, [event(1, at(FIRST))])
    with pytest.raises(InputError, match=r"dt=2026-01-06/part-0\.parquet changed while the backfill read"):
        found.require_unchanged()


def test_what_the_archive_can_not_give_is_refused(archive: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file for 2026-01-11, 2026-01-12 \(2 of 4 dates\)"):
        plan(archive, 8, 11)
    assert plan(archive, 8, 11, allow_missing=True).missing == (FIRST + DAY * 10, FIRST + DAY * 11)
    with pytest.raises(ConfigError, match="--now is for files that lie in no dated folder"):
        plan(archive, 1, 1, now=datetime(2026, 1, 9, tzinfo=UTC))
    with pytest.raises(InputError, match=r"--ingest-column ''"):
        plan(archive, 1, 1, ingest_column="user_id")
    bad = [archive / f"dt={FIRST + DAY * n}" / "part-0.parquet" for n in (3, 4)]
    for path in bad:
        path.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(InputError, match=r"dt=2026-01-04/.*; .*dt=2026-01-05/"):
        plan(archive, 2, 6)


def test_the_same_file_under_two_dates_is_refused(archive: Path) -> None:
    one, two = (archive / f"dt={FIRST + DAY * n}" / "part-0.parquet" for n in (4, 6))
    two.write_bytes(one.read_bytes())
    with pytest.raises(
        ConfigError, match=r"dt=2026-01-07/part-0\.parquet is dt=2026-01-05/part-0\.parquet again.*--exclude"
    ):
        plan(archive, 4, 6)
    left = plan(archive, 4, 6, exclude=["dt=2026-01-07/*"], allow_missing=True)
    assert left.missing == (FIRST + DAY * 6,)
    # The same file twice in one folder is for the dedupe.
    (one.parent / "part-1.parquet").write_bytes(one.read_bytes())
    assert len(plan(archive, 4, 4, exclude=["dt=2026-01-07/*"]).files) == 4


def test_plain_files_need_ingest_times_or_now(tmp_path: Path) -> None:
    write_day(tmp_path, FIRST, [event(1, at(FIRST), arrived=at(FIRST, 13))], style=3, layout=".")
    found = plan(tmp_path, 0, 0)
    assert (found.now, found.missing) == (None, ())
    assert found.files[0].groups[0].arrived == (FIRST, FIRST)
    with pytest.raises(ConfigError, match=r"part-0\.parquet lie in no dated folder.*--ingest-column.*--now"):
        plan(tmp_path, 0, 0, ingest_column="")
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert plan(tmp_path, 0, 0, ingest_column="", now=now).now == now


def test_a_plan_is_equal_wherever_the_archive_lies(
    archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    moved = tmp_path_factory.mktemp("moved") / "a"
    archive.rename(moved)
    one = plan(moved, 4, 4)
    assert replace(one, archive=one.archive).inputs() == one.inputs()
    assert {f["origin"] for f in one.inputs()} == {f"dt={FIRST + DAY * n}/part-0.parquet" for n in (3, 4, 5)}
