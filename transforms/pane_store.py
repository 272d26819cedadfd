"""Where a shard of window tables keeps the partials of its panes: in slots of the state, and merged in memory."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.transforms.packed_batches import pack_parts, unpack_parts
from headrace.transforms.shard_state import ShardState
from headrace.transforms.window_definitions import Windows
from headrace.transforms.window_partials import merge
from headrace.transforms.window_rows import by_pane, joined
from headrace.transforms.window_state import KEYS, MOST_TABLES, SLOTS, WindowState, starts_in, tables_of

REWRITE_PIECES = 64
"""A slot with fewer appended pieces is not rewritten."""

I64 = npt.NDArray[np.int64]
Pieces = dict[int, list[pa.RecordBatch]]
"""Partials not merged yet, by the key of their pane."""


class PaneStore:
    """The panes of some window tables.

    Partials are appended to the slot of the time in which the last window of their pane closes, so that a slot is mostly cleared as
    a whole; it is rewritten merged when it has doubled, so that all bytes written are at most four times those received. Slots
    are read only when they are not in memory.

    Args:
        tables: what is aggregated, in the order of their numbers.
        cache_bytes: merged partials kept in memory.
    """

    def __init__(self, tables: Sequence[Windows], cache_bytes: int) -> None:
        self._tables = tables
        self._sizes = np.array([w.size_us for w in tables], np.int64)
        self._everies = np.array([w.every_us for w in tables], np.int64)
        self._slot_us = int(self._everies.min()) if len(tables) else 1
        self._cache_bytes = cache_bytes

    def add(self, arrived: dict[int, list[pa.RecordBatch]], held: WindowState, state: ShardState) -> None:
        """Adds partial rows.

        Args:
            arrived: by the number of the table.
        """
        by_slot: dict[int, list[tuple[int, list[tuple[int, pa.RecordBatch]]]]] = {}
        for number, parts in arrived.items():
            pieces = [(pane + number, part) for pane, part in by_pane(merge(parts, self._tables[number]))]
            keys = np.array([key for key, _ in pieces])
            held.panes = np.union1d(held.panes, keys)
            slots = self._slots(keys)
            for slot in np.unique(slots).tolist():
                mine = [pieces[i] for i in np.flatnonzero(slots == slot)]
                by_slot.setdefault(slot, []).append((number, mine))
        for slot, found in by_slot.items():
            self._append(slot, found, held, state)

    def take(self, keys: I64, held: WindowState, state: ShardState) -> list[pa.RecordBatch]:
        """Returns the merged partial of each pane."""
        return [
            self._merged(key, self._loaded(slot, held, state))
            for key, slot in zip(keys.tolist(), self._slots(keys).tolist(), strict=True)
        ]

    def publish(self, rows: dict[int, pa.RecordBatch], held: WindowState, state: ShardState) -> None:
        """Keeps what was last published of windows, in place of what was kept of them before.

        Args:
            rows: by the key of the window; ``pane`` is its start.
        """
        keys = np.array([key + MOST_TABLES for key in rows])
        held.panes = np.union1d(held.panes, keys)
        for slot, key, part in zip(self._slots(keys).tolist(), keys.tolist(), rows.values(), strict=True):
            self._append(slot, [(key % KEYS, [(key, part)])], held, state)

    def published(self, windows: I64, held: WindowState, state: ShardState) -> list[pa.RecordBatch]:
        """Returns what was last published of those of these windows that were published before."""
        keys = windows + MOST_TABLES
        return self.take(keys[np.isin(keys, held.panes)], held, state)

    def empty(self, keys: I64, held: WindowState, state: ShardState) -> None:
        """Drops the rows of panes that may get others."""
        held.panes = np.setdiff1d(held.panes, keys)
        for slot in np.unique(self._slots(keys)).tolist():
            pieces = self._loaded(slot, held, state)
            for key in keys.tolist():
                pieces.pop(key, None)
            self._rewrite(slot, held, state)

    def _append(
        self,
        slot: int,
        found: list[tuple[int, list[tuple[int, pa.RecordBatch]]]],
        held: WindowState,
        state: ShardState,
    ) -> None:
        """Adds the partials of some panes to their slot, and to memory if it is there."""
        size = held.sizes[slot]
        if not size["pieces"] and not size["base"]:
            held.slots[slot] = {}
        piece = pack_parts([(number, joined([part for _, part in parts])) for number, parts in found])
        state.add_to_slot(slot, piece)
        size["pieces"] += 1
        size["added"] += len(piece)
        known = held.slots.get(slot)
        if known is not None:
            for _, parts in found:
                for key, part in parts:
                    known.setdefault(key, []).append(part)

    def drop(self, held: WindowState, state: ShardState) -> None:
        """Drops panes of which all windows are final: clears a slot that has no other, rewrites one of which at most half is
        left."""
        is_open = self._closing(held.panes) > held.horizon
        gone, held.panes = held.panes[~is_open], held.panes[is_open]
        open_slots = set(self._slots(held.panes).tolist())
        slots = self._slots(gone).tolist()
        for key, slot in zip(gone.tolist(), slots, strict=True):
            if slot in held.slots:
                held.slots[slot].pop(key, None)
        for slot in set(slots):
            if slot not in open_slots:
                held.slots.pop(slot, None)
                held.sizes[slot] = (0, 0, 0)
                state.clear_slot(slot)
            elif slot in held.slots:
                left = sum(part.nbytes for parts in held.slots[slot].values() for part in parts)
                if 2 * left <= int(held.sizes["added"][slot] + held.sizes["base"][slot]):
                    self._rewrite(slot, held, state)

    def rewrite_grown(self, held: WindowState, state: ShardState) -> None:
        """Rewrites the slots to which as much was appended as they had."""
        sizes = held.sizes
        grown = (sizes["pieces"] >= REWRITE_PIECES) & (sizes["added"] >= sizes["base"])
        for slot in np.flatnonzero(grown).tolist():
            self._rewrite(slot, held, state)

    def _rewrite(self, slot: int, held: WindowState, state: ShardState) -> None:
        pieces = self._loaded(slot, held, state)
        state.clear_slot(slot)
        base = 0
        for key in pieces:
            packed = pack_parts([(key % KEYS, self._merged(key, pieces))])
            state.add_to_slot(slot, packed)
            base += len(packed)
        held.sizes[slot] = (0, 0, base)
        if not base:
            del held.slots[slot]

    def _loaded(self, slot: int, held: WindowState, state: ShardState) -> Pieces:
        """Returns a slot's partials of open panes, from memory or from the state; those of closed panes are left out."""
        pieces = held.slots.pop(slot, None)
        if pieces is None:
            pieces = {}
            is_open = set(held.panes.tolist())
            for packed in state.read_slot(slot):
                for number, part in unpack_parts(packed):
                    for pane, piece in by_pane(part):
                        if pane + number in is_open:
                            pieces.setdefault(pane + number, []).append(piece)
        held.slots[slot] = pieces
        return pieces

    def _merged(self, key: int, pieces: Pieces) -> pa.RecordBatch:
        number = key % KEYS
        merged = pieces[key][-1] if number >= MOST_TABLES else merge(pieces[key], self._tables[number])
        pieces[key] = [merged]
        return merged

    def forget(self, held: WindowState) -> None:
        """Drops the slots used least recently from memory, beyond ``cache_bytes``."""
        sizes = (held.sizes["added"] + held.sizes["base"]).tolist()
        total = sum(sizes[slot] for slot in held.slots)
        for slot in list(held.slots):
            if total <= self._cache_bytes:
                return
            del held.slots[slot]
            total -= sizes[slot]

    def _closing(self, panes: I64) -> I64:
        """Returns the end of the last window of each pane."""
        every = self._everies[tables_of(panes)]
        return starts_in(panes) // every * every + self._sizes[tables_of(panes)]

    def _slots(self, panes: I64) -> I64:
        return self._closing(panes) // self._slot_us % SLOTS
