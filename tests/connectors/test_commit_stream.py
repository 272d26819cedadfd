import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from headrace.connectors import commit_stream, stream_table
from headrace.connectors.commit_state import Mark
from headrace.connectors.commit_stream import StreamCommitter
from headrace.connectors.stream_entries import FilesEntry, pack, unpack
from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.connectors.stream_table import StreamTable
from headrace.schemas.columns import ENRICHED_SCHEMA
from headrace.schemas.errors import ConfigError, UntrustedRunError
from tests.connectors.small_stream import APP, NOON, Job, SmallStream, late, metric

STEPS = ("quarantine", "events", "metrics/per_minute", "late/per_minute", "ledger")


def committer(out, app_id=APP):
    return StreamCommitter(out, app_id=app_id, lake_schema=ENRICHED_SCHEMA)


def rows_of(out, name, *columns):
    table = DeltaTable(str(out / name)).to_pyarrow_table(columns=list(columns))
    return sorted((tuple(row[name] for name in columns) for row in table.to_pylist()), key=str)


def contents(out):
    """All rows of all tables that a user reads, apart from when they were committed."""
    return {
        "events": rows_of(out, "events", "event_id"),
        "quarantine": rows_of(out, "quarantine", "event_id", "stage", "reason"),
        "metrics": rows_of(out, "metrics/per_minute", "page", "rows"),
        "late": rows_of(out, "late/per_minute", "window_start", "poll"),
        "ledger": [
            (t.rows_in, t.accepted, t.rejected, t.late, t.in_flight, t.open_polls, t.positions, t.fault)
            for t in [read_stream_ledger(out)]
        ],
    }


def two_polls(out):
    """A first commit, and the lists of a second."""
    stream = SmallStream(out)
    job = Job().receive(*stream.poll(), metric(3), late(1))
    job.commit(committer(out))
    return job, [*stream.poll(), metric(5), late(2)]


@pytest.fixture(scope="module")
def first_commit(tmp_path_factory):
    out = tmp_path_factory.mktemp("first")
    job, second = two_polls(out)
    return out, job.memory, second


@pytest.fixture
def copied(first_commit, tmp_path):
    """A copy of an output after its first commit, the job, and the lists of the second."""
    out, memory, second = first_commit
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    return tmp_path, Job(memory.copy()), second


@pytest.fixture(scope="module")
def undisturbed(first_commit, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    shutil.copytree(first_commit[0], out, dirs_exist_ok=True)
    Job(first_commit[1].copy()).receive(*first_commit[2]).commit(committer(out))
    return contents(out)


def test_a_commit_says_what_it_did(tmp_path):
    stream = SmallStream(tmp_path)
    job = Job().receive(*stream.poll(), *stream.poll()[:2], metric(3), late(2))
    done = job.commit(committer(tmp_path), drop=False)
    assert done.mark == job.ready().last
    assert (done.rows_in, done.accepted) == (20, 12)
    assert done.rejected == {"validate": {"invalid": 2}, "dedupe": {"duplicate": 1}}
    assert done.late == {"per_minute": 2}
    assert done.receipts == ("receipt 0/0",)
    assert done.tables == STEPS[:-1]
    again = job.commit(committer(tmp_path))
    assert (again.mark, again.accepted, again.tables) == (done.mark, 0, ())
    assert job.commit(committer(tmp_path)).mark is None
    assert DeltaTable(str(tmp_path / "ledger")).version() == 1


def test_the_undisturbed_run(undisturbed):
    assert [row[0] for row in undisturbed["events"]] == sorted(f"topic/0-{p}" for p in range(20) if p % 5)
    assert len(undisturbed["quarantine"]) == 4
    assert undisturbed["metrics"] == [("/a", 3), ("/a", 5), ("/b", 4), ("/b", 6)]
    assert undisturbed["late"] == [(NOON, 7)] * 3
    rejected = {"validate": {"invalid": 2}, "dedupe": {"duplicate": 2}}
    assert undisturbed["ledger"] == [(20, 16, rejected, {"per_minute": 3}, 0, 0, {"topic/0": 20}, None)]


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_commit_killed_at_any_step_is_healed_by_repeating_it(copied, monkeypatch, undisturbed, step, after):
    tmp_path, job, second = copied
    job.receive(*second)
    append = StreamTable.append

    def killed(table, files, app_id, mark):
        here = table.root == tmp_path / step
        if after or not here:
            append(table, files, app_id, mark)
        if here:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StreamTable, "append", killed)
        with pytest.raises(Killed):
            job.commit(committer(tmp_path))
    restored = Job(job.memory.copy(), epoch=2)
    restored.commit(committer(tmp_path))
    assert contents(tmp_path) == undisturbed
    assert restored.ready().arrivals == ()


@pytest.mark.integration
def test_a_process_that_dies_between_two_tables_is_healed(tmp_path, undisturbed):
    script = (
        "import os, sys; from pathlib import Path; from tests.connectors import test_commit_stream as t\n"
        "out = Path(sys.argv[1]); job, second = t.two_polls(out)\n"
        "(out / 'state').write_bytes(t.pickle.dumps(job.receive(*second).memory))\n"
        "append = t.StreamTable.append\n"
        "def die(table, *rest):\n"
        "    append(table, *rest)\n"
        "    if table.root.name == 'events': os._exit(9)\n"
        "t.StreamTable.append = die\n"
        "job.commit(t.committer(out))\n"
    )
    root = Path(__file__).parents[2]
    died = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, cwd=root)
    assert died.returncode == 9
    assert len(rows_of(tmp_path, "metrics/per_minute", "page")) == 2
    job = Job(pickle.loads((tmp_path / "state").read_bytes()), epoch=2)
    job.commit(committer(tmp_path))
    assert contents(tmp_path) == undisturbed


def test_a_larger_grouping_heals_too(copied, monkeypatch, undisturbed):
    tmp_path, job, second = copied
    job.receive(*second[:2])
    with monkeypatch.context() as patch:
        patch.setattr(commit_stream, "write_row", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            job.commit(committer(tmp_path))
    assert len(rows_of(tmp_path, "events", "event_id")) == 12
    job.receive(*second[2:]).commit(committer(tmp_path))
    assert contents(tmp_path) == undisturbed


def test_two_committers_of_one_job_commit_once(copied, undisturbed, monkeypatch):
    tmp_path, job, second = copied
    ready = job.receive(*second).ready()
    append = StreamTable.append
    one, other = committer(tmp_path), committer(tmp_path)
    raced = []

    def overtaken(table, files, app_id, mark):
        if not raced:
            raced.append(other.commit)
            monkeypatch.setattr(StreamTable, "append", append)
            assert other.commit(ready, committed_at=1).accepted == 8
        append(table, files, app_id, mark)

    monkeypatch.setattr(StreamTable, "append", overtaken)
    assert one.commit(ready, committed_at=2).mark == ready.last
    assert contents(tmp_path) == undisturbed
    assert DeltaTable(str(tmp_path / "ledger")).version() == 2


def test_another_writer_who_always_wins_is_an_error(tmp_path, monkeypatch):
    stream = SmallStream(tmp_path)
    job = Job().receive(*stream.poll())

    def lose(*_):
        raise CommitFailedError("lost")

    monkeypatch.setattr(StreamTable, "append", lose)
    with pytest.raises(CommitFailedError, match="lost"):
        job.commit(committer(tmp_path))


def test_an_older_savepoint_is_refused(tmp_path):
    stream = SmallStream(tmp_path)
    job = Job().receive(*stream.poll())
    savepoint = job.memory.copy()
    job.receive(*stream.poll()).commit(committer(tmp_path))
    old = Job(savepoint, epoch=2)
    with pytest.raises(UntrustedRunError) as caught:
        old.commit(committer(tmp_path))
    assert "has entries up to number 5, the job's state only up to 2: an older savepoint" in str(caught.value)
    assert str(caught.value).endswith("restore the newer checkpoint, or start with --rebuild-state-from LAKE")


def test_an_older_savepoint_that_has_caught_up_is_refused_too(tmp_path):
    stream = SmallStream(tmp_path)
    job = Job().receive(*stream.poll())
    savepoint = job.memory.copy()
    job.receive(*stream.poll()).commit(committer(tmp_path))
    old = Job(savepoint, epoch=2).receive(*[metric(n) for n in range(7)])
    with pytest.raises(UntrustedRunError, match=r"has other entries under number 5 .* gone on differently"):
        old.commit(committer(tmp_path))


def test_a_lake_that_was_replaced_by_an_older_copy_is_refused(tmp_path):
    stream = SmallStream(tmp_path)
    job = Job().receive(*stream.poll())
    job.commit(committer(tmp_path))
    other = tmp_path / "copy"
    other.mkdir()
    stream.out = other
    job.receive(*stream.poll())
    with pytest.raises(
        UntrustedRunError, match=r"has entries up to number none, the job has let go of those up to 2"
    ):
        job.commit(committer(other))


def without(packed, entry_type):
    return pack([e for e in unpack(packed) if not isinstance(e, entry_type)])


def test_a_dropped_file_stops_the_job_for_good(tmp_path):
    stream = SmallStream(tmp_path)
    reader, one, two = stream.poll()
    job = Job().receive(reader, one, without(two, FilesEntry))
    message = "entries number 2: reader 0, poll 0: 4 rows are counted as accepted, the files that came with them hold 0"
    with pytest.raises(UntrustedRunError, match=message):
        job.commit(committer(tmp_path))
    totals = read_stream_ledger(tmp_path)
    assert (totals.balanced, totals.accepted, totals.in_flight) == (False, 4, 5)
    assert totals.fault == message
    with pytest.raises(UntrustedRunError, match=r"does not balance since its row 0: entries number 2"):
        job.receive(*stream.poll()).commit(committer(tmp_path))
    assert len(rows_of(tmp_path, "events", "event_id")) == 4


def test_a_file_that_lost_a_row_is_not_committed(tmp_path):
    stream = SmallStream(tmp_path)
    job = Job().receive(*stream.poll())
    path = next((tmp_path / "events").rglob("*.parquet"))
    pq.write_table(pq.read_table(path, partitioning=None).slice(1), path)
    with pytest.raises(UntrustedRunError, match=r"has [\d,]+ bytes, it was written with"):
        job.commit(committer(tmp_path))
    assert rows_of(tmp_path, "events", "event_id") == []
    assert rows_of(tmp_path, "quarantine", "event_id") == []


def test_a_missing_file_is_not_committed(tmp_path):
    job = Job().receive(*SmallStream(tmp_path).poll())
    next((tmp_path / "events").rglob("*.parquet")).unlink()
    with pytest.raises(UntrustedRunError, match=r"part-000002.parquet is missing"):
        job.commit(committer(tmp_path))
    assert read_stream_ledger(tmp_path).commits == 0


def test_a_file_that_is_named_twice_is_not_committed(tmp_path):
    stream = SmallStream(tmp_path)
    lists = [unpack(packed) for packed in stream.poll()]
    again = [unpack(packed) for packed in stream.poll()]
    files = next(e for e in lists[1] if isinstance(e, FilesEntry))
    again[1] = [files if isinstance(e, FilesEntry) and e.table == "events" else e for e in again[1]]
    job = Job().receive(*[pack(each) for each in lists + again])
    with pytest.raises(UntrustedRunError, match=r"part-000002.parquet is to be added to events twice"):
        job.commit(committer(tmp_path))


def test_new_columns_of_a_metric_are_added(tmp_path):
    job = Job().receive(metric(1))
    one = committer(tmp_path)
    job.commit(one)
    wider = unpack(metric(2))[0]
    table = wider.table().append_column("users", pa.array([7, 8], pa.int64()))
    job.receive(pack([type(wider).of("per_minute", table)])).commit(one)
    job.receive(metric(3)).commit(one)
    found = rows_of(tmp_path, "metrics/per_minute", "rows", "users", "page")
    assert found == [
        (1, None, "/a"),
        (2, 7, "/a"),
        (2, None, "/b"),
        (3, 8, "/b"),
        (3, None, "/a"),
        (4, None, "/b"),
    ]


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b"])
def test_names_that_are_no_files_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="app_id is"):
        committer(tmp_path, name)
    with pytest.raises(ConfigError, match="metrics table is named"):
        Job().receive(metric(1, name=name)).commit(committer(tmp_path))


def test_another_job_goes_on_where_nothing_was_left_open(tmp_path):
    stream = SmallStream(tmp_path)
    Job().receive(*stream.poll()).commit(committer(tmp_path))
    stream.polls = {0: (0, 10)}
    Job().receive(*stream.poll()).commit(committer(tmp_path, "job-2"))
    totals = read_stream_ledger(tmp_path)
    assert (totals.rows_in, totals.accepted, totals.positions) == (20, 16, {"topic/0": 20})
    assert totals.balanced
    assert totals.drained


def test_another_job_is_refused_where_polls_are_open(tmp_path):
    stream = SmallStream(tmp_path)
    Job().receive(*stream.poll()[:2]).commit(committer(tmp_path))
    with pytest.raises(
        UntrustedRunError, match=r"job job-1 has left polls that are not complete, so job job-2"
    ):
        Job().receive(metric(1)).commit(committer(tmp_path, "job-2"))


def test_a_hundred_commits_make_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(stream_table, "sync", lambda path: None)
    table = StreamTable(tmp_path / "events", partition_by=["event_date"])
    table.prepare(ENRICHED_SCHEMA)
    table.refresh()
    for number in range(101):
        table.append([], APP, Mark(number, number))
    log = os.listdir(tmp_path / "events" / "_delta_log")
    assert [name for name in log if name.endswith(".checkpoint.parquet")] == [
        "00000000000000000099.checkpoint.parquet"
    ]
    assert StreamTable(tmp_path / "events").mark(APP) == Mark(100, 100)
    settings = DeltaTable(str(tmp_path / "events")).metadata().configuration
    assert settings == {
        "delta.dataSkippingStatsColumns": "event_time,ingest_time,origin_position",
        "delta.logRetentionDuration": "interval 2 days",
    }
