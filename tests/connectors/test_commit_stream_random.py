"""Random histories of a job against a lake in memory, with the real state, committer and accounts."""

import contextlib

import pytest
from deltalake.exceptions import CommitFailedError
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.connectors import commit_stream
from headrace.connectors.commit_state import Mark
from headrace.connectors.commit_stream import StreamCommitter
from headrace.connectors.stream_entries import FilesEntry, PollEntry, ShardEntry, pack
from headrace.connectors.stream_source import Read
from headrace.connectors.write_lake import WrittenFile
from headrace.schemas.columns import ENRICHED_SCHEMA
from headrace.schemas.errors import UntrustedRunError
from tests.connectors.small_stream import APP, Job, metric


class Killed(Exception):
    pass


class Lake:
    """Tables that take files as Delta does: a commit conflicts with one of the same job that it has not seen."""

    def __init__(self):
        self.logs = {}
        self.ledger = []
        self.kill_at = None
        self.appends = 0

    def table(self, root, **_):
        return Table(self, str(root))


class Snapshot:
    """What deltalake's own table is to StreamTable."""

    def __init__(self, table):
        self.lake = table.lake
        self._version = table.version

    def version(self):
        return self._version


class Table:
    is_open = True

    def __init__(self, lake, root):
        self.lake, self.root = lake, root
        self.log = lake.logs.setdefault(root, [])
        self.version = 0

    @property
    def table(self):
        return Snapshot(self)

    def prepare(self, schema):
        pass

    def mark(self, app_id):
        self.version = len(self.log)
        return self.log[-1][1] if self.log else None

    def append(self, files, app_id, mark):
        self.lake.appends += 1
        if self.lake.kill_at == (self.lake.appends, "before"):
            raise Killed
        if len(self.log) > self.version:
            raise CommitFailedError("lost")
        self.log.append((files, mark))
        self.version += 1
        if self.lake.kill_at == (self.lake.appends, "after"):
            raise Killed


def ledger_rows(lake):
    return [files[0] for files, _ in lake.logs.get("/out/ledger", [])]


@contextlib.contextmanager
def in_memory():
    """Patches the committer's file system away."""
    lake = Lake()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit_stream, "StreamTable", lake.table)
        patch.setattr(commit_stream, "settle", lambda root, files: None)
        patch.setattr(commit_stream, "write_row", lambda out, row, step, committed_at: row)
        patch.setattr(
            commit_stream,
            "write_small",
            lambda root, path, rows, stats: (path, rows.column("rows").to_pylist()),
        )
        patch.setattr(commit_stream, "last_row", lambda table: (ledger_rows(table.lake) or [None])[-1])
        yield lake


def poll(number):
    file = WrittenFile(f"part-{number}.parquet", number % 4, 1, {})
    return [
        pack(
            [
                PollEntry(
                    0,
                    number,
                    number % 4,
                    (Read("t/0", number, number + 1, number % 4),),
                    0,
                    {0: number % 4},
                    0,
                )
            ]
        ),
        pack([ShardEntry(0, number, 0, number % 4, 0), FilesEntry("events", (file,))]),
        metric(number),
    ]


STEP = st.one_of(
    st.tuples(st.just("receive"), st.integers(1, 3)),
    st.just(("checkpoint", 0)),
    st.tuples(st.just("commit"), st.booleans()),
    st.tuples(st.just("killed"), st.tuples(st.integers(1, 3), st.sampled_from(["before", "after"]))),
    st.just(("crash", 0)),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEP, max_size=30))
def test_every_row_is_committed_once_whatever_happens(steps):
    with in_memory() as lake:
        polls, sent = _run(steps, lake)
    _check(lake, polls, sent)


def _run(steps, lake):
    epoch, job = 1, Job(epoch=1)
    committer = StreamCommitter("/out", app_id=APP, lake_schema=ENRICHED_SCHEMA)
    source = [packed for number in range(100) for packed in poll(number)]
    sent = 0
    checkpoint, durable_until = (job.memory.copy(), 0), 0
    for step, argument in [*steps, ("receive", 3), ("checkpoint", 0), ("commit", True)]:
        if step == "receive":
            job.receive(*source[sent : sent + argument])
            sent += argument
        elif step == "checkpoint":
            checkpoint, durable_until = (job.memory.copy(), sent), job.now + 1
        elif step in ("commit", "killed"):
            lake.appends, lake.kill_at = 0, argument if step == "killed" else None
            try:
                done = committer.commit(job.state.ready(durable_until), committed_at=0)
            except Killed:
                step = "crash"
            else:
                if done.mark is not None and argument:
                    job.state.drop(done.mark)
        if step == "crash":
            lake.kill_at = None
            epoch += 1
            sent, now = checkpoint[1], job.now
            job = Job(checkpoint[0].copy(), epoch)
            job.now = now
            committer = StreamCommitter("/out", app_id=APP, lake_schema=ENRICHED_SCHEMA)
    return sent // 3, sent


def _check(lake, polls, sent):
    files = [file.path for files, _ in lake.logs.get("/out/events", []) for file in files]
    assert files == [f"part-{number}.parquet" for number in range((sent + 1) // 3)]
    counts = [
        n for files, _ in lake.logs.get("/out/metrics/per_minute", []) for _, rows in files for n in rows
    ]
    assert counts == [n + extra for n in range(polls) for extra in (0, 1)]
    last = ledger_rows(lake)[-1]
    assert last.fault is None
    assert last.seq == sent - 1
    assert last.accounts.balanced
    assert last.accounts.accepted == sum(number % 4 for number in range((sent + 1) // 3))
    assert [row.number for row in ledger_rows(lake)] == list(range(len(ledger_rows(lake))))


def test_committing_before_the_checkpoint_would_be_found():
    """The control: without rule 2 a restore brings other entries under numbers that the lake has."""
    with in_memory() as lake:
        job = Job().receive(*poll(0))
        saved = job.memory.copy()
        committer = StreamCommitter("/out", app_id=APP, lake_schema=ENRICHED_SCHEMA)
        committer.commit(job.receive(*poll(1)).ready(), committed_at=0)
        restored = Job(saved, epoch=2).receive(*poll(2), *poll(1))
        with pytest.raises(UntrustedRunError, match="has other entries under number"):
            committer.commit(restored.ready(), committed_at=0)
    assert lake.logs["/out/ledger"][-1][1] == Mark(5, job.ready().chains[5])
