"""The watermark of a receiver of numbered messages, whatever their order: a pure state machine.

A *sender* is one shard's answer to one reader. Each sends polls 0, 1, 2, …, so a receiver knows up to which poll it has seen
everything of a sender; the watermark that came with that poll counts, and what came later waits until the gap is filled.
"""

import struct
from bisect import bisect_left
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.schemas.errors import ConfigError
from headrace.transforms.stream_message import Message

END = (1 << 63) - 1
"""The watermark when every reader has come to its end: no more events at all."""
MAX_READERS, MAX_SHARDS = 1024, 1024

_NONE = -(1 << 63)
_HEAD = struct.Struct("<BHHqI")
_FORMAT = 1
_UNSIGNED = (np.dtype("<u1"), np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u8"))
_RUN = np.dtype(
    [
        ("sender", "<u4"),
        ("first", "<i8"),
        ("last", "<i8"),
        ("mark", "<i8"),
        ("read_at", "<i8"),
        ("idle", "u1"),
    ]
)

I64 = npt.NDArray[np.int64]


class _Run(NamedTuple):
    """Polls without a gap that came before an earlier one; of their clocks only the end is ever seen."""

    first: int
    last: int
    mark: int
    read_at: int
    idle: bool

    def then(self, later: "_Run") -> "_Run":
        return _Run(self.first, later.last, max(self.mark, later.mark), later.read_at, later.idle)


class StreamClock:
    """Watermark over ``readers`` × ``shards`` senders.

    A sender's watermark never goes back: a lower one, or None, after a higher one is ignored. Messages may come in any order;
    the state depends on which came, not on their order, but for the watermark, which is monotone. Memory: 25 bytes a sender,
    and about 41 for each run of polls that came too early. Encoded: about 9 bytes a sender while they are within an hour.

    Raises:
        ConfigError: a number of readers or shards outside 1 to 1024.
    """

    def __init__(self, readers: int, shards: int) -> None:
        for name, number, most in (("readers", readers, MAX_READERS), ("shards", shards, MAX_SHARDS)):
            if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
                raise ConfigError(f"{name}={number!r}: must be a whole number from 1 to {most}")
        self.readers, self.shards = readers, shards
        self._planes: I64 = np.empty((3, readers * shards), np.int64)
        self._polls, self._marks, self._read_at = self._planes
        self._polls[:], self._marks[:], self._read_at[:] = -1, _NONE, _NONE
        self._idle = np.zeros(readers * shards, bool)
        self._any_idle = False
        self._early: dict[int, list[_Run]] = {}
        self._high = _NONE

    def receive(self, message: Message, *, idle: bool = False) -> None:
        """Takes in a message's number and clock.

        Args:
            idle: all partitions of the reader are idle: it holds no other reader back, until a message says otherwise. While
                all that are not at their end are idle, the highest of their watermarks counts.

        Raises:
            ValueError: a number out of range, or a message that has come already; its rows would count twice.
        """
        if not (
            0 <= message.reader < self.readers and 0 <= message.shard < self.shards and message.poll >= 0
        ):
            raise ValueError(
                f"message of reader {message.reader}, shard {message.shard}, poll {message.poll}: this clock is of "
                f"{self.readers} readers and {self.shards} shards; start all stages with the same numbers"
            )
        sender = message.reader * self.shards + message.shard
        poll = message.poll
        mark = END if message.final else _NONE if message.watermark is None else message.watermark
        new = _Run(poll, poll, mark, message.read_at, idle)
        waiting = int(self._polls[sender]) + 1
        if poll < waiting:
            raise _twice(message)
        runs = self._early.get(sender)
        if poll > waiting:
            self._keep(sender, new, message)
            return
        if runs and runs[0].first == poll + 1:
            new = new.then(runs.pop(0))
            if not runs:
                del self._early[sender]
        self._pass(sender, new)

    def watermark(self) -> int | None:
        """Event time in µs before which nothing is expected; None while a reader's is unknown, ``END`` at the end of all."""
        return None if self._high == _NONE else self._high

    def taken(self) -> dict[int, int]:
        """Returns by reader how many of its polls have come from all shards, without a gap."""
        lowest = self._polls.reshape(self.readers, self.shards).min(axis=1) + 1
        return dict(enumerate(lowest.tolist()))

    def read_at(self) -> int | None:
        """Time in µs, by the readers' clocks, of the oldest poll up to which a sender is complete; None before its first."""
        oldest = int(self._read_at.min())
        return None if oldest == _NONE else oldest

    def gaps(self) -> int:
        """Returns how many runs of polls wait for an earlier one."""
        return sum(map(len, self._early.values()))

    def encode(self) -> bytes:
        """Returns the state as bytes: polls and times as differences to each reader's lowest, in as few bytes as hold them."""
        planes = self._planes.reshape(3, self.readers, self.shards)
        lowest = planes.min(axis=2)
        differences = (planes - lowest[:, :, None]).view(np.uint64)
        head = _HEAD.pack(_FORMAT, self.readers, self.shards, self._high, self.gaps())
        parts = [head, lowest.tobytes()]
        for plane, highest in zip(differences, differences.max(axis=(1, 2)).tolist(), strict=True):
            width = (highest > 0xFF) + (highest > 0xFFFF) + (highest > 0xFFFFFFFF)
            parts += [bytes([width]), plane.astype(_UNSIGNED[width]).tobytes()]
        parts.append(np.packbits(self._idle).tobytes())
        if self._early:
            runs = [(sender, *run) for sender, found in sorted(self._early.items()) for run in found]
            parts.append(np.array(runs, _RUN).tobytes())
        return b"".join(parts)

    @classmethod
    def decode(cls, encoded: bytes, readers: int, shards: int) -> "StreamClock":
        """Reads what :meth:`encode` wrote.

        Raises:
            ConfigError: it was written with other numbers of readers or shards, or by another version of headrace.
        """
        format_, *numbers, high, gaps = _HEAD.unpack_from(encoded)
        if format_ != _FORMAT or numbers != [readers, shards]:
            raise ConfigError(
                f"the saved clock is of {numbers[0]} readers and {numbers[1]} shards (format {format_}), this job has "
                f"{readers} and {shards} (format {_FORMAT}); go on with the same numbers, or rebuild the state"
            )
        clock = cls(readers, shards)
        clock._high = high
        at = _HEAD.size
        lowest = np.frombuffer(encoded, np.int64, 3 * readers, at).reshape(3, readers, 1)
        at += lowest.nbytes
        size = readers * shards
        for plane, low in zip(clock._planes, lowest, strict=True):
            dtype = _UNSIGNED[encoded[at]]
            differences = np.frombuffer(encoded, dtype, size, at + 1).astype(np.uint64).view(np.int64)
            plane[:] = (differences.reshape(readers, shards) + low).reshape(size)
            at += 1 + size * dtype.itemsize
        clock._idle = np.unpackbits(np.frombuffer(encoded, np.uint8, (size + 7) // 8, at), count=size).astype(
            bool
        )
        clock._any_idle = bool(clock._idle.any())
        at += (size + 7) // 8
        for sender, first, last, mark, read_at, idle in np.frombuffer(encoded, _RUN, gaps, at).tolist():
            clock._early.setdefault(sender, []).append(_Run(first, last, mark, read_at, bool(idle)))
        return clock

    def _keep(self, sender: int, new: _Run, message: Message) -> None:
        """Remembers a poll that came too early, joined to its neighbours."""
        runs = self._early.setdefault(sender, [])
        i = bisect_left(runs, new.first, key=lambda run: run.first)
        if (i < len(runs) and runs[i].first == new.first) or (i and runs[i - 1].last >= new.first):
            raise _twice(message)
        if i < len(runs) and runs[i].first == new.last + 1:
            new = new.then(runs.pop(i))
        if i and runs[i - 1].last == new.first - 1:
            i -= 1
            new = runs.pop(i).then(new)
        runs.insert(i, new)

    def _pass(self, sender: int, run: _Run) -> None:
        """Advances a sender to the end of a run, and the watermark with it."""
        self._polls[sender] = run.last
        self._read_at[sender] = run.read_at
        if run.mark > self._marks[sender]:
            self._marks[sender] = run.mark
        if run.idle or self._any_idle:
            self._idle[sender] = run.idle
            self._any_idle = bool(self._idle.any())
        if not self._any_idle:
            self._high = max(self._high, int(self._marks.min()))
            return
        going = self._marks != END
        busy = self._marks[going & ~self._idle]
        if len(busy):
            self._high = max(self._high, int(busy.min()))
        else:
            self._high = max(self._high, int(self._marks[going].max()) if going.any() else END)


def _twice(message: Message) -> ValueError:
    return ValueError(
        f"reader {message.reader}, shard {message.shard}: poll {message.poll} came twice; the runner must deliver every "
        "message exactly once"
    )
