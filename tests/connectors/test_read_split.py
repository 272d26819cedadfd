import csv
import gzip
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from headrace.connectors.compression import ByteStream
from headrace.connectors.inputs import plan_inputs
from headrace.connectors.read_split import Block, read_split
from headrace.connectors.splits import Split
from headrace.schemas.columns import RAW_SCHEMA
from headrace.schemas.errors import ConfigError

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
MAPPING = {
    "metadata.event_id": "id",
    "metadata.timestamp": {"from": "at", "cast": "timestamp"},
    "user.id": "user.name",
    "payload.event_type": {"value": "visit"},
    "payload.properties.quantity": {"from": "n", "cast": "integer"},
}
DOCUMENTS = [
    {"id": f"id-{i}", "at": f"2024-05-01T00:00:{i % 60:02d}Z", "n": i, "user": {"name": f"ü{i}"}}
    for i in range(300)
]
for document in DOCUMENTS[::3]:
    document["note"] = 'some "text", more'


def jsonl() -> bytes:
    return b"".join(json.dumps(d).encode() + b"\n" for d in DOCUMENTS)


def csv_text() -> bytes:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["id", "at", "n", "user.name", "note"])
    for d in DOCUMENTS:
        writer.writerow([d["id"], d["at"], d["n"], d["user"]["name"], d.get("note")])  # type: ignore[index]
    return out.getvalue().encode()


def parquet() -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(DOCUMENTS, schema=_arrow()), out, row_group_size=70)
    return out.getvalue().to_pybytes()


def _arrow() -> pa.Schema:
    user = pa.struct([("name", pa.string())])
    return pa.schema([("id", "string"), ("at", "string"), ("n", "int64"), ("user", user), ("note", "string")])


def avro() -> bytes:
    fields: list[dict[str, Any]] = [
        {"name": "id", "type": "string"},
        {"name": "at", "type": "string"},
        {"name": "n", "type": "long"},
        {
            "name": "user",
            "type": {"type": "record", "name": "u", "fields": [{"name": "name", "type": "string"}]},
        },
        {"name": "note", "type": ["null", "string"]},
    ]
    out = io.BytesIO()
    fastavro.writer(out, {"type": "record", "name": "r", "fields": fields}, DOCUMENTS, sync_interval=1_000)
    return out.getvalue()


@pytest.mark.parametrize("make", [jsonl, csv_text, parquet, avro])
@pytest.mark.parametrize(
    ("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)]
)
def test_all_formats_give_the_same_documents(
    tmp_path: Path, make: Callable[[], bytes], suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"in{suffix}"
    path.write_bytes(pack(make()))
    schema = {"properties": {"n": {"type": "integer"}}}
    plan = plan_inputs([str(path)], split_bytes=4_000)
    assert len(plan.splits) > 1 or suffix or make is csv_text
    plain = [b for s in plan.splits for b in read_split(s, ingest_time=NOW, schema=schema)]
    assert documents(plain) == DOCUMENTS
    mapped = documents([b for s in plan.splits for b in read_split(s, ingest_time=NOW, mapping=MAPPING)])
    assert len(mapped) == 300
    assert mapped[7] == {
        "metadata": {
            "version": "1.0.0",
            "source": "mapped",
            "event_id": "id-7",
            "timestamp": "2024-05-01T00:00:07Z",
        },
        "user": {"id": "ü7"},
        "payload": {"event_type": "visit", "properties": {"quantity": 7}},
    }
    assert mapped[3]["payload"]["custom_data"] == {"note": 'some "text", more'}


def documents(blocks: list[Block]) -> list[Any]:
    assert sum(b.records for b in blocks) == sum(b.raw.num_rows for b in blocks)
    assert all(b.raw.schema.equals(RAW_SCHEMA) for b in blocks)
    assert all(b.raw["fault"].null_count == b.raw.num_rows for b in blocks)
    return [json.loads(raw) for b in blocks for raw in b.raw["raw"].to_pylist()]


def test_mapping_leaves_what_is_no_object_to_decode(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"id":\n[1]\n{"id":"' + b"x" * 100 + b'"}\n{"id":"e","price":1.234567890123456789}\n')
    (split,) = plan_inputs([str(path)]).splits
    blocks = list(read_split(split, ingest_time=NOW, mapping=MAPPING, max_record_bytes=60))
    (block,) = blocks
    raw = block.raw["raw"].to_pylist()
    assert raw[:2] == [b'{"id":', b"[1]"]
    assert raw[2] == b'{"id":"' + b"x" * 53
    assert block.raw["fault"].to_pylist() == [None, None, "line_too_long", None]
    assert b'"price":1.234567890123456789' in raw[3]


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(b'1.2.3.4 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 1\n')
    (split,) = plan_inputs([str(path)]).splits
    (block,) = read_split(split, ingest_time=NOW)
    assert block.raw["raw"][0].as_py().startswith(b"1.2.3.4")
    with pytest.raises(ConfigError, match=r"access\.log is a web log, and 'mapping' applies to jsonl, csv"):
        read_split(split, ingest_time=NOW, mapping=MAPPING)
    with pytest.raises(ConfigError, match="max_record_bytes is 0"):
        read_split(split, ingest_time=NOW, max_record_bytes=0)
    odd = Split(0, str(path), "x", "xml", "plain", 0, 1, 1, 1)
    with pytest.raises(ConfigError, match="unknown format 'xml'"):
        read_split(odd, ingest_time=NOW)
    with pytest.raises(ValueError, match="compression 'lz4' is none of"):
        ByteStream(str(path), "lz4")
    with pytest.raises(ValueError, match="can only be read from its start"):
        ByteStream(str(path), "gzip", start=5)
