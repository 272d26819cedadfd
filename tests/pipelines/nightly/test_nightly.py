"""Runs of the nightly pipeline: what a rerun and a crash leave, and what is refused."""

from datetime import timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable

from headrace.pipelines.nightly import run_day as run_day_module
from headrace.pipelines.nightly.nightly import list_stale
from headrace.pipelines.nightly.nightly_tables import TABLES
from headrace.schemas.errors import UntrustedRunError
from tests.pipelines.nightly.lakes import (
    FIRST,
    NOON,
    SECOND,
    add_events,
    config,
    data,
    event,
    nightly,
    rows,
)


class Killed(BaseException):
    """Stands for the end of the process."""


def versions(output: Path) -> dict[str, int]:
    return {name: DeltaTable(str(output / name)).version() for name in TABLES}


def test_a_rerun_changes_nothing(lake: Path, tmp_path: Path) -> None:
    nightly(tmp_path, FIRST, SECOND)
    before, at = data(tmp_path / "out"), versions(tmp_path / "out")
    result = nightly(tmp_path, FIRST, SECOND)
    assert [day.already_done for day in result.days] == [True, True]
    assert (data(tmp_path / "out"), versions(tmp_path / "out")) == (before, at)


@pytest.mark.integration
def test_another_warehouse_of_the_same_lake_has_the_same_bytes(lake: Path, tmp_path: Path) -> None:
    nightly(tmp_path, FIRST, SECOND)
    nightly(tmp_path, FIRST, SECOND, out="other")
    assert data(tmp_path / "out") == data(tmp_path / "other")


def test_a_run_replaces_its_own_date_and_leaves_no_old_files(lake: Path, tmp_path: Path) -> None:
    first, second = nightly(tmp_path, FIRST, SECOND).days
    before = data(tmp_path / "out")
    add_events(lake, [event(9, NOON + timedelta(days=1), user_id="user-1")], "late", 1)
    (again,) = nightly(tmp_path, SECOND).days
    assert (again.already_done, again.events) == (False, second.events + 1)
    after = data(tmp_path / "out")
    mine = f"date={SECOND}"
    assert {p: b for p, b in before.items() if mine not in p} == {
        p: b for p, b in after.items() if mine not in p
    }
    assert {p for p in before if mine in p}.isdisjoint(after)
    for name in TABLES:
        logged = sorted(DeltaTable(str(tmp_path / "out" / name)).file_uris())
        assert logged == sorted(str(p) for p in (tmp_path / "out" / name).glob("*/*.parquet"))
    counted = {FIRST: first.events, SECOND: again.events}
    events = TABLES["cube_geo"].schema.names.index("events")
    for day, count in counted.items():
        assert sum(row[events] for row in rows(tmp_path / "out", "cube_geo") if row[0] == day) == count


@pytest.mark.parametrize(
    "table", [pytest.param("user_sessions", marks=pytest.mark.integration), "user_first_seen"]
)
def test_a_crash_between_two_commits_is_completed(
    lake: Path, tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nightly(tmp_path, FIRST)
    add_events(lake, [event(9, NOON, user_id="late")], "late")

    def kill(name: str) -> None:
        if name == table:
            raise Killed

    with pytest.raises(Killed):
        nightly(tmp_path, FIRST, on_table=kill)
    (old,) = list_stale(config(lake, tmp_path / "out")).stale
    assert (old.date, "interrupted" in old.reason) == (FIRST, True)
    monkeypatch.setattr(run_day_module, "_process", lambda *a: pytest.fail("processed again"))
    assert nightly(tmp_path, FIRST).stale == []
    monkeypatch.undo()
    nightly(tmp_path, FIRST, out="fresh")
    assert data(tmp_path / "out") == data(tmp_path / "fresh")


def test_after_a_crash_new_events_are_taken_in(lake: Path, tmp_path: Path) -> None:
    def kill(name: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        nightly(tmp_path, FIRST, on_table=kill)
    add_events(lake, [event(9, NOON, user_id="late")], "late")
    nightly(tmp_path, FIRST)
    nightly(tmp_path, FIRST, out="fresh")
    assert data(tmp_path / "out") == data(tmp_path / "fresh")


def test_rows_that_are_lost_fail_the_run(lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nightly(tmp_path, FIRST)
    before, at = data(tmp_path / "out"), versions(tmp_path / "out")
    from headrace.pipelines.nightly import read_day_fn

    whole = read_day_fn.read_rows
    monkeypatch.setattr(read_day_fn, "read_rows", lambda *a: (batch.slice(1) for batch in whole(*a)))
    with pytest.raises(UntrustedRunError, match=r"the lake has .* the reader"):
        nightly(tmp_path, SECOND)
    monkeypatch.undo()
    assert (data(tmp_path / "out"), versions(tmp_path / "out")) == (before, at)
    assert not nightly(tmp_path, SECOND).days[0].already_done


def test_a_lost_shard_fails_the_run(lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.pipelines.nightly import finish_users_fn

    whole = finish_users_fn.read_pieces
    monkeypatch.setattr(finish_users_fn, "read_pieces", lambda r: (b.slice(1) for b in whole(r)))
    with pytest.raises(UntrustedRunError, match="shards of users"):
        nightly(tmp_path, FIRST)
