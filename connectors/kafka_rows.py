"""From messages of confluent-kafka to batches of raw records."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_NOT_AVAILABLE, Message

from headrace.connectors.raw_blocks import FAULT_BYTES
from headrace.connectors.stream_source import Read
from headrace.schemas.columns import CODE, RAW_SCHEMA, TIME
from headrace.schemas.errors import InputError


class Hand:
    """Messages in order of arrival, none of them an error, with what is asked of all of them as arrays."""

    def __init__(self, messages: list[Message]) -> None:
        rows = len(messages)
        self.messages = messages
        self.numbers: np.ndarray[Any, Any] = np.fromiter(map(Message.partition, messages), np.int64, rows)
        """Partitions."""
        stamps = np.fromiter(
            chain.from_iterable(map(Message.timestamp, messages)), np.int64, 2 * rows
        ).reshape(rows, 2)
        self.kinds: np.ndarray[Any, Any] = stamps[:, 0]
        """Who set the timestamps: confluent-kafka's ``TIMESTAMP_…``."""
        self.times: np.ndarray[Any, Any] = np.where(self.kinds == TIMESTAMP_NOT_AVAILABLE, -1, stamps[:, 1])
        """Timestamps in ms since 1970; -1 where there is none."""

    def __len__(self) -> int:
        return len(self.messages)

    def pick(self, chosen: np.ndarray[Any, Any]) -> "Hand":
        """Returns the messages for which ``chosen`` is true."""
        picked = Hand.__new__(Hand)
        picked.messages = [self.messages[i] for i in np.flatnonzero(chosen)]
        picked.numbers, picked.kinds, picked.times = (
            self.numbers[chosen],
            self.kinds[chosen],
            self.times[chosen],
        )
        return picked


def check_append_time(hand: Hand, name: str) -> None:
    """Refuses records whose timestamp is not the broker's.

    Raises:
        InputError: there is one; names its partition and offset, and the ways out.
    """
    created = np.flatnonzero(hand.kinds == TIMESTAMP_CREATE_TIME)
    if len(created):
        first = hand.messages[int(created[0])]
        raise InputError(
            f"{name}: the record at offset {first.offset()} of partition {first.partition()} has its producer's timestamp "
            f"(CreateTime), not the broker's; {CREATE_TIME_FIX}"
        )


CREATE_TIME_FIX = (
    "set message.timestamp.type=LogAppendTime on the topic (it holds for records written from then on), or accept the "
    "producers' clocks as ingest time with the option ingest_time=create"
)


def raw_batch(hand: Hand, topic: str, max_record_bytes: int) -> tuple[pa.RecordBatch, tuple[Read, ...]]:
    """Returns the messages as a batch of ``RAW_SCHEMA`` in their order, and what was read of each partition.

    ``origin`` is ``TOPIC/PARTITION``, ``origin_position`` the offset, ``ingest_time`` the message's timestamp. Rows with a
    fault: ``null_value`` (a tombstone; ``raw`` is null), ``line_too_long`` (``raw`` is its beginning) and ``no_timestamp``
    (``ingest_time`` is null).
    """
    rows = len(hand)
    offsets = np.fromiter(map(Message.offset, hand.messages), np.int64, rows)
    reads, codes, names = _reads(hand.numbers, offsets, topic)
    raw = pa.array(list(map(Message.value, hand.messages)), pa.binary())
    raw, faults = _faults(raw, hand, max_record_bytes)
    micros = pa.array(hand.times * 1000, mask=hand.times < 0) if (hand.times < 0).any() else hand.times * 1000
    columns = [
        raw,
        pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names, pa.string())),
        pa.array(offsets),
        pa.array(micros).cast(TIME),
        faults,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=RAW_SCHEMA), reads


def _reads(
    numbers: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any], topic: str
) -> tuple[tuple[Read, ...], np.ndarray[Any, Any], list[str]]:
    """Returns what was read by partition, each row's place in it, and the partitions' names."""
    found = np.flatnonzero(np.bincount(numbers))
    names = [f"{topic}/{number}" for number in found.tolist()]
    codes = np.zeros(len(numbers), np.int32)
    reads = []
    for code, number in enumerate(found.tolist()):
        rows = np.flatnonzero(numbers == number)
        codes[rows] = code
        reads.append(Read(names[code], int(offsets[rows[0]]), int(offsets[rows[-1]]) + 1, len(rows)))
    return tuple(reads), codes, names


def _faults(raw: pa.Array, hand: Hand, max_record_bytes: int) -> tuple[pa.Array, pa.Array]:
    """Returns the values, those that are too long cut, and the fault of each row."""
    rows = len(hand)
    lengths = np.diff(np.frombuffer(raw.buffers()[1], np.int32, rows + 1)) if rows else np.zeros(0, np.int32)
    long = lengths > max_record_bytes
    undated = hand.times < 0
    if not (raw.null_count or long.any() or undated.any()):
        return raw, pa.nulls(rows, CODE)
    faults: list[str | None] = [None] * rows
    _mark(faults, np.flatnonzero(undated), "no_timestamp")
    _mark(faults, np.flatnonzero(raw.is_null().to_numpy(zero_copy_only=False)), "null_value")
    _mark(faults, np.flatnonzero(long), "line_too_long")
    if long.any():
        keep = min(FAULT_BYTES, max_record_bytes)
        values = [
            value if value is None or not cut else value[:keep]
            for value, cut in zip(map(Message.value, hand.messages), long, strict=True)
        ]
        raw = pa.array(values, pa.binary())
    return raw, pa.array(faults, pa.string()).dictionary_encode().cast(CODE)


def _mark(faults: list[str | None], rows: Sequence[int] | np.ndarray[Any, Any], code: str) -> None:
    for row in rows:
        faults[row] = code
