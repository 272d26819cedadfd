from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.connectors.archive_files import ArchiveFile
from headrace.connectors.archive_plan import PlannedFile, arrival_of, checksum_of, open_file, splits_of
from headrace.schemas.errors import InputError

DAY = date(2026, 1, 5)
ONE = timedelta(days=1)
START = datetime(2026, 1, 5, tzinfo=UTC)
TIME = pa.timestamp("us", "UTC")


def archived(path: Path, columns: dict[str, Any], *, day: date | None = DAY, rows: int = 24) -> ArchiveFile:
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    stat = path.stat()
    return ArchiveFile(str(path), path.name, day, stat.st_size, stat.st_mtime_ns)


def hours(count: int = 72, every: int = 1) -> pa.Array:
    return pa.array([START + timedelta(hours=n * every) for n in range(count)], TIME)


def test_row_groups_know_when_their_rows_happened_and_arrived(tmp_path: Path) -> None:
    file = archived(tmp_path / "a.parquet", {"timestamp": hours(), "metadata.timestamp": pa.nulls(72, TIME)})
    groups = open_file(file, "ingest_time").groups
    assert [g.happened for g in groups] == [(DAY + ONE * n, DAY + ONE * n) for n in range(3)]
    assert {g.arrived for g in groups} == {(DAY, DAY)}
    assert [(g.rows, g.first_row) for g in groups] == [(24, 1), (24, 25), (24, 49)]
    assert {g.empty for g in groups} == {("metadata.timestamp",)}
    # A row of another date is in it, or one without a time that counts by its arrival.
    assert [g.may_hold(DAY + ONE, DAY + ONE) for g in groups] == [False, True, False]
    assert all(g.may_hold(DAY, DAY) for g in groups)


@pytest.mark.parametrize("times", [pa.array(["2026-01-05T00:00:00Z"] * 3), pa.array([1, 2, 3])])
def test_what_statistics_do_not_say_is_read(times: pa.Array, tmp_path: Path) -> None:
    file = archived(tmp_path / "a.parquet", {"timestamp": times}, day=None)
    (group,) = open_file(file, None).groups
    assert (group.happened, group.arrived) == (None, None)
    assert group.may_hold(date(1999, 1, 1), date(1999, 1, 1))


def test_ingest_times_say_when_rows_arrived(tmp_path: Path) -> None:
    some = pa.array([None, START + 2 * ONE], TIME)
    both = {"timestamp": hours(2), "seen": some}
    (group,) = open_file(archived(tmp_path / "a.parquet", both), "seen").groups
    assert group.arrived == (DAY, DAY + 2 * ONE)
    (group,) = open_file(archived(tmp_path / "b.parquet", both, day=None), "seen").groups
    assert group.arrived is None
    whole = open_file(
        archived(tmp_path / "c.parquet", {"timestamp": hours(2), "seen": hours(2)}, day=None), "seen"
    )
    assert whole.groups[0].arrived == (DAY, DAY)
    assert arrival_of(whole, None) == datetime(2026, 1, 5, 23, 59, 59, 999_999, UTC)
    text = archived(tmp_path / "d.parquet", {"timestamp": hours(1), "seen": ["2026-01-05"]})
    with pytest.raises(
        InputError, match=r"column seen is string, and ingest times are timestamps; name another"
    ):
        open_file(text, "seen")


def test_structs_have_statistics_too(tmp_path: Path) -> None:
    struct = pa.StructArray.from_arrays([hours(2)], names=["timestamp"])
    (group,) = open_file(archived(tmp_path / "a.parquet", {"metadata": struct}), None).groups
    assert group.happened == (DAY, DAY)


def test_files_are_cut_at_the_same_row_groups_whatever_is_read(tmp_path: Path) -> None:
    # The folder's date lies outside of all that is asked for, so that event times alone decide.
    file = archived(tmp_path / "a.parquet", {"timestamp": hours(480)}, day=DAY - 9 * ONE)
    planned = open_file(file, None)
    size = planned.groups[0].size_bytes * 3
    whole = list(splits_of(planned, 5, (DAY, DAY + 19 * ONE), None, None, size))
    assert [s.split.index for s in whole] == list(range(5, 5 + len(whole)))
    assert [s.split.start for s in whole[1:]] == [s.split.end for s in whole[:-1]]
    assert sum(s.rows for s in whole) == 480
    (one,) = splits_of(planned, 0, (DAY + 7 * ONE, DAY + 7 * ONE), None, None, size)
    assert one.groups == (7,)
    same = next(s.split for s in whole if s.split.start <= 7 < s.split.end)
    assert (one.split.start, one.split.end, one.split.first_record) == (
        same.start,
        same.end,
        same.first_record,
    )
    assert one.ingest_time.date() == DAY - 9 * ONE


def test_a_damaged_footer_is_named_with_the_way_out(tmp_path: Path) -> None:
    file = archived(tmp_path / "a.parquet", {"timestamp": hours(1)})
    Path(file.path).write_bytes(Path(file.path).read_bytes()[:-9])
    with pytest.raises(InputError, match=r"a\.parquet is no readable Parquet file.*--exclude 'a\.parquet'"):
        open_file(file, None)


def test_checksums_are_of_the_bytes(tmp_path: Path) -> None:
    one, two = (archived(tmp_path / n, {"timestamp": hours(1)}) for n in ("a.parquet", "b.parquet"))
    assert checksum_of(one) == checksum_of(two)
    Path(two.path).write_bytes(b"x")
    assert checksum_of(one) != checksum_of(two)


def test_the_reference_time_is_for_files_without_a_date(tmp_path: Path) -> None:
    planned = open_file(archived(tmp_path / "a.parquet", {"timestamp": hours(1)}, day=None), None)
    now = datetime(2026, 2, 1, tzinfo=UTC)
    assert isinstance(planned, PlannedFile)
    assert arrival_of(planned, now) == now
