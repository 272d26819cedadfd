from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from headrace.connectors.archive_files import date_of, find_archive
from headrace.schemas.errors import ConfigError, InputError

DAY = date(2026, 1, 5)


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"PAR1")


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["event_date=2026-01-05"], (DAY, "hive")),
        (["region=eu", "dt=2026-01-05", "hour=3"], (DAY, "hive")),
        (["date=2026-01-05 00%3A00%3A00"], (DAY, "hive")),
        (["year=2026", "month=1", "day=05"], (DAY, "hive")),
        (["day=2026-01-05"], (DAY, "hive")),
        (["2026", "01", "05"], (DAY, "dates")),
        (["shop", "2026", "1", "5", "10"], (DAY, "dates")),
        (["2026", "01"], (None, "plain")),
        (["shop"], (None, "plain")),
        ([], (None, "plain")),
    ],
)
def test_dates_come_from_folders(folders: list[str], expected: object) -> None:
    assert date_of(folders) == expected


@pytest.mark.parametrize(
    "folders", [["dt=2026-02-30"], ["year=2026", "month=13", "day=1"], ["2026", "02", "31"]]
)
def test_a_folder_that_is_no_date_is_refused(folders: list[str], tmp_path: Path) -> None:
    touch(tmp_path, "/".join([*folders, "a.parquet"]))
    with pytest.raises(InputError, match=r"a\.parquet: its folder is named like a date and is none"):
        find_archive(str(tmp_path))


def test_files_are_found_with_their_dates(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "dt=2026-01-06/b.parquet",
        "dt=2026-01-05/a.pq",
        "dt=2026-01-05/_SUCCESS",
        "dt=2026-01-05/.a.crc",
        "_tmp/x.parquet",
    )
    found = find_archive(str(tmp_path))
    assert found.layout == "hive"
    assert [(f.origin, f.date, f.size_bytes) for f in found.files] == [
        ("dt=2026-01-05/a.pq", DAY, 4),
        ("dt=2026-01-06/b.parquet", date(2026, 1, 6), 4),
    ]
    left = find_archive(str(tmp_path), exclude=["dt=2026-01-05/*"])
    assert [f.origin for f in left.files] == ["dt=2026-01-06/b.parquet"]


def test_what_can_not_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        find_archive(str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"holds no Parquet file$"):
        find_archive(str(tmp_path))
    touch(tmp_path, "dt=2026-01-05/a.parquet")
    with pytest.raises(InputError, match="holds no Parquet file that is not excluded"):
        find_archive(str(tmp_path), exclude=["*"])
    touch(tmp_path, "2026/01/05/b.parquet")
    with pytest.raises(
        ConfigError,
        match=r"mixes layouts: 2026/01/05/b\.parquet \(dates\), dt=2026-01-05/a\.parquet \(hive\)",
    ):
        find_archive(str(tmp_path))
    touch(tmp_path, "readme.md")
    with pytest.raises(
        InputError, match=r"readme\.md lies in the archive and is no Parquet file by its name"
    ):
        find_archive(str(tmp_path))


@pytest.mark.parametrize("address", ["s3://bucket/events", "gs://bucket/events", "hdfs://node/events"])
def test_addresses_are_refused_with_what_to_do(address: str) -> None:
    with pytest.raises(ConfigError, match=r"reads local folders only; mount the bucket .*aws s3 sync"):
        find_archive(address)


def test_a_delta_table_has_the_files_of_its_log(tmp_path: Path) -> None:
    root = tmp_path / "table"
    rows = pa.table({"dt": ["2026-01-05", "2026-01-06"], "n": [1, 2]})
    write_deltalake(str(root), rows, partition_by=["dt"])
    pq.write_table(rows, root / "dt=2026-01-05" / "stray.parquet")
    DeltaTable(str(root)).delete("dt = '2026-01-06'")
    found = find_archive(str(root))
    assert found.layout == "delta"
    assert [f.date for f in found.files] == [DAY]
    assert "stray" not in found.files[0].origin
    (root / found.files[0].origin).unlink()
    with pytest.raises(InputError, match="the table's log names it"):
        find_archive(str(root))
