"""One shard of a stream against a dict that remembers, through rollbacks, lost processes and wrong clocks."""

import copy
import random
import threading
import uuid
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import EVENT_SCHEMA, QUARANTINE_SCHEMA
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import conform
from headrace.transforms.dedupe_records import by_shard, hash_records, payload_hashes, unpack_records
from headrace.transforms.dedupe_shard import ID_BYTES, DedupeShard, id_records
from headrace.transforms.dedupe_slots import FAR, SLOTS, Cell
from headrace.transforms.index_cache import IndexCache
from headrace.transforms.shard_state import MemoryState

HOUR = 3_600_000_000
HORIZON = timedelta(hours=24)
START = int(datetime(2024, 5, 1, tzinfo=UTC).timestamp()) * 1_000_000
Y1970, Y3000 = 0, int(datetime(3000, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000


def events(rows: list[tuple]) -> pa.RecordBatch:
    """Rows of (id, ingest time in µs, page)."""
    ids, times, pages = zip(*rows, strict=True) if rows else ((), (), ())
    columns = {
        "event_id": pa.array(ids, pa.string()),
        "ingest_time": pa.array(times, pa.int64()).cast(EVENT_SCHEMA.field("ingest_time").type),
        "page_url": pa.array(pages, pa.string()),
    }
    return conform(columns, EVENT_SCHEMA, len(rows))


def at(hours: float) -> int:
    return START + int(hours * HOUR)


def decide(shard, state, rows, position=None, reader=0) -> tuple[list, list]:
    """Returns the accepted ids, and (id, reason) of the rejected."""
    accepted, rejected = shard.decide(events(rows), state, reader=reader, ingest_position=position)
    reasons = rejected["reason"].to_pylist()
    return accepted["event_id"].to_pylist(), list(zip(rejected["event_id"].to_pylist(), reasons, strict=True))


def new(readers=1, horizon=HORIZON, cache=None) -> DedupeShard:
    return DedupeShard(
        "step", 0, readers=readers, horizon=horizon, cache=IndexCache() if cache is None else cache
    )


class Trusting(IndexCache):
    """The test of the test: a cache that does not look at versions."""

    def take(self, key, version):
        held = self._held.pop(key, None)
        return None if held is None else held[1]


def held_ids(state: MemoryState) -> int:
    return sum(len(c) for chunks in state.slots.values() for c in chunks) // ID_BYTES


class TestVerdicts:
    def test_the_first_to_arrive_wins_within_a_batch_and_later(self):
        shard, state = new(), MemoryState()
        rows = [("a", at(1), "p"), ("b", at(1), "p"), ("a", at(0), "p"), ("b", at(1), "q"), ("a", at(2), "r")]
        accepted, rejected = decide(shard, state, rows)
        assert accepted == ["a", "b"]
        assert rejected == [("a", "duplicate"), ("b", "duplicate_conflict"), ("a", "duplicate_conflict")]
        accepted, rejected = decide(shard, state, [("c", at(2), "p"), ("a", at(0), "p"), ("b", at(3), "x")])
        assert (accepted, rejected) == (["c"], [("a", "duplicate"), ("b", "duplicate_conflict")])

    def test_rows_without_id_are_rejected_in_order(self):
        shard, state = new(), MemoryState()
        rows = [(None, at(1), "p"), ("a", at(1), "p"), (None, at(1), "p"), ("a", at(1), "p")]
        accepted, rejected = decide(shard, state, rows)
        assert accepted == ["a"]
        assert rejected == [(None, "no_id"), (None, "no_id"), ("a", "duplicate")]
        assert decide(shard, MemoryState(), rows[:1]) == ([], [(None, "no_id")])

    def test_outcomes_have_their_schemas_and_keep_further_columns(self):
        batch = events([("a", at(1), "p"), ("a", at(1), "p")])
        batch = batch.append_column("tier", pa.array(["x", "y"]))
        accepted, rejected = new().decide(batch, MemoryState(), reader=0, ingest_position=None)
        assert accepted.schema == batch.schema
        assert accepted["tier"].to_pylist() == ["x"]
        assert rejected.schema.equals(QUARANTINE_SCHEMA)
        assert rejected["stage"].to_pylist() == ["dedupe"]
        assert rejected["message"].to_pylist() == [
            "another event with this event_id and the same content was accepted"
        ]

    def test_generated_ids_are_like_all_others(self):
        batch = events([("a", at(1), "p")] * 2)
        batch = batch.set_column(1, EVENT_SCHEMA.field("id_generated"), pa.array([True, True]))
        accepted, rejected = new().decide(batch, MemoryState(), reader=0, ingest_position=None)
        assert (accepted.num_rows, rejected["reason"].to_pylist()) == (1, ["duplicate"])

    def test_an_empty_batch_moves_the_position_only(self):
        shard, state = new(readers=2), MemoryState()
        accepted, rejected = decide(shard, state, [], at(5), reader=1)
        assert (accepted, rejected) == ([], [])
        cell = Cell.unpack(state.cell, 2, 24 * HOUR)
        assert cell.positions == [None, at(5)]
        assert cell.ends == [None] * SLOTS
        before = state.cell
        decide(shard, state, [], at(5) + 30_000_000, reader=1)
        assert state.cell == before, "less than a minute is not worth a write"

    def test_duplicates_alone_write_nothing(self):
        shard, state = new(), MemoryState()
        decide(shard, state, [("a", at(1), "p")], at(1))
        before = state.copy()
        decide(shard, state, [("a", at(1), "p")], at(1))
        assert (state.cell, state.slots) == (before.cell, before.slots)

    def test_any_cut_into_batches_gives_the_same_verdicts(self):
        rows = [(f"{i * 7 % 23}", at(i / 3), f"{i % 3}") for i in range(90)]
        whole = decide(new(), MemoryState(), rows, at(30))
        for size in (1, 7, 40):
            shard, state = new(), MemoryState()
            parts = [decide(shard, state, rows[i : i + size], at(0)) for i in range(0, 90, size)]
            assert ([a for p in parts for a in p[0]], [r for p in parts for r in p[1]]) == whole


class TestArguments:
    @pytest.mark.parametrize("readers", [0, -1])
    def test_no_readers(self, readers):
        with pytest.raises(ConfigError, match=rf"readers={readers}\): must be at least 1"):
            new(readers=readers)

    def test_no_horizon(self):
        with pytest.raises(ConfigError, match="must be above zero; the default is 1 day"):
            new(horizon=timedelta(0))

    @pytest.mark.parametrize("reader", [-1, 2])
    def test_an_unknown_reader(self, reader):
        with pytest.raises(ValueError, match=f"reader {reader}: must be from 0 to 1"):
            decide(new(readers=2), MemoryState(), [], at(0), reader=reader)

    def test_other_bytes_in_the_state(self):
        state = MemoryState()
        state.write_cell(b"x" * 99)
        with pytest.raises(ValueError, match="99 bytes of state are not the cell of a dedupe shard"):
            decide(new(), state, [("a", at(1), "p")])
        state = MemoryState()
        decide(new(), state, [("a", at(1), "p")], at(1))
        state.add_to_slot(0, b"x" * 23)
        with pytest.raises(ValueError, match="23 bytes of state are not ids of a dedupe shard"):
            decide(new(), state, [("a", at(1), "p")])


class TestState:
    @pytest.mark.parametrize("size", [100, 1000])
    def test_at_most_24_bytes_an_id_all_in(self, size):
        """With eight bytes for what a runner adds to each value."""
        shard, state = new(readers=4), MemoryState()
        for i in range(0, 20_000, size):
            rows = [(str(uuid.UUID(int=i + j)), at(i / 1000), "p") for j in range(size)]
            decide(shard, state, rows, at(i / 1000), reader=i // size % 4)
        assert held_ids(state) == 20_000
        chunks = [c for held in state.slots.values() for c in held]
        assert len(state.cell) == 16 + 8 * SLOTS + 8 * 4
        assert (sum(len(c) + 8 for c in chunks) + len(state.cell) + 8) / 20_000 <= 24

    def test_another_number_of_readers_keeps_the_ids_and_asks_for_positions_anew(self):
        state = MemoryState()
        decide(new(readers=2), state, [("a", at(1), "p")], at(1))
        shard = new(readers=3)
        assert decide(shard, state, [("a", at(1), "p")], at(1), reader=2) == ([], [("a", "duplicate")])
        assert Cell.unpack(state.cell, 3, 24 * HOUR).positions == [None, None, at(1)]

    def test_another_horizon_holds_for_what_is_remembered(self):
        state = MemoryState()
        decide(new(), state, [("a", at(0), "p")], at(0))
        shard = new(horizon=timedelta(hours=2))
        for hours in range(1, 30):
            decide(shard, state, [(f"{hours}", at(hours / 3), "p")], at(hours / 3))
        assert decide(shard, state, [("a", at(10), "p")])[0] == ["a"]


class TestExpiry:
    def test_an_id_goes_once_all_readers_have_passed_it_by_the_horizon(self):
        shard, state = new(readers=2), MemoryState()
        decide(shard, state, [("a", at(0.5), "p")], at(0.5))
        for hours in range(1, 60):
            decide(shard, state, [(f"x{hours}", at(hours), "p")], at(hours))
        assert decide(shard, state, [("a", at(60), "p")], at(60))[0] == []
        for hours in range(1, 60):
            decide(shard, state, [(f"y{hours}", at(hours), "p")], at(hours), reader=1)
        decide(shard, state, [("z", at(61), "p")], at(61))
        decide(shard, state, [("z2", at(62), "p")], at(62))
        assert decide(shard, state, [("a", at(62), "p")], at(62))[0] == ["a"]

    @pytest.mark.parametrize("lag", [0, 1, 12, 40])
    def test_memory_is_that_of_horizon_and_lag(self, lag):
        """Ten ids an hour, one reader behind the other; ids come again 23 hours later."""
        shard, state, most = new(readers=2), MemoryState(), 0
        for hour in range(150):
            for reader, now in ((0, hour), (1, hour - lag)):
                rows = [(f"{reader}/{now}/{i}", at(now), "p") for i in range(5)]
                old = [(f"{reader}/{now - 23}/{i}", at(now), "p") for i in range(5)] if hour % 7 == 6 else []
                accepted, rejected = decide(shard, state, rows + old * (hour > 23), at(now), reader=reader)
                assert len(accepted) == 5
                assert [r for _, r in rejected] == ["duplicate"] * len(old) * (hour > 23)
            most = max(most, held_ids(state))
        assert 10 * 24 <= most <= 10 * (28 + 2 * lag)

    @pytest.mark.parametrize(("lag", "hours"), [(0, 33), (1.5, 34), (5, 58)])
    def test_no_id_goes_a_quarter_of_an_hour_early(self, lag, hours):
        """At each step, all ids that expire within the next hour come once more; the longest fills slots of several hours."""
        shard, state, times, expired = new(readers=2), MemoryState(), {}, 0
        for step in range(hours * 4):
            slow = step / 4 - lag
            rows = [(f"{step}", at(step / 4), "p")]
            decide(shard, state, rows, at(step / 4))
            times[f"{step}"] = step / 4
            old = [id_ for id_, time in times.items() if slow - 0.25 < time + 24 <= slow + 0.75]
            accepted, rejected = decide(shard, state, [(i, at(slow), "p") for i in old], at(slow), reader=1)
            assert (accepted, len(rejected)) == ([], len(old))
            expired = len(times) - held_ids(state)
        assert expired >= 20

    def test_the_slot_of_the_future_keeps_its_latest_end(self):
        shard, state = new(), MemoryState()
        decide(shard, state, [("now", at(0), "p")], at(0))
        decide(shard, state, [("far", at(60), "p")], at(0))
        decide(shard, state, [("less far", at(30), "p")], at(0))
        for hour in range(1, 81):
            decide(shard, state, [(f"{hour}", at(hour), "p")], at(hour))
        assert decide(shard, state, [("far", at(80), "p"), ("less far", at(80), "p")], at(80))[0] == []
        for hour in range(81, 100):
            decide(shard, state, [(f"{hour}", at(hour), "p")], at(hour))
        assert decide(shard, state, [("far", at(100), "p")], at(100))[0] == ["far"], (
            "it does not stay for ever"
        )

    def test_wrong_clocks_neither_make_ids_expire_nor_fill_the_state(self):
        shard, state = new(), MemoryState()
        for hour in range(200):
            rows = [(f"{hour}/{i}", at(hour), "p") for i in range(10)]
            rows += [
                (f"early{hour}", Y1970 + hour * HOUR, "p"),
                (f"late{hour}", Y3000 + hour * HOUR, "p"),
                (f"ahead{hour}", at(hour + 40 + hour % 50), "p"),
                (f"null{hour}", None, "p"),
                (f"first{hour}", -(2**63) + 1, "p"),
                (f"last{hour}", 2**63 - 1, "p"),
            ]
            old = [(f"{hour - 23}/{i}", at(hour), "p") for i in range(10)] if hour % 7 == 6 else []
            accepted, rejected = decide(shard, state, rows + old * (hour > 23), at(hour))
            assert accepted == [r[0] for r in rows]
            assert len(rejected) == len(old) * (hour > 23)
        far = sum(len(c) for c in state.slots[FAR]) // ID_BYTES
        assert far == 3 * 200, "what claims to be from the future is kept, and by itself"
        assert held_ids(state) - far <= 13 * 28

    def test_a_reader_whose_position_is_not_known_holds_everything(self):
        shard, state = new(readers=2), MemoryState()
        for hour in range(100):
            decide(shard, state, [(f"{hour}", at(hour), "p")], at(hour))
        assert held_ids(state) == 100
        decide(shard, state, [], at(99), reader=1)
        decide(shard, state, [("x", at(100), "p")], at(100))
        assert held_ids(state) < 100

    def test_a_position_counts_only_after_its_batch(self):
        """The batch may hold copies that its own position makes expire."""
        shard, state = new(), MemoryState()
        for hour in range(26):
            decide(shard, state, [(f"{hour}", at(hour), "p")], at(hour))
        rows = [(f"x{hour}", at(hour), "p") for hour in range(26, 80)]
        assert decide(shard, state, [*rows, ("2", at(25), "p")], at(80))[1] == [("2", "duplicate")]
        assert decide(shard, state, [("3", at(25), "p")], at(0))[1] == [("3", "duplicate")]


GARBAGE = st.sampled_from([None, Y1970, Y3000, -(2**63) + 1, 2**63 - 1])
TIMES = st.one_of(st.integers(0, 400).map(lambda quarter: at(quarter / 4)), GARBAGE)
ROWS = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(0, 40).map(str)), TIMES, st.sampled_from("pq")), max_size=8
)
POSITIONS = st.one_of(st.none(), st.integers(0, 130).map(at), st.just(Y1970))
CALLS = st.tuples(st.just("call"), st.integers(0, 1), st.integers(0, 2), ROWS, POSITIONS, st.integers(0, 5))
STEPS = st.lists(
    st.one_of(CALLS, CALLS, CALLS, st.sampled_from([("save",), ("restore",), ("lose", 0), ("lose", 1)])),
    max_size=40,
)


class Oracle:
    """A dict that never forgets, but knows since when it could."""

    def __init__(self, readers: int) -> None:
        self.held: dict[str, tuple[int, str]] = {}
        self.positions: list[int | None] = [None] * readers
        self.passed: set[str] = set()
        self.expired = 0

    def check(self, rows: list[tuple], accepted: list, rejected: list) -> None:
        accepted, rejected = list(accepted), list(rejected)
        for id_, time, page in rows:
            if id_ is None:
                assert rejected.pop(0) == (None, "no_id")
            elif id_ not in self.held:
                assert accepted.pop(0) == id_
                self.held[id_] = (0 if time is None else time, page)
            elif id_ in self.passed and id_ in accepted:
                assert accepted.pop(0) == id_
                self.held[id_] = (0 if time is None else time, page)
                self.passed.discard(id_)
                self.expired += 1
            else:
                assert rejected.pop(0) == (id_, self.reason(id_, page))
        assert (accepted, rejected) == ([], [])

    def reason(self, id_: str, page: str) -> str:
        return "duplicate" if self.held[id_][1] == page else "duplicate_conflict"

    def move(self, reader: int, position: int | None) -> None:
        self.positions[reader] = position
        if None not in self.positions:
            slowest = min(self.positions)
            self.passed |= {id_ for id_, (time, _) in self.held.items() if slowest >= time + 24 * HOUR}


def play(steps: list[tuple], cache: type[IndexCache], readers: int = 3) -> int:
    """Two processes take turns on one shard, while bundles fail, and state and processes are lost.

    Returns how many ids were accepted again after they had expired.
    """
    processes = [new(readers, cache=cache()) for _ in range(2)]
    state, oracle = MemoryState(), Oracle(readers)
    saved = (state.copy(), copy.deepcopy(oracle))
    for step in steps:
        if step[0] == "save":
            saved = (state.copy(), copy.deepcopy(oracle))
        elif step[0] == "restore":
            state, oracle = saved[0].copy(), copy.deepcopy(saved[1])
        elif step[0] == "lose":
            processes[step[1]] = new(readers, cache=cache())
        else:
            _, process, reader, rows, position, luck = step
            reader %= readers
            if luck == 0:
                decide(processes[process], state.copy(), rows, position, reader)  # This bundle fails.
            accepted, rejected = decide(processes[process], state, rows, position, reader)
            oracle.check(rows, accepted, rejected)
            oracle.move(reader, position)
    return oracle.expired


class TestOracle:
    @settings(max_examples=80, deadline=None)
    @given(STEPS)
    def test_no_id_is_lost_or_doubled(self, steps):
        play(steps, IndexCache)

    @settings(max_examples=40, deadline=None)
    @given(STEPS)
    def test_with_one_reader(self, steps):
        play(steps, IndexCache, readers=1)

    @pytest.mark.parametrize(("readers", "seed"), [(1, 1), (2, 2), (3, 3)])
    def test_days_of_a_stream_with_lagging_readers(self, readers, seed):
        """Readers advance by up to two hours a call, apart by up to 30; a third of the rows are copies of any age."""
        draw, steps, places = random.Random(seed), [], [0.0] * readers
        for number in range(250):
            reader = draw.choice([i for i, p in enumerate(places) if p <= min(places) + 30])
            rows, time = [], places[reader]
            for i in range(draw.randint(0, 6)):
                copied = draw.random() < 0.3
                id_ = draw.randint(0, 6 * number) if copied else 6 * number + i
                wrong = draw.random() < 0.03
                rows.append((str(id_), draw.choice([None, Y1970, Y3000]) if wrong else at(time), "p"))
            places[reader] = time + draw.random() * 2
            steps.append(("call", draw.randint(0, 1), reader, rows, at(time), draw.randint(0, 9)))
            if draw.random() < 0.05:
                steps.append(draw.choice([("save",), ("restore",), ("lose", 0), ("lose", 1)]))
        expired = play(steps, IndexCache, readers)
        assert expired >= 3, "too few to prove anything"

    def test_a_failed_bundle_loses_ids_without_the_version_rule(self):
        steps = [("call", 0, 0, [("a", at(1), "p")], None, 1), ("call", 0, 0, [("b", at(1), "p")], None, 0)]
        play(steps, IndexCache)
        with pytest.raises(IndexError):
            play(steps, Trusting)

    def test_a_shard_that_moves_and_comes_back_doubles_ids_without_the_version_rule(self):
        calls = [(0, "a"), (1, "b"), (0, "b")]
        steps = [("call", process, 0, [(id_, at(1), "p")], None, 1) for process, id_ in calls]
        play(steps, IndexCache)
        with pytest.raises((AssertionError, IndexError)):
            play(steps, Trusting)

    def test_a_restored_savepoint_loses_ids_without_the_version_rule(self):
        before, after = (("call", 0, 0, [(id_, at(1), "p")], None, 1) for id_ in "ab")
        steps = [before, ("save",), after, ("restore",), after]
        play(steps, IndexCache)
        with pytest.raises(IndexError):
            play(steps, Trusting)


def test_a_call_that_raises_leaves_no_index_behind():
    class Failing(MemoryState):
        def add_to_slot(self, slot, value):
            raise OSError("state is away")

    cache = IndexCache()
    shard, state = new(cache=cache), MemoryState()
    decide(shard, state, [("a", at(1), "p")])
    failing = Failing()
    failing.cell, failing.slots = state.cell, state.slots
    with pytest.raises(OSError, match="state is away"):
        decide(shard, failing, [("b", at(1), "p")])
    assert len(cache) == 0
    assert decide(shard, state, [("b", at(1), "p"), ("a", at(1), "p")]) == (["b"], [("a", "duplicate")])
    assert shard.rebuilt_ids == 1


def test_a_state_that_is_gone_is_a_new_shard():
    """A job that starts anew in a process that remembers the one before."""
    shard = new()
    assert decide(shard, MemoryState(), [("a", at(1), "p")])[0] == ["a"]
    assert decide(shard, MemoryState(), [("a", at(1), "p")])[0] == ["a"]


def test_threads_share_a_cache():
    cache, states, found = IndexCache(), [MemoryState() for _ in range(4)], [[] for _ in range(4)]

    def work(number: int) -> None:
        for i in range(25):
            shard = DedupeShard("step", number, readers=1, cache=cache)
            rows = [(f"{i // 2}/{j}", at(i), "p") for j in range(5)]
            found[number] += decide(shard, states[number], rows, at(i))[0]
            assert shard.rebuilt_ids == 0

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[f"{i}/{j}" for i in range(13) for j in range(5)]] * 4


class TestSeed:
    def batch(self, rows: list[tuple], *, payload: bool) -> pa.RecordBatch:
        whole = events(rows)
        batch = whole.select(["event_id", "ingest_time"])
        return batch.append_column("payload", pa.array(payload_hashes(whole))) if payload else batch

    def test_seeded_ids_are_duplicates_by_payload(self):
        shard, state = new(), MemoryState()
        rows = [("a", at(1), "p"), ("b", at(2), "p"), ("a", at(3), "q")]
        assert shard.seed(self.batch(rows, payload=True), state) == 2
        assert shard.seed(self.batch(rows, payload=True), state) == 0
        later = [("a", at(3), "p"), ("b", at(3), "x"), ("c", at(3), "p")]
        accepted, rejected = decide(shard, state, later)
        assert accepted == ["c"]
        assert rejected == [("a", "duplicate"), ("b", "duplicate_conflict")]

    def test_without_payload_every_copy_is_a_duplicate_through_a_rebuild_too(self):
        state = MemoryState()
        assert new().seed(self.batch([("a", at(1), "p")], payload=False), state) == 1
        for _ in range(2):
            assert decide(new(), state, [("a", at(1), "other")]) == ([], [("a", "duplicate")])

    def test_a_day_of_ids_is_spread_over_the_slots_and_expires(self):
        shard, state = new(), MemoryState()
        rows = [(f"{i}", at(i / 10), "p") for i in range(240)]
        assert shard.seed(self.batch(rows, payload=True), state) == 240
        assert max(sum(map(len, chunks)) for chunks in state.slots.values()) == 10 * ID_BYTES
        for hour in range(24, 36):
            decide(shard, state, [(f"x{hour}", at(hour), "p")], at(hour))
        assert held_ids(state) < 240 - 80 + 12
        assert decide(shard, state, [("150", at(35), "p")])[0] == []

    def test_a_null_id_is_refused(self):
        with pytest.raises(ValueError, match="a row has no event_id"):
            new().seed(self.batch([(None, at(1), "p")], payload=False), MemoryState())

    def test_nothing_to_seed(self):
        state = MemoryState()
        assert new().seed(self.batch([], payload=False), state) == 0
        assert state.cell is None


def test_records_of_ids_go_to_the_shards_of_whole_records():
    batch = events([(f"{i}", at(1), "p") for i in range(50)])

    def rows(records):
        return {shard: unpack_records([p])["row"].tolist() for shard, p in by_shard(records, 7)}

    assert rows(id_records(batch)) == rows(hash_records(batch, 0, 0))
