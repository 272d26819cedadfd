"""Where a reader of a topic stands in each of its partitions: position text, ends, and who waits for whom."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from confluent_kafka import Message

from headrace.schemas.errors import InputError

HOUR_MILLIS = 3_600_000
"""How far a partition may be read ahead of another that has records, in ingest time."""
_NEVER = -(1 << 62)
_END = 1 << 62


@dataclass(frozen=True)
class KafkaPosition:
    """A reader's position: what it owns, and where its next poll goes on."""

    reader: int
    """Reader i of N owns the partitions p with p % N == i."""
    readers: int
    topic_id: str
    """Id of the topic that the offsets belong to; empty if the brokers give none."""
    next: Mapping[int, int] = field(default_factory=dict)
    """By partition: offset of the next record. A partition that is not here starts at offset 0."""
    times: Mapping[int, int] = field(default_factory=dict)
    """By partition: ingest time of the latest record read, ms since 1970."""

    def owns(self, partition: int) -> bool:
        """Whether the partition is this reader's."""
        return partition % self.readers == self.reader

    def text(self) -> str:
        """Returns JSON: ``{"next":{"0":17},"reader":0,"readers":2,"times":{"0":1767225600000},"topic_id":"…"}``."""
        found = {
            "reader": self.reader,
            "readers": self.readers,
            "topic_id": self.topic_id,
            "next": {str(p): offset for p, offset in self.next.items()},
            "times": {str(p): time for p, time in self.times.items()},
        }
        return orjson.dumps(found, option=orjson.OPT_SORT_KEYS).decode()

    @classmethod
    def parse(cls, text: str) -> "KafkaPosition":
        """Reads what :meth:`text` wrote.

        Raises:
            InputError: it is not that.
        """
        try:
            found = orjson.loads(text)
            position = cls(
                int(found["reader"]),
                int(found["readers"]),
                str(found["topic_id"]),
                {int(p): int(offset) for p, offset in found["next"].items()},
                {int(p): int(time) for p, time in found["times"].items()},
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InputError(
                "the position of a Kafka reader is not one; it was saved by another source or version: start anew from the "
                "lake (resume) instead of from this state"
            ) from None
        if not 0 <= position.reader < position.readers:
            raise InputError(f"a Kafka position names reader {position.reader} of {position.readers}")
        return position


@dataclass
class Partition:
    """One partition that a reader owns."""

    number: int
    consumed: int
    """Offset of what comes next from the broker."""
    time: int | None = None
    """Ingest time of the latest record that was returned, ms; None: none yet."""
    end: int | None = None
    """Offset behind its last record when that was last asked; None: not known."""
    at_end: int = -1
    """Where the broker last said that there is no more."""
    held: list[Message] = field(default_factory=list)
    """Consumed, but not returned: too far ahead of another partition."""
    paused: bool = False

    @property
    def next(self) -> int:
        """Offset of the next record to return."""
        return int(self.held[0].offset() or 0) if self.held else self.consumed

    @property
    def drained(self) -> bool:
        """Whether the broker has no more for now; it may be that records are held."""
        return self.consumed == self.at_end or (self.end is not None and self.consumed >= self.end)

    @property
    def behind(self) -> int:
        """Records that wait, at the broker or held; 0: all was returned. At least 1 if the end is not known."""
        if self.drained:
            return len(self.held)
        return max((self.consumed + 1 if self.end is None else self.end) - self.next, 1)

    def learn_end(self, end: int) -> None:
        """Notes the end as the broker gives it now."""
        self.end = end
        self.at_end = self.consumed if self.consumed >= end else -1


def aligned(
    partitions: Mapping[int, Partition], numbers: np.ndarray[Any, Any], times: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any] | None:
    """Says which of the records at hand may be returned: of each partition the first ones, as far as the slowest allows.

    Afterwards no partition has been read more than an hour of ingest time ahead of what is next in another that has records (at
    hand or at its broker). Some record can always be returned, unless a partition has records of which none is at hand and none was
    ever read: all wait for it.

    Args:
        partitions: by number, before the records at hand are returned.
        numbers: partition of each record at hand, in order of arrival.
        times: ingest time of each in ms; -1: none.

    Returns:
        True for each record that may be returned; None: all.
    """
    latest = {number: _NEVER if p.time is None else p.time for number, p in partitions.items()}
    rows = {int(number): np.flatnonzero(numbers == number) for number in np.unique(numbers)}
    reached = {
        number: np.maximum.accumulate(np.maximum(times[at], latest[number])) for number, at in rows.items()
    }
    behind_hand = {
        number: (int(reached[number][-1]) if number in reached else latest[number]) if not p.drained else _END
        for number, p in partitions.items()
    }
    if not rows or max(int(r[-1]) for r in reached.values()) <= min(behind_hand.values()) + HOUR_MILLIS:
        return None
    cuts = dict.fromkeys(rows, 0)
    while True:
        slowest = min(
            int(reached[number][cuts[number]])
            if number in rows and cuts[number] < len(rows[number])
            else behind_hand[number]
            for number in partitions
        )
        new = {n: int(np.searchsorted(r, slowest + HOUR_MILLIS, side="right")) for n, r in reached.items()}
        if new == cuts:
            break
        cuts = new
    if all(cuts[number] == len(at) for number, at in rows.items()):
        return None
    allowed = np.zeros(len(numbers), bool)
    for number, at in rows.items():
        allowed[at[: cuts[number]]] = True
    return allowed
