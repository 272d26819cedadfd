import gzip
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
import zstandard

from headrace.connectors.find_files import find_files
from headrace.connectors.formats import detect_format
from headrace.connectors.inputs import plan_inputs
from headrace.schemas.errors import ConfigError, InputError

WEBLOG = b'83.149.9.216 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 203023 "-" "Mozilla"\n'


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b'{"name":"%s"}\n' % name.encode())
    return root


def origins(*patterns: Path | str) -> list[str]:
    return [origin for origin, _ in find_files([str(p) for p in patterns])]


def test_directories_globs_and_files(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        "day=1/b.jsonl",
        "day=1/a.jsonl",
        "day=2/a.jsonl",
        "x.json",
        ".hid",
        "_log/0.json",
        "day=2/_t",
    )
    assert origins(root) == ["day=1/a.jsonl", "day=1/b.jsonl", "day=2/a.jsonl", "x.json"]
    assert origins(root / "day=*/a*") == ["day=1/a.jsonl", "day=2/a.jsonl"]
    assert origins(root / "**/*.jsonl") == ["day=1/a.jsonl", "day=1/b.jsonl", "day=2/a.jsonl"]
    assert origins(root / "**") == origins(root)
    assert origins(root / "day=?") == ["day=1/a.jsonl", "day=1/b.jsonl", "day=2/a.jsonl"]
    assert origins(root / "*/a.jsonl") == ["day=1/a.jsonl", "day=2/a.jsonl"]
    assert origins(root / "x.json") == ["x.json"]
    assert origins(root / "_log/*") == ["0.json"]


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    root = tree(tmp_path, "a/one.json", "a/two.json")
    (root / "a/link.json").symlink_to(root / "a/two.json")
    (root / "a/loop").symlink_to(root / "a")
    assert origins(root / "a", root / "a/../a/one.json", root / "a/*.json") == ["one.json", "two.json"]


def test_equal_origins_get_more_of_their_path(tmp_path: Path) -> None:
    tree(tmp_path, "x/in/a.json", "y/in/a.json", "y/in/b.json")
    want = ["b.json", "x/in/a.json", "y/in/a.json"]
    assert origins(tmp_path / "x/in", tmp_path / "y/in") == want
    assert origins(tmp_path / "y/in", tmp_path / "x/in") == want


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    tree(tmp_path, "a[1].json", "a1.json")
    assert origins(tmp_path / "a[1].json") == ["a[1].json"]


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty" / "_only").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dead").symlink_to(tmp_path / "gone")
    for pattern, message in [
        ("gone.jsonl", r"gone\.jsonl does not exist; check the path"),
        ("no/*.jsonl", r"no file matches .*no/\*\.jsonl; check it, and quote it"),
        ("empty", "empty is a directory without files"),
        ("pipe", "pipe is neither a file nor a directory; write what it delivers"),
        ("dead", "dead does not exist"),
    ]:
        with pytest.raises(InputError, match=message):
            plan_inputs([str(tmp_path / pattern)])
    with pytest.raises(InputError, match="only local files can be read"):
        plan_inputs(["gs://bucket/x"])
    with pytest.raises(InputError, match="no input"):
        plan_inputs([])


def test_missing_permission_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "d/a.jsonl")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        with pytest.raises(
            InputError, match=r"a\.jsonl can't be read: Permission denied; check the permissions"
        ):
            plan_inputs([str(tmp_path / "d/a.jsonl")])
    monkeypatch.setattr(os, "scandir", refuse)
    for pattern in ("d", "d/*", "**/a.jsonl"):
        with pytest.raises(InputError, match="can't be read: Permission denied"):
            plan_inputs([str(tmp_path / pattern)])


def test_plan_counts_lines_and_hashes_content(tmp_path: Path) -> None:
    data = b'{"a":1}\n{"b":22}\n\n{"c":3}'
    (tmp_path / "in.jsonl").write_bytes(data)
    plan = plan_inputs([str(tmp_path)], split_bytes=8)
    (file,) = plan.files
    assert (file.origin, file.format, file.compression) == ("in.jsonl", "jsonl", "plain")
    assert (file.size_bytes, file.checksum) == (25, xxhash.xxh3_128_hexdigest(data))
    assert [(s.index, s.start, s.end, s.first_record) for s in plan.splits] == [
        (0, 0, 8, 1),
        (1, 8, 16, 2),
        (2, 16, 24, 3),
        (3, 24, 25, 5),
    ]
    assert plan_inputs([str(tmp_path)], split_bytes=8) == plan


def test_compressed_files_and_csv_are_one_split(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a":1}\n' * 99))
    (tmp_path / "b.csv").write_bytes(b"x,y\n" + b"1,2\n" * 99)
    (tmp_path / "c.jsonl").write_bytes(b"")
    plan = plan_inputs([str(tmp_path)], split_bytes=10)
    assert [(s.origin, s.start, s.first_record) for s in plan.splits] == [
        ("a.jsonl.gz", 0, 1),
        ("b.csv", 0, 1),
    ]
    assert [s.end for s in plan.splits] == [f.size_bytes for f in plan.files[:2]]
    assert plan.files[2].size_bytes == 0


@pytest.mark.parametrize(
    ("name", "head", "format"),
    [
        ("x", b' \n {"a":1}\n', "jsonl"),
        ("x", b'\xef\xbb\xbf{"a":1}', "jsonl"),
        ("x.csv", b'{"a":1}\n', "jsonl"),
        ("x.jsonl", b"garbage\n", "jsonl"),
        ("x.jsonl.gz", b"", "jsonl"),
        ("x", b"", "jsonl"),
        ("x", WEBLOG, "weblog"),
        ("access.log", b"garbage\n" + WEBLOG, "weblog"),
        ("x", b"garbage\n" + WEBLOG, "weblog"),
        ("x", b'oops, not a header?\n{"a":1}\n', "jsonl"),
        ("x", b"event_id,user_id,properties.price\n1,2,3\n", "csv"),
        ("x", b'"event id";"user"\n1;2\n', "csv"),
        ("x.tsv", b"only\n", "csv"),
        ("x.log", b"PAR1....", "parquet"),
        ("x", b"Obj\x01....", "avro"),
        ("x.avro", b"", "avro"),
    ],
)
def test_formats_are_told_by_content(name: str, head: bytes, format: str) -> None:
    assert detect_format(name, head) == format


@pytest.mark.parametrize(
    ("name", "head", "forced", "message"),
    [
        (
            "in.txt",
            b"hello world\n",
            None,
            r"in\.txt: its format can't be told: .* name it with --format jsonl\|csv",
        ),
        ("in", b"a,a\n", None, "nor a CSV header"),
        ("in", b"1,2\n", None, "nor a CSV header"),
        ("in", b"caf\xe9,b\n", None, "nor a CSV header"),
        ("in.json", b"[1,2]\n", "parquet", "no parquet file though --format says so"),
        ("in", b'[{"a":1}]\n', None, r"one JSON array, write one document a line \(jq -c '\.\[\]'\)"),
        ("in", "{}".encode("utf-16"), None, "it looks like UTF-16"),
        ("in", b"\x00\x01", None, "it is binary, but neither Parquet nor Avro"),
        ("in.parquet", b"junk", None, "no parquet file though its name says so"),
        ("in", b"PAR1", "jsonl", "is parquet, but --format says jsonl"),
    ],
)
def test_what_can_not_be_told_is_an_error(name: str, head: bytes, forced: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        detect_format(name, head, forced)


def test_other_compressions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.bz2"
    for magic, name in [(b"BZh91AY&SY", "bzip2"), (b"\xfd7zXZ\x00", "xz"), (b"PK\x03\x04", "zip")]:
        path.write_bytes(magic + b"data")
        with pytest.raises(
            InputError, match=f"is compressed with {name}, which can't be read; decompress it"
        ):
            plan_inputs([str(path)])
    path.write_bytes(gzip.compress(b"PK\x03\x04"))
    with pytest.raises(InputError, match="compressed with zip"):
        plan_inputs([str(path)])


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="format 'xml' is unknown; use one of jsonl, csv"):
        plan_inputs([str(tmp_path)], format="xml")
    with pytest.raises(ConfigError, match="split_bytes is 0"):
        plan_inputs([str(tmp_path)], split_bytes=0)


def test_mixed_formats_in_one_folder(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "part-0")
    (tmp_path / "part-1").write_bytes(zstandard.compress(b'{"a":1}\n'))
    (tmp_path / "part-2").write_bytes(b"a;b\n1;2\n")
    plan = plan_inputs([str(tmp_path)])
    assert [(f.format, f.compression) for f in plan.files] == [
        ("parquet", "plain"),
        ("jsonl", "zstd"),
        ("csv", "plain"),
    ]
    with pytest.raises(InputError, match="is parquet, but --format says csv"):
        plan_inputs([str(tmp_path)], format="csv")
