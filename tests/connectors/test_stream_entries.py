import pyarrow as pa
import pytest

from headrace.connectors.stream_entries import (
    FilesEntry,
    LateEntry,
    MetricEntry,
    PollEntry,
    ShardEntry,
    pack,
    storable,
    unpack,
)
from headrace.connectors.stream_source import Read
from headrace.connectors.write_lake import WrittenFile

STATS = {"numRecords": 3, "minValues": {"origin_position": 1}, "by_reason": {"validate": {"invalid": 3}}}
ENTRIES = [
    PollEntry(1, 7, 10, (Read("orders/3", 5, 15, 10),), 1, {0: 4, 1: 5}, 99, "{}", "r", None, 3, True),
    PollEntry(0, 0, 0, (), 0, {0: 0}, -5, watermark=-1),
    ShardEntry(1, 7, 15, 2**40, 0),
    FilesEntry("quarantine", (WrittenFile("d=1/é.parquet", 3, 10, {"d": None}, STATS),)),
    FilesEntry("events", ()),
    MetricEntry("per_minute", b"\x00\xff"),
    LateEntry("per_minute", b"", 2),
]


def test_entries_come_back_as_they_were():
    assert unpack(pack(ENTRIES)) == ENTRIES
    assert unpack(pack([])) == []


def test_a_shards_entry_is_small():
    assert len(pack([ShardEntry(3, 100_000, 15, 900, 100)])) <= 16


@pytest.mark.parametrize(
    "packed", [b"", b"\x93", pack(ENTRIES)[:-1], b"\x91\x92\xa1x\x01", b"\x91\x93\xa1f\xa5other\x90"]
)
def test_anything_else_is_refused(packed):
    with pytest.raises(ValueError, match=r"."):
        unpack(packed)


def test_result_rows_travel_with_their_types():
    table = pa.table(
        {"page": pa.array(["a", None]).dictionary_encode(), "rows": pa.array([1, 2], pa.int64())}
    )
    assert MetricEntry.of("m", table).table().equals(table)
    batch = table.to_batches()[0]
    entry = LateEntry.of("m", batch)
    assert entry.table().to_batches() == [batch]
    assert entry.count == 2
    parts = pa.concat_tables(
        [table, pa.table({"page": pa.array(["b"]).dictionary_encode(), "rows": pa.array([3])})]
    )
    assert MetricEntry.of("m", parts).table().column("page").to_pylist() == ["a", None, "b"]


def test_types_that_a_delta_table_lacks_become_ones_that_it_has():
    key = b"0123456789abcdef"
    table = pa.table(
        {
            "users": pa.array([[key], None], pa.large_list(pa.binary(16))),
            "page": pa.array(["a", None]).dictionary_encode(),
            "text": pa.array(["x", "y"], pa.large_string()),
            "blob": pa.array([b"x", b"y"], pa.large_binary()),
            "rows": pa.array([1, 2], pa.int32()),
        }
    )
    found = storable(table)
    assert found.schema.types == [pa.list_(pa.binary()), pa.string(), pa.string(), pa.binary(), pa.int32()]
    assert found.to_pylist() == table.to_pylist()
