"""Which slot of a shard's state an id is kept in, and when a slot may be cleared."""

import os
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SLOTS = 27
FAR = SLOTS - 1
"""The slot of rows from far ahead of all readers, which may be garbage and never come to an end."""

_VERSION_BYTES = 16
_NONE = -(1 << 63)
_LATEST = 1 << 61
"""Times are cut to this many µs around 1970 (73,000 years), so that sums of them fit."""

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]


@dataclass
class Cell:
    """The small part of a shard's state: its version, what each slot holds, and where the readers are.

    Ingest time is cut into buckets of a 24th of the horizon: hours, if that is a day. A slot's *end* is the end of the newest
    bucket in it, so a slot may be cleared once all readers have passed its end by the horizon. A row goes

    1. into the slot of its bucket; a row older than the slowest reader's position goes into that position's;
    2. else into a free slot, for which all that may be cleared are cleared first;
    3. else, if the readers are so far apart that none is free, into the one with the next later end, or if there is none into
       the newest, whose end moves up. Its ids live longer by what they are apart.

    Rows more than the horizon ahead of the middle reader all go into a slot of their own, so a wrong clock, a thousand years off,
    holds up nothing else. While no position is known, the middle row of the batch stands for it.
    """

    version: bytes
    """Random; empty if there is no state yet."""
    ends: list[int | None]
    """µs since 1970 for each slot; None: empty."""
    positions: list[int | None]
    """Ingest position of each reader in µs, rounded down; None: not known."""
    horizon_us: int

    @property
    def bucket_us(self) -> int:
        """Length of a bucket."""
        return -(-self.horizon_us // 24)

    @classmethod
    def unpack(cls, packed: bytes | None, readers: int, horizon_us: int) -> "Cell":
        """Reads what :meth:`pack` wrote; positions are unknown if the number of readers was another then.

        Raises:
            ValueError: these are other bytes.
        """
        if packed is None:
            return cls(b"", [None] * SLOTS, [None] * readers, horizon_us)
        numbers, rest = divmod(len(packed) - _VERSION_BYTES, 8)
        if rest or numbers < SLOTS:
            raise ValueError(f"{len(packed)} bytes of state are not the cell of a dedupe shard")
        values = struct.unpack_from(f"<{numbers}q", packed, _VERSION_BYTES)
        known: list[int | None] = [None if v == _NONE else v for v in values]
        positions: list[int | None] = known[SLOTS:]
        if len(positions) != readers:
            positions = [None] * readers
        return cls(packed[:_VERSION_BYTES], known[:SLOTS], positions, horizon_us)

    def pack(self) -> bytes:
        """Returns 232 bytes and 8 for each reader; gives a version to state that has none."""
        self.version = self.version or os.urandom(_VERSION_BYTES)
        values = [_NONE if v is None else v for v in (*self.ends, *self.positions)]
        return self.version + struct.pack(f"<{len(values)}q", *values)

    def renew(self) -> None:
        """Takes a new version, for slots that change."""
        self.version = os.urandom(_VERSION_BYTES)

    def move(self, reader: int, position: int | None) -> bool:
        """Sets a reader's position, rounded down to a 60th of a bucket; returns whether that changed it."""
        if position is not None:
            step = max(1, self.bucket_us // 60)
            position = max(-_LATEST, min(position, _LATEST)) // step * step
        changed = self.positions[reader] != position
        self.positions[reader] = position
        return changed

    def place(self, ingest: I64, position: int | None) -> tuple[U8, list[int]]:
        """Finds a slot for each of one or more rows, and moves the ends of the slots.

        Args:
            ingest: their ingest times in µs since 1970.
            position: of their reader after them; used only while no position is known.

        Returns:
            the slots, and which slots are to be cleared before anything is added.
        """
        known = sorted(p for p in self.positions if p is not None)
        if known:
            low, middle = known[0], known[len(known) // 2]
        else:
            middle = int(np.partition(ingest, len(ingest) // 2)[len(ingest) // 2])
            middle = max(-_LATEST, min(middle if position is None else position, _LATEST))
            low = middle - self.horizon_us
        bucket = self.bucket_us
        limit = ((middle + self.horizon_us) // bucket + 1) * bucket
        ends = (np.clip(ingest, low, _LATEST) // bucket + 1) * bucket
        slots = np.full(len(ends), FAR, np.uint8)
        near = ends <= limit
        distinct, inverse = np.unique(ends[near], return_inverse=True)
        cleared = self._make_room(sum(end not in self.ends[:FAR] for end in distinct.tolist()))
        if not near.all():
            self.ends[FAR] = max(int(ends.max()), self.ends[FAR] or _NONE)
        if len(distinct):
            slots[near] = np.array([self._slot(end, limit) for end in distinct.tolist()], np.uint8)[inverse]
        return slots, cleared

    def _make_room(self, wanted: int) -> list[int]:
        """Empties all slots that all readers have passed, if there are fewer free ones than wanted."""
        if self.ends[:FAR].count(None) >= wanted or None in self.positions:
            return []
        passed = min(p for p in self.positions if p is not None) - self.horizon_us
        cleared = [slot for slot, end in enumerate(self.ends) if end is not None and end <= passed]
        for slot in cleared:
            self.ends[slot] = None
        return cleared

    def _slot(self, end: int, limit: int) -> int:
        near = self.ends[:FAR]
        if end in near:
            return near.index(end)
        if None in near:
            slot = near.index(None)
            self.ends[slot] = end
            return slot
        usable = [(e, slot) for slot, e in enumerate(near) if e is not None and e <= limit]
        if not usable:
            self.ends[FAR] = max(end, self.ends[FAR] or _NONE)
            return FAR
        later = [pair for pair in usable if pair[0] > end]
        newest, slot = min(later) if later else max(usable)
        self.ends[slot] = max(newest, end)
        return slot
