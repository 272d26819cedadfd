"""Exact deduplication on hash records."""

import random
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from headrace.schemas.columns import EVENT_SCHEMA, QUARANTINE_SCHEMA
from headrace.transforms.batches import replace
from headrace.transforms.dedupe_records import (
    IS_CONFLICT,
    IS_DUPLICATE,
    RECORD,
    by_shard,
    hash_records,
    id_bits,
    pack,
    payload_hashes,
    recurring,
    resolve,
    rows_by_shard,
    settle,
    unpack,
    unpack_records,
)
from headrace.transforms.identity import occurrence_ids

GENERATED = 1 << 31
OUTSIDE = {"event_id", "id_generated", "ingest_time", "origin", "origin_position", "event_date"}


def events(rows: list[dict]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=EVENT_SCHEMA)


def records(rows: list[tuple]) -> np.ndarray:
    """(high, low, payload, split, row, generated)"""
    return np.array([(h, w, p, s | (GENERATED if g else 0), r) for h, w, p, s, r, g in rows], RECORD)


def value_of(type_: pa.DataType, n: int) -> object:
    if pa.types.is_timestamp(type_):
        return datetime(2024, 1, 1, 0, 0, n, tzinfo=UTC)
    if pa.types.is_date(type_):
        return date(2024, 1, 1 + n)
    if pa.types.is_decimal(type_):
        return Decimal(n)
    if pa.types.is_boolean(type_):
        return n % 2 == 1
    return n if pa.types.is_integer(type_) else f"v{n}"


def oracle(rows: list[tuple]) -> dict[tuple[int, int], int]:
    """(split, row) → verdict, by a dict over the rows in order."""
    verdicts: dict[tuple[int, int], int] = {}
    first: dict[tuple[int, int], int] = {}
    seen: dict[tuple[int, int], int] = {}
    ordered = sorted(rows, key=lambda r: (r[3], r[4]))
    for high, low, payload, split, row, generated in ordered:
        if generated:
            first.setdefault((high, low), payload)
            if seen.get((high, low), 0):
                verdicts[split, row] = seen[high, low]
            seen[high, low] = seen.get((high, low), 0) + 1
    for high, low, payload, split, row, generated in ordered:
        if generated:
            continue
        if (high, low) not in first:
            first[high, low] = payload
        else:
            verdicts[split, row] = IS_DUPLICATE if first[high, low] == payload else IS_CONFLICT
    return verdicts


def verdicts_of(array: np.ndarray) -> dict[tuple[int, int], int]:
    splits, verdicts = resolve(array)
    assert splits.dtype == np.uint32
    keys = list(zip(splits.tolist(), verdicts["row"].tolist(), strict=True))
    assert keys == sorted(set(keys))
    return dict(zip(keys, verdicts["verdict"].tolist(), strict=True))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(0, 3), st.booleans()),
        max_size=40,
    ),
    st.randoms(use_true_random=False),
)
def test_resolve_equals_a_dict_in_any_order(cells, shuffle):
    rows = [(h, w, p, s, i, g) for i, (h, w, p, s, g) in enumerate(cells)]
    shuffle.shuffle(rows)
    assert verdicts_of(records(rows)) == oracle(rows)


def test_resolve_of_many_random_ids_finds_exactly_the_repeated_ones():
    rng = random.Random(3)
    rows = [(rng.getrandbits(64), rng.getrandbits(64), 1, i % 5, i, False) for i in range(3000)]
    again = [(*rows[i][:2], 1 + i % 2, 9, i, False) for i in range(0, 3000, 100)]
    expected = {(9, i): IS_CONFLICT if i % 2 else IS_DUPLICATE for i in range(0, 3000, 100)}
    assert verdicts_of(records([*again, *rows])) == expected


def test_ids_that_agree_in_64_bits_only_are_different_ids():
    same_high = [(7, low, 1, 0, low, False) for low in range(50)]
    same_low = [(high, 7, 1, 1, high, False) for high in range(8, 50)]
    assert verdicts_of(records(same_high + same_low)) == {}


def test_ids_whose_64_bit_key_collides_are_told_apart(monkeypatch):
    monkeypatch.setattr("headrace.transforms.dedupe_records._key", lambda r: np.zeros(len(r), np.uint64))
    rows = [(h, w, 1, 0, 10 * h + w, False) for h in range(10) for w in range(10)]
    array = records([*rows, (3, 4, 1, 1, 0, False), (4, 3, 2, 1, 1, False)])
    assert recurring(array).all()
    assert verdicts_of(array) == {(1, 0): IS_DUPLICATE, (1, 1): IS_CONFLICT}
    assert len(list(by_shard(array, 16))) == 1


def test_generated_ids_never_lose_and_a_row_that_states_one_does():
    rows = [(1, 1, 5, 0, 0, False), (1, 1, 5, 2, 0, True), (1, 1, 5, 1, 7, True), (1, 1, 6, 3, 3, False)]
    assert verdicts_of(records(rows)) == {(0, 0): IS_DUPLICATE, (2, 0): 1, (3, 3): IS_CONFLICT}


def test_shards_and_packing_lose_nothing():
    rng = random.Random(5)
    rows = [(rng.getrandbits(64), rng.getrandbits(64), 1, i % 3, i, i % 7 == 0) for i in range(500)]
    rows += [(*r[:2], 2, 3, i, False) for i, r in enumerate(rows[:50])]
    array = records(rows)
    shards: dict[int, list[bytes]] = {}
    for part in (array[:300], array[300:]):
        for shard, packed in by_shard(part, 8):
            shards.setdefault(shard, []).append(packed)
    assert set(shards) == set(range(8))
    assert sum(len(unpack_records(p)) for p in shards.values()) == len(rows)
    by_split: dict[int, list[bytes]] = {}
    for packs in shards.values():
        for split, packed in pack(resolve(unpack_records(packs))):
            by_split.setdefault(split, []).append(packed)
    found = {
        (split, row): verdict for split, packs in by_split.items() for row, verdict in unpack(packs).tolist()
    }
    assert found == oracle(rows)
    assert all((np.diff(unpack(p)["row"].astype(int)) > 0).all() for p in by_split.values())


def test_nothing_in_nothing_out():
    empty = records([])
    assert list(by_shard(empty, 4)) == []
    assert list(pack(resolve(empty))) == []
    assert len(unpack([])) == 0
    assert len(hash_records(events([]), 0, 0)) == 0


def test_version_7_ids_spread_over_shards():
    """Their upper half hardly changes: it holds the time."""
    rows = [(0x018F_0000_0000_7000, i << 32, 1, 0, i, False) for i in range(4000)]
    sizes = [len(packed) // RECORD.itemsize for _, packed in by_shard(records(rows), 16)]
    assert len(sizes) == 16 and min(sizes) > 150 and max(sizes) < 350


def test_id_bits_are_the_uuid_in_either_case():
    u = uuid.UUID("0190a5b2-7c3e-7abc-9def-0123456789ab")
    bits = id_bits(pa.array([str(u), str(u).upper()]))
    assert [(int(h) << 64) | int(w) for h, w in bits] == [u.int, u.int]


def test_text_ids_never_meet_uuids():
    """Text whose digest, read as a UUID, is stated as well."""
    texts = [f"order-{i}" for i in range(200)]
    forged = [str(uuid.UUID(bytes=xxh3_128_digest(t.encode()))) for t in texts]
    marked = [str(uuid.UUID(int=(int(h) << 64) | int(w))) for h, w in id_bits(pa.array(texts))]
    bits = id_bits(pa.array(texts + forged + marked))
    assert len({(int(h), int(w)) for h, w in bits}) == len({*texts, *forged, *marked}) > 500
    top = "ffffffff-ffff-ffff-ffff-ffffffffffff"
    assert (id_bits(pa.array([top])) == id_bits(pa.array([top.upper()]))).all()


def test_every_event_column_but_the_excluded_counts_in_the_payload():
    base = {f.name: value_of(f.type, 1) for f in EVENT_SCHEMA}
    plain = payload_hashes(events([base]))[0]
    seen = {int(plain)}
    for field in EVENT_SCHEMA:
        for other in (value_of(field.type, 2), None):
            changed = int(payload_hashes(events([base | {field.name: other}]))[0])
            assert (changed == plain) == (field.name in OUTSIDE), field.name
            seen.add(changed)
    assert len(seen) == 1 + 2 * (len(EVENT_SCHEMA) - len(OUTSIDE))


def test_null_is_not_empty_and_columns_are_not_interchangeable():
    rows = [
        {"page_url": ""},
        {},
        {"referrer": ""},
        {"page_url": "a", "referrer": "b"},
        {"page_url": "b", "referrer": "a"},
        {"page_url": "ab"},
        {"page_url": "ab", "referrer": ""},
        {"page_url": "", "referrer": "ab"},
        {"currency": ""},
        {"region": "x"},
        {"city": "x"},
        {"quantity": 0},
        {"response_bytes": 0},
        {"price": Decimal(0)},
        {"amount": Decimal(0)},
        {"price": Decimal(-1)},
        {"price": Decimal("18446744073.709551616")},
        {"http_status": 0},
    ]
    assert len(set(payload_hashes(events(rows)).tolist())) == len(rows)


ROWS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "page_url": st.sampled_from(["", "a", "b"]),
            "referrer": st.sampled_from(["", "a"]),
            "category": st.sampled_from(["", "x"]),
            "quantity": st.integers(-1, 1),
            "price": st.sampled_from([Decimal("-0.5"), Decimal(0), Decimal("1E20")]),
        },
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(ROWS, ROWS)
def test_the_payload_hash_depends_on_the_row_alone(before, rows):
    """Not on its neighbours, the offset, the encoding, or on columns that are missing."""
    whole = payload_hashes(events(before + rows))[len(before) :].tolist()
    assert payload_hashes(events(rows)).tolist() == whole
    assert payload_hashes(events(before + rows).slice(len(before))).tolist() == whole
    batch = events(rows)
    swapped = {
        "page_url": batch["page_url"].dictionary_encode(),
        "category": batch["category"].dictionary_decode(),
    }
    assert payload_hashes(replace(batch, swapped)).tolist() == whole
    names = ["event_id", "page_url", "referrer", "category", "quantity", "price"]
    assert payload_hashes(batch.select(names)).tolist() == whole
    canonical = [tuple(sorted((k, v) for k, v in r.items())) for r in rows]
    assert len(set(whole)) == len(set(canonical))


def test_dictionaries_with_null_or_repeated_values():
    codes = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, None, 3], pa.int32()), ["a", None, "b", "a"])
    batch = replace(events([{}] * 5), {"category": codes})
    plain = payload_hashes(events([{"category": c} for c in ("a", None, "b", None, "a")]))
    assert payload_hashes(batch).tolist() == plain.tolist()


@pytest.mark.parametrize(
    ("split", "first", "message"),
    [(-1, 0, "split -1"), (1 << 31, 0, "split 2147483648"), (0, 2**32, "must be below")],
)
def test_places_out_of_range_are_refused(split, first, message):
    with pytest.raises(ValueError, match=message):
        hash_records(events([{"event_id": "x"}]), split, first)


def test_rows_without_id_are_refused():
    with pytest.raises(ValueError, match="row 1 has no event_id"):
        hash_records(events([{"event_id": "x"}, {}]), 0, 0)


def test_settle_rejects_losers_and_renumbers_occurrences():
    base = "00000000-0000-8000-8000-000000000001"
    rows = [
        {"event_id": "a", "page_url": "p"},
        {"event_id": "a", "page_url": "p"},
        {"event_id": base, "id_generated": True},
        {"event_id": "a", "page_url": "q", "user_id": "token"},
        {"event_id": base, "id_generated": True},
    ]
    batch = events(rows)
    ((split, packed),) = pack(resolve(hash_records(batch, 4, 100)))
    assert split == 4
    verdicts = unpack([packed])
    accepted, lost = settle(batch, verdicts, 100)
    assert accepted.schema == batch.schema
    assert accepted["event_id"].to_pylist() == ["a", base, occurrence_ids([base], [1])[0].as_py()]
    assert lost.schema == QUARANTINE_SCHEMA
    assert lost["reason"].to_pylist() == ["duplicate", "duplicate_conflict"]
    assert lost["stage"].to_pylist() == ["dedupe"] * 2
    assert lost["page_url"].to_pylist() == ["p", "q"]
    assert lost["user_id"].to_pylist() == [None, "token"]
    assert lost["message"][1].as_py().endswith("other content was accepted")
    parts = [settle(batch.slice(i, 1), verdicts, 100 + i) for i in range(5)]
    assert [r for p in parts for r in p.accepted.to_pylist()] == accepted.to_pylist()
    assert [r for p in parts for r in p.rejected.to_pylist()] == lost.to_pylist()


def test_settle_without_verdicts_returns_the_batch_itself():
    batch = events([{"event_id": "a"}])
    assert settle(batch, unpack([])).accepted is batch


@given(
    st.lists(st.sampled_from(["a", "b", "00000000-0000-4000-8000-000000000001", "c" * 40, None])),
    st.integers(1, 7),
)
def test_rows_by_shard_keeps_every_row_once_and_equal_ids_together(
    ids: list[str | None], shards: int
) -> None:
    batch = pa.RecordBatch.from_pydict({"event_id": pa.array(ids, pa.string()), "row": range(len(ids))})
    parts = dict(rows_by_shard(batch, shards))
    assert sorted(row for part in parts.values() for row in part.column("row").to_pylist()) == list(
        range(len(ids))
    )
    of: dict[str | None, int] = {}
    for shard, part in parts.items():
        assert 0 <= shard < shards and part.num_rows
        assert part.column("row").to_pylist() == sorted(part.column("row").to_pylist())
        for event_id in part.column("event_id").to_pylist():
            assert of.setdefault(event_id, shard) == shard
