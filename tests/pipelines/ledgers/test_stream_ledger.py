"""The ledger of a stream that is running, beside replays, and after a commit that stayed half done."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from deltalake import CommitProperties, DeltaTable, Transaction

from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.connectors.stream_output import JobRecord, open_stream_output
from headrace.pipelines.build_definition import build_definition, definition_identity
from headrace.pipelines.ledgers.show_ledger import show_ledger
from headrace.pipelines.ledgers.verify_ledger import look, verify_ledger
from headrace.pipelines.replay.run_replay import run_replay
from headrace.pipelines.stream_config import StreamConfig
from tests.pipelines.ledgers.outputs import change_stream_ledger, make_stream, write_input
from tests.pipelines.replay.damaged import FIXES, load, write_events
from tests.pipelines.replay.test_replay_stream import TimedSource
from tests.pipelines.runs import NOW
from tests.pipelines.streaming.line_source import LineSource
from tests.pipelines.streaming.local import Local, make_task

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("seed", [1, 2])
def test_a_stream_verifies_at_every_moment(tmp_path: Path, key: Path, seed: int) -> None:
    path = write_input(tmp_path / "in.jsonl", 80)
    path.write_bytes(b"".join(line for line in path.read_bytes().splitlines(True) if line.strip()))
    out = tmp_path / "out"
    task = make_task(out, LineSource(str(path), NOW, partitions=2, per_poll=5), key)
    with open_stream_output(out) as output:
        output.add(JobRecord(task.job, "2026-01-05T12:00:00Z", "lines", {"window_shards": 2}, {}))
    local = Local(task, seed=seed)
    halfway = set()
    for _ in range(12):
        local.run(12)
        seen = verify_ledger(out)
        assert seen.findings == []
        halfway.add(seen.received)
    local.run()
    assert verify_ledger(out).findings == []
    assert len(halfway) > 2


def test_replays_into_a_stream(tmp_path: Path, key: Path) -> None:
    _, bad = write_events(tmp_path, 300, span="72h")
    out = tmp_path / "out"
    config = StreamConfig(source="dir:x", output=str(out), key_file=str(key), rules={}, early_seconds=0)
    definition = build_definition(config)
    source = TimedSource(str(bad), datetime(2026, 1, 5, 12, tzinfo=UTC), partitions=1, per_poll=40)
    task = make_task(out, source, key, until_us=None, definition=definition)
    with open_stream_output(out) as output:
        identity = definition_identity(config, definition)
        output.add(
            JobRecord(
                task.job, "2026-01-05T12:00:00Z", "lines", {"window_shards": 2, "finished": True}, identity
            )
        )
    local = Local(task)
    for _ in range(8):
        local.heartbeat()
    local.settle()
    before = verify_ledger(out)
    assert before.findings == []
    result = run_replay(out, config, fixes=load(tmp_path)[:2], fixes_text=FIXES, all_ages=True)
    assert result.record.recovered
    assert result.record.failed
    after = verify_ledger(out)
    assert after.findings == []
    assert after.accepted == before.accepted + result.record.recovered
    shown = show_ledger(out)
    assert (shown.ledger, shown.held, shown.total.recovered) == (300, 300, result.record.recovered)


def test_a_commit_that_stayed_half_done_is_told(tmp_path: Path, key: Path) -> None:
    out = make_stream(tmp_path, key)
    table = DeltaTable(str(out / "events"))
    table.create_write_transaction(
        [],
        "append",
        table.schema(),
        ["event_date"],
        commit_properties=CommitProperties(app_transactions=[Transaction("s0001-a", 1000)]),
    )
    pauses: list[float] = []
    assert [f.kind for f in look(out, pause=pauses.append).beyond] == ["interrupted"]
    assert pauses  # It could have been under way.


@pytest.mark.parametrize("column", ["rows_in", "total_accepted", "number"])
def test_every_row_of_the_ledger_is_held_against_the_one_before(
    tmp_path: Path, key: Path, column: str
) -> None:
    out = make_stream(tmp_path, key)
    last = read_stream_ledger(out).commits - 1
    assert last > 0
    change_stream_ledger(out, last - 1, column, 1)
    kinds = {f.kind for f in verify_ledger(out).findings}
    assert "ledger" in kinds
    shutil.rmtree(out)
