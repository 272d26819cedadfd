"""Profiles of the users of an unbounded PCollection, which :class:`ProfileUsers
<headrace.transforms.profile_users.ProfileUsers>` applies."""

import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import PCollection
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp

from headrace.transforms.beam_shard_state import StatefulShardFn
from headrace.transforms.packed_batches import from_bytes, to_bytes
from headrace.transforms.shard_state import ShardState

SLOTS = 2
KNOWN, NEW = range(SLOTS)
"""Slots: what was published, appended and now and then rewritten merged; and what came since."""
PIECE_ROWS = 16_384
REWRITE_PIECES = 64
_HEAD = struct.Struct("<16sqIQQ")

Merge = Callable[[Sequence[pa.RecordBatch]], pa.RecordBatch]


@dataclass
class _Held:
    version: bytes = b""
    since: int = 0
    """When the first change that is not published came, µs; 0: there is none."""
    pieces: int = 0
    added: int = 0
    base: int = 0
    """Pieces and bytes appended to KNOWN since it was rewritten, and bytes of the last rewriting."""
    known: list[pa.RecordBatch] | None = None
    new: list[pa.RecordBatch] | None = None
    """The slots' states, in memory for the version that the cell names."""


@dataclass
class RollShard:
    """The profiles of the users of one shard: a state machine, exact under rollback, replay and loss of this object.

    Args:
        merge: merges states of users, sorted by ``user_id``.
    """

    merge: Merge
    _cached: _Held | None = field(default=None, repr=False)

    def add(self, part: pa.RecordBatch, now: int, state: ShardState) -> int:
        """Takes in the state of some users; returns since when, µs, changes wait to be published."""
        held = self._take(state)
        packed = to_bytes(part)
        self._loaded(held, state)
        state.add_to_slot(NEW, packed)
        assert held.new is not None
        held.new.append(part)
        held.since = held.since or now
        self._put(held, state)
        return held.since

    def publish(self, state: ShardState) -> pa.RecordBatch | None:
        """Returns the state of all users that changed since the last call, whole; None if none did."""
        held = self._take(state)
        known, new = self._loaded(held, state)
        if not new:
            self._put(held, state)
            return None
        changed = self.merge(new)
        merged = self.merge([*known, changed])
        held.known, held.new, held.since = [merged], [], 0
        state.clear_slot(NEW)
        packed = to_bytes(changed)
        state.add_to_slot(KNOWN, packed)
        held.pieces += 1
        held.added += len(packed)
        if held.pieces >= REWRITE_PIECES and held.added >= held.base:
            state.clear_slot(KNOWN)
            held.pieces = held.added = held.base = 0
            for start in range(0, merged.num_rows, PIECE_ROWS):
                packed = to_bytes(merged.slice(start, PIECE_ROWS))
                state.add_to_slot(KNOWN, packed)
                held.base += len(packed)
        self._put(held, state)
        return merged.filter(pc.is_in(merged.column("user_id"), value_set=changed.column("user_id")))

    def _loaded(self, held: _Held, state: ShardState) -> tuple[list[pa.RecordBatch], list[pa.RecordBatch]]:
        if held.known is None or held.new is None:
            known, new = ([from_bytes(packed) for packed in state.read_slot(slot)] for slot in (KNOWN, NEW))
            held.known, held.new = [self.merge(known)] if known else [], new
        return held.known, held.new

    def _take(self, state: ShardState) -> _Held:
        held, self._cached = self._cached, None
        cell = state.read_cell()
        if cell is None:
            return _Held(known=[], new=[])
        version, *numbers = _HEAD.unpack(cell)
        return held if held is not None and held.version == version else _Held(version, *numbers)

    def _put(self, held: _Held, state: ShardState) -> None:
        held.version = os.urandom(16)
        state.write_cell(_HEAD.pack(held.version, held.since, held.pieces, held.added, held.base))
        self._cached = held


class RollProfiles(beam.PTransform):
    """Publishes the users that changed, every ``every`` by the worker's clock, and at the end of the input.

    Input: (shard, states of users). Output: states of users, whole.
    """

    def __init__(self, merge: Merge, finish: Merge, every: timedelta) -> None:
        super().__init__()
        self._fn = _RollFn(merge, finish, every)

    @beam.typehints.no_annotations
    def expand(self, states: PCollection) -> PCollection:
        return states | "Roll" >> beam.ParDo(self._fn).with_output_types(pa.RecordBatch)


class _RollFn(
    StatefulShardFn, slots=SLOTS, timers={"due": TimeDomain.REAL_TIME, "end": TimeDomain.WATERMARK}
):
    """(shard, states of users) → states of those that changed; ``due`` tells the time, ``end`` the input's end."""

    def __init__(self, merge: Merge, finish: Merge, every: timedelta) -> None:
        self._merge = merge
        self._finish = finish
        self._every_us = every // timedelta(microseconds=1)

    def setup(self) -> None:
        self._shards: dict[int, RollShard] = {}

    def handle(
        self, key: int, value: pa.RecordBatch, state: ShardState, *, due: Any = None, end: Any = None
    ) -> Iterator[pa.RecordBatch]:
        since = self._shard(key).add(value, time.time_ns() // 1000, state)
        due.set(Timestamp(micros=since + self._every_us))
        end.set(GlobalWindow().max_timestamp())
        yield from ()

    def fired(
        self, timer: str, at: Timestamp, key: int, state: ShardState, *, due: Any = None, end: Any = None
    ) -> Iterator[pa.RecordBatch]:
        changed = self._shard(key).publish(state)
        if changed is not None:
            yield self._finish([changed])

    def _shard(self, key: int) -> RollShard:
        if key not in self._shards:
            self._shards[key] = RollShard(self._merge)
        return self._shards[key]
