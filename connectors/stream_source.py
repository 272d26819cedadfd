"""What a streaming pipeline asks of a source, whatever system is behind it.

A stream is read by a fixed number of *readers*. Each owns a share of the source's partitions and keeps one *position*: text
that says where its next poll goes on. The pipeline holds positions in the runner's state, so that after a crash a reader goes
on from the position of the last checkpoint, and reads again what was read since.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa


@dataclass(frozen=True)
class Read:
    """What one poll took from one partition."""

    origin: str
    """The partition, as in the rows' ``origin``: ``orders/3`` for a topic's partition, a path for a file."""
    first: int
    """Position of the first record taken (offset; record number in a file)."""
    next: int
    """Position after the last record taken; larger than ``first + records`` where a log has gaps."""
    records: int
    """Records taken, counted without decoding them."""


@dataclass(frozen=True)
class Poll:
    """One step of a reader."""

    batch: pa.RecordBatch
    """``RAW_SCHEMA``; rows of one partition are in its order. May be empty. One row a record, faulty ones included."""
    position: str
    """Where the next poll goes on."""
    reads: tuple[Read, ...] = ()
    """One for each partition that gave records; their sum is ``batch.num_rows``."""
    behind: Mapping[str, int] = field(default_factory=dict)
    """Records still waiting, for every partition that the reader owns (bytes for a file); 0: read to its present end."""
    receipt: str = ""
    """What ``Source.acknowledge`` gets once these records are safe; empty if there is nothing to acknowledge."""


class Reader(Protocol):
    """Reads one share of a source. Used by one thread."""

    def poll(self, max_rows: int, timeout_seconds: float) -> Poll:
        """Returns up to ``max_rows`` records, as soon as there are many or the time is up; an empty poll if there are none.

        Fast partitions wait for slow ones: none is read more than an hour of ingest time ahead of another that has records.

        Raises:
            InputError: the source refuses for good (topic gone, access denied, offsets no longer kept). What may pass (a
                broker that is away) is waited for within the time, and an empty poll is returned.
        """
        ...

    def close(self) -> None: ...


class Source(Protocol):
    """A stream. Frozen, picklable; holds no connection. Passwords are named (file, environment), never held."""

    @property
    def name(self) -> str:
        """The stream in ledger and messages, without secrets: ``kafka://broker:9092/orders``."""
        ...

    @property
    def format(self) -> str:
        """``json`` or ``weblog``, what Decode takes."""
        ...

    def check(self) -> None:
        """Connects once, from the launcher.

        Raises:
            ConfigError: an option that can't be right, with the fix.
            InputError: the source can't be reached or does not exist.
        """
        ...

    def start(self, readers: int, resume: Mapping[str, int] | None = None) -> list[str]:
        """Returns the first position of each reader.

        Args:
            readers: how many share the source.
            resume: {origin: position of the next record} of what is done already, from the lake's ledger; partitions that it
                lacks start as a new stream does.
        """
        ...

    def open(self, position: str) -> Reader:
        """Opens the reader that goes on at this position; cheap to repeat after a failure."""
        ...

    def acknowledge(self, receipts: Sequence[str]) -> None:
        """Tells the source that the records of these polls are in the lake. At least once; may be repeated, may be late."""
        ...
