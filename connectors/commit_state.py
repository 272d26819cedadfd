"""The committer's state: entries on their way from a bundle to a Delta commit, numbered in the order of arrival.

What makes commits exactly-once:

1. Every packed list of entries that arrives gets the next *sequence number*. Number and list are bound for ever once a checkpoint
   holds them.
2. Only what a durable checkpoint holds is committed, and always as a prefix: never a number without all lower ones. So no
   restore can take back what a table has, and no number of a table can come to mean other entries.
3. Each commit to a table writes the highest number it contains into the table's log as the job's transaction version. A number that
   a table has is never committed to it again, whether the commit's success was seen or not.
4. After a restore everything pending is ready again, and what the tables have of it is skipped.
5. A running hash, the *chain*, covers every list up to a number; the log has it beside the version. State of an older
   savepoint, or of another job, has another chain or too low a number; the committer then refuses to go on, since the lake
   holds rows that this state does not know.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from headrace.schemas.errors import UntrustedRunError
from headrace.transforms.shard_state import ShardState

SLOTS = 8

_ITEM = struct.Struct("<qqqq")
"""Sequence number, arrival time, epoch, chain; then the packed entries."""
_CELL = struct.Struct(f"<qqqqqq{SLOTS}q")
"""Next number, chain, last arrival, number and chain of what was dropped, current slot; the last number in each slot."""
_NONE = -1


@dataclass(frozen=True)
class Mark:
    """A sequence number and the chain up to it."""

    seq: int
    chain: int


@dataclass(frozen=True)
class Arrival:
    """One packed list of entries under its number."""

    seq: int
    at: int
    """When it arrived, µs since 1970; never before one with a lower number."""
    chain: int
    packed: bytes


@dataclass(frozen=True)
class Ready:
    """What may be committed now, and what the state knows besides: all that a committer needs, without the state."""

    arrivals: tuple[Arrival, ...]
    """In the order of their numbers, without gaps."""
    next_seq: int
    """The number that the next arrival gets."""
    dropped: Mark
    """Up to here the state has let go of what the lake has; number -1 if nothing yet."""
    chains: Mapping[int, int]
    """{number: chain} of everything pending, ready or not."""
    waiting: int
    """Arrivals that are pending and not ready."""

    @property
    def last(self) -> Mark | None:
        return Mark(self.arrivals[-1].seq, self.arrivals[-1].chain) if self.arrivals else None


class CommitState:
    """The pending entries of one job, in one cell and ``SLOTS`` bags of a runner's state. Pure; no clock, no memory of its own.

    Args:
        state: of the one key that all entries go to.
        epoch: a number that names this process, from 0 to 2⁶³-1, drawn when it starts. State passes from one process to
            another only through a checkpoint, so what another process received is durable.
    """

    def __init__(self, state: ShardState, epoch: int) -> None:
        self._state = state
        self._epoch = epoch

    def receive(self, packed: bytes, now_us: int) -> int:
        """Keeps one packed list and returns its number.

        Args:
            packed: as :func:`pack <headrace.connectors.stream_entries.pack>` made it.
            now_us: the time; one that goes back is taken as the last one.
        """
        cell = self._cell()
        seq, at = cell.next_seq, max(now_us, cell.last_at)
        chain = chain_of(cell.chain, packed)
        cell.next_seq, cell.chain, cell.last_at = seq + 1, chain, at
        cell.slots[cell.current] = seq
        self._state.write_cell(cell.pack())
        self._state.add_to_slot(cell.current, _ITEM.pack(seq, at, self._epoch, chain) + packed)
        return seq

    def ready(self, durable_until_us: int | None) -> Ready:
        """Returns what may be committed.

        Args:
            durable_until_us: the trigger time of the last completed checkpoint: what arrived before it is in it. None: everything
                is durable as soon as the bundle is (the caller commits after the bundle, from its finalizer).
        """
        cell = self._cell()
        found = []
        for slot, last in enumerate(cell.slots):
            if last > cell.dropped.seq:
                found += [(_ITEM.unpack_from(item), item) for item in self._state.read_slot(slot)]
        found = sorted((each for each in found if each[0][0] > cell.dropped.seq), key=lambda each: each[0][0])
        arrivals: list[Arrival] = []
        for (seq, at, epoch, chain), item in found:
            if durable_until_us is not None and at >= durable_until_us and epoch == self._epoch:
                break
            arrivals.append(Arrival(seq, at, chain, item[_ITEM.size :]))
        self._rotate(cell)
        chains = {head[0]: head[3] for head, _ in found}
        return Ready(tuple(arrivals), cell.next_seq, cell.dropped, chains, len(found) - len(arrivals))

    def drop(self, committed: Mark) -> None:
        """Lets go of what the ledger's table has; harmless when repeated. The bundle may fail afterwards: the lake keeps it.

        Args:
            committed: what :meth:`StreamCommitter.commit <headrace.connectors.commit_stream.StreamCommitter.commit>` returned.

        Raises:
            UntrustedRunError: this state never gave that number.
        """
        cell = self._cell()
        if committed.seq >= cell.next_seq:
            raise UntrustedRunError(
                f"entries up to number {committed.seq} are said to be committed, this state has given {cell.next_seq - 1} at "
                "most: it is older than the lake. Restore the newer checkpoint, or start with --rebuild-state-from LAKE"
            )
        if committed.seq <= cell.dropped.seq:
            return
        cell.dropped = committed
        for slot, last in enumerate(cell.slots):
            if last != _NONE and last <= committed.seq:
                cell.slots[slot] = _NONE
                self._state.clear_slot(slot)
        self._state.write_cell(cell.pack())

    def _rotate(self, cell: "_Cell") -> None:
        """Further arrivals go to an empty slot, so that those of now can be cleared as a whole."""
        if cell.slots[cell.current] == _NONE:
            return
        for slot, last in enumerate(cell.slots):
            if last == _NONE:
                cell.current = slot
                self._state.write_cell(cell.pack())
                return

    def _cell(self) -> "_Cell":
        return _Cell.unpack(self._state.read_cell())


@dataclass
class _Cell:
    next_seq: int
    chain: int
    last_at: int
    dropped: Mark
    current: int
    slots: list[int]

    def pack(self) -> bytes:
        return _CELL.pack(
            self.next_seq,
            self.chain,
            self.last_at,
            self.dropped.seq,
            self.dropped.chain,
            self.current,
            *self.slots,
        )

    @classmethod
    def unpack(cls, packed: bytes | None) -> "_Cell":
        if packed is None:
            return cls(0, 0, -(1 << 63), Mark(_NONE, 0), 0, [_NONE] * SLOTS)
        next_seq, chain, last_at, seq, dropped_chain, current, *slots = _CELL.unpack(packed)
        return cls(next_seq, chain, last_at, Mark(seq, dropped_chain), current, list(slots))


def chain_of(before: int, packed: bytes) -> int:
    """Returns the chain after this list: 63 bits of XXH3 over the list, seeded with the chain before it."""
    return xxh3_64_intdigest(packed, before) >> 1
