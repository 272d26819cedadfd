"""Exact deduplication on hash records instead of rows, for the batch pipeline and for :class:`Deduplicate`.

A record is 32 bytes: 128 bits of id, 64 of payload, and the row's place (split, row), which is also its order. The first row
with an id wins. Later ones are duplicates if their canonical row (:func:`payload_hashes`) is equal, else conflicts.

Rows whose id was generated are events in their own right: 19 equal log lines are 19 events. They never lose; they get
occurrence numbers 0, 1, 2, … in order, of which :func:`occurrence_ids <headrace.transforms.identity.occurrence_ids>` makes
their ids. A row that *states* an id which was generated for others (an export of the lake fed in again beside its source)
loses against the first of them, whatever its place. An id generated for a later occurrence is not known here, so a row that
states one of those is not recognised.

All functions are pure; ids are compared on all 128 bits, 64-bit keys only ever choose what is looked at closely.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_128_digest

from headrace.schemas.columns import EVENT_SCHEMA
from headrace.transforms.base import Outcome
from headrace.transforms.batches import column, mask_of, plain, replace
from headrace.transforms.hashing import U64, hash_columns, mix64, present
from headrace.transforms.identity import Mask, occurrence_ids, uuid_bytes
from headrace.transforms.rejects import no_rejects, rejected

STAGE = "dedupe"
DUPLICATE, CONFLICT, NO_ID = "duplicate", "duplicate_conflict", "no_id"

RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("payload", "<u8"), ("split", "<u4"), ("row", "<u4")])
"""One row of a batch. The top bit of ``split`` says that the id was generated."""
VERDICT = np.dtype([("row", "<u4"), ("verdict", "<i4")])
"""-1 duplicate, -2 conflict, k >= 1 occurrence number; a row without a verdict is accepted as it is."""
IS_DUPLICATE, IS_CONFLICT = -1, -2
MAX_SPLITS = 1 << 31

_GENERATED = np.uint32(1 << 31)
_OUTSIDE = frozenset(("event_id", "id_generated", "ingest_time", "origin", "origin_position", "event_date"))
_PAYLOAD = [(i, f.name, f.type) for i, f in enumerate(EVENT_SCHEMA) if f.name not in _OUTSIDE]
_MESSAGES = {
    DUPLICATE: "another event with this event_id and the same content was accepted",
    CONFLICT: "another event with this event_id but other content was accepted",
    NO_ID: "event_id is null, so it can't be told whether this is a duplicate",
}

Records = npt.NDArray[Any]
"""Array of RECORD."""
Verdicts = npt.NDArray[Any]
"""Array of VERDICT, sorted by row."""


class Resolution(NamedTuple):
    """The verdicts of one shard, sorted by (split, row)."""

    splits: npt.NDArray[np.uint32]
    verdicts: Verdicts


def payload_hashes(batch: pa.RecordBatch) -> U64:
    """Hashes the canonical row: every event column but the id, where and when it was read, and ``event_date``.

    Null differs from empty; a missing column equals one of nulls; columns not in ``EVENT_SCHEMA`` don't count.
    """
    return hash_columns([(i, column(batch, name), type_) for i, name, type_ in _PAYLOAD], batch.num_rows)


def id_bits(ids: pa.Array) -> U64:
    """Returns 128 bits for each id, as (high, low).

    A UUID, in either case, gives its own bits. Other text gives its XXH3-128 digest with the variant bits (RFC 9562 §4.1) set
    to 111, which no UUID has here: one whose variant is 111 (reserved; the max UUID) is hashed like other text.
    """
    ids = plain(ids)
    bits, known = uuid_bytes(ids)
    reserved = known & (bits[:, 8] >= 0xE0)
    other = ~known | reserved
    if other.any():
        texts = ids.filter(pa.array(other)).cast(pa.binary()).to_pylist()
        upper = reserved[other]
        digests = b"".join(
            xxh3_128_digest((t or b"").lower() if u else (t or b""))
            for t, u in zip(texts, upper, strict=True)
        )
        bits[other] = np.frombuffer(digests, np.uint8).reshape(-1, 16)
        bits[other, 8] |= 0xE0
    return np.ascontiguousarray(bits).view(">u8").astype(np.uint64)


def hash_records(batch: pa.RecordBatch, split: int, first_row: int, *, payload: U64 | None = None) -> Records:
    """Returns the record of each row; row i of the batch is row ``first_row + i`` of the split.

    Args:
        payload: what :func:`payload_hashes` gives for the batch, if that is known already.

    Raises:
        ValueError: a row without event_id, a split outside 0..2³¹-1 or a row outside 0..2³²-1.
    """
    rows = batch.num_rows
    if not 0 <= split < MAX_SPLITS or not 0 <= first_row <= 2**32 - rows:
        raise ValueError(f"split {split}, rows {first_row} to {first_row + rows}: must be below 2³¹ and 2³²")
    ids = column(batch, "event_id")
    if not present(ids).all():
        raise ValueError(f"row {int(np.argmin(present(ids)))} has no event_id; reject such rows before")
    bits = id_bits(ids)
    records = np.empty(rows, RECORD)
    records["high"], records["low"] = bits[:, 0], bits[:, 1]
    records["payload"] = payload_hashes(batch) if payload is None else payload
    records["split"] = split
    records["split"] |= mask_of(column(batch, "id_generated")) * _GENERATED
    records["row"] = np.arange(first_row, first_row + rows, dtype=np.int64)
    return records


def rows_by_shard(batch: pa.RecordBatch, shards: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields (shard, its rows in their order) for each shard that has any; equal ids are in one shard, null ids in some shard."""
    if not batch.num_rows:
        return
    bits = id_bits(column(batch, "event_id").fill_null(""))
    key = mix64(bits[:, 0], 3) ^ mix64(bits[:, 1], 5)
    shard = (mix64(key, 7) % np.uint64(shards)).astype(np.uint16 if shards <= 1 << 16 else np.int64)
    order = np.argsort(shard, kind="stable")
    ordered, numbers = batch.take(pa.array(order)), shard[order]
    for start, end in _runs(numbers):
        yield int(numbers[start]), ordered.slice(start, end - start)


def by_shard(records: Records, shards: int) -> Iterator[tuple[int, bytes]]:
    """Yields (shard, packed records) for each shard that has any; equal ids are in one shard. Read with ``np.frombuffer``."""
    shard = (mix64(_key(records), 7) % np.uint64(shards)).astype(np.uint16 if shards <= 1 << 16 else np.int64)
    order = np.argsort(shard, kind="stable")
    ordered, numbers = records[order], shard[order]
    for start, end in _runs(numbers):
        yield int(numbers[start]), ordered[start:end].tobytes()


def unpack_records(packed: Iterable[bytes]) -> Records:
    """Joins what :func:`by_shard` yielded for one shard."""
    return np.frombuffer(b"".join(packed), RECORD)


def recurring(records: Records) -> Mask:
    """Returns which records may share their id with another: all that do, and by a 64-bit chance a few that don't."""
    keys = _key(records)
    ordered = np.sort(keys)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return np.zeros(len(records), bool)
    at = np.minimum(np.searchsorted(repeated, keys), len(repeated) - 1)
    mask: Mask = repeated[at] == keys
    return mask


def resolve(records: Records) -> Resolution:
    """Decides every row of one shard; the result does not depend on the order of ``records``.

    Costs one sort of 64-bit keys; only ids that recur are sorted in full.
    """
    r = records[recurring(records)]
    splits, generated = r["split"] & ~_GENERATED, (r["split"] & _GENERATED) != 0
    order = np.lexsort((r["row"], splits, ~generated, r["low"], r["high"]))
    r, splits, generated = r[order], splits[order], generated[order]
    if not len(r):
        return Resolution(splits, np.empty(0, VERDICT))
    first = np.r_[True, (r["high"][1:] != r["high"][:-1]) | (r["low"][1:] != r["low"][:-1])]
    winner = np.maximum.accumulate(np.where(first, np.arange(len(r)), 0))
    verdicts = np.empty(len(r), VERDICT)
    verdicts["row"] = r["row"]
    lost = np.where(r["payload"] == r["payload"][winner], IS_DUPLICATE, IS_CONFLICT)
    verdicts["verdict"] = np.where(generated, np.arange(len(r)) - winner, lost)
    splits, verdicts = splits[~first], verdicts[~first]
    order = np.lexsort((verdicts["row"], splits))
    return Resolution(splits[order], verdicts[order])


def pack(resolution: Resolution) -> Iterator[tuple[int, bytes]]:
    """Yields (split, packed verdicts) for each split that has any."""
    splits, verdicts = resolution
    for start, end in _runs(splits):
        yield int(splits[start]), verdicts[start:end].tobytes()


def unpack(packed: Iterable[bytes]) -> Verdicts:
    """Joins the packed verdicts of one split from all shards, sorted by row."""
    verdicts = np.frombuffer(b"".join(packed), VERDICT)
    return verdicts[np.argsort(verdicts["row"], kind="stable")]


def settle(batch: pa.RecordBatch, verdicts: Verdicts, first_row: int = 0) -> Outcome:
    """Applies a split's verdicts to the batch that holds its rows from ``first_row`` on.

    Accepted: the rows that did not lose, in order, same schema; later occurrences of generated ids have their own ``event_id``.
    Rejected: stage ``dedupe``, reason ``duplicate`` or ``duplicate_conflict``, with the (masked) columns.
    """
    low, high = np.searchsorted(verdicts["row"].astype(np.int64), [first_row, first_row + batch.num_rows])
    here = verdicts[low:high]
    if not len(here):
        return Outcome(batch, no_rejects())
    rows, codes = here["row"].astype(np.int64) - first_row, here["verdict"]
    later = codes > 0
    if later.any():
        batch = _renumber(batch, rows[later], codes[later])
    lost = rows[~later]
    if not len(lost):
        return Outcome(batch, no_rejects())
    keep = np.ones(batch.num_rows, bool)
    keep[lost] = False
    reasons = np.where(codes[~later] == IS_CONFLICT, CONFLICT, DUPLICATE).tolist()
    return Outcome(batch.filter(pa.array(keep)), reject_rows(batch.take(pa.array(lost)), reasons))


def reject_rows(batch: pa.RecordBatch, reasons: list[str]) -> pa.RecordBatch:
    """Returns masked rows as rejected by this stage."""
    messages = pa.array([_MESSAGES[r] for r in reasons], pa.string())
    return rejected(batch, STAGE, pa.array(reasons, pa.string()), message=messages, masked=True)


def _renumber(
    batch: pa.RecordBatch, rows: npt.NDArray[np.int64], numbers: npt.NDArray[np.int32]
) -> pa.RecordBatch:
    ids = plain(batch.column("event_id"))
    new = occurrence_ids(ids.take(pa.array(rows)), numbers)
    places = np.arange(len(ids))
    places[rows] = np.arange(len(ids), len(ids) + len(rows))
    joined = pa.concat_arrays([ids, new.cast(ids.type)])
    return replace(batch, {"event_id": joined.take(pa.array(places))})


def _key(records: Records) -> U64:
    """64 bits of the id: any bits of a UUID may be constant (versions 1, 6 and 7 hold a time), so both halves count."""
    return mix64(records["high"], 3) ^ mix64(records["low"], 5)


def _runs(values: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of each run of equal neighbours."""
    if len(values):
        cuts = np.flatnonzero(values[1:] != values[:-1]) + 1
        yield from zip([0, *cuts.tolist()], [*cuts.tolist(), len(values)], strict=True)
