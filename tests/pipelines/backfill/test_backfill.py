"""Whole backfills against a plain account of what they have to make."""

import json
import shutil
import threading
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from headrace.schemas.errors import ConfigError, InputError
from tests.pipelines.backfill.archives import (
    DAY,
    at,
    data_files,
    event,
    events,
    rejected,
    run,
    write_day,
)
from tests.pipelines.backfill.years import BROKEN, DOUBLED, MISSING, Years

pytestmark = pytest.mark.integration

RANGES = [
    (date(2024, 2, 27), date(2024, 3, 9)),
    (date(2024, 8, 28), date(2024, 9, 3)),
    (date(2024, 12, 27), date(2025, 1, 4)),
]


@pytest.mark.parametrize(("first", "last"), RANGES)
def test_dates_get_the_rows_that_a_plain_account_gives_them(
    years: Years, first: date, last: date, tmp_path: Path, key: Path
) -> None:
    result = run(years.root, tmp_path / "out", key, first, last, allow_missing=True, rows_at_once=150)
    expected = years.expected(first, last)
    found = events(tmp_path / "out")
    wanted = sorted((row["event_id"], day) for day, rows in expected.accepted.items() for row in rows)
    assert sorted((row["event_id"], row["event_date"]) for row in found) == wanted
    by_id = {row["event_id"]: row for rows in expected.accepted.values() for row in rows}
    tokens: dict[str, set[str]] = {}
    for row in found:
        source = by_id[row["event_id"]]
        assert (row["event_time"], row["price"]) == (source["timestamp"], source["price"])
        assert (row["product_id"], row["event_type"]) == (source["product_id"], source["event_type"])
        assert row["user_id"] not in (None, source["user_id"])
        tokens.setdefault(source["user_id"], set()).add(row["user_id"])
        assert (row["properties"] is not None) == (row["origin"] >= "dt=2025-01-01")
    assert all(len(found_) == 1 for found_ in tokens.values())
    assert rejected(tmp_path / "out") == expected.rejected
    ledger = result.ledger
    total = sum(expected.rejected.values())
    assert (ledger["accepted"], ledger["balanced"]) == (len(wanted), True)
    assert ledger["rows_in"] == len(wanted) + total + ledger["outside"]
    assert json.loads((tmp_path / "out" / "ledger.json").read_bytes()) == ledger
    assert set(result.missing) == {MISSING} & {first + DAY * n for n in range((last - first).days + 1)}
    minutes = pq.read_table(tmp_path / "out" / "metrics" / "events_per_minute")
    assert sum(minutes["events"].to_pylist()) == len(wanted)
    assert not (tmp_path / "out" / "_work").exists()


def test_a_date_does_not_depend_on_the_others_and_equal_input_gives_equal_bytes(
    years: Years, tmp_path: Path, key: Path
) -> None:
    first, last = date(2025, 1, 5), date(2025, 1, 12)
    run(years.root, tmp_path / "whole", key, first, last)
    run(years.root, tmp_path / "again", key, first, last, rows_at_once=1)
    moved = shutil.copytree(years.root, tmp_path / "moved")
    run(moved, tmp_path / "parts", key, first + 3 * DAY, last)
    run(moved, tmp_path / "parts", key, first, first + 2 * DAY)
    whole = data_files(tmp_path / "whole")
    assert len(whole) > 30
    assert data_files(tmp_path / "again") == whole
    assert data_files(tmp_path / "parts") == whole


def test_the_same_command_again_changes_nothing(years: Years, tmp_path: Path, key: Path) -> None:
    def everything() -> dict[str, bytes]:
        return {
            str(p): p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file() and p.name != "_lock"
        }

    first, last = date(2025, 2, 1), date(2025, 2, 3)
    one = run(years.root, tmp_path / "out", key, first, last)
    before = everything()
    two = run(years.root, tmp_path / "out", key, first, last)
    assert everything() == before
    assert [d.already_done for d in two.dates] == [True] * 3
    assert (two.ledger, two.rows_read) == (one.ledger, 0)
    three = run(years.root, tmp_path / "out", key, first, last, resume=True)
    assert everything() == before
    assert three.rows_read == 0


def test_only_dates_whose_files_changed_are_made_again(years: Years, tmp_path: Path, key: Path) -> None:
    archive = shutil.copytree(years.root, tmp_path / "archive")
    first, last = date(2025, 3, 1), date(2025, 3, 9)
    run(archive, tmp_path / "out", key, first, last)
    before = data_files(tmp_path / "out")
    day = date(2025, 3, 4)
    late = [
        event(9_000_001, at(day - DAY, 23.5), arrived=at(day, 1)),
        event(9_000_002, at(day), arrived=at(day, 13)),
    ]
    write_day(archive, day, late, style=3, part=1)
    with pytest.raises(
        ConfigError, match=r"no longer what was planned: dt=2025-03-04/part-1\.parquet is new"
    ):
        run(archive, tmp_path / "out", key, first, last, resume=True)
    result = run(archive, tmp_path / "out", key, first, last)
    assert [d.date for d in result.dates if not d.already_done] == [day - DAY, day, day + DAY]
    ids = {row["event_id"][-7:]: row["event_date"] for row in events(tmp_path / "out")}
    assert (ids["9000001"], ids["9000002"]) == (day - DAY, day)
    after = data_files(tmp_path / "out")
    untouched = [
        p for p in before if "2025-03-03" not in p and "2025-03-04" not in p and "2025-03-05" not in p
    ]
    assert untouched
    assert all(after[p] == before[p] for p in untouched if p.startswith("events"))


def test_the_plan_is_refused_with_the_reason_and_the_fix(years: Years, tmp_path: Path, key: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file for 2024-03-05 \(1 of 4 dates\).*--allow-missing"):
        run(years.root, tmp_path / "out", key, date(2024, 3, 4), date(2024, 3, 7))
    archive = shutil.copytree(years.root, tmp_path / "archive")
    copy = archive / f"dt={DOUBLED}" / "part-0.parquet"
    shutil.copyfile(archive / f"dt={DOUBLED - DAY}" / "part-0.parquet", copy)
    with pytest.raises(
        ConfigError, match=r"dt=2025-06-10/part-0\.parquet is dt=2025-06-09/part-0\.parquet again"
    ):
        run(archive, tmp_path / "out", key, DOUBLED, DOUBLED + DAY)
    cut = archive / "dt=2025-05-02" / "part-0.parquet"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(
        InputError, match=r"dt=2025-05-02/part-0\.parquet is no readable Parquet file.*--exclude"
    ):
        run(archive, tmp_path / "out", key, date(2025, 5, 1), date(2025, 5, 3))
    assert not (tmp_path / "out").exists()
    out = tmp_path / "out"
    result = run(archive, out, key, DOUBLED, DOUBLED + DAY, exclude=[f"dt={DOUBLED}/*"], allow_missing=True)
    assert result.missing == [DOUBLED]


def test_a_broken_row_group_is_quarantined_whole(years: Years, tmp_path: Path, key: Path) -> None:
    archive = shutil.copytree(years.root, tmp_path / "archive")
    path = archive / f"dt={BROKEN}" / "part-0.parquet"
    meta = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = meta.dictionary_page_offset or meta.data_page_offset
    data[start : start + meta.total_compressed_size] = b"\xff" * meta.total_compressed_size
    path.write_bytes(bytes(data))
    result = run(archive, tmp_path / "out", key, BROKEN, BROKEN)
    assert result.ledger["rejected"]["decode"] == {"broken_block": 1}
    whole = years.expected(BROKEN, BROKEN)
    assert 0 < len(whole.accepted[BROKEN]) - result.ledger["accepted"] <= 10


def test_a_reader_sees_the_old_date_or_the_new_one(years: Years, tmp_path: Path, key: Path) -> None:
    out, archive = tmp_path / "out", shutil.copytree(years.root, tmp_path / "archive")
    first, last = date(2025, 4, 1), date(2025, 4, 3)
    run(archive, out, key, first, last)
    day = date(2025, 4, 2)

    def ids() -> frozenset[str]:
        # A filter on the partition reads the files of one version of the log, however many commits come meanwhile.
        read = DeltaTable(str(out / "events")).to_pyarrow_table(filters=[("event_date", "=", day)])
        return frozenset(read["event_id"].to_pylist())

    old = ids()
    seen: list[frozenset[str]] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.append(ids())

    for path in archive.glob(f"dt={day}/*"):
        path.unlink()
    write_day(
        archive, day, [event(8_000_000 + n, at(day, n / 2), arrived=at(day, 23)) for n in range(30)], style=3
    )
    reader = threading.Thread(target=read)
    reader.start()
    try:
        run(archive, out, key, first, last)
    finally:
        stop.set()
        reader.join()
    new = ids()
    assert new != old
    assert new >= {event(8_000_000 + n, at(day))["event_id"] for n in range(30)}
    assert set(seen) <= {old, new}
    assert len(seen) > 3
