"""Rolling profiles, as a state machine."""

import random

import pyarrow as pa
import pytest

from headrace.transforms import roll_profiles
from headrace.transforms.profile_users import merge, partial
from headrace.transforms.roll_profiles import RollShard
from headrace.transforms.shard_state import MemoryState

from .test_profile_users import event, events


def users(state: pa.RecordBatch | None) -> dict[str, int]:
    rows = [] if state is None else state.to_pylist()
    return {row["user_id"]: row["events"] for row in rows}


def test_only_what_changed_is_published_and_whole():
    shard, state = RollShard(merge), MemoryState()
    assert shard.publish(state) is None
    assert shard.add(partial(events([event("u", 1), event("v", 2)])), 7, state) == 7
    assert shard.add(partial(events([event("u", 3)])), 9, state) == 7
    assert users(shard.publish(state)) == {"u": 2, "v": 1}
    assert shard.publish(state) is None
    assert shard.add(partial(events([event("v", 4)])), 11, state) == 11
    assert users(RollShard(merge).publish(state)) == {"v": 2}


@pytest.mark.parametrize("seed", range(4))
def test_rollbacks_and_losses_of_memory_change_nothing(seed, monkeypatch):
    monkeypatch.setattr(roll_profiles, "REWRITE_PIECES", 3)
    monkeypatch.setattr(roll_profiles, "PIECE_ROWS", 2)
    chance = random.Random(seed)
    shard, state = RollShard(merge), MemoryState()
    rows, latest = [], {}
    for second in range(60):
        part = [event(f"u{chance.randint(0, 6)}", second) for _ in range(3)]
        publishes = chance.random() < 0.3
        for last in [False] * chance.randint(0, 2) + [True]:
            shard = RollShard(merge) if chance.random() < 0.3 else shard
            attempt = state if last else state.copy()
            shard.add(partial(events(part)), second + 1, attempt)
            found = shard.publish(attempt) if publishes else None
        rows += part
        latest |= users(found)
    latest |= users(shard.publish(state))
    assert latest == users(partial(events(rows)))
    assert sum(len(pieces) for pieces in state.slots.values()) < 12
