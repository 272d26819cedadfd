import datetime as dt
import json

import pytest
from deltalake import DeltaTable

from headrace.connectors.commit_stream import StreamCommitter
from headrace.connectors.ledger import Ledger
from headrace.connectors.stream_ledger import (
    DESCRIPTIONS,
    LEDGER_SCHEMA,
    StreamTotals,
    micros,
    read_stream_ledger,
)
from headrace.schemas.errors import ConfigError, UntrustedRunError
from tests.connectors.small_stream import APP, ENRICHED_SCHEMA, NOON, NOON_US, Job, SmallStream, late


def second(n):
    return NOON + dt.timedelta(seconds=n)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Two commits: reader 0 has done a poll and has one open, reader 1 is at its end."""
    out = tmp_path_factory.mktemp("out")
    stream, job = SmallStream(out), Job()
    committer = StreamCommitter(out, app_id=APP, lake_schema=ENRICHED_SCHEMA)
    job.receive(*stream.poll(0), *stream.poll(1, final=True)[:1], late(3)).commit(committer)
    stream.polls[1] = (0, 0)
    job.receive(*stream.poll(1)[1:], *stream.poll(0)[:2]).commit(committer)
    return out


def test_each_commit_is_a_row(out):
    rows = DeltaTable(str(out / "ledger")).to_pyarrow_table().sort_by("number").to_pylist()
    first, last = rows
    assert {n: first[n] for n in ("number", "kind", "app_id", "seq", "rows_in", "accepted", "in_flight")} == {
        "number": 0,
        "kind": "commit",
        "app_id": APP,
        "seq": 4,
        "rows_in": 20,
        "accepted": 8,
        "in_flight": 9,
    }
    assert json.loads(first["reads"]) == {"topic/0": [0, 10]}
    assert json.loads(first["rejected"]) == {"validate": {"invalid": 2}, "dedupe": {"duplicate": 1}}
    assert json.loads(first["late"]) == {"per_minute": 3}
    assert first["committed_at"] == NOON + dt.timedelta(microseconds=5)
    assert (first["open_polls"], first["watermark"]) == (1, None)
    assert (last["number"], last["rows_in"], last["accepted"]) == (1, 10, 12)
    assert json.loads(last["reads"]) == {"topic/1": [0, 10]}
    assert (last["total_rows_in"], last["total_accepted"]) == (30, 20)
    assert json.loads(last["total_rejected"]) == {"dedupe": {"duplicate": 2}, "validate": {"invalid": 3}}
    assert (last["watermark"], last["behind"], last["balanced"], last["fault"]) == (NOON, 190, True, None)
    assert json.loads(last["readers"])["1"] == {
        "done": 1,
        "watermark": NOON_US,
        "behind": 100,
        "position": "at 10",
        "final": True,
    }
    assert set(DESCRIPTIONS) == set(LEDGER_SCHEMA.names)


def test_totals_say_where_the_stream_stands(out):
    totals = read_stream_ledger(out)
    assert totals == StreamTotals(
        rows_in=30,
        accepted=20,
        rejected={"dedupe": {"duplicate": 2}, "validate": {"invalid": 3}},
        late={"per_minute": 3},
        in_flight=5,
        open_polls=1,
        positions={"topic/0": 10, "topic/1": 10},
        watermark=NOON,
        behind=190,
        readers_at_end=1,
        last_commit=NOON + dt.timedelta(microseconds=9),
        commits=2,
        readers={0: (1, False), 1: (1, True)},
    )
    assert not totals.drained
    assert totals.ledger() == Ledger(25, 20, totals.rejected)
    assert totals.ledger().balanced
    assert read_stream_ledger(out, positions=False).positions == {}


def test_an_output_without_commits_has_nothing(tmp_path):
    assert read_stream_ledger(tmp_path) == StreamTotals()
    StreamCommitter(tmp_path, app_id=APP, lake_schema=ENRICHED_SCHEMA).prepare()
    assert read_stream_ledger(tmp_path) == StreamTotals()
    assert StreamTotals().drained


def test_a_missing_shard_leaves_the_stream_undrained(tmp_path):
    stream = SmallStream(tmp_path)
    reader, one, _ = stream.poll()
    committer = StreamCommitter(tmp_path, app_id=APP, lake_schema=ENRICHED_SCHEMA)
    Job().receive(reader, one, *stream.poll()).commit(committer)
    totals = read_stream_ledger(tmp_path)
    assert (totals.drained, totals.in_flight, totals.open_polls) == (False, 5, 2)
    assert totals.positions == {}


def test_a_lost_file_of_the_ledger_is_an_error(tmp_path):
    committer = StreamCommitter(tmp_path, app_id=APP, lake_schema=ENRICHED_SCHEMA)
    Job().receive(late(1)).commit(committer)
    next((tmp_path / "ledger").glob("part-000000000000-*.parquet")).unlink()
    with pytest.raises(UntrustedRunError, match="of the ledger can't be read"):
        read_stream_ledger(tmp_path)


def test_times_need_a_zone():
    assert micros(second(1)) == NOON_US + 1_000_000
    with pytest.raises(
        ConfigError, match=r"time 2026-01-05T12:00:00 has no zone; add one, for example 2026-01-05T12:00:00Z"
    ):
        micros(NOON.replace(tzinfo=None))
