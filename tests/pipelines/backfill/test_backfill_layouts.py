"""Whole backfills over every layout of an archive, by mapping, and with windows over midnight."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from headrace.schemas.errors import ConfigError
from tests.pipelines.backfill.archives import (
    DAY,
    at,
    data_files,
    event,
    events,
    run,
    table,
    write_day,
)

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    "layout", ["event_date={}", "date={}", "year=%Y/month=%-m/day=%d", "%Y/%m/%d", "region=eu/dt={}"]
)
def test_every_layout_gives_the_same_rows(layout: str, tmp_path: Path, key: Path) -> None:
    day = date(2026, 1, 5)
    for n in range(-1, 2):
        write_day(
            tmp_path / "archive",
            day + DAY * n,
            [event(n * 100 + 200 + i, at(day + DAY * n, i)) for i in range(20)],
            layout=layout,
        )
    result = run(tmp_path / "archive", tmp_path / "out", key, day, day)
    assert (result.ledger["accepted"], result.ledger["outside"]) == (20, 0)
    assert {row["event_date"] for row in events(tmp_path / "out")} == {day}


def test_a_delta_table_is_read_by_its_log(tmp_path: Path, key: Path) -> None:
    day, archive = date(2026, 1, 5), str(tmp_path / "archive")
    rows = [event(n, at(day, n / 3)) for n in range(30)]
    content = table(rows, 2).append_column("dt", pa.array([day.isoformat()] * 30))
    for part in (content.slice(0, 10), content.slice(10)):
        write_deltalake(archive, part, mode="append", partition_by=["dt"])
    DeltaTable(archive).delete(f"event_id = '{rows[3]['event_id']}'")
    write_day(tmp_path / "archive", day, [event(n + 500, at(day)) for n in range(5)], part=9)
    result = run(tmp_path / "archive", tmp_path / "out", key, day, day)
    assert result.ledger["accepted"] == 29
    with pytest.raises(ConfigError, match="is a lake of headrace: its users are tokens already"):
        run(tmp_path / "out" / "events", tmp_path / "out2", key, day, day)


def test_plain_files_need_a_reference_time(tmp_path: Path, key: Path) -> None:
    day, archive = date(2026, 1, 5), tmp_path / "archive"
    rows = [event(n, at(day, n)) for n in range(30)]
    rows[4]["user_id"] = None
    write_day(archive, day, rows, layout=".")
    with pytest.raises(ConfigError, match=r"part-0\.parquet lie in no dated folder.*--ingest-column.*--now"):
        run(archive, tmp_path / "out", key, day, day)
    now = datetime(2026, 1, 6, 10, tzinfo=UTC)
    result = run(archive, tmp_path / "out", key, day, day, now=now)
    assert result.ledger["rejected"] == {"time": {"stale": 9}, "validate": {"required": 1}}
    assert (result.ledger["accepted"], result.ledger["outside"]) == (14, 6)


def test_a_mapping_is_applied(tmp_path: Path, key: Path) -> None:
    day, archive = date(2026, 1, 5), tmp_path / "archive"
    write_day(archive, day, [event(n, at(day, n / 2)) for n in range(20)])
    mapping = {
        "event_id": "event_id",
        "event_time": "timestamp",
        "user_id": "user_id",
        "event_type": {"value": "seen"},
        "source": {"value": "old"},
    }
    run(archive, tmp_path / "out", key, day, day, mapping=mapping)
    found = events(tmp_path / "out")
    assert len(found) == 20
    assert {(row["schema"], row["event_type"], row["source"]) for row in found} == {
        ("envelope:1.0.0", "seen", "old")
    }


def test_metrics_of_windows_over_midnight_are_whole(tmp_path: Path, key: Path) -> None:
    day, archive = date(2026, 1, 5), tmp_path / "archive"
    for n in range(2):
        rows = [event(n * 1000 + i, at(day + DAY * n, i * 24 / 400)) for i in range(400)]
        write_day(archive, day + DAY * n, rows)
    metrics = {
        "hits": {"size_seconds": 3600, "every_seconds": 900, "by": [], "measures": {"events": "count"}}
    }
    run(archive, tmp_path / "two", key, day + DAY, day + DAY, metrics=metrics)
    run(archive, tmp_path / "two", key, day, day, metrics=metrics)
    run(archive, tmp_path / "one", key, day, day + DAY, metrics=metrics)
    assert data_files(tmp_path / "one") == data_files(tmp_path / "two")
    table_ = pq.read_table(tmp_path / "one" / "metrics" / "hits").sort_by("window_start")
    starts = [start for start in table_["window_start"].to_pylist() if start < at(day + DAY, 23)]
    happened = [at(day + DAY * n, i * 24 / 400) for n in range(2) for i in range(400)]
    expected = [sum(start <= t < start + timedelta(hours=1) for t in happened) for start in starts]
    assert table_["events"].to_pylist()[: len(starts)] == expected
    assert len(starts) == 4 * 47
