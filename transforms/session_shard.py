"""Sessions of an unbounded stream, as a pure state machine: late guard, open sessions, finished ones.

A session is finished when no row that is in time can join it any more. So a stream has one row a session, never a correction,
and its sessions are those of a batch over the rows that were not late.

State (see :mod:`shard_state <headrace.transforms.shard_state>`): slot 0 holds partials (:mod:`session_partials
<headrace.transforms.session_partials>`), appended and now and then rewritten without the finished sessions; the cell the
horizon, by which a finished session is known when the slot is read again. In memory, for the version that the cell names: the
same partials.
"""

import os
import struct
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import pyarrow as pa
from xxhash import xxh3_64_digest

from headrace.schemas.columns import TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import as_type
from headrace.transforms.hashing import int64_values
from headrace.transforms.packed_batches import from_bytes, to_bytes
from headrace.transforms.session_definitions import Sessions
from headrace.transforms.session_partials import finish, merge, partial
from headrace.transforms.shard_state import ShardState

SLOTS = 1
PIECE_ROWS = 16_384
"""Sessions in one element of the slot, so that none is too large for a runner."""
REWRITE_PIECES = 64
LONGEST_STEP_US = 60_000_000

_HEAD = struct.Struct("<16s8sqqIQQ")
_NEVER, _NONE = -(1 << 63), (1 << 63) - 1


class SessionFiring(NamedTuple):
    """What came of rows or of a watermark."""

    sessions: pa.Table | None
    """Finished sessions, columns as of :func:`finish <headrace.transforms.session_partials.finish>`."""
    late: pa.RecordBatch | None
    """Rows that were too late for any session."""
    due: int | None
    """The watermark, event time in µs, at which to call again; None if no session is open."""


@dataclass
class _Held:
    """The cell, decoded, and the partials of open sessions."""

    version: bytes = b""
    horizon: int = _NEVER
    first_end: int = _NONE
    """No open session ends before."""
    pieces: int = 0
    added: int = 0
    base: int = 0
    """Pieces and bytes appended since the slot was rewritten, and bytes of the last rewriting."""
    parts: list[pa.RecordBatch] | None = None
    merged_rows: int = 0
    """Rows of the parts when they were merged last."""


class SessionShard:
    """The sessions of the keys of one shard.

    With a watermark W, event time in µs, the horizon is W - ``allowed_lateness``. A row before the horizon is late. A session is
    finished when the horizon is more than ``gap`` after its last event; it comes out with the first watermark after that which
    is a multiple of a thirtieth of the gap, of at most a minute, so that not every session costs a firing of its own.

    Exact under rollback of the state, replay and loss of this object, which is only a cache of the state; not thread-safe. Memory
    and state: that of the open sessions, and as much again.

    Raises:
        ConfigError: a lateness below zero; a state saved for other sessions.
    """

    def __init__(self, sessions: Sessions, allowed_lateness: timedelta) -> None:
        if not isinstance(allowed_lateness, timedelta) or allowed_lateness < timedelta(0):
            raise ConfigError(
                f"allowed_lateness={allowed_lateness!r}: must be a timedelta of zero or more, e.g. timedelta(minutes=5)"
            )
        self._sessions = sessions
        self._lateness = allowed_lateness // timedelta(microseconds=1)
        self._step = min(max(sessions.gap_us // 30, 1_000), LONGEST_STEP_US) // 1_000 * 1_000
        self._definition = xxh3_64_digest(repr(sessions).encode())
        self._cached: _Held | None = None

    def add(self, rows: pa.RecordBatch, state: ShardState) -> SessionFiring:
        """Takes in rows with the columns of ``Sessions.columns()``, an event_time and a key."""
        held = self._take(state)
        times = int64_values(as_type(rows.column("event_time"), TIME))
        is_late = times < held.horizon
        late = rows.filter(pa.array(is_late)) if is_late.any() else None
        if late is not None:
            rows = rows.filter(pa.array(~is_late))
        if rows.num_rows:
            part = partial(rows, self._sessions)
            self._append(part, held, state)
            held.first_end = min(held.first_end, int(int64_values(part.column("session_end")).min()))
        self._put(held, state)
        return SessionFiring(None, late, self._due(held))

    def advance(self, watermark: int, state: ShardState) -> SessionFiring:
        """Takes in a watermark, and returns the sessions that are finished by it."""
        held = self._take(state)
        horizon, done = max(held.horizon, watermark - self._lateness), None
        if held.first_end + self._sessions.gap_us < horizon:
            self._loaded(held, state)  # By the old horizon, which tells what has come out.
            held.horizon = horizon
            done = self._finish(held, state)
        held.horizon = horizon
        self._put(held, state)
        return SessionFiring(done, None, self._due(held))

    def _due(self, held: _Held) -> int | None:
        if held.first_end == _NONE:
            return None
        finished = held.first_end + self._sessions.gap_us + self._lateness + 1
        return -(-finished // self._step) * self._step

    def _finish(self, held: _Held, state: ShardState) -> pa.Table | None:
        merged = self._merged(held, state)
        ends = int64_values(merged.column("session_end"))
        is_done = ends + self._sessions.gap_us < held.horizon
        done, left = merged.filter(pa.array(is_done)), merged.filter(pa.array(~is_done))
        held.parts = [left]
        held.merged_rows = left.num_rows
        held.first_end = int(ends[~is_done].min()) if left.num_rows else _NONE
        if not left.num_rows or (held.pieces >= REWRITE_PIECES and held.added >= held.base):
            self._rewrite(left, held, state)
        return finish(done, self._sessions) if done.num_rows else None

    def _append(self, part: pa.RecordBatch, held: _Held, state: ShardState) -> None:
        packed = to_bytes(part)
        parts = self._loaded(held, state)
        state.add_to_slot(0, packed)
        held.pieces += 1
        held.added += len(packed)
        parts.append(part)
        if len(parts) > 64 and sum(p.num_rows for p in parts) > 2 * held.merged_rows:
            self._merged(held, state)

    def _merged(self, held: _Held, state: ShardState) -> pa.RecordBatch:
        parts = self._loaded(held, state)
        held.parts = [merge(parts, self._sessions)]
        held.merged_rows = held.parts[0].num_rows
        return held.parts[0]

    def _loaded(self, held: _Held, state: ShardState) -> list[pa.RecordBatch]:
        """Returns the partials, from memory or from the state; there those of finished sessions are left out."""
        if held.parts is None:
            found = [from_bytes(packed) for packed in state.read_slot(0)]
            held.parts = []
            if found:
                merged = merge(found, self._sessions)
                ends = int64_values(merged.column("session_end"))
                held.parts = [merged.filter(pa.array(ends + self._sessions.gap_us >= held.horizon))]
        return held.parts

    def _rewrite(self, left: pa.RecordBatch, held: _Held, state: ShardState) -> None:
        state.clear_slot(0)
        held.pieces = held.added = held.base = 0
        for start in range(0, left.num_rows, PIECE_ROWS):
            packed = to_bytes(left.slice(start, PIECE_ROWS))
            state.add_to_slot(0, packed)
            held.base += len(packed)

    def _take(self, state: ShardState) -> _Held:
        """Takes the partials out of the cache if they belong to the cell's version."""
        held, self._cached = self._cached, None
        cell = state.read_cell()
        if cell is None:
            return _Held(parts=[])
        version, definition, *numbers = _HEAD.unpack(cell)
        if definition != self._definition:
            raise ConfigError(
                "the saved state is of other sessions; go on with the definition that wrote it, or start with a new state"
            )
        if held is not None and held.version == version:
            return held
        return _Held(version, *numbers)

    def _put(self, held: _Held, state: ShardState) -> None:
        """Writes the cell under a new version, and puts the partials back into the cache."""
        held.version = os.urandom(16)
        state.write_cell(
            _HEAD.pack(
                held.version,
                self._definition,
                held.horizon,
                held.first_end,
                held.pieces,
                held.added,
                held.base,
            )
        )
        self._cached = held
