"""What belongs to a warehouse, and how others read it."""

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from headrace.pipelines.nightly.nightly import run_nightly
from headrace.schemas.errors import ConfigError
from tests.pipelines.nightly.lakes import FIRST, NOON, SECOND, add_events, config, event, nightly, rows


def test_what_holds_for_all_dates_cannot_be_changed(lake: Path, tmp_path: Path) -> None:
    nightly(tmp_path, FIRST)
    for settings in ({"timezone": "Europe/Berlin"}, {"gap_seconds": 60}, {"shards": 4}):
        with pytest.raises(ConfigError, match=f"has {next(iter(settings))} .* leave --"):
            run_nightly(config(lake, tmp_path / "out", **settings), (FIRST, FIRST))
    add_events(tmp_path / "lake2", [event(1, NOON)], "a")
    with pytest.raises(ConfigError, match="another lake"):
        run_nightly(config(tmp_path / "lake2", tmp_path / "out"), (FIRST, FIRST))


def test_the_default_is_yesterday_in_the_zone(lake: Path, tmp_path: Path) -> None:
    settings = config(lake, tmp_path / "out", timezone="Asia/Kolkata")
    result = run_nightly(settings, clock=lambda: datetime(2026, 1, 6, 19, tzinfo=UTC))
    assert [day.day.date for day in result.days] == [SECOND]


def test_readers_without_the_log_see_rows_once(lake: Path, tmp_path: Path) -> None:
    nightly(tmp_path, FIRST)
    add_events(lake, [event(9, NOON)], "late")
    nightly(tmp_path, FIRST)
    query = f"SELECT count(*), min(date) FROM read_parquet('{tmp_path}/out/user_sessions/*/*.parquet', hive_partitioning = true)"
    ((count, day),) = duckdb.connect(config={"threads": 1}).execute(query).fetchall()
    assert (count, day) == (len(rows(tmp_path / "out", "user_sessions")), FIRST)


def test_no_statistics_name_users(lake: Path, tmp_path: Path) -> None:
    nightly(tmp_path, FIRST)
    for path in (tmp_path / "out").glob("*/*/*.parquet"):
        footer = pq.read_metadata(path)
        assert not any(footer.row_group(0).column(i).is_stats_set for i in range(footer.num_columns))
    logs = b"".join(p.read_bytes() for p in (tmp_path / "out").glob("*/_delta_log/*.json"))
    assert b"user-1" not in logs
