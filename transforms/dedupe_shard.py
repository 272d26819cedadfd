"""Exact deduplication of one shard of a stream, by ids held in the runner's state."""

import functools
from collections.abc import Iterable
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.errors import ConfigError
from headrace.transforms.base import Outcome
from headrace.transforms.batches import column
from headrace.transforms.dedupe_records import (
    CONFLICT,
    DUPLICATE,
    NO_ID,
    RECORD,
    Records,
    hash_records,
    id_bits,
    recurring,
    reject_rows,
)
from headrace.transforms.dedupe_slots import SLOTS, Cell
from headrace.transforms.hashing import U64, int64_values, present
from headrace.transforms.id_index import TAG_BITS, U8, IdIndex
from headrace.transforms.identity import Mask
from headrace.transforms.index_cache import IndexCache
from headrace.transforms.rejects import no_rejects
from headrace.transforms.shard_state import ShardState

__all__ = ["HORIZON", "SLOTS", "DedupeShard", "id_records"]

HORIZON = timedelta(hours=24)
ID_BYTES = 22
"""Of state for each id: 128 bits of id, 48 of payload hash."""

_TAG_MASK = np.uint64((1 << TAG_BITS) - 1)
_UNKNOWN = np.uint64(0)
"""Tag of an id whose payload is not known; it conflicts with none."""
_ACCEPTED, _DUPLICATE, _CONFLICT = 0, 1, 2
_EMPTY = np.empty(0, np.uint64)
_REASONS = np.array(["", DUPLICATE, CONFLICT], object)
_CACHE: IndexCache[IdIndex] = IndexCache()
"""Shared by all threads and jobs of the process."""


class DedupeShard:
    """Decides which rows of one shard are the first with their id, in order of arrival.

    An id is remembered until every reader's ingest position has passed the ingest time of its accepted row by the horizon, in
    whatever order rows arrive; it may be remembered longer (a later copy is then rejected still), never shorter. All 128 bits of
    id count; of the payload 48, for the reason only. A row without ingest time, or with one before the positions, counts as if
    it had come in at the slowest reader's; one far ahead of all readers keeps nothing but its like from being forgotten.

    State: one cell of some 250 bytes (version, slots, positions) and 22 bytes an id in ``SLOTS`` bags. Replaying a batch over
    the same state gives the same verdicts, and a bundle that fails leaves nothing behind, whatever this process remembers: see
    :class:`IndexCache <headrace.transforms.index_cache.IndexCache>`. Memory is up to 42 bytes an id.
    If a call raises, the bundle has to fail.

    Args:
        step: names the job and the step in it; shards of equal step and number take each other's place in the cache.
        shard: number of the shard.
        readers: how many readers there are. Nothing is forgotten before all of them have told their position.
        horizon: for how long copies are expected, in ingest time. A change takes effect on what is remembered already.
        cache: where indexes are kept between calls; by default one for the process.

    Raises:
        ConfigError: readers or horizon is not above zero.
    """

    def __init__(
        self,
        step: str,
        shard: int,
        *,
        readers: int,
        horizon: timedelta = HORIZON,
        cache: IndexCache[IdIndex] | None = None,
    ) -> None:
        if readers < 1:
            raise ConfigError(f"DedupeShard(readers={readers}): must be at least 1")
        if horizon <= timedelta(0):
            raise ConfigError(f"DedupeShard(horizon={horizon}): must be above zero; the default is {HORIZON}")
        self._key = (step, shard)
        self._readers = readers
        self._horizon_us = horizon // timedelta(microseconds=1)
        self._cache = _CACHE if cache is None else cache
        self.rebuilt_ids = 0
        """How many ids were read back from state, because the process had no valid index; for watching."""

    def decide(
        self,
        batch: pa.RecordBatch,
        state: ShardState,
        *,
        reader: int,
        ingest_position: int | None,
        payload: U64 | None = None,
    ) -> Outcome:
        """Decides on all rows of the batch, each after those before it.

        Args:
            batch: ``EVENT_SCHEMA``, further columns allowed; any number of rows, none for a message that only moves the clock.
            state: of this shard.
            reader: number of the reader that sent the batch.
            ingest_position: where that reader is once this batch is read, in µs since 1970: all rows that it will send from now
                on are expected to be copies only of rows up to the horizon older. It takes effect after the batch, and may go
                back. None: not known, and nothing is forgotten.
            payload: what :func:`payload_hashes <headrace.transforms.dedupe_records.payload_hashes>` gives for the batch, if that is
                known already.

        Returns:
            accepted: rows in their order, same schema; rejected: stage ``dedupe``, reason ``duplicate``,
            ``duplicate_conflict`` (the accepted row has other content) or ``no_id``.

        Raises:
            ValueError: the reader's number is not below ``readers``.
        """
        if not 0 <= reader < self._readers:
            raise ValueError(f"reader {reader}: must be from 0 to {self._readers - 1}")
        cell = Cell.unpack(state.read_cell(), self._readers, self._horizon_us)
        if not batch.num_rows:
            if cell.move(reader, ingest_position):
                state.write_cell(cell.pack())
            return Outcome(batch, _no_rejects())
        named = present(column(batch, "event_id"))
        rows = batch if named.all() else batch.filter(pa.array(named))
        if payload is not None and rows is not batch:
            payload = payload[named]
        records = hash_records(rows, 0, 0, payload=payload)
        tags = _tags(records["payload"])
        index = self._take(cell, state)
        verdicts = _judge(records, tags, index)
        first = np.flatnonzero(verdicts == _ACCEPTED)
        if len(first):
            ingest = int64_values(column(rows, "ingest_time"))[first]
            slots, cleared = cell.place(ingest, ingest_position)
            cell.renew()
            cell.move(reader, ingest_position)
            self._remember(cell, state, index, records[first], tags[first], slots, cleared)
        elif cell.move(reader, ingest_position):
            state.write_cell(cell.pack())
        self._put_back(cell, index)
        return _outcome(batch, named, rows, verdicts)

    def seed(self, batch: pa.RecordBatch, state: ShardState) -> int:
        """Remembers ids that are known to be accepted, for a stream that goes on from a lake. No position is moved.

        Args:
            batch: ``event_id``, never null; ``ingest_time``; optionally ``payload``, uint64 as by :func:`payload_hashes
                <headrace.transforms.dedupe_records.payload_hashes>`. A later copy of an id without payload is a ``duplicate``,
                whatever its content.
            state: of the shard to which :func:`by_shard <headrace.transforms.dedupe_records.by_shard>` sends these ids.

        Returns:
            how many were added; ids that are remembered already, and repeats within the batch, are left as they are.

        Raises:
            ValueError: an id is null.
        """
        if not present(column(batch, "event_id")).all():
            raise ValueError("seed: a row has no event_id; only accepted rows may be given")
        if not batch.num_rows:
            return 0
        cell = Cell.unpack(state.read_cell(), self._readers, self._horizon_us)
        records = id_records(batch)
        tags = np.zeros(len(records), np.uint64)
        if batch.schema.get_field_index("payload") >= 0:
            payload = batch.column("payload")
            filled = pc.fill_null(payload, 0).to_numpy(zero_copy_only=False)
            tags = np.where(present(payload), _tags(filled), _UNKNOWN)
        index = self._take(cell, state)
        first = np.flatnonzero(_judge(records, tags, index) == _ACCEPTED)
        if len(first):
            slots, cleared = cell.place(int64_values(column(batch, "ingest_time"))[first], None)
            cell.renew()
            self._remember(cell, state, index, records[first], tags[first], slots, cleared)
        self._put_back(cell, index)
        return len(first)

    def _take(self, cell: Cell, state: ShardState) -> IdIndex:
        """Returns the index of this state, which nobody else has from now on; built from the slots if need be."""
        if not cell.version:
            return IdIndex()
        index = self._cache.take(self._key, cell.version)
        if index is not None:
            return index
        index = IdIndex()
        for slot, end in enumerate(cell.ends):
            if end is not None:
                index.add(*_unpack(state.read_slot(slot)), slot)
        self.rebuilt_ids += len(index)
        return index

    def _put_back(self, cell: Cell, index: IdIndex) -> None:
        if cell.version:
            self._cache.put(self._key, cell.version, index)

    def _remember(
        self,
        cell: Cell,
        state: ShardState,
        index: IdIndex,
        records: Records,
        tags: U64,
        slots: U8,
        cleared: list[int],
    ) -> None:
        """Writes the cell first: from then on no index of the version before is valid, even if a write below fails."""
        state.write_cell(cell.pack())
        for slot in cleared:
            state.clear_slot(slot)
        if cleared:
            index.remove(cleared)
        for slot in np.unique(slots).tolist():
            here = slots == slot
            state.add_to_slot(slot, _pack(records[here], tags[here]))
        index.add(records["high"], records["low"], tags, slots)


def id_records(batch: pa.RecordBatch) -> Records:
    """Returns records of the ids alone, without payload, for :func:`by_shard
    <headrace.transforms.dedupe_records.by_shard>`; a null id counts as the empty text."""
    bits = id_bits(column(batch, "event_id"))
    records = np.zeros(batch.num_rows, RECORD)
    records["high"], records["low"] = bits[:, 0], bits[:, 1]
    records["row"] = np.arange(batch.num_rows)
    return records


_no_rejects = functools.cache(no_rejects)


def _judge(records: Records, tags: U64, index: IdIndex) -> U8:
    """Returns the verdict on each row, in the order of the rows."""
    high, low = (np.ascontiguousarray(records[half]) for half in ("high", "low"))
    entries = index.find(high, low)
    verdicts = np.zeros(len(records), np.uint8)
    old = np.flatnonzero(entries >= 0)
    if len(old):
        verdicts[old] = _lost(tags[old], index.tags(entries[old]))
    new = np.flatnonzero(entries < 0)
    new = new[recurring(records[new])]
    if len(new):
        new = new[np.lexsort((new, low[new], high[new]))]
        starts = np.r_[True, (high[new[1:]] != high[new[:-1]]) | (low[new[1:]] != low[new[:-1]])]
        winners = new[np.maximum.accumulate(np.where(starts, np.arange(len(new)), 0))]
        verdicts[new] = np.where(starts, _ACCEPTED, _lost(tags[new], tags[winners]))
    return verdicts


def _tags(payload: U64) -> U64:
    tags: U64 = np.maximum(payload & _TAG_MASK, np.uint64(1))
    return tags


def _lost(tags: U64, winners: U64) -> U8:
    return np.where((tags == winners) | (winners == _UNKNOWN), _DUPLICATE, _CONFLICT).astype(np.uint8)


def _outcome(batch: pa.RecordBatch, named: Mask, rows: pa.RecordBatch, verdicts: U8) -> Outcome:
    """Splits the batch; ``rows`` are its rows that have an id."""
    if rows.num_rows == batch.num_rows and not verdicts.any():
        return Outcome(batch, _no_rejects())
    reasons = np.full(batch.num_rows, NO_ID, object)
    reasons[named] = _REASONS[verdicts]
    lost = np.flatnonzero(reasons != "")
    accepted = rows.filter(pa.array(verdicts == _ACCEPTED))
    return Outcome(accepted, reject_rows(batch.take(pa.array(lost)), reasons[lost].tolist()))


def _pack(records: Records, tags: U64) -> bytes:
    """Returns 22 bytes an id: all high halves, all low halves, all tags."""
    low_bytes = tags.astype("<u8").view(np.uint8).reshape(-1, 8)[:, : TAG_BITS // 8]
    return b"".join((records["high"].tobytes(), records["low"].tobytes(), low_bytes.tobytes()))


def _unpack(chunks: Iterable[bytes]) -> tuple[U64, U64, U64]:
    """Joins what :func:`_pack` returned, as (high, low, tags)."""
    highs, lows, tags = [_EMPTY], [_EMPTY], [_EMPTY]
    for chunk in chunks:
        count, rest = divmod(len(chunk), ID_BYTES)
        if rest:
            raise ValueError(f"{len(chunk)} bytes of state are not ids of a dedupe shard")
        highs.append(np.frombuffer(chunk, "<u8", count))
        lows.append(np.frombuffer(chunk, "<u8", count, 8 * count))
        wide = np.zeros((count, 8), np.uint8)
        wide[:, : TAG_BITS // 8] = np.frombuffer(chunk, np.uint8, offset=16 * count).reshape(count, -1)
        tags.append(wide.view("<u8").reshape(-1))
    return np.concatenate(highs), np.concatenate(lows), np.concatenate(tags)
