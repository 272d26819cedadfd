import csv
import gzip
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.connectors.inputs import plan_inputs
from headrace.connectors.map_fields import compile_mapping
from headrace.connectors.read_csv import read_csv
from headrace.connectors.read_split import read_split
from headrace.schemas.errors import InputError

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
SCHEMA = {
    "$defs": {"money": {"type": "number"}},
    "properties": {
        "n": {"type": ["integer", "null"]},
        "x": {"$ref": "#/$defs/money"},
        "b": {"type": "boolean"},
        "d": {"type": ["number", "string"], "x-decimal": True},
        "o": {"type": "object", "properties": {"k": {"type": "integer"}}},
        "a": {"type": ["array", "object"]},
        "any": {},
    },
}
Row = tuple[int, bytes, str | None]


def read(path: Path, data: bytes, **options: Any) -> list[Row]:
    path.write_bytes(data)
    rows: list[Row] = []
    for split in plan_inputs([str(path)], format="csv").splits:
        for block in read_csv(split, ingest_time=NOW, **options):
            assert block.records == block.raw.num_rows > 0
            columns = (block.raw[name].to_pylist() for name in ("origin_position", "raw", "fault"))
            rows += zip(*columns, strict=True)
    return rows


def documents(path: Path, data: bytes, **options: Any) -> list[Any]:
    rows = read(path, data, **options)
    assert [fault for _, _, fault in rows] == [None] * len(rows)
    return [json.loads(raw) for _, raw, _ in rows]


def test_cells_become_fields(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbfid,o.name,o.size,note\r\n1,"a ""b"", c",,"two\r\nlines"\r\n\r\n2,5" disk,x,\r\n3,,,'
    rows = read(tmp_path / "in.csv", data)
    assert [(n, json.loads(raw), fault) for n, raw, fault in rows] == [
        (2, {"id": "1", "o": {"name": 'a "b", c'}, "note": "two\r\nlines"}, None),
        (5, {"id": "2", "o": {"name": '5" disk', "size": "x"}}, None),
        (6, {"id": "3"}, None),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_the_headers(tmp_path: Path, delimiter: str) -> None:
    data = f'a{delimiter}"b,;|"\n1{delimiter}2'.encode()
    assert documents(tmp_path / "in.csv", data) == [{"a": "1", "b,;|": "2"}]


def test_cells_are_cast_by_the_schema(tmp_path: Path) -> None:
    data = (
        b"n|x|b|d|o.k|a|any|other\n"
        b'7|1.50|TRUE|12345678901234567890.10|1|[1, "\xc3\xa4"]|5|6\n'
        b'007|1,5|yes|0.10|1.5|{"k":\t1}|{}|\n'
        b"99999999999999999999|-1e3|false|x|y|[1||\n"
    )
    rows = read(tmp_path / "in.csv", data, schema=SCHEMA)
    assert [raw for _, raw, _ in rows] == [
        b'{"n":7,"x":1.50,"b":true,"d":"12345678901234567890.10","o":{"k":1},"a":[1, "\xc3\xa4"],"any":"5","other":"6"}',
        b'{"n":"007","x":"1,5","b":"yes","d":"0.10","o":{"k":1.5},"a":{"k":\t1},"any":"{}"}',
        b'{"n":99999999999999999999,"x":-1e3,"b":false,"d":"x","o":{"k":"y"},"a":"[1"}',
    ]


def test_json_in_a_cell_has_no_line_breaks(tmp_path: Path) -> None:
    rows = read(tmp_path / "in.csv", b'a|o\n"[1,\n2]"|""\n', schema=SCHEMA)
    assert [raw for _, raw, _ in rows] == [b'{"a":[1, 2]}']


def test_family_of_the_header_gives_the_types(tmp_path: Path) -> None:
    data = b"event_id,user_id,properties.quantity,properties.price,transaction.order_id\ne,u,3,1.10,9\n"
    assert documents(tmp_path / "in.csv", data) == [
        {
            "event_id": "e",
            "user_id": "u",
            "properties": {"quantity": 3, "price": "1.10"},
            "transaction": {"order_id": "9"},
        }
    ]


def test_bad_records_are_faults_and_the_reading_goes_on(tmp_path: Path) -> None:
    data = b'a,b\n1\n1,2,3\n4,\xff\n"\xff",5\n6,7\x00\n8,"9'
    assert read(tmp_path / "in.csv", data) == [
        (2, b"1", "csv_ragged_row"),
        (3, b"1,2,3", "csv_ragged_row"),
        (4, b"4,\xff", "invalid_utf8"),
        (5, b'"\xff",5', "invalid_utf8"),
        (6, b'{"a":"6","b":"7\\u0000"}', None),
        (7, b'8,"9', "csv_unclosed_quote"),
    ]


def test_unclosed_quote_holds_the_rest_of_the_file(tmp_path: Path) -> None:
    assert read(tmp_path / "in.csv", b'a,b\n1,2\n3,"4\n5,6\n7,8\n') == [
        (2, b'{"a":"1","b":"2"}', None),
        (3, b'3,"4\n5,6\n7,8', "csv_unclosed_quote"),
    ]


def test_return_inside_a_quoted_record_is_a_fault(tmp_path: Path) -> None:
    assert read(tmp_path / "in.csv", b'a,b\n"1",2\r3\n4,5\n') == [
        (2, b'"1",2\r3', "csv_ragged_row"),
        (3, b'{"a":"4","b":"5"}', None),
    ]


def test_records_over_the_limit_are_skipped(tmp_path: Path) -> None:
    long = b"x" * 200
    data = (
        b"a,b\n1,"
        + long
        + b'\n2,"'
        + b"y\n" * 100
        + b'"\n3,4\n5,"'
        + long
        + b'\n6\n"\n7,8\n9,"'
        + b"z\n" * 99
    )
    rows = read(tmp_path / "in.csv", data, max_record_bytes=100)
    assert [(n, fault) for n, _, fault in rows] == [
        (2, "line_too_long"),
        (3, "line_too_long"),
        (104, None),
        (105, "line_too_long"),
        (108, None),
        (109, "csv_unclosed_quote"),
    ]
    assert rows[0][1] == b"1," + b"x" * 98
    assert rows[2][1] == b'{"a":"3","b":"4"}'


def test_truncated_gzip_is_seen(tmp_path: Path) -> None:
    body = b"a,b\n" + b"".join(b'%d,"%d\n"\n' % (i, i * 7919) for i in range(20_000))
    packed = gzip.compress(body)
    for cut in (len(packed) - 1, len(packed) // 2):
        rows = read(tmp_path / "in.csv.gz", packed[:cut])
        assert rows[-1][2] == "truncated_input"
        assert {fault for _, _, fault in rows[:-1]} == {None}
    assert len(rows) > 5_000


def test_large_files_come_in_blocks(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"a,b\n" + b"1,2\n" * 20_000)
    plan = plan_inputs([str(path)])
    blocks = [b for s in plan.splits for b in read_csv(s, ingest_time=NOW)]
    assert [(b.raw.num_rows, b.records) for b in blocks] == [(8_192, 8_192), (8_192, 8_192), (3_616, 3_616)]
    assert sum(b.read_bytes for b in blocks) == plan.files[0].size_bytes


def test_header_only_and_empty_files_have_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path / "in.csv", b"a,b\n") == []
    assert read(tmp_path / "in.csv", b"") == []
    assert read(tmp_path / "in.csv", b"\n\n") == []


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"a,,b", "column name '' is empty"),
        (b"a,b,a", "column 'a' occurs twice"),
        (b"a,b,a.c", "column 'a' stands beside 'a.c', which makes it an object"),
        (b"a,\xff", "no CSV header in UTF-8"),
        (b'"a,\xff"', "no CSV header in UTF-8"),
    ],
)
def test_unusable_headers_are_refused_before_the_run(tmp_path: Path, header: bytes, message: str) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(header + b"\n1,2,3\n")
    with pytest.raises(InputError, match=message):
        plan_inputs([str(path)], format="csv")


def test_mapping_takes_the_strings(tmp_path: Path) -> None:
    mapping = {
        "metadata.event_id": {"generate": "content"},
        "metadata.timestamp": "when",
        "user.id": "who",
        "payload.event_type": {"value": "sale"},
        "payload.properties.quantity": {"from": "n", "cast": "integer"},
    }
    path = tmp_path / "in.csv"
    path.write_bytes(b"when,who,n,shop\n2024-01-01T00:00:00Z,u1,3,x\n2024-01-01T00:00:00Z,u1,3,x\n")
    (split,) = plan_inputs([str(path)]).splits
    (block,) = read_split(split, ingest_time=NOW, mapping=mapping)
    first, second = map(json.loads, block.raw["raw"].to_pylist())
    assert first == second
    assert first["payload"] == {
        "event_type": "sale",
        "properties": {"quantity": 3},
        "custom_data": {"shop": "x"},
    }
    (again,) = read_split(split, ingest_time=NOW, mapping=compile_mapping(mapping))
    assert again.raw.equals(block.raw)


cells = st.text(st.sampled_from('ab",;\n\r é'), max_size=6)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(st.tuples(cells, cells, cells), max_size=8), ends=st.sampled_from(["\n", "\r\n"]))
def test_what_csv_writes_is_read_back(tmp_path: Path, records: list[tuple[str, str, str]], ends: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=ends)
    writer.writerow(["a", "b", "c"])
    if ends == "\n":
        records = [tuple(cell.replace("\r", "") for cell in r) for r in records]  # csv writes it unquoted
    records = [r for r in records if "".join(r).strip() or '"' in "".join(r)]
    writer.writerows(records)
    got = documents(tmp_path / "in.csv", text.getvalue().encode(), schema={})
    want = [{k: v for k, v in zip("abc", record, strict=True) if v} for record in records]
    assert got == want
