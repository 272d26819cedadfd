import datetime as dt
import errno
import json
import os
import subprocess
import sys
from dataclasses import replace

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from headrace.connectors import delta_commit
from headrace.connectors.atomic_file import OutputError
from headrace.connectors.delta_commit import (
    MARKER,
    commit_files,
    commit_parquet,
    committed_files,
    count_reasons,
    count_rows,
    ensure_table,
)
from headrace.connectors.write_lake import STATISTICS, PartitionedWriter
from headrace.connectors.write_quarantine import PARTITION, QUARANTINE_TABLE_SCHEMA, QuarantineWriter
from headrace.schemas.columns import CODE, ENRICHED_SCHEMA, MONEY, QUARANTINE_SCHEMA, TIME
from headrace.schemas.errors import ConfigError, UntrustedRunError
from headrace.transforms.batches import conform

NOON = dt.datetime(2026, 1, 5, 12, 0, 0, 1, tzinfo=dt.UTC)
BY_DATE = ["event_date"]


def lake_files(root, days, name="000001", rows=3):
    """Writes some rows for each day; returns the files."""
    writer = PartitionedWriter(root, partition="event_date", name=name)
    for day in days:
        moment = NOON + dt.timedelta(days=day)
        columns = {
            "event_id": pa.array([f"{name}-{day}-{i}" for i in range(rows)]),
            "event_time": pa.array([moment] * rows, TIME),
            "event_date": pa.array([moment.date()] * rows, pa.date32()),
            "user_id": pa.array(["token-of-jane"] * rows),
            "browser": pa.array(["Firefox"] * rows),
        }
        writer.write(conform(columns, ENRICHED_SCHEMA, rows))
    return writer.close()


def commit(root, files, version=0, app_id="run-1", schema=ENRICHED_SCHEMA):
    return commit_files(root, schema, files, app_id=app_id, version=version, partition_by=BY_DATE)


def made(root, days=(0, 1)):
    ensure_table(root, ENRICHED_SCHEMA, BY_DATE)
    files = lake_files(root, days)
    assert commit(root, files)
    return files


def rows_in(root):
    return DeltaTable(str(root)).to_pyarrow_table().num_rows


def test_committed_rows_are_read_by_deltalake_and_duckdb(tmp_path):
    files = made(tmp_path)
    table = DeltaTable(str(tmp_path)).to_pyarrow_table()
    assert table.num_rows == 6
    assert table.schema.field("browser").type == pa.string()
    assert table.schema.field("revenue").type == MONEY
    assert table.schema.field("event_time").type == TIME
    assert set(table.column("event_date").to_pylist()) == {dt.date(2026, 1, 5), dt.date(2026, 1, 6)}
    dataset = DeltaTable(str(tmp_path)).to_pyarrow_dataset()
    assert dataset.count_rows(filter=pa.compute.field("event_date") == dt.date(2026, 1, 6)) == 3
    uris = DeltaTable(str(tmp_path)).file_uris()
    rows = duckdb.execute(
        "select event_date::varchar, browser, count(*) from read_parquet(?, hive_partitioning = true) group by all order by 1",
        [uris],
    ).fetchall()
    assert rows == [("2026-01-05", "Firefox", 3), ("2026-01-06", "Firefox", 3)]
    assert committed_files(tmp_path) == {f.path: f.size_bytes for f in files}
    assert count_rows(tmp_path, files) == 6


def test_an_empty_lake_is_a_table_too(tmp_path):
    assert made(tmp_path, days=()) == []
    assert rows_in(tmp_path) == 0
    assert committed_files(tmp_path) == {}
    assert count_rows(tmp_path, []) == 0
    assert commit(tmp_path, []) is False


def test_a_commit_is_not_repeated(tmp_path):
    files = made(tmp_path)
    version = DeltaTable(str(tmp_path)).version()
    assert commit(tmp_path, files) is False
    assert DeltaTable(str(tmp_path)).version() == version
    more = lake_files(tmp_path, [0], name="000002")
    assert commit(tmp_path, more, version=0) is False, "an older or equal version of the application is done"
    assert commit(tmp_path, more, version=1) is True
    assert commit(tmp_path, lake_files(tmp_path, [0], name="000003"), version=0, app_id="run-2") is True
    assert rows_in(tmp_path) == 12


@pytest.mark.integration
def test_a_run_killed_before_its_commit_leaves_the_table_as_it_was_and_is_repeated(tmp_path):
    made(tmp_path)
    log = sorted(os.listdir(tmp_path / "_delta_log"))
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]); import test_delta_commit as t\n"
        "from headrace.connectors import delta_commit as d\n"
        "d.CommitProperties = lambda **_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "t.commit(sys.argv[2], t.lake_files(sys.argv[2], [0, 5], name='000002'), version=1)\n"
    )
    here = os.path.dirname(__file__)
    killed = subprocess.run([sys.executable, "-c", script, here, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert (tmp_path / "event_date=2026-01-10/part-000002.parquet").exists()
    assert sorted(os.listdir(tmp_path / "_delta_log")) == log
    assert rows_in(tmp_path) == 6
    assert commit(tmp_path, lake_files(tmp_path, [0, 5], name="000002"), version=1) is True
    assert rows_in(tmp_path) == 12


def test_a_concurrent_commit_of_the_same_run_counts_as_done(tmp_path, monkeypatch):
    ensure_table(tmp_path, ENRICHED_SCHEMA, BY_DATE)
    files = lake_files(tmp_path, [0])
    monkeypatch.setattr(delta_commit, "settle", lambda root, files: inner())

    def inner():
        monkeypatch.undo()
        assert commit(tmp_path, files) is True

    assert commit(tmp_path, files) is False
    assert rows_in(tmp_path) == 3


def test_a_commit_that_fails_is_an_error(tmp_path, monkeypatch):
    ensure_table(tmp_path, ENRICHED_SCHEMA, BY_DATE)
    files = lake_files(tmp_path, [0])

    def lose(*_, **__):
        raise CommitFailedError("lost")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", lose)
    with pytest.raises(CommitFailedError, match="lost"):
        commit(tmp_path, files)
    assert rows_in(tmp_path) == 0


def test_the_log_holds_statistics_of_harmless_columns_only(tmp_path):
    made(tmp_path)
    table = DeltaTable(str(tmp_path))
    assert table.metadata().configuration == {"delta.dataSkippingStatsColumns": ",".join(STATISTICS)}
    found = pa.table(table.get_add_actions(flatten=True))
    named = {
        name.split(".", 1)[1]
        for name in found.column_names
        if name.startswith(("min.", "max.", "null_count."))
    }
    assert named == set(STATISTICS)
    assert found.column("num_records").to_pylist() == [3, 3]
    assert min(found.column("min.event_time").to_pylist()) == NOON.replace(microsecond=0)
    log = b"".join(p.read_bytes() for p in (tmp_path / "_delta_log").iterdir() if p.is_file())
    assert b"token-of-jane" not in log and b"000001-0-0" not in log


def test_a_table_without_harmless_columns_has_no_statistics(tmp_path):
    schema = pa.schema([("query", pa.string()), ("event_date", pa.date32())])
    ensure_table(tmp_path, schema, BY_DATE)
    assert DeltaTable(str(tmp_path)).metadata().configuration == {"delta.dataSkippingNumIndexedCols": "0"}


def test_new_columns_are_added_and_null_in_old_rows(tmp_path):
    made(tmp_path)
    wider = ENRICHED_SCHEMA.append(pa.field("plan", CODE))
    files = lake_files(tmp_path, [0], name="000002")
    with pytest.raises(ConfigError, match=r"lacks columns \['plan'\]; call ensure_table"):
        commit(tmp_path, files, version=1, schema=wider)
    ensure_table(tmp_path, wider, BY_DATE)
    ensure_table(tmp_path, wider, BY_DATE)
    assert commit(tmp_path, files, version=1, schema=wider)
    assert DeltaTable(str(tmp_path)).to_pyarrow_table().column("plan").to_pylist() == [None] * 9
    ensure_table(tmp_path, ENRICHED_SCHEMA, BY_DATE)
    assert [f.name for f in DeltaTable(str(tmp_path)).schema().fields][-1] == "plan"


def test_changed_types_and_partitions_are_refused(tmp_path):
    made(tmp_path)
    i = ENRICHED_SCHEMA.get_field_index("price")
    changed = ENRICHED_SCHEMA.set(i, pa.field("price", pa.float64()))
    for act in (
        lambda: ensure_table(tmp_path, changed, BY_DATE),
        lambda: commit(tmp_path, lake_files(tmp_path, [0], name="2"), version=1, schema=changed),
    ):
        with pytest.raises(ConfigError, match=r"column price is decimal\(38,9\), this run writes double"):
            act()
    with pytest.raises(
        ConfigError, match=r"is partitioned by \['event_date'\], this run writes \['country'\]"
    ):
        ensure_table(tmp_path, ENRICHED_SCHEMA, ["country"])
    assert rows_in(tmp_path) == 6


def test_files_that_are_not_what_their_writer_said_are_never_committed(tmp_path):
    ensure_table(tmp_path, ENRICHED_SCHEMA, BY_DATE)
    (file,) = lake_files(tmp_path, [0])
    for wrong, message in (
        (replace(file, path="event_date=2026-01-05/part-gone.parquet"), "part-gone.parquet is missing"),
        (replace(file, size_bytes=file.size_bytes + 1), "bytes, it was written with"),
        (replace(file, rows=4), "holds 3 rows, its writer counted 4"),
    ):
        with pytest.raises(UntrustedRunError, match=message):
            commit(tmp_path, [wrong])
    (tmp_path / file.path).write_bytes(b"x" * file.size_bytes)
    with pytest.raises(UntrustedRunError, match="is not a Parquet file"):
        commit(tmp_path, [file])
    assert rows_in(tmp_path) == 0


def test_a_file_of_another_run_is_not_taken_over(tmp_path):
    files = made(tmp_path)
    with pytest.raises(UntrustedRunError, match=r"is in table .* already, by another run than run-2"):
        commit(tmp_path, files, app_id="run-2")


def test_only_committed_and_unaltered_files_are_counted(tmp_path):
    files = made(tmp_path)
    extra = lake_files(tmp_path, [3], name="000009")
    with pytest.raises(UntrustedRunError, match=r"part-000009.parquet is not part of table"):
        count_rows(tmp_path, [*files, *extra])
    assert count_rows(tmp_path, [replace(f, rows=1_000) for f in files]) == 6, (
        "the writer's number is not asked"
    )
    pq.write_table(pq.read_table(tmp_path / files[0].path).slice(1), tmp_path / files[0].path)
    with pytest.raises(UntrustedRunError, match="bytes, it was written with"):
        count_rows(tmp_path, files)
    (tmp_path / files[0].path).unlink()
    with pytest.raises(UntrustedRunError, match="is missing"):
        count_rows(tmp_path, files)


def test_a_full_disk_at_the_commit_adds_nothing(tmp_path, monkeypatch):
    ensure_table(tmp_path, ENRICHED_SCHEMA, BY_DATE)
    files = lake_files(tmp_path, [0])

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(
            OutputError, match=r"part-000001.parquet can't be written: No space left on device"
        ):
            commit(tmp_path, files)
    assert rows_in(tmp_path) == 0
    assert commit(tmp_path, files) is True


def test_reasons_are_counted_from_committed_rows(tmp_path):
    writer = QuarantineWriter(tmp_path, "a")
    for day, stage, reason in (
        (0, "decode", "not_json"),
        (0, "validate", "missing"),
        (1, "decode", "not_json"),
    ):
        moment = pa.array([NOON + dt.timedelta(days=day)], TIME)
        columns = {"ingest_time": moment, "stage": pa.array([stage]), "reason": pa.array([reason])}
        writer.write(conform(columns, QUARANTINE_SCHEMA, 1))
    files = writer.close()
    ensure_table(tmp_path, QUARANTINE_TABLE_SCHEMA, [PARTITION])
    commit_files(tmp_path, QUARANTINE_TABLE_SCHEMA, files, app_id="r", version=0, partition_by=[PARTITION])
    lying = [replace(f, stats={}) for f in files]
    assert count_reasons(tmp_path, lying) == {"decode": {"not_json": 2}, "validate": {"missing": 1}}
    assert count_rows(tmp_path, files) == 3
    log = (tmp_path / "_delta_log" / f"{1:020d}.json").read_text()
    assert "by_reason" not in log
    assert DeltaTable(str(tmp_path)).to_pyarrow_table().column(PARTITION).null_count == 0


def test_deletion_vectors_are_refused(tmp_path, monkeypatch):
    files = made(tmp_path)
    protocol = DeltaTable(str(tmp_path)).protocol()._replace(reader_features=["deletionVectors"])
    monkeypatch.setattr(DeltaTable, "protocol", lambda self: protocol)
    with pytest.raises(ConfigError, match="has deletion vectors"):
        count_rows(tmp_path, files)


def test_plain_parquet_appears_in_one_step(tmp_path):
    staging, root = tmp_path / "staging", tmp_path / "events"
    files = lake_files(staging, [0, 1])
    (staging / "event_date=2026-01-05" / "part-orphan.parquet").write_bytes(b"half")
    with pytest.raises(ConfigError, match="holds no committed table: the run has not finished"):
        committed_files(root)
    assert commit_parquet(staging, root, files) is True
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()) == [
        MARKER,
        *(f.path for f in files),
    ]
    assert pq.read_table(root).num_rows == 6
    assert count_rows(root, files) == 6
    assert json.loads((root / MARKER).read_text())["files"][0] == {
        "path": files[0].path,
        "rows": 3,
        "size_bytes": files[0].size_bytes,
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["events", "staging"]


def test_plain_parquet_is_committed_once(tmp_path):
    staging, root = tmp_path / "staging", tmp_path / "events"
    files = lake_files(staging, [0, 1])
    commit_parquet(staging, root, files)
    before = (root / MARKER).stat().st_mtime_ns
    assert commit_parquet(staging, root, lake_files(staging, [0, 1])) is False
    assert (root / MARKER).stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="holds other files than this run's"):
        commit_parquet(staging, root, lake_files(staging, [0, 2]))
    assert pq.read_table(root).num_rows == 6


@pytest.mark.parametrize("moves", [0, 1, 2])
@pytest.mark.parametrize("rewritten", [True, False])
def test_a_plain_commit_that_was_killed_is_completed(tmp_path, monkeypatch, moves, rewritten):
    staging, root = tmp_path / "staging", tmp_path / "events"
    files = lake_files(staging, [0, 1])
    really, left = os.replace, [moves]

    def replace_until_killed(source, target):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        really(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace_until_killed)
        with pytest.raises(KeyboardInterrupt):
            commit_parquet(staging, root, files)
    assert not root.exists()
    if rewritten:
        files = lake_files(staging, [0, 1])
    assert commit_parquet(staging, root, files) is True
    assert count_rows(root, files) == pq.read_table(root).num_rows == 6


def test_a_plain_commit_takes_no_files_of_others(tmp_path):
    staging, root = tmp_path / "staging", tmp_path / "events"
    files = lake_files(staging, [0])
    (tmp_path / ".events.commit").mkdir()
    (tmp_path / ".events.commit" / "part-other.parquet").write_bytes(b"")
    with pytest.raises(UntrustedRunError, match=r"holds files of another run: \['part-other.parquet'\]"):
        commit_parquet(staging, root, files)
    root.mkdir()
    (root / "mine.csv").write_text("")
    with pytest.raises(ConfigError, match="holds other files than this run's"):
        commit_parquet(staging, root, files)
    assert [p.name for p in root.iterdir()] == ["mine.csv"]


def test_a_plain_commit_misses_a_file(tmp_path):
    files = lake_files(tmp_path / "staging", [0])
    (tmp_path / "staging" / files[0].path).unlink()
    with pytest.raises(UntrustedRunError, match=r"part-000001.parquet is missing"):
        commit_parquet(tmp_path / "staging", tmp_path / "events", files)
    assert not (tmp_path / "events").exists()


def test_an_empty_plain_lake_is_a_table_too(tmp_path):
    assert commit_parquet(tmp_path / "staging", tmp_path / "events", []) is True
    assert commit_parquet(tmp_path / "staging", tmp_path / "events", []) is False
    assert committed_files(tmp_path / "events") == {}
