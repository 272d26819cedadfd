"""Windows of a stream: any order, rollback and loss of memory give the batch's result over the rows that were not late."""

import copy
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import CODE, ENRICHED_SCHEMA, TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms import pane_store
from headrace.transforms.packed_batches import pack_parts
from headrace.transforms.ready_windows import METRICS
from headrace.transforms.shard_state import MemoryState
from headrace.transforms.stream_clock import END
from headrace.transforms.stream_message import Message
from headrace.transforms.window_definitions import PANE, Count, Distinct, Sum, Top, Windows
from headrace.transforms.window_partials import finish, finish_windows, merge, partial, starts_of
from headrace.transforms.window_rows import (
    ROWS,
    latest_rows,
    partial_with_rows,
    split_partial,
)
from headrace.transforms.window_shard import WindowShard
from headrace.transforms.window_state import NEVER, SLOTS

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND = 1_000_000
MINUTE = 60 * SECOND
EVENTS = METRICS["events_per_minute"]
ALL = Windows(
    timedelta(seconds=7),
    ("currency", "event_type"),
    {"users": Distinct("user_id"), "money": Sum("revenue"), "units": Sum("quantity")},
)
SLIDING = Windows(
    timedelta(seconds=20),
    ("event_type",),
    {"users": Distinct("user_id"), "n": Count()},
    every=timedelta(seconds=8),
)
TOP = Windows(timedelta(seconds=30), ("user_id",), {"n": Count()}, top=Top(1, "n"))
FIRED = ["pane_index", "timing", "is_final", "fired_at", "window_shard"]


class One(NamedTuple):
    """What came of messages in a shard's only table."""

    rows: pa.Table | None
    late: pa.Table | None
    kept: int
    watermark: int | None


class Single(WindowShard):
    """A shard with one table."""

    def __init__(self, windows, *arguments, **more):
        super().__init__({"t": windows}, *arguments, **more)

    def receive_many(self, messages, state):
        firing = super().receive_many(messages, state)
        return One(firing.rows.get("t"), firing.late.get("t"), firing.kept.get("t", 0), firing.watermark)


def event(seconds: float, user="u", kind="click", **more) -> dict:
    return {
        "event_time": EPOCH + timedelta(seconds=seconds),
        "event_type": kind,
        "user_id": user,
        **more,
    }


def batch_of(rows: list[dict]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=ENRICHED_SCHEMA)


def message(
    poll, watermark, rows=(), windows=EVENTS, *, read_at=0, reader=0, shard=0, final=False
) -> Message:
    """Times in seconds."""
    mark = None if watermark is None else round(watermark * SECOND)
    parts = ((0, partial_with_rows(batch_of(list(rows)), windows)),) if rows else ()
    return Message(reader, shard, poll, mark, None, round(read_at * SECOND), None, final, parts=parts)


def fired(firing: One) -> list[tuple]:
    """(window start in seconds, type, events, users, index, timing, final) of each row."""
    if firing.rows is None:
        return []
    return [
        (
            int((r["window_start"] - EPOCH).total_seconds()),
            r["event_type"],
            r["events"],
            r["unique_users"],
            r["pane_index"],
            r["timing"],
            r["is_final"],
        )
        for r in firing.rows.to_pylist()
    ]


def starts(table: pa.Table) -> list[int]:
    """Window starts in seconds."""
    return [int((start - EPOCH).total_seconds()) for start in table["window_start"].to_pylist()]


def shard_of(windows=EVENTS, readers=1, shards=1, lateness=10.0, early=0.0, late=0.0, **more) -> Single:
    return Single(windows, readers, shards, round(lateness * SECOND), early, late, **more)


def test_the_firings_of_one_pane_from_early_to_final():
    kernel, state = shard_of(early=30, late=5), MemoryState()
    steps = [
        (message(0, None, [event(1)], read_at=100), []),
        (message(1, None, [event(2, "v")], read_at=129.9), []),
        (message(2, 5, read_at=130), [(0, "click", 2, 2, 0, "early", False)]),
        (message(3, 6, read_at=170), []),
        (message(4, 7, [event(3)], read_at=171), [(0, "click", 3, 2, 1, "early", False)]),
        (message(5, 59.999999, [event(4, kind="x")], read_at=172), []),
        (
            message(6, 60, read_at=173),
            [(0, "click", 3, 2, 2, "on_time", False), (0, "x", 1, 1, 2, "on_time", False)],
        ),
        (message(7, 61, read_at=174), []),
        (
            message(8, 62, [event(5, "w")], read_at=175),
            [(0, "click", 4, 3, 3, "late", False), (0, "x", 1, 1, 3, "late", False)],
        ),
        (message(9, 63, [event(6, "w")], read_at=179), []),
        (
            message(10, 64, read_at=180),
            [(0, "click", 5, 3, 4, "late", False), (0, "x", 1, 1, 4, "late", False)],
        ),
        (message(11, 69.999999, read_at=999), []),
        (
            message(12, 70, read_at=1000),
            [(0, "click", 5, 3, 5, "final", True), (0, "x", 1, 1, 5, "final", True)],
        ),
        (message(13, 71, [event(59)], read_at=1001), []),
        (message(14, None, read_at=1002, final=True), []),
    ]
    for received, expected in steps:
        firing = kernel.receive(received, state)
        assert fired(firing) == expected, received.poll
        if received.poll == 13:
            assert firing.late.select(
                ["window_start", "event_type", "events", ROWS, "reader", "shard", "poll"]
            ).to_pylist() == [
                {
                    "window_start": EPOCH,
                    "event_type": "click",
                    "events": 1,
                    "rows": 1,
                    "reader": 0,
                    "shard": 0,
                    "poll": 13,
                }
            ]
            assert firing.kept == 0
        else:
            assert firing.late is None
            assert firing.kept == bool(received.parts)
    assert firing.watermark == END
    assert state.slots == {}


def test_types_of_the_result():
    kernel = shard_of(lateness=0, window_shard=3)
    table = kernel.receive(message(0, 60, [event(1)], read_at=7), MemoryState()).rows
    assert table.schema.names == [*finish(partial(batch_of([event(1)]), EVENTS), EVENTS).schema.names, *FIRED]
    types = {name: table.schema.field(name).type for name in FIRED}
    assert types == {
        "pane_index": pa.int32(),
        "timing": CODE,
        "is_final": pa.bool_(),
        "fired_at": TIME,
        "window_shard": pa.int32(),
    }
    row = table.to_pylist()[0]
    assert (row["fired_at"], row["window_shard"], row["timing"]) == (EPOCH + timedelta(seconds=7), 3, "final")


def test_a_pane_first_seen_after_its_end_is_late_and_without_early_firings_there_are_none():
    kernel, state = shard_of(lateness=100), MemoryState()
    kernel.receive(message(0, 65, read_at=1), state)
    firing = kernel.receive(message(1, 66, [event(1), event(61)], read_at=900), state)
    assert fired(firing) == [(0, "click", 1, 1, 0, "late", False)]
    assert fired(kernel.receive(message(2, 120, read_at=901), state)) == [
        (60, "click", 1, 1, 0, "on_time", False)
    ]


def test_the_guard_looks_at_the_watermark_before_the_message():
    kernel, state = shard_of(lateness=0), MemoryState()
    kernel.receive(message(0, 59.999999), state)
    own = kernel.receive(message(1, 500, [event(1), event(130)]), state)
    assert fired(own) == [(0, "click", 1, 1, 0, "final", True), (120, "click", 1, 1, 0, "final", True)]
    after = kernel.receive(message(2, 500, [event(499), event(1), event(479.999999)]), state)
    assert starts(after.late) == [0, 420]
    assert after.kept == 1


def test_a_gap_holds_the_watermark_but_not_the_rows():
    kernel, state = shard_of(lateness=0), MemoryState()
    kernel.receive(message(0, 1), state)
    assert fired(kernel.receive(message(2, 300, [event(5)]), state)) == []
    firing = kernel.receive(message(1, 2, [event(6)]), state)
    assert fired(firing) == [(0, "click", 2, 1, 0, "final", True)]
    assert firing.watermark == 300 * SECOND


def test_a_larger_lateness_does_not_reopen_a_final_pane():
    state = MemoryState()
    shard_of(lateness=0).receive(message(0, 60, [event(1)]), state)
    firing = shard_of(lateness=3600).receive(message(1, 61, [event(2), event(62)]), state)
    assert starts(firing.late) == [0]
    assert firing.kept == 1


def test_a_message_without_rows_writes_the_cell_only():
    class Counting(MemoryState):
        touched = 0

        def read_slot(self, slot):
            self.touched += 1
            return super().read_slot(slot)

        def add_to_slot(self, slot, value):
            self.touched += 1
            super().add_to_slot(slot, value)

    kernel, state = shard_of(shards=16), Counting()
    kernel.receive(message(0, 1, [event(1)]), state)
    assert state.touched == 1
    for poll in range(1, 50):
        kernel.receive(message(poll, poll), state)
    assert state.touched == 1
    assert len(state.cell) < 1100
    fresh = shard_of(shards=16)
    fresh.receive(message(50, 50, [event(2)]), state)
    assert state.touched == 2, "a slot that is not in memory is not read to be added to"


def test_many_messages_at_once_are_the_same_but_for_firings_between():
    rows = [event(s, f"u{s % 7}") for s in range(0, 300, 3)]
    sent = [message(p, p * 3 - 40, [rows[p], rows[p // 2]]) for p in range(100)]
    one, many = MemoryState(), MemoryState()
    kernel, single, late = shard_of(), [], [0, 0]
    for received in sent:
        firing = kernel.receive(received, one)
        single.append(firing.rows)
        late[0] += firing.late["rows"].to_numpy().sum() if firing.late else 0
    kernel, several = shard_of(), []
    for i in range(0, 100, 9):
        firing = kernel.receive_many(sent[i : i + 9], many)
        several.append(firing.rows)
        late[1] += firing.late["rows"].to_numpy().sum() if firing.late else 0
    tables = [pa.concat_tables([t for t in found if t]) for found in (single, several)]
    finals = [t.filter(t["is_final"]).drop(["fired_at", "pane_index"]).to_pylist() for t in tables]
    assert late[0] == late[1] > 0
    assert finals[0] == finals[1]
    assert len(finals[0]) == 4
    assert tables[1].num_rows < tables[0].num_rows


def test_latest_rows_are_those_of_the_highest_index_of_each_window_and_shard():
    table = pa.table(
        {
            "window_start": pa.array([0, 0, 0, 60, 0, 0, 60], pa.int64()).cast(TIME),
            "window_shard": pa.array([0, 0, 1, 0, 0, 1, 0], pa.int32()),
            "pane_index": pa.array([2, 0, 5, 0, 2, 6, 1], pa.int32()),
            "n": [1, 2, 3, 4, 5, 6, 7],
        }
    )
    assert latest_rows(table)["n"].to_pylist() == [1, 5, 6, 7]
    assert latest_rows(pa.concat_tables([table.slice(3), table.slice(0, 3)]))["n"].to_pylist() == [5, 6, 7, 1]
    assert latest_rows(table.slice(0, 0)).num_rows == 0


def test_groups_are_spread_by_their_values_alone():
    rows = [
        event(s, "u", k, currency=c) for s in (1, 70) for k in ("a", "b", None) for c in ("EUR", "", None)
    ]
    part = partial_with_rows(batch_of(rows), ALL)
    parts = split_partial(part, ALL, 4)
    where = {}
    for shard, found in enumerate(parts):
        for row in found.to_pylist() if found is not None else ():
            group = (row["currency"], row["event_type"])
            assert where.setdefault(group, shard) == shard
    assert sum(p.num_rows for p in parts if p is not None) == part.num_rows
    assert where == {
        (r["currency"], r["event_type"]): shard
        for r in part.to_pylist()
        for shard, found in enumerate(
            split_partial(part.filter(pa.array([r == o for o in part.to_pylist()])), ALL, 4)
        )
        if found is not None
    }
    assert (where["EUR", "a"], where["EUR", None], where[None, None], where["", "b"]) == PINNED
    assert split_partial(part.slice(0, 0), ALL, 3) == [None] * 3
    assert split_partial(part, ALL, 1)[0] is part
    none = Windows(by=(), measures={"n": Count()})
    whole = partial_with_rows(batch_of(rows), none)
    assert split_partial(whole, none, 3)[0].equals(whole)
    assert [p is None for p in split_partial(whole, none, 3)] == [False, True, True]


PINNED = (3, 2, 0, 3)
"""Shards of four groups: other values would move the groups of a running stream."""


ROW = st.fixed_dictionaries(
    {"event_time": st.integers(-60, 60).map(lambda s: EPOCH + timedelta(seconds=s, microseconds=-1))},
    optional={
        "event_type": st.sampled_from(["", "click", "purchase"]),
        "currency": st.sampled_from(["EUR", "USD"]),
        "user_id": st.sampled_from(["", "u", "v", "w" * 32]),
        "revenue": st.decimals(-(10**20), 10**20, places=9),
        "quantity": st.integers(-(2**63), 2**63 - 1),
    },
)


@st.composite
def runs(draw):
    """(readers, shards, polls in the order of their sending: reader, watermark, rows with their shard)."""
    readers, shards = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    polls = []
    for reader in range(readers):
        for _ in range(draw(st.integers(1, 5))):
            watermark = draw(st.none() | st.integers(-70, 70))
            rows = draw(st.lists(st.tuples(ROW, st.integers(0, shards - 1)), max_size=5))
            polls.append((reader, watermark, rows))
    return readers, shards, polls


Sent = list[tuple[Message, list[dict]]]


def sent_by(readers: int, shards: int, polls: list, windows: Windows) -> Sent:
    """Every message with its input rows; each reader ends."""
    found: Sent = []
    numbers = [0] * readers
    for reader, watermark, rows in [*polls, *((r, None, []) for r in range(readers))]:
        poll = numbers[reader]
        numbers[reader] += 1
        final = numbers[reader] == 1 + sum(r == reader for r, _, _ in polls)
        for shard in range(shards):
            mine = [row for row, s in rows if s == shard]
            received = message(
                poll, watermark, mine, windows, read_at=poll * 20, reader=reader, shard=shard, final=final
            )
            found.append((received, mine))
    return found


class BrokenState(MemoryState):
    """Fails at the n-th write."""

    def __init__(self, state: MemoryState, writes: int) -> None:
        super().__init__()
        self.cell, self.slots = state.cell, state.slots
        self._left = writes

    def _write(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ConnectionError("state")

    def write_cell(self, value: bytes) -> None:
        self._write()
        super().write_cell(value)

    def add_to_slot(self, slot: int, value: bytes) -> None:
        self._write()
        super().add_to_slot(slot, value)


class Outputs:
    """What came out up to a checkpoint, with the guard's own oracle."""

    def __init__(self) -> None:
        self.tables: list[pa.Table] = []
        self.in_time: dict[int, list[dict]] = defaultdict(list)
        """Rows by the start of the window in which they are in time, µs."""
        self.late = 0

    def copy(self) -> "Outputs":
        other = Outputs()
        other.tables, other.in_time, other.late = list(self.tables), copy.deepcopy(self.in_time), self.late
        return other


def play(
    sent: Sent, make: Callable[[], Single], windows: Windows, lateness: int, chance: random.Random
) -> Outputs:
    """Delivers all messages, with rollbacks to a checkpoint, other orders after it, failures and losses of memory."""
    kernel, state, out = make(), MemoryState(), Outputs()
    left = list(sent)
    saved = (state.copy(), out.copy(), list(left))
    failures = 6
    while left:
        what = chance.random()
        if what < 0.1:
            saved = (state.copy(), out.copy(), list(left))
        elif what < 0.25 and failures:
            failures -= 1
            state, out, left = saved[0].copy(), saved[1].copy(), list(saved[2])
            chance.shuffle(left)
            if chance.random() < 0.3:
                kernel = make()
        elif what < 0.35:
            kernel = make()
        elif what < 0.45 and failures:
            failures -= 1
            attempt = BrokenState(state.copy(), chance.randrange(3))
            with suppress(ConnectionError):
                kernel.receive(left[0][0], attempt)
        else:
            taken = [left.pop(0) for _ in range(min(len(left), chance.choice([1, 1, 1, 3])))]
            deliver(taken, kernel, state, out, windows, lateness)
    return out


def deliver(
    taken: Sent, kernel: Single, state: MemoryState, out: Outputs, windows: Windows, lateness: int
) -> None:
    firing = kernel.receive_many([m for m, _ in taken], state)
    if firing.rows is not None:
        out.tables.append(firing.rows)
    late, kept = 0, 0
    for received, rows in taken:
        mine = set()
        if firing.late is not None:
            found = [
                r
                for r in firing.late.to_pylist()
                if (r["reader"], r["shard"], r["poll"]) == _number(received)
            ]
            mine = {(r["window_start"] - EPOCH) // timedelta(microseconds=1) for r in found}
            late += sum(r[ROWS] for r in found)
        for row in rows:
            for start in windows_of(row, windows):
                if start not in mine:
                    out.in_time[start].append(row)
                    kept += 1
    assert firing.kept == kept
    out.late += late


def windows_of(row: dict, windows: Windows) -> list[int]:
    micros = (row["event_time"] - EPOCH) // timedelta(microseconds=1)
    return starts_of(np.array([micros // windows.pane_us * windows.pane_us]), windows)[1].tolist()


def _number(received: Message) -> tuple[int, int, int]:
    return received.reader, received.shard, received.poll


def by_group(table: pa.Table, windows: Windows) -> list[dict]:
    names = ("window_start", *windows.by)
    return sorted(table.to_pylist(), key=lambda r: [(r[n] is None, r[n]) for n in names])


def result_of(out: Outputs, windows: Windows) -> pa.Table:
    """The batch's result over the rows that were in time."""
    parts = [partial(batch_of([]), windows)]
    for start, found in out.in_time.items():
        part = partial(batch_of(found), windows)
        parts.append(part.set_column(0, PANE, pa.array([start] * part.num_rows)))
    return finish_windows(merge(parts, windows), windows)


def check(out: Outputs, windows: Windows, rows: int) -> None:
    """The final firings, and the latest rows, are the batch's result over the rows in time; indexes have no gaps."""
    assert sum(map(len, out.in_time.values())) + out.late == rows
    expected = result_of(out, windows)
    if not out.tables:
        assert expected.num_rows == 0
        return
    table = pa.concat_tables(out.tables)
    last = latest_rows(table)
    assert by_group(last.drop(FIRED), windows) == by_group(expected, windows)
    assert set(last["is_final"].to_pylist()) == {True}
    assert table["is_final"].to_pylist().count(True) == expected.num_rows
    assert table.schema.names == [*expected.schema.names, *FIRED]
    panes = set(zip(table["window_start"].to_pylist(), table["pane_index"].to_pylist(), strict=True))
    for start in {s for s, _ in panes}:
        indexes = sorted(i for s, i in panes if s == start)
        assert indexes == list(range(len(indexes)))
    on_time = table.filter(pa.array([t == "on_time" for t in table["timing"].to_pylist()]))
    pairs = set(zip(on_time["window_start"].to_pylist(), on_time["pane_index"].to_pylist(), strict=True))
    assert len(pairs) == len({s for s, _ in pairs})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    runs(),
    st.sampled_from([ALL, EVENTS, SLIDING, TOP]),
    st.sampled_from([0, 5, 400]),
    st.integers(0, 40),
    st.sampled_from([(32, 64), (3, 1), (1, 3)]),
    st.integers(0, 2**32),
)
def test_any_order_with_rollbacks_and_losses_equals_the_batch_over_the_rows_in_time(
    run, windows, lateness, early, sizes, seed
):
    readers, shards, polls = run
    chance = random.Random(seed)
    sent = sent_by(readers, shards, polls, windows)
    chance.shuffle(sent)

    def make() -> Single:
        cache = chance.choice([0, 1 << 30])
        return Single(windows, readers, shards, lateness * SECOND, early, early / 2, cache_bytes=cache)

    slots, pieces = sizes
    with patch.object(pane_store, "SLOTS", slots), patch.object(pane_store, "REWRITE_PIECES", pieces):
        out = play(sent, make, windows, lateness, chance)
    check(out, windows, sum(len(windows_of(row, windows)) for _, rows in sent for row in rows))
    if lateness == 400:
        assert out.late == 0


def test_tables_share_clock_and_slots_and_each_gives_the_result_of_the_batch():
    tables = {"a": EVENTS, "b": SLIDING, "c": TOP, "d": Windows(timedelta(hours=1), (), {"n": Count()})}
    chance, state, rows, found = random.Random(5), MemoryState(), [], defaultdict(list)
    for poll in range(60):
        mine = [event(poll * 5 - chance.expovariate(0.2), f"u{chance.randrange(5)}") for _ in range(8)]
        rows += mine
        batch = batch_of(mine)
        parts = tuple((n, partial_with_rows(batch, w)) for n, w in enumerate(tables.values()))
        received = Message(0, 0, poll, poll * 5 * SECOND, None, poll * SECOND, None, poll == 59, parts=parts)
        if poll % 7 == 0:
            shard = WindowShard(tables, 1, 1, 60 * SECOND, cache_bytes=chance.choice([0, 1 << 30]))
        for name, table in shard.receive(received, state).rows.items():
            found[name].append(table)
    assert state.slots == {}
    for name, windows in tables.items():
        last = latest_rows(pa.concat_tables(found[name]))
        expected = finish(partial(batch_of(rows), windows), windows)
        assert by_group(last.drop(FIRED), windows) == by_group(expected, windows)


def test_windows_that_a_job_before_has_published_as_final_are_closed_in_their_table_only():
    tables = {"a": EVENTS, "b": Windows(timedelta(minutes=1), (), {"n": Count()})}
    shard, state = WindowShard(tables, 1, 1, 0, closed_until_us={"a": MINUTE, "b": None}), MemoryState()
    batch = batch_of([event(1), event(61)])
    parts = tuple((n, partial_with_rows(batch, w)) for n, w in enumerate(tables.values()))
    firing = shard.receive(Message(0, 0, 0, None, None, 0, final=True, parts=parts), state)
    assert starts(firing.late["a"]) == [0]
    assert firing.kept == {"a": 1, "b": 2}
    assert {name: starts(table) for name, table in firing.rows.items()} == {"a": [60], "b": [0, 60]}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    runs(),
    st.sampled_from([ALL, EVENTS, SLIDING, TOP]),
    st.sampled_from([0, 400]),
    st.integers(0, 40),
    st.sampled_from([(32, 64), (3, 1), (1, 3)]),
    st.integers(0, 2**32),
)
def test_corrections_leave_the_final_rows_whatever_is_rolled_back(run, windows, lateness, early, sizes, seed):
    readers, shards, polls = run
    chance = random.Random(seed)
    sent = sent_by(readers, shards, polls, windows)
    chance.shuffle(sent)

    def make() -> Single:
        more = {"cache_bytes": chance.choice([0, 1 << 30]), "accumulation": "retracting"}
        return Single(windows, readers, shards, lateness * SECOND, early, early / 2, **more)

    slots, pieces = sizes
    with patch.object(pane_store, "SLOTS", slots), patch.object(pane_store, "REWRITE_PIECES", pieces):
        out = play(sent, make, windows, lateness, chance)
    expected = result_of(out, windows)
    published: Counter[tuple] = Counter()
    final: Counter[tuple] = Counter()
    for row in (row for table in out.tables for row in table.to_pylist()):
        values = tuple(v for n, v in row.items() if n not in (*FIRED, "retraction"))
        published[values] += -1 if row["retraction"] else 1
        assert set(published.values()) <= {0, 1}
        if row["is_final"] and not row["retraction"]:
            final[values] += 1
    assert +published == final == Counter(tuple(row.values()) for row in expected.to_pylist())


def test_a_correction_takes_back_the_row_published_last():
    kernel, state = shard_of(accumulation="retracting"), MemoryState()
    kernel.receive(message(0, 59, [event(1), event(2, kind="x")]), state)

    def told(firing):
        return [
            (kind, n, r["retraction"])
            for (_, kind, n, *_), r in zip(fired(firing), firing.rows.to_pylist(), strict=True)
        ]

    assert told(kernel.receive(message(1, 60), state)) == [("click", 1, False), ("x", 1, False)]
    again = kernel.receive(message(2, 61, [event(3)], read_at=1), state)
    assert told(again) == [("click", 1, True), ("click", 2, False)]
    final = kernel.receive(message(3, 70, read_at=2), state)
    assert told(final) == [("click", 2, True), ("x", 1, True), ("click", 2, False), ("x", 1, False)]
    assert state.slots == {}


@pytest.mark.parametrize("windows", [EVENTS, SLIDING])
def test_discarding_firings_add_up_to_the_window(windows):
    chance, state, kernel = random.Random(3), MemoryState(), None
    rows, tables = [], []
    for poll in range(80):
        if poll % 9 == 0:
            kernel = shard_of(
                windows,
                lateness=30,
                early=5,
                accumulation="discarding",
                cache_bytes=chance.choice([0, 1 << 30]),
            )
        mine = (
            [event(poll - chance.expovariate(0.2), f"u{chance.randrange(5)}") for _ in range(3)]
            if poll % 4
            else []
        )
        rows += mine
        firing = kernel.receive(
            message(poll, poll - 10, mine, windows, read_at=poll, final=poll == 79), state
        )
        assert firing.late is None
        tables += [firing.rows] if firing.rows is not None else []
    assert state.slots == {}
    count = "events" if windows is EVENTS else "n"
    table = pa.concat_tables(tables)
    sums = table.group_by(["window_start", "event_type"]).aggregate([(count, "sum")])
    expected = finish(partial(batch_of(rows), windows), windows)
    assert dict(zip(sums["window_start"].to_pylist(), sums[f"{count}_sum"].to_pylist(), strict=True)) == dict(
        zip(expected["window_start"].to_pylist(), expected[count].to_pylist(), strict=True)
    )
    assert table.num_rows > expected.num_rows


def trial(make: Callable[[], Single], seed: int, lateness: int = 5) -> None:
    """A run of 93 messages over 300 s with disorder, checked."""
    chance = random.Random(seed)
    polls = []
    for poll in range(30):
        rows = [
            (
                event(poll * 10 - chance.expovariate(0.1), f"u{chance.randrange(9)}", revenue=Decimal(1)),
                chance.randrange(3),
            )
            for _ in range(6)
        ]
        polls.append((0, poll * 10 - 15, rows))
    sent = sent_by(1, 3, polls, EVENTS)
    order = sorted(range(len(sent)), key=lambda i: i + chance.uniform(0, 9))
    out = play([sent[i] for i in order], make, EVENTS, lateness, chance)
    check(out, EVENTS, sum(len(rows) for _, rows in sent))


def make_trial() -> Single:
    return shard_of(EVENTS, 1, 3, lateness=5, early=30, late=20)


def caught(make: Callable[[], Single], seeds: int) -> bool:
    """Whether the checks see in one of these trials that something is wrong."""
    for seed in range(seeds):
        try:
            trial(make, seed)
        except (AssertionError, KeyError, ValueError):
            return True
    return False


def test_the_trial_passes_and_sees_a_broken_version_rule_and_a_broken_guard():
    assert not caught(make_trial, 2)

    class AnyVersion(Single):
        """Trusts its memory whatever the cell says."""

        def _take(self, state):
            if self._cached is not None:
                self._cached.version = (state.read_cell() or b"")[:16]
            return super()._take(state)

    class NotTakenOut(Single):
        """Leaves the table in the cache while it is changed, under the version that it had."""

        def _take(self, state):
            table = super()._take(state)
            self._cached = table
            return table

    class NoGuard(Single):
        def _sort_out(self, message, number, part, horizon, arrived, late):
            super()._sort_out(message, number, part, NEVER, arrived, late)

    class GuardAfter(Single):
        """Looks at where the clock is once the message has been taken in, and keeps no late row."""

        def _sort_out(self, message, number, part, horizon, arrived, late):
            super()._sort_out(message, number, part, horizon + MINUTE, arrived, {})

    for broken in (AnyVersion, NotTakenOut, NoGuard, GuardAfter):
        assert caught(lambda broken=broken: broken(EVENTS, 1, 3, 5 * SECOND, 30, 20), 10), broken.__name__


def users(poll: int, many: int, seconds: int = 30) -> pa.RecordBatch:
    rows = [event(seconds, f"user {poll * many + i}") for i in range(many)]
    return partial_with_rows(batch_of(rows), EVENTS)


class Written(MemoryState):
    written = 0

    def add_to_slot(self, slot, value):
        self.written += len(value)
        super().add_to_slot(slot, value)


@pytest.mark.parametrize("panes", [1, 3])
def test_state_is_rewritten_at_a_bounded_cost_and_stays_small(panes):
    kernel, state = shard_of(lateness=10**6), Written()
    one = users(0, 20)
    received = 0
    for poll in range(150):
        pane = (poll % panes) * SLOTS * MINUTE
        columns = [pa.array([pane]), *one.columns[1:]]
        part = pa.RecordBatch.from_arrays(columns, names=one.schema.names)
        kernel.receive(Message(0, 0, poll, None, None, 0, parts=((0, part),)), state)
        received += len(pack_parts([(0, part)]))
    assert list(state.slots) == [1]
    assert state.written <= 1.2 * received
    assert len(state.slots[1]) < 64 + panes
    different, grown = shard_of(lateness=10**6), Written()
    received = 0
    for poll in range(150):
        part = users(poll, 20)
        different.receive(Message(0, 0, poll, None, None, 0, parts=((0, part),)), grown)
        received += len(pack_parts([(0, part)]))
    assert grown.written <= 3 * received
    assert sum(map(len, grown.slots[1])) <= received


def test_a_slot_shared_with_open_panes_is_rewritten_without_the_final_one():
    kernel, state = shard_of(lateness=0, early=0), Written()
    kernel.receive(Message(0, 0, 0, None, None, 0, parts=((0, users(0, 2000)),)), state)
    kernel.receive(Message(0, 0, 1, None, None, 0, parts=((0, users(1, 10, 30 + SLOTS * 60)),)), state)
    firing = kernel.receive(message(2, 60), state)
    assert fired(firing) == [(0, "click", 2000, 2000, 0, "final", True)]
    assert len(state.slots[1]) == 1
    assert len(state.slots[1][0]) < 2000
    assert fired(shard_of(lateness=0).receive(message(3, None, final=True), state)) == [
        (SLOTS * 60, "click", 10, 10, 0, "final", True)
    ]
    assert state.slots == {}


def test_a_small_final_pane_stays_in_the_slot_and_is_never_read_again():
    kernel, state = shard_of(lateness=0), MemoryState()
    kernel.receive(Message(0, 0, 0, None, None, 0, parts=((0, users(0, 1)),)), state)
    kernel.receive(Message(0, 0, 1, None, None, 0, parts=((0, users(1, 2000, 30 + SLOTS * 60)),)), state)
    kernel.receive(message(2, 60), state)
    assert len(state.slots[1]) == 2
    fresh = shard_of(lateness=0)
    assert fired(fresh.receive(message(3, None, final=True), state)) == [
        (SLOTS * 60, "click", 2000, 2000, 0, "final", True)
    ]


def test_panes_of_a_whole_day_while_the_watermark_is_unknown_take_24_bytes_each():
    kernel, state = shard_of(lateness=3600), MemoryState()
    kernel.receive(message(0, None, [event(-s) for s in range(0, 86400, 60)] + [event(300)]), state)
    assert len(state.cell) < 1000 + 24 * 1442
    assert len(state.slots) == SLOTS
    firing = kernel.receive(message(1, None, final=True), state)
    assert firing.rows.num_rows == 1441
    assert state.slots == {}


def test_state_of_another_definition_or_other_numbers_is_refused():
    state = MemoryState()
    shard_of().receive(message(0, 1, [event(1)]), state)
    with pytest.raises(ConfigError, match="the saved state is of other window tables"):
        shard_of(METRICS["revenue_per_minute"]).receive(message(1, 2), state)
    with pytest.raises(ConfigError, match="saved clock is of 1 readers and 1 shards"):
        shard_of(readers=2).receive(message(1, 2), state)
    with pytest.raises(ValueError, match="poll 0 came twice"):
        shard_of().receive(message(0, 2, [event(1)]), state)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"allowed_lateness_us": -1}, "allowed_lateness_us=-1: must be a whole number of microseconds"),
        ({"allowed_lateness_us": 1.5}, "allowed_lateness_us=1.5: must be"),
        ({"early_seconds": -1}, "early_seconds=-1: must be a number of seconds, zero or more"),
        ({"late_seconds": float("nan")}, "late_seconds=nan: must be"),
        (
            {"accumulation": "adding"},
            "accumulation='adding': must be one of accumulating, discarding, retracting",
        ),
        ({"readers": 0}, "readers=0: must be a whole number from 1"),
        ({"windows": Windows(by=("poll",))}, r"windows with \['poll'\]: streams add columns of these names"),
        ({"windows": Windows(measures={"rows": Count()})}, r"windows with \['rows'\]"),
    ],
)
def test_bad_arguments_are_refused(arguments, text):
    good = {"windows": EVENTS, "readers": 1, "shards": 1, "allowed_lateness_us": 0}
    with pytest.raises(ConfigError, match=text):
        Single(**(good | arguments))


def test_the_sum_of_rows_of_merged_partials_is_the_number_of_input_rows():
    rows = [event(s) for s in range(100)]
    windows = METRICS["revenue_per_minute"]
    rows[7]["revenue"] = rows[70]["revenue"] = Decimal("2.5")
    part = partial_with_rows(batch_of(rows), windows)
    assert np.sum(part.column(ROWS).to_numpy()) == 2
    assert merge([partial(batch_of(rows), windows)], windows).schema.names == part.schema.names[:-1]
