import gzip
import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.connectors import read_parquet as module
from headrace.connectors.inputs import plan_inputs
from headrace.connectors.map_fields import compile_mapping
from headrace.connectors.read_parquet import read_parquet
from headrace.schemas.errors import InputError

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
Row = tuple[int, bytes, str | None]


def read(path: Path, **options: Any) -> list[Row]:
    rows: list[Row] = []
    for split in plan_inputs([str(path)], split_bytes=options.pop("split_bytes", 64 << 20)).splits:
        for block in read_parquet(split, ingest_time=NOW, **options):
            assert block.records == block.raw.num_rows > 0
            columns = (block.raw[name].to_pylist() for name in ("origin_position", "raw", "fault"))
            rows += zip(*columns, strict=True)
    return rows


def document(tmp_path: Path, columns: dict[str, pa.Array]) -> Any:
    pq.write_table(pa.table(columns), tmp_path / "one.parquet")
    ((position, raw, fault),) = read(tmp_path / "one.parquet")
    assert (position, fault) == (1, None)
    return json.loads(raw)


def test_every_type_becomes_json(tmp_path: Path) -> None:
    moment = datetime(2024, 3, 1, 12, 0, 0, 5)
    items = pa.list_(pa.struct([("z", pa.decimal128(5, 2))]))
    nested = pa.struct([("x", pa.int8()), ("y", items), ("f", pa.float32())])
    zoned = pa.array([moment], pa.timestamp("us", "Europe/Berlin"))
    assert document(
        tmp_path,
        {
            "text": pa.array(["ä\x00"], pa.large_string()),
            "code": pa.array(["x"]).dictionary_encode(),
            "whole": pa.array([2**64 - 1], pa.uint64()),
            "single": pa.array([19.99], pa.float32()),
            "double": pa.array([0.1]),
            "flag": pa.array([True]),
            "money": pa.array([Decimal("12345678901234567890.10")], pa.decimal128(38, 2)),
            "fine": pa.array([Decimal("1.5")], pa.decimal128(38, 18)),
            "naive": pa.array([moment], pa.timestamp("us")),
            "zoned": zoned,
            "nano": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")),
            "day": pa.array([date(2024, 2, 29)]),
            "clock": pa.array([time(1, 2, 3)], pa.time64("ns")),
            "span": pa.array([timedelta(seconds=1)], pa.duration("ns")),
            "bytes": pa.array([b"caf\xc3\xa9"]),
            "binary": pa.array([b"\xff\x00"]),
            "none": pa.array([None], pa.string()),
            "s.a": pa.array([1]),
            "s.b": pa.array([{"x": None, "y": [{"z": Decimal("0.10")}, None], "f": 0.3}], nested),
            "map": pa.array([[("k", 1), ("l", None)]], pa.map_(pa.string(), pa.int32())),
        },
    ) == {
        "text": "ä\x00",
        "code": "x",
        "whole": 2**64 - 1,
        "single": 19.99,
        "double": 0.1,
        "flag": True,
        "money": "12345678901234567890.10",
        "fine": "1.500000000",
        "naive": "2024-03-01T12:00:00.000005Z",
        "zoned": "2024-03-01T12:00:00.000005Z",
        "nano": "2023-11-14T22:13:20.123456Z",
        "day": "2024-02-29",
        "clock": "01:02:03",
        "span": 1_000_000,
        "bytes": "café",
        "binary": "/wA=",
        "s": {"a": 1, "b": {"y": [{"z": "0.10"}, None], "f": 0.3}},
        "map": {"k": 1},
    }


def test_splits_are_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    table = pa.table({"n": range(20_000), "text": [f"{i * 7919 % 10_007:x}" * 5 for i in range(20_000)]})
    pq.write_table(table, path, row_group_size=3_000)
    plan = plan_inputs([str(path)], split_bytes=100_000)
    assert len(plan.splits) > 2
    assert [s.start for s in plan.splits[1:]] == [s.end for s in plan.splits[:-1]]
    rows = read(path, split_bytes=100_000)
    assert [json.loads(raw)["n"] for _, raw, _ in rows] == list(range(20_000))
    assert [position for position, _, _ in rows] == list(range(1, 20_001))


def test_large_row_groups_come_in_batches(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": range(20_000)}), tmp_path / "in.parquet")
    (split,) = plan_inputs([str(tmp_path / "in.parquet")]).splits
    blocks = list(read_parquet(split, ingest_time=NOW))
    assert [(b.raw.num_rows, b.records) for b in blocks] == [(8_192, 8_192), (8_192, 8_192), (3_616, 3_616)]


def test_what_json_can_not_hold_is_a_fault(tmp_path: Path) -> None:
    far = pa.array([0, 300_000_000_000_000_000, 1], pa.int64()).cast(pa.timestamp("us"))
    table = pa.table({"x": [1.0, 2.0, float("nan")], "when": far})
    pq.write_table(table, tmp_path / "in.parquet")
    first, second, third = read(tmp_path / "in.parquet")
    assert first == (1, b'{"x":1.0,"when":"1970-01-01T00:00:00Z"}', None)
    assert second[0::2] == (2, "not_json")
    assert b"11476-08-15" in second[1]
    assert third == (3, b'{"x": NaN, "when": "1970-01-01 00:00:00.000001"}', "not_json")


def test_a_corrupt_page_costs_its_row_group_only(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    table = pa.table({"text": [f"{i:05d}" * 20 for i in range(3_000)]})
    pq.write_table(table, path, row_group_size=1_000, compression="zstd", use_dictionary=False)
    meta = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    begin = meta.data_page_offset
    data[begin + 30 : begin + 300] = b"\xff" * 270
    path.write_bytes(bytes(data))
    rows = read(path)
    assert [r for r in rows if r[2]] == [(1_001, bytes(data[begin : begin + 65_536]), "broken_block")]
    assert [r[0] for r in rows] == [*range(1, 1_002), *range(2_001, 3_001)]
    assert json.loads(rows[-1][1]) == {"text": "02999" * 20}


@pytest.mark.parametrize("damage", [slice(0, -1), slice(0, 40)])
def test_a_bad_footer_is_refused(tmp_path: Path, damage: slice) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"n": [1]}), path)
    path.write_bytes(path.read_bytes()[damage])
    with pytest.raises(InputError, match=r"in\.parquet is no readable Parquet file: its footer is damaged"):
        plan_inputs([str(path)])


def test_bad_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a.b"]), path)
    with pytest.raises(InputError, match=r"column 'a' stands beside 'a\.b'"):
        plan_inputs([str(path)])


def test_parquet_inside_gzip_is_read_if_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"n": range(10)}), tmp_path / "plain.parquet", row_group_size=3)
    packed = gzip.compress((tmp_path / "plain.parquet").read_bytes())
    path = tmp_path / "in.parquet.gz"
    path.write_bytes(packed)
    assert [json.loads(raw)["n"] for _, raw, _ in read(path, split_bytes=1)] == list(range(10))
    path.write_bytes(packed[:-9])
    with pytest.raises(InputError, match="ends in the middle of its gzip stream"):
        plan_inputs([str(path)])
    path.write_bytes(packed)
    monkeypatch.setattr(module, "DECOMPRESSED_LIMIT", 100)
    with pytest.raises(InputError, match=r"Parquet needs random access; decompress in\.parquet\.gz first"):
        plan_inputs([str(path)])


def test_other_columns_and_no_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": pa.array([], pa.int64())}), tmp_path / "in.parquet")
    assert read(tmp_path / "in.parquet") == []
    assert document(tmp_path, {"whatever": pa.array(["x"])}) == {"whatever": "x"}


def test_mapping_is_applied(tmp_path: Path) -> None:
    mapping = compile_mapping(
        {
            "metadata.event_id": "id",
            "metadata.timestamp": "at",
            "user.id": "who",
            "payload.event_type": {"value": "sale"},
        }
    )
    at = pa.array([0], pa.timestamp("s"))
    pq.write_table(pa.table({"id": ["e"], "at": at, "who": ["u"]}), tmp_path / "in.parquet")
    ((_, raw, _),) = read(tmp_path / "in.parquet", mapping=mapping)
    assert json.loads(raw)["metadata"]["timestamp"] == "1970-01-01T00:00:00Z"
