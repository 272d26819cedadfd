import os
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from headrace.connectors.commit_stream import StreamCommitter
from headrace.connectors.compact_lake import (
    Compacted,
    compact_lake,
    remove_orphans,
    remove_replaced,
)
from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.connectors.stream_table import StreamTable
from headrace.connectors.write_lake import STATISTICS
from headrace.schemas.errors import ConfigError
from headrace.transforms.dedupe_records import payload_hashes
from tests.connectors.small_stream import APP, ENRICHED_SCHEMA, NOON_US, Job, SmallStream, metric

DAY = timedelta(days=1)


def made(out, commits=3):
    """An output after some commits of a poll each; returns the stream, the job and its committer."""
    stream, job = SmallStream(out), Job()
    committer = StreamCommitter(out, app_id=APP, lake_schema=ENRICHED_SCHEMA)
    for n in range(commits):
        job.receive(*stream.poll(), metric(n)).commit(committer)
    return stream, job, committer


def checksum(out, table="events"):
    """Rows of a table in one order, whatever files they are in."""
    found = DeltaTable(str(out / table)).to_pyarrow_table()
    return found.sort_by([(found.column_names[0], "ascending"), (found.column_names[-1], "ascending")])


def paths(out, table="events"):
    return pa.table(DeltaTable(str(out / table)).get_add_actions()).column("path").to_pylist()


def test_small_files_become_large_ones_with_the_same_rows(tmp_path):
    _, job, committer = made(tmp_path)
    before = {name: checksum(tmp_path, name) for name in ("events", "quarantine", "ledger")}
    hashes = sorted(payload_hashes(before["events"].to_batches()[0]).tolist())
    assert len(paths(tmp_path)) == 6
    assert compact_lake(tmp_path, "events", min_files=2) == Compacted(removed=6, added=1, partitions=1)
    assert compact_lake(tmp_path, "quarantine", min_files=2) == Compacted(6, 1, 1)
    assert compact_lake(tmp_path, "ledger", min_files=2) == Compacted(3, 1, 1)
    assert compact_lake(tmp_path, "metrics/per_minute", min_files=2) == Compacted(3, 1, 1)
    for name, rows in before.items():
        assert checksum(tmp_path, name).equals(rows)
    assert sorted(payload_hashes(checksum(tmp_path).combine_chunks().to_batches()[0]).tolist()) == hashes
    assert compact_lake(tmp_path, "events", min_files=2) == Compacted()
    totals = read_stream_ledger(tmp_path)
    assert (totals.rows_in, totals.commits, totals.positions) == (30, 3, {"topic/0": 30})
    job.receive(metric(9)).commit(committer)
    assert read_stream_ledger(tmp_path).commits == 4


def test_no_persons_data_gets_into_footers_and_log(tmp_path):
    made(tmp_path)
    compact_lake(tmp_path, "events", min_files=2)
    (path,) = paths(tmp_path)
    group = pq.read_metadata(tmp_path / "events" / path).row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    assert {c.path_in_schema for c in columns if c.statistics is not None} <= set(STATISTICS)
    assert {c.compression for c in columns} == {"ZSTD"}
    log = b"".join(p.read_bytes() for p in (tmp_path / "events/_delta_log").glob("*.json"))
    assert b"token-of-jane" not in log
    actions = pa.table(DeltaTable(str(tmp_path / "events")).get_add_actions(flatten=True))
    assert {n for n in actions.column_names if n.startswith(("min.", "max."))} == {
        f"{end}.{name}" for end in ("min", "max") for name in STATISTICS
    }
    assert actions.column("max.origin_position").to_pylist() == [29]


def test_rows_appended_meanwhile_stay(tmp_path, monkeypatch):
    stream, job, committer = made(tmp_path)
    optimize = DeltaTable.optimize
    job.receive(*stream.poll())

    def overtaken(table):
        job.commit(committer)
        return optimize.fget(table)

    monkeypatch.setattr(DeltaTable, "optimize", property(overtaken))
    assert compact_lake(tmp_path, "events", min_files=2).removed == 6
    monkeypatch.undo()
    assert checksum(tmp_path).column("event_id").to_pylist() == sorted(
        f"topic/0-{p}" for p in range(40) if p % 5
    )
    assert len(paths(tmp_path)) == 3


def test_a_commit_survives_a_compaction_that_overtakes_it(tmp_path, monkeypatch):
    stream, job, committer = made(tmp_path)
    append = StreamTable.append

    def overtaken(table, *rest):
        if table.root.name in ("events", "ledger"):
            compact_lake(tmp_path, table.root.name, min_files=2)
        append(table, *rest)

    monkeypatch.setattr(StreamTable, "append", overtaken)
    job.receive(*stream.poll()).commit(committer)
    monkeypatch.undo()
    job.receive(*stream.poll()).commit(committer)
    assert checksum(tmp_path).num_rows == 40
    totals = read_stream_ledger(tmp_path)
    assert (totals.accepted, totals.commits, totals.balanced) == (40, 5, True)


def test_few_or_large_files_are_left(tmp_path):
    made(tmp_path, commits=1)
    assert compact_lake(tmp_path, "events", min_files=3) == Compacted()
    assert compact_lake(tmp_path, "events", min_files=2, target_bytes=1 << 16).removed == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_bytes": 1}, "target_bytes is 1 and min_files 16; they must be at least 65536 and 2"),
        ({"min_files": 1}, "min_files 1"),
        ({"table": "nothing"}, "nothing is no Delta table"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        compact_lake(tmp_path, **({"table": "events"} | change))


def test_replaced_files_are_removed_when_they_are_old(tmp_path):
    made(tmp_path)
    compact_lake(tmp_path, "events", min_files=2)
    assert remove_replaced(tmp_path, "events", older_than=timedelta(minutes=90)) == 0
    assert len(list((tmp_path / "events").rglob("part-00000?.parquet"))) == 6
    with pytest.raises(ConfigError, match=r"older_than is 0:30:00; it must be at least 1:00:00"):
        remove_replaced(tmp_path, "events", older_than=timedelta(minutes=30))


def test_files_of_failed_bundles_are_removed_and_no_others(tmp_path):
    stream, _, _ = made(tmp_path)
    compact_lake(tmp_path, "events", min_files=2)
    stream.poll()  # Never received: its files are orphans.
    orphans = sorted(
        p.relative_to(tmp_path / "events").as_posix()
        for p in (tmp_path / "events").rglob("part-*.parquet")
        if p.name in ("part-000011.parquet", "part-000012.parquet")
    )
    assert len(orphans) == 2
    last = NOON_US / 1e6

    def clean(seconds_before_last_commit):
        age = DAY.total_seconds() + seconds_before_last_commit
        return remove_orphans(tmp_path, "events", older_than=DAY, modified_at=lambda path: last - age)

    assert clean(-60) == []
    assert clean(60) == orphans
    assert clean(60) == []
    assert checksum(tmp_path).num_rows == 24
    assert len(list((tmp_path / "events").rglob("part-00000?.parquet"))) == 6


def test_age_is_counted_from_the_last_commit_not_from_now(tmp_path):
    stream, _, _ = made(tmp_path, commits=1)
    pending = stream.poll()
    assert pending
    for path in (tmp_path / "events").rglob("*.parquet"):
        os.utime(path, (NOON_US / 1e6 - 3600,) * 2)
    assert remove_orphans(tmp_path, "events") == []


def test_orphans_can_t_be_told_without_a_ledger(tmp_path):
    StreamCommitter(tmp_path, app_id=APP, lake_schema=ENRICHED_SCHEMA).prepare()
    with pytest.raises(
        ConfigError, match="has no stream's ledger, so it can't be told which files are pending"
    ):
        remove_orphans(tmp_path, "events")
