"""Event-time windows of a stream, as a pure state machine over numbered messages: late guard, panes, firings.

One :class:`WindowShard` is one window table (a ``Windows`` definition) on one window shard, which has all of the groups that hash
to it. Its watermark is a :class:`StreamClock <headrace.transforms.stream_clock.StreamClock>` over the messages, so what it says
depends on no runner. A *pane* is a tumbling window now; windows that slide would be composed of several panes when they fire.

State (see :mod:`shard_state <headrace.transforms.shard_state>`): slot ``pane number % 32`` holds appended partials, which are
rewritten merged when they have doubled, so that all bytes written are at most four times those received; the cell holds the
rest. In memory, for the version that the cell names: the cell decoded, and merged partials of the slots used last. Slots are
read only when a pane of theirs fires or is rewritten.
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_64_digest

from headrace.schemas.errors import ConfigError
from headrace.transforms.shard_state import ShardState
from headrace.transforms.stream_clock import END, StreamClock
from headrace.transforms.stream_message import Message
from headrace.transforms.window_definitions import PANE, Windows
from headrace.transforms.window_partials import merge
from headrace.transforms.window_rows import (
    EARLY,
    FINAL,
    LATE,
    ON_TIME,
    ROWS,
    by_pane,
    counted,
    from_bytes,
    joined,
    late_rows,
    result_rows,
    sorted_by_pane,
    to_bytes,
)

SLOTS = 32
MAX_LATENESS_US = 366 * 86_400 * 1_000_000
REWRITE_PIECES = 64
"""A slot with fewer appended pieces is not rewritten."""

_PANES = np.dtype([("pane", "<i8"), ("rows", "<i8"), ("index", "<i4"), ("changed", "?"), ("passed", "?")])
"""An open pane: its start, input rows, next pane index, changed since it last fired, its end passed by the watermark."""
_SIZES = np.dtype([("pieces", "<u4"), ("added", "<u8"), ("base", "<u8")])
"""A slot: pieces and bytes appended since it was rewritten, and bytes of the last rewriting."""
_HEAD = struct.Struct("<16s8sqqqqI")
_NEVER = -(1 << 63)

Flags = npt.NDArray[np.bool_]
Pieces = dict[int, list[pa.RecordBatch]]
"""Partials not merged yet, by pane."""


@dataclass(frozen=True)
class Firing:
    """What came of one or more messages."""

    rows: pa.Table | None
    """Result rows, or None if nothing fired: the columns of ``finish`` (window_start, window_end, groups, measures), then
    ``pane_index`` (int32, 0, 1, 2, … within window and window shard), ``timing`` (early, on_time, late or final), ``is_final``,
    ``fired_at`` (UTC), ``window_shard`` (int32)."""
    late: pa.Table | None
    """Partial rows whose window was final already, or None: pane, groups, measures as in a partial, ``rows``, and the message's
    ``reader``, ``shard`` (int32) and ``poll`` (int64)."""
    kept: int
    """Input rows that went into windows; those in ``late`` are all others."""
    watermark: int | None
    """Event time in µs after these messages."""


class _Table:
    """The cell, decoded, and merged partials of some slots."""

    def __init__(self, clock: StreamClock) -> None:
        self.version = b""
        self.clock = clock
        self.horizon = _NEVER
        """Panes that end here or before are final: the highest watermark minus the allowed lateness."""
        self.now = self.early_at = self.late_at = _NEVER
        """The readers' clock, and when early and late firings last happened."""
        self.panes = np.empty(0, _PANES)
        self.sizes = np.zeros(SLOTS, _SIZES)
        self.slots: dict[int, Pieces] = {}
        """Those in memory, the one used last at the end."""
        self.due = END
        """The watermark at which a pane fires next."""
        self.early_waits = self.late_waits = False
        """True if a pane that the watermark has not passed, or has passed, changed since it last fired."""
        self.tail = b""
        """``panes`` and ``sizes`` encoded."""


class WindowShard:
    """One window table on one window shard.

    ``receive`` adds a message's partial rows to their panes, and returns the panes that fire, each complete so far:

    - ``early``: panes that changed, every ``early_seconds`` of the messages' ``read_at`` clock, until the watermark passes the end;
    - ``on_time``: once, when the watermark passes the end;
    - ``late``: panes that changed after that, at most every ``late_seconds`` for all together;
    - ``final``: once, when the watermark passes the end by ``allowed_lateness_us``. It comes even if nothing changed, instead of
      ``on_time`` where the watermark passes both at once; then the pane's state is dropped.

    A partial row whose pane was final *before* its message is late: it comes out as such and changes no window. So rows in =
    rows kept + rows late, always; and whatever the order of messages, a final pane is the exact result over its rows that were
    not late. A shard without rows of a window has no firing for it.

    Exact under rollback of the state, replay and loss of this object: it is only a cache of the state. Not thread-safe for one
    key, which no runner needs. The outputs of a bundle that fails are the runner's to discard.

    Memory: a pane is open from its first row until the watermark is ``allowed_lateness_us`` beyond its end. Rows are at most 24
    hours older and 5 minutes newer than their ingest time, so at most (24 h + 5 min + the lateness + how far apart in ingest
    time the readers are) / size + 2 panes are open, also while the watermark is not known yet. Each takes 22 bytes in the cell,
    and its groups in the slots: 16 bytes a distinct value. Beyond ``cache_bytes`` the slots used least recently are kept in
    state only.

    Args:
        windows: what to aggregate; messages carry ``partial_with_rows`` of it, split by ``split_partial``.
        readers, shards: how many senders there are; every (reader, shard) sends every poll of the reader once.
        allowed_lateness_us: how far behind the watermark a pane's end may be for the pane to take rows. If it is raised for a
            saved state, panes that are final stay so.
        early_seconds: 0 turns early firings off.
        late_seconds: 0: late firings come with the message that changes the pane.
        window_shard: number of this window shard, for the result's column.
        closed_until_us: without state, panes that end at this event time or before are final already, by a job before this one.
        cache_bytes: merged partials kept in memory.

    Raises:
        ConfigError: an argument out of range; a name that streams reserve; a state saved for another definition.
    """

    def __init__(
        self,
        windows: Windows,
        readers: int,
        shards: int,
        allowed_lateness_us: int,
        early_seconds: float = 30.0,
        late_seconds: float = 10.0,
        *,
        window_shard: int = 0,
        closed_until_us: int | None = None,
        cache_bytes: int = 256 << 20,
    ) -> None:
        StreamClock(readers, shards)
        lateness = allowed_lateness_us
        if (
            isinstance(lateness, bool)
            or not isinstance(lateness, int)
            or not 0 <= lateness <= MAX_LATENESS_US
        ):
            raise ConfigError(
                f"allowed_lateness_us={lateness!r}: must be a whole number of microseconds from 0 to {MAX_LATENESS_US} (a year)"
            )
        for name, seconds in (("early_seconds", early_seconds), ("late_seconds", late_seconds)):
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
                raise ConfigError(f"{name}={seconds!r}: must be a number of seconds, zero or more")
        self._windows = windows
        self._counted = counted(windows)
        self._readers, self._shards = readers, shards
        self._lateness = allowed_lateness_us
        self._early_us = round(early_seconds * 1_000_000)
        self._late_us = round(late_seconds * 1_000_000)
        self._window_shard = window_shard
        self._cache_bytes = cache_bytes
        definition = (
            windows.size_us,
            windows.by,
            list(windows.measures.items()),
            windows.where,
            window_shard,
        )
        self._definition = xxh3_64_digest(repr(definition).encode())
        self._closed_until = _NEVER if closed_until_us is None else closed_until_us
        self._cached: _Table | None = None

    def receive(self, message: Message, state: ShardState) -> Firing:
        """Takes in one message.

        Raises:
            ValueError: the message has come already, or its reader or shard is out of range.
            ConfigError: the state was saved for other windows or numbers of readers and shards.
            OverflowError: a sum has more than 38 digits.
        """
        return self.receive_many([message], state)

    def receive_many(self, messages: Sequence[Message], state: ShardState) -> Firing:
        """Takes in messages as one after another, but fires only once, after the last.

        Late rows, windows and final results are the same; the firings between are left out, so there are fewer ``early``,
        ``on_time`` and ``late`` ones, and what is fired may hold rows of later messages.
        """
        table = self._take(state)
        before = table.clock.watermark()
        parts: list[pa.RecordBatch] = []
        late: list[tuple[Message, pa.RecordBatch]] = []
        for message in messages:
            if message.batch is not None and message.batch.num_rows:
                part = self._on_time(message, message.batch, table.horizon, late)
                if part.num_rows:
                    parts.append(part)
            table.clock.receive(message, idle=message.idle)
            watermark = table.clock.watermark()
            if watermark is not None:
                table.horizon = max(table.horizon, watermark - self._lateness)
            table.now = max(table.now, message.read_at)
            if table.early_at == _NEVER:
                table.early_at = message.read_at
        kept = self._add(parts, before, table, state) if parts else 0
        rows = self._fire(table, state) if self._may_fire(table) else None
        if parts or rows is not None:
            self._rewrite_grown(table, state)
            table.tail = table.panes.tobytes() + table.sizes.tobytes()
            self._forget(table)
        self._put(table, state)
        return Firing(rows, late_rows(late) if late else None, kept, table.clock.watermark())

    def _take(self, state: ShardState) -> _Table:
        """Takes the table out of the cache if it belongs to the cell's version, else decodes the cell."""
        table, self._cached = self._cached, None
        cell = state.read_cell()
        if cell is None:
            table = _Table(StreamClock(self._readers, self._shards))
            table.horizon = self._closed_until
            return table
        if table is not None and table.version == cell[:16]:
            return table
        version, definition, horizon, now, early_at, late_at, count = _HEAD.unpack_from(cell)
        if definition != self._definition:
            raise ConfigError(
                f"window shard {self._window_shard}: the saved state is of other windows than {self._windows}; go on with "
                "the definition that wrote it, or rebuild the state"
            )
        at = _HEAD.size
        panes = np.frombuffer(cell, _PANES, count, at).copy()
        sizes = np.frombuffer(cell, _SIZES, SLOTS, at + panes.nbytes).copy()
        end = at + panes.nbytes + sizes.nbytes
        table = _Table(StreamClock.decode(cell[end:], self._readers, self._shards))
        table.version, table.panes, table.sizes, table.tail = version, panes, sizes, cell[at:end]
        table.horizon, table.now, table.early_at, table.late_at = horizon, now, early_at, late_at
        self._note_due(table)
        return table

    def _put(self, table: _Table, state: ShardState) -> None:
        """Writes the cell under a new version, and puts the table back into the cache."""
        table.version = os.urandom(16)
        head = _HEAD.pack(
            table.version,
            self._definition,
            table.horizon,
            table.now,
            table.early_at,
            table.late_at,
            len(table.panes),
        )
        tail = table.tail or table.panes.tobytes() + table.sizes.tobytes()
        state.write_cell(head + tail + table.clock.encode())
        self._cached = table

    def _on_time(
        self,
        message: Message,
        part: pa.RecordBatch,
        horizon: int,
        late: list[tuple[Message, pa.RecordBatch]],
    ) -> pa.RecordBatch:
        """The guard: returns the rows of panes that are not final, and adds the others to ``late``."""
        is_late = self._ends(part.column(PANE).to_numpy()) <= horizon
        if not is_late.any():
            return part
        late.append((message, part.filter(pa.array(is_late))))
        return part.filter(pa.array(~is_late))

    def _add(self, parts: list[pa.RecordBatch], before: int | None, table: _Table, state: ShardState) -> int:
        """Adds partial rows to panes and slots; returns how many input rows they stand for."""
        part = sorted_by_pane(merge(parts, self._counted))
        pieces = list(by_pane(part))
        panes = np.array([pane for pane, _ in pieces])
        starts = np.cumsum([0, *(piece.num_rows for _, piece in pieces[:-1])])
        rows = np.add.reduceat(part.column(ROWS).to_numpy(), starts)
        at = np.searchsorted(table.panes["pane"], panes)
        if at[-1] == len(table.panes) or (table.panes["pane"][at] != panes).any():
            fresh = np.zeros(len(panes), _PANES)
            fresh["pane"] = panes
            fresh["passed"] = before is not None and self._ends(panes) <= before
            fresh = fresh[~np.isin(panes, table.panes["pane"])]
            table.panes = np.concatenate([table.panes, fresh])
            table.panes.sort(order="pane")
            at = np.searchsorted(table.panes["pane"], panes)
        table.panes["rows"][at] += rows
        table.panes["changed"][at] = True
        by_slot: dict[int, list[tuple[int, pa.RecordBatch]]] = {}
        for slot, piece in zip(self._slots(panes).tolist(), pieces, strict=True):
            by_slot.setdefault(slot, []).append(piece)
        for slot, found in by_slot.items():
            self._append(slot, found, table, state)
        self._note_due(table)
        return int(rows.sum())

    def _append(
        self, slot: int, found: list[tuple[int, pa.RecordBatch]], table: _Table, state: ShardState
    ) -> None:
        """Adds the partials of some panes to their slot, and to memory if it is there."""
        size = table.sizes[slot]
        if not size["pieces"] and not size["base"]:
            table.slots[slot] = {}
        encoded = to_bytes(joined([piece for _, piece in found]))
        state.add_to_slot(slot, encoded)
        size["pieces"] += 1
        size["added"] += len(encoded)
        pieces = table.slots.get(slot)
        if pieces is not None:
            for pane, piece in found:
                pieces.setdefault(pane, []).append(piece)

    def _may_fire(self, table: _Table) -> bool:
        """False if surely nothing fires; most messages end here."""
        watermark = table.clock.watermark()
        if watermark is not None and watermark >= table.due:
            return True
        return (table.early_waits and self._early_is_due(table)) or (
            table.late_waits and self._late_is_due(table)
        )

    def _early_is_due(self, table: _Table) -> bool:
        return self._early_us > 0 and table.now - table.early_at >= self._early_us

    def _late_is_due(self, table: _Table) -> bool:
        return table.now - table.late_at >= self._late_us

    def _fire(self, table: _Table, state: ShardState) -> pa.Table | None:
        """Fires the panes that are due, and drops those that are final."""
        panes = table.panes
        watermark = table.clock.watermark()
        ends = self._ends(panes["pane"])
        ended = ends <= (_NEVER if watermark is None else watermark)
        final = ends <= table.horizon
        timing = np.full(len(panes), -1, np.int32)
        if self._early_is_due(table):
            timing[panes["changed"] & ~ended] = EARLY
        if self._late_is_due(table):
            timing[panes["changed"] & ended & panes["passed"]] = LATE
        timing[ended & ~panes["passed"]] = ON_TIME
        timing[final] = FINAL
        at = np.flatnonzero(timing >= 0)
        if not len(at):
            return None
        fired = panes[at]
        merged = [
            self._merged(int(pane), self._loaded(int(slot), table, state))
            for pane, slot in zip(fired["pane"], self._slots(fired["pane"]), strict=True)
        ]
        rows = result_rows(
            joined(merged),
            self._windows,
            panes=fired["pane"],
            indexes=fired["index"],
            timings=timing[at],
            fired_at=table.now,
            window_shard=self._window_shard,
        )
        if (timing == EARLY).any():
            table.early_at = table.now
        if (timing == LATE).any():
            table.late_at = table.now
        panes["index"][at] += 1
        panes["changed"][at] = False
        panes["passed"][at] |= ended[at]
        table.panes = panes[~final]
        self._drop(panes["pane"][final], table, state)
        self._note_due(table)
        return rows

    def _drop(self, closed: npt.NDArray[np.int64], table: _Table, state: ShardState) -> None:
        """Drops final panes: clears a slot that has no other, rewrites one of which at most half is left."""
        open_slots = set(self._slots(table.panes["pane"]).tolist())
        for pane, slot in zip(closed.tolist(), self._slots(closed).tolist(), strict=True):
            table.slots[slot].pop(pane)
            if slot not in open_slots and not table.slots[slot]:
                del table.slots[slot]
                table.sizes[slot] = (0, 0, 0)
                state.clear_slot(slot)
        for slot in set(self._slots(closed).tolist()) & open_slots:
            left = sum(piece.nbytes for pieces in table.slots[slot].values() for piece in pieces)
            if 2 * left <= int(table.sizes["added"][slot] + table.sizes["base"][slot]):
                self._rewrite(slot, table, state)

    def _rewrite_grown(self, table: _Table, state: ShardState) -> None:
        """Rewrites the slots to which as much was appended as they had."""
        sizes = table.sizes
        for slot in np.flatnonzero(
            (sizes["pieces"] >= REWRITE_PIECES) & (sizes["added"] >= sizes["base"])
        ).tolist():
            self._rewrite(slot, table, state)

    def _rewrite(self, slot: int, table: _Table, state: ShardState) -> None:
        pieces = self._loaded(slot, table, state)
        state.clear_slot(slot)
        base = 0
        for pane in pieces:
            encoded = to_bytes(self._merged(pane, pieces))
            state.add_to_slot(slot, encoded)
            base += len(encoded)
        table.sizes[slot] = (0, 0, base)

    def _loaded(self, slot: int, table: _Table, state: ShardState) -> Pieces:
        """Returns a slot's partials of open panes, from memory or from the state; those of closed panes are left out."""
        pieces = table.slots.pop(slot, None)
        if pieces is None:
            pieces = {}
            is_open = set(table.panes["pane"].tolist())
            for encoded in state.read_slot(slot):
                for pane, piece in by_pane(from_bytes(encoded)):
                    if pane in is_open:
                        pieces.setdefault(pane, []).append(piece)
        table.slots[slot] = pieces
        return pieces

    def _merged(self, pane: int, pieces: Pieces) -> pa.RecordBatch:
        merged = merge(pieces[pane], self._counted)
        pieces[pane] = [merged]
        return merged

    def _forget(self, table: _Table) -> None:
        """Drops the slots used least recently from memory, beyond ``cache_bytes``."""
        sizes = (table.sizes["added"] + table.sizes["base"]).tolist()
        total = sum(sizes[slot] for slot in table.slots)
        for slot in list(table.slots):
            if total <= self._cache_bytes:
                return
            del table.slots[slot]
            total -= sizes[slot]

    def _note_due(self, table: _Table) -> None:
        ends = self._ends(table.panes["pane"])
        due = np.where(table.panes["passed"], ends + self._lateness, ends)
        table.due = int(due.min()) if len(due) else END
        changed, passed = table.panes["changed"], table.panes["passed"]
        table.early_waits, table.late_waits = bool((changed & ~passed).any()), bool((changed & passed).any())

    def _ends(self, panes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return panes + self._windows.size_us

    def _slots(self, panes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return panes // self._windows.size_us % SLOTS
