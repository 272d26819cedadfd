"""What every reader emits: blocks of raw records."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from headrace.schemas.columns import CODE, RAW_SCHEMA, TIME

MAX_ROWS = 1 << 14
"""Most rows of one batch."""
BATCH_ROWS = 1 << 13
"""Rows of a batch where each record is made in Python."""
FAULT_BYTES = 1 << 16
"""How much is kept of a record that can't be read."""


class Block(NamedTuple):
    """Some consecutive records of a split; at least one."""

    raw: pa.RecordBatch
    """Rows of ``RAW_SCHEMA``, at most ``MAX_ROWS``."""
    read_bytes: int
    """Bytes of the source file consumed since the block before, for progress."""
    records: int
    """Records, counted apart from the building of ``raw``: for the ledger."""


class BlockBuilder:
    """Builds batches of one origin; its constant columns are made once and sliced."""

    def __init__(self, origin: str, ingest_time: datetime) -> None:
        codes = pa.array(np.zeros(MAX_ROWS, np.int32))
        self._origin = pa.DictionaryArray.from_arrays(codes, pa.array([origin], pa.string()))
        self._time = pa.repeat(pa.scalar(ingest_time, TIME), MAX_ROWS)
        self._sound = pa.nulls(MAX_ROWS, CODE)

    def build(
        self, raw: pa.Array, positions: pa.Array, faults: Sequence[str | None] | None = None
    ) -> pa.RecordBatch:
        """Returns the batch.

        Args:
            raw: binary, at most ``MAX_ROWS``.
            positions: int64, of equal length.
            faults: a reason code or None for each row; None: no faults.
        """
        rows = len(raw)
        fault = (
            self._sound.slice(0, rows)
            if faults is None
            else pa.array(faults, pa.string()).dictionary_encode().cast(CODE)
        )
        columns = [raw, self._origin.slice(0, rows), positions, self._time.slice(0, rows), fault]
        return pa.RecordBatch.from_arrays(columns, schema=RAW_SCHEMA)


class RowBuffer:
    """Gathers rows one by one into blocks, for readers that make each record in Python."""

    def __init__(self, builder: BlockBuilder, start_bytes: int = 0) -> None:
        self._builder = builder
        self._raw: list[bytes] = []
        self._positions: list[int] = []
        self._faults: list[str | None] = []
        self._bytes = 0
        self._reported = start_bytes

    def add(self, raw: bytes, position: int, fault: str | None = None) -> None:
        """Adds a row; ``raw`` of a fault is cut to ``FAULT_BYTES``."""
        self._raw.append(raw if fault is None else raw[:FAULT_BYTES])
        self._positions.append(position)
        self._faults.append(fault)
        self._bytes += len(raw)

    def __len__(self) -> int:
        return len(self._raw)

    @property
    def full(self) -> bool:
        """True when :meth:`take` should be called: many rows, or many bytes."""
        return len(self._raw) >= BATCH_ROWS or self._bytes >= 1 << 25

    def take(self, records: int, position_bytes: int) -> Block:
        """Returns the gathered rows as one block and starts anew.

        Args:
            records: how many records the reader counted for them.
            position_bytes: where the reader stands in the file.
        """
        faults = self._faults if any(self._faults) else None
        batch = self._builder.build(
            pa.array(self._raw, pa.binary()), pa.array(self._positions, pa.int64()), faults
        )
        block = Block(batch, position_bytes - self._reported, records)
        self._raw, self._positions, self._faults = [], [], []
        self._bytes, self._reported = 0, position_bytes
        return block
