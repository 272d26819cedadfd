"""Reading documents: layout, compression, exactness, and faults in their place."""

import gzip
import io
import json
import math
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.documents import Document, read_documents
from headrace.schemas.errors import InputError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
QUICK = settings(max_examples=50, deadline=None, derandomize=True, database=None)


def read(tmp_path: Path, data: bytes) -> list[Document]:
    path = tmp_path / "input"
    path.write_bytes(data)
    return list(read_documents(path))


def verdicts(documents: list[Document]) -> list[Any]:
    return [item.failure["message"] if item.failure else item.value for item in documents]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documents")


@QUICK
@given(PLAIN, st.sampled_from([None, 0, 1, 2, "\t"]), st.booleans())
def test_one_document_of_any_layout(folder: Path, value: Any, indent: Any, bom: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=bom)
    documents = read(folder, (b"\xef\xbb\xbf" if bom else b"") + b"\n \n" + text.encode() + b"\r\n\n")
    assert documents == [Document(1, 3, value)]


@QUICK
@given(st.lists(PLAIN, min_size=1, max_size=6), st.sampled_from(["\n", "\r\n", "\n\n \n"]), st.booleans())
def test_json_lines(folder: Path, values: list[Any], separator: str, end: bool) -> None:
    text = separator.join(json.dumps(value) for value in values) + separator * end
    documents = read(folder, text.encode())
    assert [item.value for item in documents] == values
    assert [item.number for item in documents] == list(range(1, len(values) + 1))
    step = separator.count("\n")
    assert [item.line for item in documents] == [1 + step * index for index in range(len(values))]


@QUICK
@given(PLAIN.filter(lambda value: isinstance(value, dict | list)), st.data())
def test_a_pretty_document_cut_after_any_line_is_malformed_not_lost(
    folder: Path, value: Any, data: Any
) -> None:
    lines = json.dumps(value, indent=1).splitlines(keepends=True)
    kept = data.draw(st.integers(1, len(lines)))
    documents = read(folder, "".join(lines[:kept]).encode())
    if kept == len(lines):
        assert verdicts(documents) == [value]
    else:
        assert documents and documents[0].failure is not None
        assert documents[0].failure["code"] == "malformed"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n \n\t\r\n", []),
        (b"\xef\xbb\xbf", []),
        (b'{"a":1}\nnot json\n{"b":2}', [{"a": 1}, "line 2, column 1: not JSON (Expecting value)", {"b": 2}]),
        (b'{"a":\n{"b":2}\n', ["line 1, column 6: not JSON (Expecting value)", {"b": 2}]),
        (b'{"a":1,\n{"b":2}\n', [
            "line 1, column 8: not JSON (Expecting property name enclosed in double quotes)", {"b": 2}]),
        (b'{\n  "a": 1,\n  b: 2\n}\n', [
            "line 3, column 3: not JSON (Expecting property name enclosed in double quotes)"]),
        (b'{\n{"a":1}\n', [
            "line 1, column 2: not JSON (Expecting property name enclosed in double quotes)", {"a": 1}]),
        (b'{"a": "x\n"}\n', [
            "line 1, column 7: not JSON (Unterminated string starting at)",
            "line 2, column 1: not JSON (Unterminated string starting at)"]),
        (b'{"a":NaN}\n{"a":"NaN","b":-Infinity}', [
            "line 1, column 6: not JSON (NaN)", "line 2, column 16: not JSON (-Infinity)"]),
        (b'[\n1,\nInfinity\n]', ["line 3, column 1: not JSON (Infinity)"]),
        (b'"\xc3\xa9\xff"\n1', ["line 1, column 3: not UTF-8", 1]),
        (b'{"a":1}{"a":2}', ["line 1, column 8: not JSON (Extra data)"]),
        (b'1\x00\n2', ["line 1, column 2: not JSON (Extra data)", 2]),
        (b"[" * 100_000 + b"]" * 100_000 + b"\n1", ["line 1: nested too deeply", 1]),
        (b"9" * 5000 + b"\n1", ["line 1: a number has too many digits", 1]),
        (b'{"a":1,"a":2}', [{"a": 2}]),
        (b'[1e999, 123456789012345678901234567890, 1.0, "\\ud800"]', [
            [math.inf, 123456789012345678901234567890, 1.0, "\ud800"]]),
    ],
)  # fmt: skip
def test_faults_in_their_place(tmp_path: Path, data: bytes, expected: list[Any]) -> None:
    assert verdicts(read(tmp_path, data)) == expected


def test_messages_hold_no_content(tmp_path: Path) -> None:
    for data in (
        b'{"a": secret}',
        b'{"secret": NaN}',
        b'"secret\x01"',
        b'{"a": "\\secret"}',
        b'"secret',
        b"secret\xff",
    ):
        (document,) = read(tmp_path, data)
        assert document.failure is not None and "secret" not in document.failure["message"]


LINES = b"".join(b'{"n": %d}\n' % number for number in range(20_000))


def pack(kind: str, data: bytes) -> bytes:
    return gzip.compress(data) if kind == "gzip" else zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_compressed_members_follow_each_other(tmp_path: Path, kind: str) -> None:
    data = pack(kind, LINES[:50_000]) + pack(kind, b"") + pack(kind, LINES[50_000:])
    documents = read(tmp_path, data + (b"\0" * 100 if kind == "gzip" else b""))
    assert [item.value["n"] for item in documents] == list(range(20_000))


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_compressed_input_cut_short_keeps_what_can_be_read(tmp_path: Path, kind: str) -> None:
    whole = pack(kind, LINES)
    documents = read(tmp_path, whole[: len(whole) // 2])
    *good, last = documents
    assert [item.value["n"] for item in good] == list(range(len(good)))
    assert last.number == len(good) + 1 and last.failure is not None
    assert last.failure["code"] == "truncated"
    assert "ends before its end marker" in last.failure["message"]
    first = read(tmp_path, whole[:3] if kind == "gzip" else whole[:5])
    assert [item.failure and item.failure["code"] for item in first] == ["truncated"]


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_damaged_compressed_input_is_a_failure(tmp_path: Path, kind: str) -> None:
    first, second = pack(kind, b"1\n"), bytearray(pack(kind, LINES))
    second[0] ^= 0xFF
    documents = read(tmp_path, first + bytes(second))
    assert documents[0].value == 1
    assert documents[-1].failure is not None and "data is damaged" in documents[-1].failure["message"]


def test_memory_is_bounded_by_a_line(tmp_path: Path) -> None:
    path = tmp_path / "big.gz"
    line = json.dumps({"text": "x" * 1000}).encode() + b"\n"
    path.write_bytes(gzip.compress(b'{"cut": 1,\n' + line * 8_000))
    tracemalloc.start()
    count = sum(1 for _ in read_documents(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 8_001
    assert peak < 4_000_000


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1\n2\n")))
    assert [item.value for item in read_documents("-")] == [1, 2]


def test_inputs_that_can_not_be_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        list(read_documents(tmp_path / "none"))
    with pytest.raises(InputError, match="is a directory"):
        list(read_documents(tmp_path))
    with pytest.raises(InputError, match="can't be read"):
        list(read_documents(tmp_path / ("x" * 300)))
