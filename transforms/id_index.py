"""A set of 128-bit ids in memory, with a payload tag and a slot for each, looked up in whole batches."""

import secrets
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from headrace.transforms.hashing import U64, mix64

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

TAG_BITS = 48
MAX_LOAD = 0.55
_CHUNK = 1 << 15
_SPARE = 8
"""Entries are allocated for one eighth more than there are."""


class IdIndex:
    """An open-addressing hash table of numpy arrays.

    An id is 128 bits in two halves, all of which are compared. Its tag is 48 bits of payload hash, its slot a number from 0 to 255
    under which it can be removed with all others of the slot. Entries lie in dense arrays of 24 bytes each, in the order in which
    they were added; a table of 4-byte entry numbers, between 0.275 and 0.55 full, is probed by double hashing. That is at most
    42 bytes an id, also while it grows. The hash is seeded at random, so that nobody can choose ids that collide.

    For one thread at a time.
    """

    def __init__(self) -> None:
        self._seed = secrets.randbits(63)
        self._count = 0
        self._high = np.empty(0, np.uint64)
        self._low = np.empty(0, np.uint64)
        self._meta = np.empty(0, np.uint64)
        self._table = np.full(64, -1, np.int32)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes of memory that its arrays hold."""
        return self._high.nbytes + self._low.nbytes + self._meta.nbytes + self._table.nbytes

    def find(self, high: U64, low: U64) -> I64:
        """Returns the entry of each id, -1 where it is not in the set; entries are good until a slot is removed."""
        found = np.full(len(high), -1, np.int64)
        at, step = self._probes(high, low)
        rows = np.arange(len(high))
        last = len(self._table) - 1
        while len(rows):
            entries = self._table[at]
            used = entries >= 0
            if not used.all():
                entries, rows, at = entries[used], rows[used], at[used]
            same = (self._low[entries] == low[rows]) & (self._high[entries] == high[rows])
            found[rows[same]] = entries[same]
            other = ~same
            rows = rows[other]
            at = (at[other] + step[rows]) & last
        return found

    def tags(self, entries: I64) -> U64:
        """Returns the tags of these entries."""
        tags: U64 = self._meta[entries] >> np.uint64(8)
        return tags

    def add(self, high: U64, low: U64, tags: U64, slots: U8 | int) -> None:
        """Adds ids that are not in the set, each once.

        Args:
            tags: of 48 bits.
            slots: one for all, or one for each.
        """
        first, count = self._count, self._count + len(high)
        if count > len(self._meta):
            self._resize(count + count // _SPARE)
        self._high[first:count] = high
        self._low[first:count] = low
        self._meta[first:count] = (tags << np.uint64(8)) | np.asarray(slots, np.uint64)
        self._count = count
        if count > MAX_LOAD * len(self._table):
            self._relink()
        else:
            self._link(first)

    def remove(self, slots: Collection[int]) -> None:
        """Removes all ids of these slots; costs a pass over the whole set."""
        held = (self._meta[: self._count] & np.uint64(255)).astype(np.uint8)
        keep = ~np.isin(held, np.fromiter(slots, np.uint8, len(slots)))
        if keep.all():
            return
        count = int(keep.sum())
        for values in (self._high, self._low, self._meta):
            values[:count] = values[: self._count][keep]
        self._count = count
        self._resize(count + count // _SPARE)
        self._relink()

    def _probes(self, high: U64, low: U64) -> tuple[I64, I64]:
        """Returns the first place of each id and its odd step."""
        mixed = mix64(mix64(high, self._seed) ^ low, self._seed + 1)
        last = np.uint64(len(self._table) - 1)
        return (mixed & last).astype(np.int64), ((mixed >> np.uint64(32)) | np.uint64(1)).astype(np.int64)

    def _resize(self, capacity: int) -> None:
        """Grows or shrinks the entries in place (the allocator moves pages, so old and new never lie side by side)."""
        for values in (self._high, self._low, self._meta):
            values.resize(capacity, refcheck=False)

    def _relink(self) -> None:
        """Builds the table anew, of the smallest power of two that is not too full."""
        size = 64
        while self._count > MAX_LOAD * size:
            size *= 2
        self._table = np.empty(0, np.int32)
        self._table = np.full(size, -1, np.int32)
        self._link(0)

    def _link(self, first: int) -> None:
        """Puts the entries from ``first`` on into the table."""
        table, last = self._table, len(self._table) - 1
        for start in range(first, self._count, _CHUNK):
            stop = min(start + _CHUNK, self._count)
            at, step = self._probes(self._high[start:stop], self._low[start:stop])
            entries = np.arange(start, stop, dtype=np.int32)
            while len(entries):
                free = table[at] < 0
                table[at[free]] = entries[free]
                lost = table[at] != entries  # The place was taken, or another entry of this chunk won it.
                entries, step = entries[lost], step[lost]
                at = (at[lost] + step) & last
