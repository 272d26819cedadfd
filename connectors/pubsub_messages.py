"""From pulled messages to batches of raw records."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from headrace.connectors.raw_blocks import FAULT_BYTES
from headrace.schemas.columns import CODE, RAW_SCHEMA, TIME
from headrace.transforms.batches import constant


@dataclass
class Pull:
    """Messages of one pull, or the rest of one, column by column."""

    number: int
    """Of the pull within its reader; names its lease."""
    data: list[bytes]
    ids: list[str]
    ack_ids: list[str]
    micros: list[int]
    """Publish times, µs since 1970."""

    def __len__(self) -> int:
        return len(self.data)

    @classmethod
    def of(cls, number: int, received: Sequence[Any]) -> "Pull":
        """Takes the columns out of the messages of a response."""
        messages = [r.message for r in received]
        times = [m.publish_time for m in messages]
        return cls(
            number,
            [m.data for m in messages],
            [m.message_id for m in messages],
            [r.ack_id for r in received],
            [t.seconds * 1_000_000 + t.nanos // 1000 for t in times],
        )

    def cut(self, rows: int) -> tuple["Pull", "Pull"]:
        """Returns the first rows, and the rest."""
        return self.take(range(rows)), self.take(range(rows, len(self)))

    def take(self, places: Sequence[int]) -> "Pull":
        """Returns the messages at these places."""
        return Pull(
            self.number,
            [self.data[i] for i in places],
            [self.ids[i] for i in places],
            [self.ack_ids[i] for i in places],
            [self.micros[i] for i in places],
        )


def positions_of(ids: Sequence[str]) -> pa.Array:
    """Returns a number of 0 or more for each message id: the id itself where it is a number below 2⁶³, else 63 bits of its hash."""
    texts = pa.array(ids, pa.string())
    try:
        numbers = texts.cast(pa.int64())
    except pa.ArrowInvalid:
        return pa.array([_position(message_id) for message_id in ids], pa.int64())
    as_they_are = pc.and_(pc.equal(numbers.cast(pa.string()), texts), pc.greater_equal(numbers, 0))
    if pc.all(as_they_are, min_count=0).as_py():
        return numbers
    return pa.array([_position(message_id) for message_id in ids], pa.int64())


def identity_of(message_id: str) -> Hashable:
    """Returns what tells the message from all others; small for the usual ids."""
    number = _number(message_id)
    return message_id if number is None else number


def raw_batch(pulls: Sequence[Pull], origin: str, max_record_bytes: int) -> pa.RecordBatch:
    """Returns the messages as a batch of ``RAW_SCHEMA``.

    ``origin_position`` is as :func:`positions_of` says, ``ingest_time`` the publish time. A message that is too long is cut and
    gets the fault ``line_too_long``.
    """
    data = [value for pull in pulls for value in pull.data]
    rows = len(data)
    ids = [message_id for pull in pulls for message_id in pull.ids]
    micros = np.fromiter((m for pull in pulls for m in pull.micros), np.int64, rows)
    long = [i for i, value in enumerate(data) if len(value) > max_record_bytes]
    fault: pa.Array = pa.nulls(rows, CODE)
    if long:
        faults: list[str | None] = [None] * rows
        for i in long:
            data[i], faults[i] = data[i][: min(FAULT_BYTES, max_record_bytes)], "line_too_long"
        fault = pa.array(faults, pa.string()).dictionary_encode().cast(CODE)
    columns = [
        pa.array(data, pa.binary()),
        constant(origin, rows, CODE),
        positions_of(ids),
        pa.array(micros).cast(TIME),
        fault,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=RAW_SCHEMA)


def _number(message_id: str) -> int | None:
    if not (message_id.isascii() and message_id.isdigit()) or len(message_id) > 19:
        return None
    number = int(message_id)
    return number if number < 1 << 63 and str(number) == message_id else None


def _position(message_id: str) -> int:
    number = _number(message_id)
    return xxhash.xxh3_64_intdigest(message_id.encode()) >> 1 if number is None else number
