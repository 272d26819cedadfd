import datetime as dt
from decimal import Decimal

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from headrace.connectors import resume_stream
from headrace.connectors.commit_stream import StreamCommitter
from headrace.connectors.compact_lake import compact_lake
from headrace.connectors.delta_commit import commit_files, ensure_table
from headrace.connectors.resume_stream import RolledBack, recent_ids, resume_positions, roll_back
from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.connectors.stream_table import StreamTable
from headrace.connectors.write_lake import PartitionedWriter
from headrace.schemas.columns import EVENT_SCHEMA, MONEY, TIME
from headrace.schemas.errors import UntrustedRunError
from headrace.transforms.batches import conform
from headrace.transforms.dedupe_records import payload_hashes
from headrace.transforms.enrich import Enrich
from tests.connectors.small_stream import (
    APP,
    ENRICHED_SCHEMA,
    NOON,
    NOON_US,
    Job,
    SmallStream,
    late,
    metric,
)


def committer(out, app_id=APP):
    return StreamCommitter(out, app_id=app_id, lake_schema=ENRICHED_SCHEMA)


def ids(out, table="events"):
    return sorted(DeltaTable(str(out / table)).to_pyarrow_table(columns=["event_id"]).column(0).to_pylist())


def interrupted(out):
    """A job that has done a poll of reader 0, and has left one of it and the first of reader 1 open."""
    stream = SmallStream(out)
    job = Job().receive(*stream.poll(0), *stream.poll(0)[:2], stream.poll(1)[2], metric(1))
    job.commit(committer(out))
    return stream, job


def back(out, **more):
    return roll_back(out, resume_positions(out), jobs=[APP], committed_at=NOON_US, **more)


def test_a_new_output_has_nothing_to_go_back_to(tmp_path):
    assert resume_positions(tmp_path) == {}
    assert back(tmp_path) == RolledBack()
    assert list(recent_ids(tmp_path, 0)) == []


def test_rows_beyond_what_is_done_are_taken_out(tmp_path):
    interrupted(tmp_path)
    assert resume_positions(tmp_path) == {"topic/0": 10}
    assert len(ids(tmp_path)) == 8 + 4 + 4
    done = back(tmp_path)
    assert (done.events, done.quarantine) == (8, 2)
    second = dt.timedelta(seconds=1)
    assert done.event_times == (NOON + 1 * second, NOON + 18 * second)
    assert done.windows == {"per_minute": 2}
    assert ids(tmp_path) == sorted(f"topic/0-{p}" for p in range(10) if p % 5)
    assert ids(tmp_path, "quarantine") == ["topic/0-0", "topic/0-5"]
    totals = read_stream_ledger(tmp_path)
    assert (totals.rows_in, totals.accepted, totals.in_flight, totals.open_polls) == (10, 8, 0, 0)
    assert totals.rejected == {"dedupe": {"duplicate": 1}, "validate": {"invalid": 1}}
    assert (totals.balanced, totals.positions, totals.watermark) == (True, {"topic/0": 10}, None)
    assert back(tmp_path) == RolledBack()
    assert read_stream_ledger(tmp_path).commits == 2


def test_a_new_job_reads_the_rest_and_nothing_is_there_twice(tmp_path):
    stream, old = interrupted(tmp_path)
    back(tmp_path)
    with pytest.raises(
        UntrustedRunError, match=r"is closed for job job-1: another one was started from this lake"
    ):
        old.receive(metric(2)).commit(committer(tmp_path))
    stream.polls = {0: (0, 10)}
    job = Job().receive(*stream.poll(0), *stream.poll(1))
    done = job.commit(committer(tmp_path, "job-2"))
    assert done.accepted == 16
    assert ids(tmp_path) == sorted(
        f"topic/{reader}-{p}" for reader, end in ((0, 20), (1, 10)) for p in range(end) if p % 5
    )
    totals = read_stream_ledger(tmp_path)
    assert (totals.rows_in, totals.accepted, totals.balanced, totals.drained) == (30, 24, True, True)
    assert totals.positions == {"topic/0": 20, "topic/1": 10}


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", ["_shut_out", "write_row", "delete", "first delete"])
def test_a_roll_back_killed_half_way_is_repeated(tmp_path, monkeypatch, step):
    interrupted(tmp_path)
    delete = DeltaTable.delete

    def killed(*arguments, **_):
        if step == "first delete":
            delete(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        if "delete" in step:
            patch.setattr(DeltaTable, "delete", killed)
        else:
            patch.setattr(resume_stream, step, killed)
        with pytest.raises(Killed):
            back(tmp_path)
    assert back(tmp_path).quarantine == 2
    assert len(ids(tmp_path)) == 8
    totals = read_stream_ledger(tmp_path)
    assert (totals.rows_in, totals.accepted, totals.balanced) == (10, 8, True)


def test_rows_that_the_ledger_does_not_know_are_taken_out_too(tmp_path, monkeypatch):
    """The job died between a table and the ledger: no total has these rows."""
    stream, job = interrupted(tmp_path)
    job.receive(*stream.poll(1))
    append = StreamTable.append

    def killed(table, *rest):
        if table.root.name == "ledger":
            raise Killed
        append(table, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(StreamTable, "append", killed)
        with pytest.raises(Killed):
            job.commit(committer(tmp_path))
    assert back(tmp_path).events == 16
    assert len(ids(tmp_path)) == 8
    assert read_stream_ledger(tmp_path).balanced


def test_a_job_that_died_before_its_first_row_in_the_ledger_leaves_nothing(tmp_path, monkeypatch):
    job = Job().receive(*SmallStream(tmp_path).poll())
    append = StreamTable.append

    def killed(table, *rest):
        append(table, *rest)
        if table.root.name == "events":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StreamTable, "append", killed)
        with pytest.raises(Killed):
            job.commit(committer(tmp_path))
    assert back(tmp_path).events == 8
    assert ids(tmp_path) == ids(tmp_path, "quarantine") == []
    with pytest.raises(UntrustedRunError, match="is closed for job job-1"):
        job.commit(committer(tmp_path))


def test_a_job_with_a_fault_can_be_left_behind(tmp_path):
    stream = SmallStream(tmp_path)
    first, second = stream.poll(), stream.poll()
    job = Job().receive(*first, *second, second[1])
    with pytest.raises(UntrustedRunError, match=r"entries number 6: .*shard 0 has reported it again"):
        job.commit(committer(tmp_path))
    assert not read_stream_ledger(tmp_path).balanced
    back(tmp_path)
    assert read_stream_ledger(tmp_path).balanced
    assert Job().receive(metric(1)).commit(committer(tmp_path, "job-2")).mark.seq == 0


def test_a_lake_that_has_lost_done_rows_is_refused(tmp_path):
    interrupted(tmp_path)
    DeltaTable(str(tmp_path / "events")).delete("origin_position = 7 AND origin = 'topic/0'")
    with pytest.raises(UntrustedRunError) as caught:
        back(tmp_path)
    assert (
        "by the ledger 10 records are done, of which the lake holds 7 and the quarantine 2: rows were lost, or are there twice"
        in str(caught.value)
    )
    assert len(ids(tmp_path)) == 15


def test_rows_of_other_sources_stay(tmp_path):
    stream = SmallStream(tmp_path)
    Job().receive(*stream.poll(0, origin="it's/0")[:2]).commit(committer(tmp_path))
    assert back(tmp_path, origin_prefix="topic/").events == 0
    assert len(ids(tmp_path)) == 4
    assert back(tmp_path, origin_prefix="it's/").events == 4
    assert ids(tmp_path) == []


ROWS = conform(
    {
        "event_id": pa.array(["a", "b", "c", "d"]),
        "id_generated": pa.array([False, True, False, False]),
        "event_time": pa.array([NOON, NOON, NOON, NOON], TIME),
        "event_date": pa.array([NOON.date()] * 4, pa.date32()),
        "ingest_time": pa.array([NOON + dt.timedelta(microseconds=u) for u in (0, 1, 2, 3)], TIME),
        "origin": pa.array(["t/0"] * 4),
        "origin_position": pa.array([1, 2, 3, 4], pa.int64()),
        "country": pa.array(["DE", None, "DE", ""]),
        "price": pa.array([Decimal("1.500000001"), None, Decimal("-99"), Decimal(0)], MONEY),
        "quantity": pa.array([1, None, -(2**62), 0], pa.int64()),
        "http_status": pa.array([200, None, 404, 0], pa.int32()),
        "device_type": pa.array(["desktop", None, None, "kiosk"]),
        "user_agent": pa.array(
            [
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Firefox/130.0",
                None,
                "-",
                "Mozilla/5.0 (iPhone) Mobile",
            ]
        ),
        "event_type": pa.array(["purchase", "refund", None, "ü"]),
        "properties": pa.array(['{"a":1}', None, "{}", ""]),
    },
    EVENT_SCHEMA,
    4,
)


def lake_of(out, batch):
    """Writes events to the lake as a stream does: enriched, committed."""
    kernel = Enrich(country=False).kernel()
    kernel.setup()
    ensure_table(out / "events", ENRICHED_SCHEMA, ["event_date"])
    writer = PartitionedWriter(out / "events", partition="event_date", name="1")
    for start in range(batch.num_rows):
        writer.write(kernel(batch.slice(start, 1)).accepted)
    commit_files(
        out / "events", ENRICHED_SCHEMA, writer.close(), app_id="a", version=0, partition_by=["event_date"]
    )


def seeds(out, since_us=0):
    table = pa.Table.from_batches(list(recent_ids(out, since_us)))
    return dict(zip(table.column("event_id").to_pylist(), table.column("payload").to_pylist(), strict=True))


def test_payload_hashes_of_the_lake_are_those_before_the_write(tmp_path):
    lake_of(tmp_path, ROWS)
    before = dict(zip("abcd", payload_hashes(ROWS).tolist(), strict=True))
    found = seeds(tmp_path)
    assert found.pop("a") is None, "desktop is what the user agent says: it may have been stated or not"
    del before["a"]
    assert found == before
    (batch,) = recent_ids(tmp_path, 0)
    assert batch.schema.types == [pa.string(), TIME, pa.uint64()]
    assert batch.column("ingest_time").equals(ROWS.column("ingest_time"))


def test_they_are_the_same_after_a_compaction(tmp_path):
    stream = SmallStream(tmp_path)
    Job().receive(*stream.poll(), *stream.poll()).commit(committer(tmp_path))
    before = seeds(tmp_path)
    assert len(before) == 16
    assert compact_lake(tmp_path, "events", min_files=2).added == 1
    assert seeds(tmp_path) == before


def test_only_recent_ids_are_read(tmp_path):
    lake_of(tmp_path, ROWS)
    assert sorted(seeds(tmp_path, NOON_US + 2)) == ["c", "d"]
    assert sorted(seeds(tmp_path, NOON_US + 3)) == ["d"]
    assert list(recent_ids(tmp_path, NOON_US + 4)) == []
    next((tmp_path / "events").rglob("*.parquet")).unlink()
    assert list(recent_ids(tmp_path, NOON_US + 10_000)) == [], "a file that is older is not opened"
    with pytest.raises(UntrustedRunError, match="of the committed table can't be read"):
        list(recent_ids(tmp_path, NOON_US))


def late_rows(out, name="per_minute"):
    """(job, reader, poll) of the late rows of a table."""
    table = DeltaTable(str(out / "late" / name)).to_pyarrow_table(columns=["job", "reader", "poll"])
    return sorted(zip(*(column.to_pylist() for column in table.columns), strict=True))


def test_late_rows_of_polls_that_are_read_again_are_taken_out(tmp_path, monkeypatch):
    stream, job = interrupted(tmp_path)
    lists = [late(2, poll=0), late(3, poll=1), late(1, reader=1, poll=0), late(1, reader=9, poll=0)]
    job.receive(*lists, late(1, name="per_day", poll=1)).commit(committer(tmp_path))
    assert read_stream_ledger(tmp_path).late == {"per_minute": 7, "per_day": 1}

    with monkeypatch.context() as patch:
        patch.setattr(resume_stream, "write_row", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            back(tmp_path)
    for _ in range(2):
        back(tmp_path)
        assert late_rows(tmp_path) == [(APP, 0, 0)] * 2
        assert late_rows(tmp_path, "per_day") == []
        assert read_stream_ledger(tmp_path).late == {"per_minute": 2, "per_day": 0}

    # The next job numbers its polls anew, and dies between its tables and the ledger: none of its rows counts, those before stay.
    stream.polls = {0: (0, 10)}
    append = StreamTable.append

    def killed(table, *rest):
        if table.root.name == "ledger":
            raise Killed
        append(table, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(StreamTable, "append", killed)
        with pytest.raises(Killed):
            Job().receive(*stream.poll(0), late(5, job="job-2", poll=0)).commit(committer(tmp_path, "job-2"))
    assert len(late_rows(tmp_path)) == 7
    roll_back(tmp_path, resume_positions(tmp_path), jobs=[APP, "job-2"], committed_at=NOON_US)
    assert late_rows(tmp_path) == [(APP, 0, 0)] * 2
    assert read_stream_ledger(tmp_path).late == {"per_minute": 2, "per_day": 0}


def test_ids_are_those_of_a_version_of_the_lake(tmp_path):
    stream, job = SmallStream(tmp_path), Job()
    job.receive(*stream.poll()).commit(committer(tmp_path))
    version = DeltaTable(str(tmp_path / "events")).version()
    before = list(recent_ids(tmp_path, 0, version=version))
    job.receive(*stream.poll()).commit(committer(tmp_path))
    assert compact_lake(tmp_path, "events", min_files=2).removed == 4
    assert list(recent_ids(tmp_path, 0, version=version)) == before
    assert sum(batch.num_rows for batch in recent_ids(tmp_path, 0)) == 16
