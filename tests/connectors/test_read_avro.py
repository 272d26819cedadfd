import gzip
import io
import json
import uuid
import zlib
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pytest
import zstandard

from headrace.connectors.avro_frames import Window, frames, read_header
from headrace.connectors.compression import ByteStream
from headrace.connectors.inputs import plan_inputs
from headrace.connectors.map_fields import compile_mapping
from headrace.connectors.read_avro import read_avro
from headrace.schemas.errors import InputError

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
SCHEMA = {
    "type": "record",
    "name": "event",
    "fields": [{"name": "n", "type": "long"}, {"name": "text", "type": ["null", "string"], "default": None}],
}
Row = tuple[int, bytes, str | None]


def written(records: list[Any], schema: Any = SCHEMA, codec: str = "null", interval: int = 400) -> bytes:
    out = io.BytesIO()
    fastavro.writer(
        out,
        fastavro.parse_schema(schema),
        records,
        codec=codec,
        sync_interval=interval,
        sync_marker=b"#" * 16,
    )
    return out.getvalue()


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"n": i, "text": f"{i * 7919}" if i % 3 else None} for i in range(count)]


def read(path: Path, data: bytes, split_bytes: int = 64 << 20, **options: Any) -> list[Row]:
    path.write_bytes(data)
    rows: list[Row] = []
    for split in plan_inputs([str(path)], split_bytes=split_bytes).splits:
        for block in read_avro(split, ingest_time=NOW, **options):
            assert block.records == block.raw.num_rows > 0
            columns = (block.raw[name].to_pylist() for name in ("origin_position", "raw", "fault"))
            rows += zip(*columns, strict=True)
    return rows


def want(count: int) -> list[Row]:
    documents = [{k: v for k, v in r.items() if v is not None} for r in numbered(count)]
    return [(i, json.dumps(d, separators=(",", ":")).encode(), None) for i, d in enumerate(documents, 1)]


@pytest.mark.parametrize("codec", ["null", "deflate", "bzip2", "xz"])
@pytest.mark.parametrize("split_bytes", [1, 1_500, 64 << 20])
def test_every_record_once(tmp_path: Path, codec: str, split_bytes: int) -> None:
    assert read(tmp_path / "in.avro", written(numbered(500), codec=codec), split_bytes) == want(500)


def recoded(data: bytes, codec: str, path: Path) -> bytes:
    """The file with its blocks in a codec that fastavro can't write here."""
    path.write_bytes(data)
    out = io.BytesIO()
    with ByteStream(str(path)) as stream:
        window = Window(stream)
        header = read_header(window, str(path))
        out.write(data[: window.start].replace(b"\x08null", bytes([len(codec) * 2]) + codec.encode()))
        for frame in frames(window, header.sync):
            if codec == "zstandard":
                packed = zstandard.ZstdCompressor(write_content_size=False).compress(frame.payload)
            else:
                packed = pa.Codec("snappy").compress(frame.payload, asbytes=True)
                packed += zlib.crc32(frame.payload).to_bytes(4, "big")
            fastavro.schemaless_writer(out, {"type": "long"}, frame.records)
            fastavro.schemaless_writer(out, {"type": "bytes"}, packed)
            out.write(header.sync)
    return out.getvalue()


@pytest.mark.parametrize("codec", ["zstandard", "snappy"])
def test_codecs_of_other_writers(tmp_path: Path, codec: str) -> None:
    data = recoded(written(numbered(100)), codec, tmp_path / "plain.avro")
    assert codec.encode() in data
    assert read(tmp_path / "in.avro", data) == want(100)
    broken = data[:-25] + b"\0\0\0\0" + data[-21:]
    assert read(tmp_path / "in.avro", broken)[-1][2] == "broken_block"


def test_logical_types_become_json(tmp_path: Path) -> None:
    kinds: dict[str, Any] = {
        "at": {"type": "long", "logicalType": "timestamp-micros"},
        "local": {"type": "long", "logicalType": "local-timestamp-millis"},
        "day": {"type": "int", "logicalType": "date"},
        "money": {"type": "bytes", "logicalType": "decimal", "precision": 30, "scale": 4},
        "id": {"type": "string", "logicalType": "uuid"},
        "raw": "bytes",
        "kind": {"type": "enum", "name": "kind", "symbols": ["a", "b"]},
        "tags": {"type": "map", "values": "double"},
        "list": {"type": "array", "items": ["null", "int"]},
    }
    schema = {
        "type": "record",
        "name": "r",
        "fields": [{"name": k, "type": v} for k, v in kinds.items()],
    }
    moment = datetime(2024, 1, 2, 3, 4, 5, 6, UTC)
    record = {
        "at": moment,
        "local": moment.replace(tzinfo=None, microsecond=0),
        "day": date(2024, 2, 29),
        "money": Decimal("12345678901234567890.1000"),
        "id": uuid.UUID(int=5),
        "raw": b"\xff",
        "kind": "b",
        "tags": {"x": 0.5},
        "list": [1, None],
    }
    ((_, raw, _),) = read(tmp_path / "in.avro", written([record], schema))
    assert json.loads(raw) == {
        "at": "2024-01-02T03:04:05.000006Z",
        "local": "2024-01-02T03:04:05Z",
        "day": "2024-02-29",
        "money": "12345678901234567890.1000",
        "id": str(uuid.UUID(int=5)),
        "raw": "/w==",
        "kind": "b",
        "tags": {"x": 0.5},
        "list": [1, None],
    }


def test_impossible_values_cost_their_record_only(tmp_path: Path) -> None:
    at = {"type": "long", "logicalType": "timestamp-millis"}
    stored = {
        "type": "record",
        "name": "r",
        "fields": [{"name": "at", "type": "long"}, {"name": "x", "type": "double"}],
    }
    logical = json.dumps({**stored, "fields": [{"name": "at", "type": at}, stored["fields"][1]]})  # type: ignore[index]
    records = [
        {"at": 0, "x": 1.0},
        {"at": 1 << 60, "x": 1.0},
        {"at": 1000, "x": float("inf")},
        {"at": 2000, "x": 2.0},
    ]
    data = written(records, stored)
    header = io.BytesIO(data)
    reader = fastavro.reader(header)
    old = reader.metadata["avro.schema"].encode()
    new = logical.encode()

    def length(text: bytes) -> bytes:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, {"type": "bytes"}, text)
        return out.getvalue()

    rows = read(tmp_path / "in.avro", data.replace(length(old), length(new)))
    assert rows == [
        (1, b'{"at":"1970-01-01T00:00:00Z","x":1.0}', None),
        (2, b'{"at": 1152921504606846976, "x": 1.0}', "not_json"),
        (3, b'{"at": "1970-01-01 00:00:01+00:00", "x": Infinity}', "not_json"),
        (4, b'{"at":"1970-01-01T00:00:02Z","x":2.0}', None),
    ]


def blocks_of(path: Path, data: bytes) -> list[tuple[int, int]]:
    """(start, records) of each block."""
    path.write_bytes(data)
    with ByteStream(str(path)) as stream:
        window = Window(stream)
        header = read_header(window, str(path))
        return [(frame.start, frame.records) for frame in frames(window, header.sync)]


@pytest.mark.parametrize("split_bytes", [1, 64 << 20])
def test_corrupt_content_of_a_block_is_one_fault(tmp_path: Path, split_bytes: int) -> None:
    data = bytearray(written(numbered(300), codec="deflate"))
    blocks = blocks_of(tmp_path / "in.avro", bytes(data))
    start, count = blocks[1]
    data[start + 6 : start + 60] = b"\xff" * 54
    rows = read(tmp_path / "in.avro", bytes(data), split_bytes)
    first = blocks[0][1]
    good = want(300)
    assert rows[:first] == good[:first]
    assert rows[first][0::2] == (first + 1, "broken_block")
    assert rows[first + 1 :] == good[first + count :]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_a_broken_frame_is_left_behind_at_the_next_marker(tmp_path: Path, pack: Any) -> None:
    data = bytearray(written(numbered(300)))
    blocks = blocks_of(tmp_path / "plain.avro", bytes(data))
    (_, first), (start, count), (after, _) = blocks[:3]
    data[start : start + 2] = b"\x01\x01"  # a negative number of records
    rows = read(tmp_path / "in.avro", pack(bytes(data)))
    assert rows[first] == (first + 1, bytes(data[start:after]), "broken_block")
    assert [raw for _, raw, _ in rows[first + 1 :]] == [raw for _, raw, _ in want(300)[first + count :]]
    assert rows[first + 1][0] == first + 2


def test_cut_files(tmp_path: Path) -> None:
    data = written(numbered(300))
    start, count = blocks_of(tmp_path / "in.avro", data)[-1]
    rows = read(tmp_path / "in.avro", data[:-5])
    assert rows == [*want(300 - count), (301 - count, data[start:-5], "broken_block")]
    rows = read(tmp_path / "in.avro.gz", gzip.compress(data)[:-40])
    assert rows[-1][2] == "truncated_input"
    assert rows[:-1] == want(300)[: len(rows) - 1]
    rows = read(tmp_path / "in.avro.gz", gzip.compress(data)[:-1])
    assert rows == [*want(300), (301, b"", "truncated_input")]


def test_large_blocks_come_in_batches(tmp_path: Path) -> None:
    path = tmp_path / "in.avro"
    path.write_bytes(written(numbered(20_000), interval=1 << 20))
    plan = plan_inputs([str(path)])
    blocks = [b for s in plan.splits for b in read_avro(s, ingest_time=NOW)]
    assert [(b.raw.num_rows, b.records) for b in blocks] == [(8_192, 8_192), (8_192, 8_192), (3_616, 3_616)]
    assert sum(b.read_bytes for b in blocks) == plan.files[0].size_bytes


def test_unusable_headers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.avro"
    data = written(numbered(3))
    path.write_bytes(data[:30])
    with pytest.raises(
        InputError, match=r"in\.avro is no readable Avro file: its header is damaged or cut off"
    ):
        plan_inputs([str(path)])
    path.write_bytes(data.replace(b"\x08null", b"\x08lz4x"))
    with pytest.raises(InputError, match="uses the Avro codec 'lz4x'; rewrite it with one of null, deflate"):
        plan_inputs([str(path)])


def test_mapping_is_applied(tmp_path: Path) -> None:
    mapping = compile_mapping(
        {
            "metadata.event_id": "text",
            "metadata.timestamp": {"value": "2024-01-01T00:00:00Z"},
            "user.id": {"from": "n", "cast": "string"},
            "payload.event_type": {"value": "x"},
        }
    )
    ((_, raw, _),) = read(tmp_path / "in.avro", written([{"n": 1, "text": "e"}]), mapping=mapping)
    assert json.loads(raw)["user"] == {"id": "1"}
