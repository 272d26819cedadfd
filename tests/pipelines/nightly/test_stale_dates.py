"""Dates to run again: late events, another order of dates, interrupted runs; and what is none."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable

from headrace.pipelines.nightly.nightly import list_stale
from headrace.pipelines.nightly.nightly_tables import TABLES
from tests.pipelines.nightly.lakes import (
    FIRST,
    NOON,
    SECOND,
    THIRD,
    add_events,
    config,
    data,
    event,
    nightly,
    random_events,
    same_rows,
)


def test_late_events_make_their_date_old_and_catch_up_runs_it(lake: Path, tmp_path: Path) -> None:
    (first,) = nightly(tmp_path, FIRST).days
    add_events(lake, [event(9, NOON, user_id="user-1")], "late", 1)
    stale = list_stale(config(lake, tmp_path / "out")).stale
    assert [each.date for each in stale] == [FIRST]
    assert "version 2" in stale[0].reason
    assert nightly(tmp_path, SECOND).stale == stale
    result = nightly(tmp_path, SECOND, catch_up=True)
    assert [(day.day.date, day.already_done) for day in result.days] == [(FIRST, False), (SECOND, True)]
    assert (result.days[0].events, result.stale) == (first.events + 1, [])


def test_events_in_the_gap_before_midnight_make_the_date_after_it_old(lake: Path, tmp_path: Path) -> None:
    nightly(tmp_path, FIRST, SECOND)
    night = datetime(2026, 1, 5, 23, 45, tzinfo=UTC)
    add_events(lake, [event(9, night, user_id="user-1")], "late", 1)
    assert [each.date for each in list_stale(config(lake, tmp_path / "out")).stale] == [FIRST, SECOND]


@pytest.mark.integration
def test_a_new_first_date_makes_later_dates_of_its_users_old(lake: Path, tmp_path: Path) -> None:
    add_events(lake, [event(8, NOON + timedelta(days=2), user_id="new")], "b", 1)
    nightly(tmp_path, FIRST, SECOND, THIRD)
    add_events(lake, [event(9, NOON, user_id="new")], "late", 1)
    result = nightly(tmp_path, FIRST)
    assert [each.date for each in result.stale] == [THIRD]
    assert "first date" in result.stale[0].reason
    result = nightly(tmp_path, FIRST, catch_up=True)
    assert [day.day.date for day in result.days] == [FIRST, THIRD]
    assert result.stale == []
    nightly(tmp_path, FIRST, SECOND, THIRD, out="fresh")
    assert same_rows(tmp_path / "out", tmp_path / "fresh")


@pytest.mark.integration
def test_dates_run_backwards_are_made_right_by_catch_up(lake: Path, tmp_path: Path) -> None:
    for day in (THIRD, SECOND, FIRST):
        nightly(tmp_path, day)
    result = nightly(tmp_path, FIRST, catch_up=True)
    assert [day.day.date for day in result.days] == [FIRST, SECOND, THIRD]
    assert result.stale == []
    nightly(tmp_path, FIRST, SECOND, THIRD, out="fresh")
    assert same_rows(tmp_path / "out", tmp_path / "fresh")


def test_compaction_makes_no_date_old(lake: Path, tmp_path: Path) -> None:
    add_events(lake, random_events(50, 2, NOON, 4), "b", 3)
    nightly(tmp_path, FIRST)
    before = {
        name: b"".join(b for p, b in data(tmp_path / "out").items() if p.startswith(name)) for name in TABLES
    }
    DeltaTable(str(lake / "events")).optimize.compact()
    assert list_stale(config(lake, tmp_path / "out")).stale == []
    assert not nightly(tmp_path, FIRST).days[0].already_done
    after = {
        name: b"".join(b for p, b in data(tmp_path / "out").items() if p.startswith(name)) for name in TABLES
    }
    assert before == after


def test_without_the_log_changed_files_make_a_date_old(lake: Path, tmp_path: Path) -> None:
    nightly(tmp_path, FIRST, SECOND)
    add_events(lake, [event(9, NOON)], "late", 1)
    table = DeltaTable(str(lake / "events"))
    table.create_checkpoint()
    for path in (lake / "events" / "_delta_log").glob("*.json"):
        path.unlink()
    (old,) = list_stale(config(lake, tmp_path / "out")).stale
    assert (old.date, "log" in old.reason) == (FIRST, True)


@pytest.mark.integration
def test_a_date_that_ran_while_an_earlier_one_was_half_committed_is_run_again(
    lake: Path, tmp_path: Path
) -> None:
    add_events(lake, [event(8, NOON + timedelta(days=2), user_id="new")], "b", 1)
    nightly(tmp_path, FIRST, SECOND, THIRD)
    add_events(lake, [event(9, NOON, user_id="new")], "late", 1)

    def kill(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nightly(tmp_path, FIRST, on_table=kill)
    assert [each.date for each in nightly(tmp_path, THIRD).stale] == [FIRST]
    result = nightly(tmp_path, FIRST, catch_up=True)
    assert [(day.day.date, day.already_done) for day in result.days] == [(FIRST, False), (THIRD, False)]
    assert result.stale == []
    nightly(tmp_path, FIRST, SECOND, THIRD, out="fresh")
    assert same_rows(tmp_path / "out", tmp_path / "fresh")


@pytest.mark.integration
def test_deleted_events_make_their_date_old(lake: Path, tmp_path: Path) -> None:
    nightly(tmp_path, FIRST, SECOND)
    DeltaTable(str(lake / "events")).delete("event_date = '2026-01-06' AND user_id = 'user-1'")
    assert [each.date for each in list_stale(config(lake, tmp_path / "out")).stale] == [SECOND]
    assert nightly(tmp_path, FIRST, catch_up=True).stale == []
    nightly(tmp_path, FIRST, SECOND, out="fresh")
    assert same_rows(tmp_path / "out", tmp_path / "fresh")
