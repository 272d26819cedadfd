"""Sessions of a stream, as a state machine."""

import random
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from headrace.schemas.columns import ENRICHED_SCHEMA
from headrace.schemas.errors import ConfigError
from headrace.transforms import session_shard
from headrace.transforms.session_definitions import Sessions
from headrace.transforms.session_partials import finish, merge, partial
from headrace.transforms.session_shard import SessionShard
from headrace.transforms.shard_state import MemoryState

START = datetime(2024, 5, 1, tzinfo=UTC)
START_US = int(START.timestamp()) * 1_000_000
MINUTE = timedelta(minutes=1)
SESSIONS = Sessions(30 * MINUTE)


def batch(rows: list[tuple]) -> pa.RecordBatch:
    """Rows of (minute, user)."""
    found = [
        {
            "event_time": START + minute * MINUTE,
            "event_id": f"{minute}-{user}",
            "user_id": user,
            "event_type": "page_view",
            "page_url": f"https://a.example/{round(minute) % 7}",
        }
        for minute, user in rows
    ]
    return pa.RecordBatch.from_pylist(found, schema=ENRICHED_SCHEMA).select(SESSIONS.columns())


def micros(minute: float) -> int:
    return START_US + round(minute * 60_000_000)


def shard(lateness: float = 10) -> SessionShard:
    return SessionShard(SESSIONS, lateness * MINUTE)


def brief(table: pa.Table | None) -> list[tuple]:
    rows = [] if table is None else table.to_pylist()
    return [(r["user_id"], (r["session_start"] - START) / MINUTE, r["events"]) for r in rows]


def test_a_session_is_finished_when_nothing_in_time_can_join_it():
    kernel, state = shard(), MemoryState()
    firing = kernel.add(batch([(0, "u"), (10, "u")]), state)
    assert (firing.sessions, firing.late) == (None, None)
    assert firing.due == micros(51)
    assert kernel.advance(micros(50), state).sessions is None
    assert kernel.add(batch([(40, "u")]), state).late is None
    assert brief(kernel.advance(micros(51), state).sessions) == []
    firing = kernel.advance(micros(81), state)
    assert brief(firing.sessions) == [("u", 0, 3)]
    assert firing.due is None
    assert state.slots == {}


def test_rows_behind_the_horizon_are_late_one_by_one():
    kernel, state = shard(), MemoryState()
    kernel.advance(micros(20), state)
    firing = kernel.add(batch([(9.9, "u"), (10, "u"), (12, "v")]), state)
    assert firing.late.column("event_id").to_pylist() == ["9.9-u"]
    assert brief(kernel.advance(micros(100), state).sessions) == [("u", 10, 1), ("v", 12, 1)]


@pytest.mark.parametrize("seed", range(6))
def test_any_order_rollback_and_loss_of_memory_give_the_sessions_of_a_batch(seed, monkeypatch):
    """All rows in time: each step may be rolled back and done again, on a new object or on the old one."""
    monkeypatch.setattr(session_shard, "REWRITE_PIECES", 4)
    monkeypatch.setattr(session_shard, "PIECE_ROWS", 3)
    chance = random.Random(seed)
    rows = [(minute + chance.random(), f"u{chance.randint(0, 5)}") for minute in range(0, 900, 3)]
    arrival = sorted(rows, key=lambda r: r[0] + chance.random() * 60)
    kernel, state = shard(60), MemoryState()
    sessions: list = []
    for i in range(0, len(arrival), 15):
        part = arrival[i : i + 15]
        for last in [False] * chance.randint(0, 2) + [True]:
            if chance.random() < 0.3:
                kernel = shard(60)
            attempt = state if last else state.copy()
            assert kernel.add(batch(part), attempt).late is None
            done = kernel.advance(micros(min(r[0] for r in arrival[i:])), attempt).sessions
            if last and done is not None:
                sessions += done.to_pylist()
    sessions += shard(60).advance(micros(2000), state).sessions.to_pylist()
    expected = finish(merge([partial(batch(rows), SESSIONS)], SESSIONS), SESSIONS).to_pylist()
    assert sorted(map(str, sessions)) == sorted(map(str, expected))


def test_due_is_a_step_of_the_watermark_and_a_watermark_there_finishes():
    kernel, state = shard(0), MemoryState()
    due = kernel.add(batch([(0.12345, "u"), (0.5, "v")]), state).due
    assert due == micros(31)
    assert len(brief(kernel.advance(due, state).sessions)) == 2


def test_finished_sessions_do_not_come_again_after_a_loss_of_memory():
    kernel, state = shard(0), MemoryState()
    kernel.add(batch([(0, "u"), (40, "v")]), state)
    assert brief(kernel.advance(micros(60), state).sessions) == [("u", 0, 1)]
    assert brief(shard(0).advance(micros(200), state).sessions) == [("v", 40, 1)]


def test_the_state_of_other_sessions_is_refused():
    state = MemoryState()
    shard().add(batch([(0, "u")]), state)
    with pytest.raises(ConfigError, match="the saved state is of other sessions"):
        SessionShard(Sessions(MINUTE), MINUTE).add(batch([(0, "u")]), state)
