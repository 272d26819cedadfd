"""The hash table of ids, against a dict."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.id_index import IdIndex


def u64(values) -> np.ndarray:
    return np.array(values, np.uint64)


def ids(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    high, low, tags = (draw.integers(0, 2**64, count, dtype=np.uint64) for _ in range(3))
    return high, low, tags >> np.uint64(16)


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            st.dictionaries(
                st.tuples(st.integers(0, 3), st.integers(0, 60)), st.integers(0, 2**48 - 1), max_size=50
            ),
            st.integers(0, 3),
        ),
        st.tuples(st.just("remove"), st.sets(st.integers(0, 3), max_size=3), st.none()),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_it_is_a_dict_of_ids(steps):
    index, held = IdIndex(), {}
    for what, items, slot in steps:
        if what == "remove":
            index.remove(items)
            held = {id_: v for id_, v in held.items() if v[1] not in items}
        else:
            new = {id_: tag for id_, tag in items.items() if id_ not in held}
            index.add(
                u64([h for h, _ in new]), u64([i for _, i in new]), u64(list(new.values())), np.uint8(slot)
            )
            held |= {id_: (tag, slot) for id_, tag in new.items()}
        every = [(h, i) for h in range(4) for i in range(61)]
        found = index.find(u64([h for h, _ in every]), u64([i for _, i in every]))
        assert [id_ for id_, entry in zip(every, found, strict=True) if entry >= 0] == sorted(held)
        assert index.tags(found[found >= 0]).tolist() == [held[id_][0] for id_ in sorted(held)]
        assert len(index) == len(held)


def test_all_128_bits_are_compared():
    index = IdIndex()
    index.add(u64([5]), u64([7]), u64([1]), 0)
    bits = [1 << i for i in range(64)]
    high = u64([5 ^ b for b in bits] + [5] * 64 + [5, 7])
    low = u64([7] * 64 + [7 ^ b for b in bits] + [7, 5])
    assert index.find(high, low).tolist() == [-1] * 128 + [0, -1]


def test_ids_that_differ_in_a_few_bits_only_are_found():
    """UUIDs of versions 1, 6 and 7 made in one place have most bits in common."""
    index = IdIndex()
    high, low = u64(np.arange(50_000)) << np.uint64(44), np.full(50_000, 2**63, np.uint64)
    index.add(high, low, low >> np.uint64(20), 3)
    assert index.find(high, low).tolist() == list(range(50_000))
    assert (index.find(high + np.uint64(1), low) == -1).all()


def test_a_slot_for_each_id():
    index = IdIndex()
    high, low, tags = ids(300)
    index.add(high, low, tags, (np.arange(300) % 3).astype(np.uint8))
    index.remove([0, 2])
    assert len(index) == 100
    assert np.flatnonzero(index.find(high, low) >= 0).tolist() == list(range(1, 300, 3))


def test_memory_stays_below_45_bytes_an_id_while_growing_and_after_removals():
    index, worst = IdIndex(), 0.0
    high, low, tags = ids(300_000)
    for start in range(0, len(high), 1500):
        part = slice(start, start + 1500)
        index.add(high[part], low[part], tags[part], start // 1500 % 27)
        if start >= 10_000:
            worst = max(worst, index.nbytes / len(index))
    for slot in range(20):
        index.remove([slot])
        worst = max(worst, index.nbytes / len(index))
    assert len(index) == 49 * 1500
    assert 28 < worst <= 45


def test_the_hash_is_seeded_at_random():
    """Else a client could choose ids that all collide."""
    high, low, _ = ids(100)
    assert IdIndex()._probes(high, low)[0].tolist() != IdIndex()._probes(high, low)[0].tolist()


@pytest.mark.integration
def test_a_lookup_in_a_million_takes_well_under_a_microsecond():
    index = IdIndex()
    high, low, tags = ids(1_000_000)
    index.add(high, low, tags, 1)
    times = []
    for start in range(0, 200_000, 1000):
        part = slice(start, start + 1000)
        before = time.thread_time()
        index.find(high[part], low[part])
        times.append(time.thread_time() - before)
    assert np.quantile(times, 0.2) < 0.6e-3
