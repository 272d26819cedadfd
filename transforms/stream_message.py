"""What the stages of a streaming pipeline send each other through the runner's shuffles.

Every poll of a reader is numbered, and sends exactly one message to every shard, rows or not; every shard answers each with exactly
one message to every window table. So a receiver knows, whatever the order of arrival, up to which poll it has seen everything of a
sender, and a watermark is data: it counts from the moment at which all messages before it have arrived. No runner's watermark,
timer or lateness is involved, which differ between runners (docs/decisions/0004-streams-without-runner-watermarks.md).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from headrace.transforms.packed_batches import from_bytes, pack_parts, to_bytes, unpack_parts

_HEAD = struct.Struct("<HHHqqqq")
_NONE = -(1 << 63)


@dataclass(frozen=True)
class Message:
    """A numbered message; without ``batch`` and ``parts`` it only carries the clock."""

    reader: int
    """Number of the reader."""
    shard: int
    """Number of the dedupe shard that it is for, or that sends it."""
    poll: int
    """Number of the poll within the reader: 0, 1, 2, …"""
    watermark: int | None
    """Event time in µs since 1970 before which this reader expects no more events; None: not yet known."""
    ingest_position: int | None
    """Ingest time in µs up to which the reader has read its slowest partition; None: nothing read yet."""
    read_at: int
    """Time of the poll in µs since 1970, by the reader's clock: the only clock downstream of it."""
    batch: pa.RecordBatch | None = None
    """Events, from a reader to a shard."""

    final: bool = False
    """True in the last message of a reader that has come to the end it was given."""
    idle: bool = False
    """True if none of the reader's partitions has anything: its watermark then holds no other reader back."""
    seed: bool = False
    """True if the rows are in the lake already and only rebuild state."""
    parts: tuple[tuple[int, pa.RecordBatch], ...] = ()
    """Partials with the numbers of their window tables, from a shard to a window shard; a message has these or a batch."""

    def pack(self) -> bytes:
        """Returns the message as bytes: a fixed head, then an Arrow IPC stream if there is a batch."""
        head = _HEAD.pack(
            self.reader,
            self.shard,
            self.final | self.seed << 1 | self.idle << 2 | bool(self.parts) << 3,
            self.poll,
            _NONE if self.watermark is None else self.watermark,
            _NONE if self.ingest_position is None else self.ingest_position,
            self.read_at,
        )
        if self.parts:
            return head + pack_parts(self.parts)
        return head if self.batch is None else head + to_bytes(self.batch)

    @classmethod
    def unpack(cls, packed: bytes) -> "Message":
        """Reads what :meth:`pack` wrote."""
        reader, shard, flags, poll, watermark, ingest, read_at = _HEAD.unpack_from(packed)
        rest = memoryview(packed)[_HEAD.size :]
        parts = tuple(unpack_parts(rest)) if flags & 8 else ()
        batch = from_bytes(rest) if rest and not parts else None
        return cls(
            reader,
            shard,
            poll,
            None if watermark == _NONE else watermark,
            None if ingest == _NONE else ingest,
            read_at,
            batch,
            bool(flags & 1),
            bool(flags & 4),
            bool(flags & 2),
            parts,
        )


def pack_all(messages: Sequence[Message]) -> bytes:
    """Returns messages, one at least, as one element: their number, the length of each, then each as ``pack`` gives it."""
    packed = [message.pack() for message in messages]
    return b"".join([struct.pack(f"<I{len(packed)}I", len(packed), *map(len, packed)), *packed])


def unpack_all(packed: bytes) -> list[Message]:
    """Reads what :func:`pack_all` wrote."""
    (count,) = struct.unpack_from("<I", packed)
    messages, at = [], 4 + 4 * count
    for length in struct.unpack_from(f"<{count}I", packed, 4):
        messages.append(Message.unpack(packed[at : at + length]))
        at += length
    return messages
