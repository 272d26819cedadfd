import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.connectors.commit_state import SLOTS, CommitState, Mark, chain_of
from headrace.schemas.errors import UntrustedRunError
from headrace.transforms.shard_state import MemoryState


def seqs(ready):
    return [arrival.seq for arrival in ready.arrivals]


def test_only_what_arrived_before_the_checkpoint_is_ready():
    state = CommitState(MemoryState(), epoch=1)
    assert [state.receive(packed, at) for packed, at in [(b"a", 10), (b"b", 20), (b"c", 20)]] == [0, 1, 2]
    assert seqs(state.ready(10)) == []
    assert seqs(state.ready(20)) == [0]
    ready = state.ready(21)
    assert [(a.seq, a.at, a.packed) for a in ready.arrivals] == [(0, 10, b"a"), (1, 20, b"b"), (2, 20, b"c")]
    assert ready.next_seq == 3
    assert state.ready(20).waiting == 2
    assert seqs(state.ready(None)) == [0, 1, 2]


def test_a_clock_that_goes_back_makes_nothing_ready_early():
    state = CommitState(MemoryState(), epoch=1)
    state.receive(b"a", 100)
    state.receive(b"b", 50)
    assert seqs(state.ready(100)) == []
    assert seqs(state.ready(101)) == [0, 1]


def test_what_another_process_received_is_ready_after_a_restore():
    memory = MemoryState()
    CommitState(memory, epoch=1).receive(b"a", 100)
    restored = CommitState(memory.copy(), epoch=2)
    restored.receive(b"b", 100)
    assert seqs(restored.ready(0)) == [0]
    assert seqs(restored.ready(101)) == [0, 1]


def test_what_is_committed_is_dropped_and_its_slot_cleared():
    memory = MemoryState()
    state = CommitState(memory, epoch=1)
    for n in range(3):
        state.receive(b"%d" % n, n)
    last = state.ready(None).last
    assert last == Mark(2, chain_of(chain_of(chain_of(0, b"0"), b"1"), b"2"))
    state.receive(b"3", 3)
    state.drop(last)
    state.drop(last)
    state.drop(Mark(1, 0))
    ready = state.ready(None)
    assert seqs(ready) == [3]
    assert ready.dropped == last
    assert memory.slots.keys() == {1}
    state.drop(ready.last)
    assert not memory.slots
    assert state.ready(None).last is None


def test_a_state_older_than_the_lake_is_not_dropped_from():
    state = CommitState(MemoryState(), epoch=1)
    state.receive(b"a", 1)
    with pytest.raises(
        UntrustedRunError, match=r"up to number 4 .* given 0 at most.*--rebuild-state-from LAKE"
    ):
        state.drop(Mark(4, 0))


def test_the_chain_tells_other_entries_of_the_same_number():
    assert chain_of(0, b"a") != chain_of(0, b"b")
    assert chain_of(chain_of(0, b"a"), b"c") != chain_of(chain_of(0, b"b"), b"c")
    assert 0 <= chain_of(2**63 - 1, b"a") < 2**63


@given(st.lists(st.sampled_from(["receive", "ready", "drop", "restore"]), max_size=60))
def test_everything_received_is_pending_until_it_is_dropped(steps):
    memory, epoch = MemoryState(), 0
    state = CommitState(memory, epoch)
    kept, given_ = [], 0
    ready = state.ready(None)
    for clock, step in enumerate(steps):
        if step == "receive":
            assert state.receive(b"%d" % given_, clock) == given_
            kept.append(given_)
            given_ += 1
        elif step == "ready":
            ready = state.ready(None)
            assert seqs(ready) == kept
            assert [a.packed for a in ready.arrivals] == [b"%d" % n for n in kept]
        elif step == "drop" and ready.last:
            state.drop(ready.last)
            kept = [n for n in kept if n > ready.last.seq]
        elif step == "restore":
            epoch += 1
            memory = memory.copy()
            state = CommitState(memory, epoch)
    assert seqs(state.ready(None)) == kept
    assert len(memory.slots) <= SLOTS
