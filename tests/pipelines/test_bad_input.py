"""Bad input, end to end: a balanced ledger with the reason in the quarantine, or an error that says what to do."""

import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.connectors.atomic_file import OutputError
from headrace.pipelines import finish_split_fn
from headrace.pipelines.exits import UNTRUSTED, WRONG_USE, verdict
from headrace.schemas.errors import ConfigError, InputError
from headrace.transforms.keys import Key
from tests.pipelines.runs import event, ledger, lines, metric, rows, run

pytestmark = pytest.mark.integration

GOOD = [event(i) for i in range(4)]
FIRST, LAST = lines(GOOD[:2]), lines(GOOD[2:])


def between(line: bytes) -> bytes:
    """Returns four good lines with another one in the middle."""
    return FIRST + line + b"\n" + LAST


def one(**changes: Any) -> bytes:
    return lines([event(9, **changes)]).rstrip()


def with_url(url: bytes) -> bytes:
    return one(page_url="@@").replace(b"@@", url)


def avro(broken: bool) -> bytes:
    schema = {"type": "record", "name": "e", "fields": [{"name": n, "type": "string"} for n in GOOD[0]]}
    file = io.BytesIO()
    fastavro.writer(file, schema, GOOD, codec="deflate", sync_interval=1, sync_marker=b"0123456789abcdef")
    data = bytearray(file.getvalue())
    if broken:
        second = data.index(b"0123456789abcdef", data.index(b"0123456789abcdef") + 16) + 16
        data[second + 8 : second + 30] = bytes(22)
    return bytes(data)


def parquet(**columns: list[Any]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


CUT = gzip.compress(
    b"".join(lines([event(i, page_url=f"https://shop.example/{i * 7919}")]) for i in range(400))
)[:-400]
WHOLE = gzip.compress(FIRST + LAST)
DEEP = (
    '{"event_id":"00000000-0000-4000-8000-000000000009","metadata":{},"payload":'
    + '{"a":' * 1000
    + "1"
    + "}" * 1001
)
QUARANTINED: dict[str, tuple[str, bytes, int, dict[str, dict[str, int]]]] = {
    "empty file": ("events.jsonl", b"", 0, {}),
    "blank lines": ("events.jsonl", b"\n  \n" + FIRST + b"\r\n" + LAST, 4, {}),
    "no final newline": ("events.jsonl", (FIRST + LAST)[:-1], 4, {}),
    "byte order mark at the start": ("events.jsonl", b"\xef\xbb\xbf" + FIRST + LAST, 4, {}),
    "byte order mark inside": ("events.jsonl", between(b"\xef\xbb\xbf" + one()), 4, {"decode": {"malformed_json": 1}}),
    "line too long": ("events.jsonl", between(one(page_url="x" * 40_000)), 4, {"decode": {"line_too_long": 1}}),
    "invalid utf-8": ("events.jsonl", between(with_url(b"\xff\xfe")), 4, {"decode": {"invalid_utf8": 1}}),
    "lone surrogate": ("events.jsonl", between(with_url(rb"\ud800")), 4, {"decode": {"malformed_json": 1}}),
    "nul bytes": ("events.jsonl", between(b"\x00\x00" + one()), 4, {"decode": {"malformed_json": 1}}),
    "nothing but nul bytes": ("events.jsonl", between(b"\x00" * 50), 4, {"decode": {"malformed_json": 1}}),
    "not a number": ("events.jsonl", between(one()[:-1] + b',"score":NaN}'), 4, {"decode": {"malformed_json": 1}}),
    "two documents in a line": ("events.jsonl", between(one() + one()), 4, {"decode": {"malformed_json": 1}}),
    "not an object": ("events.jsonl", between(b"[1, 2]"), 4, {"decode": {"unknown_schema": 1}}),
    "duplicate keys, the last valid": ("events.jsonl", between(b'{"event_type":1,' + one()[1:]), 5, {}),
    "duplicate keys, the last invalid": ("events.jsonl", between(one()[:-1] + b',"event_type":1}'), 4, {"validate": {"type": 1}}),
    "nested 1,000 deep": ("events.jsonl", between(DEEP.encode()), 4, {"decode": {"nesting_too_deep": 1}}),
    "year zero": ("events.jsonl", between(one(timestamp="0000-01-01T00:00:00Z")), 4, {"validate": {"format": 1}}),
    "truncated gzip": ("events.jsonl.gz", CUT, -1, {"decode": {"truncated_input": 1}}),
    "gzip with rubbish behind": ("events.jsonl.gz", WHOLE + b"rubbish", 4, {"decode": {"truncated_input": 1}}),
    "ragged csv": (
        "events.csv",
        b"event_id,user_id,timestamp,event_type\n"
        + b"".join(f"{e['event_id']},{e['user_id']},{e['timestamp']},click\n".encode() for e in GOOD)
        + b"a,b\n1,2,3,4,5\n",
        4,
        {"decode": {"csv_ragged_row": 2}},
    ),
    "parquet with other columns": ("a.parquet", parquet(id=[1, 2], colour=["red", None]), 0, {"decode": {"unknown_schema": 2}}),
    "parquet without rows": ("a.parquet", parquet(event_id=[], event_type=[]), 0, {}),
    "avro with a broken block": ("a.avro", avro(True), 3, {"decode": {"broken_block": 1}}),
    "weblog with other lines": ("access.log", b"hello\n" * 3, 0, {"decode": {"malformed_line": 3}}),
}  # fmt: skip


TEXTS = [name for name, case in QUARANTINED.items() if case[0] == "events.jsonl"]
"""They share one run: a file each, with event ids of its own."""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "in").mkdir()
    for number, name in enumerate(TEXTS):
        data = QUARANTINED[name][1].replace(b'"00000000-', f'"{number:08d}-'.encode())
        (folder / "in" / f"{number:02d}.jsonl").write_bytes(data)
    run(folder / "in", folder / "out", key, max_record_bytes=20_000)
    return folder / "out"


def by_reason(lost: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for row in lost:
        reasons = found.setdefault(row["stage"], {})
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_a_bad_line_ends_in_the_quarantine_and_the_rest_in_the_lake(name: str, mixed: Path) -> None:
    _, _, accepted, rejected = QUARANTINED[name]
    origin = f"{TEXTS.index(name):02d}.jsonl"
    lost = [row for row in rows(mixed, "quarantine") if row["origin"] == origin]
    assert by_reason(lost) == rejected
    assert all(row["message"] and row["document"] for row in lost)
    assert sum(row["origin"] == origin for row in rows(mixed, "events")) == accepted
    assert ledger(mixed)["balanced"] is True


@pytest.mark.parametrize("name", ["empty file", *(n for n in QUARANTINED if n not in TEXTS)])
def test_bad_files_end_in_the_quarantine_as_far_as_they_are_bad(
    name: str, tmp_path: Path, key: Path, warm: None
) -> None:
    file, data, accepted, rejected = QUARANTINED[name]
    (tmp_path / file).write_bytes(data)
    format_ = {"format": "weblog"} if file == "access.log" else {}
    result = run(tmp_path / file, tmp_path / "out", key, **format_)
    found = ledger(tmp_path / "out")
    assert found["balanced"] is True
    assert found["rejected"] == rejected
    assert found["accepted"] == accepted if accepted >= 0 else 300 < found["accepted"] < 400
    lost = rows(tmp_path / "out", "quarantine")
    assert len(lost) == result.ledger.total_rejected
    assert all(row["message"] for row in lost)
    assert len(rows(tmp_path / "out", "events")) == found["accepted"]
    assert metric(tmp_path / "out", "events_per_minute").column_names == [
        "window_start", "window_end", "event_type", "events", "unique_users",
        "unique_users_error",
    ]  # fmt: skip
    assert bool(result.warnings) == ("truncated_input" in str(rejected) or "broken_block" in str(rejected))


def test_a_long_line_keeps_its_head_and_its_number(tmp_path: Path, key: Path, warm: None) -> None:
    """100 MB in one line: memory must not follow."""
    source = tmp_path / "events.jsonl"
    with open(source, "wb") as file:
        file.write(FIRST + b'{"event_id":"')
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n' + LAST)
    run(source, tmp_path / "out", key)
    assert ledger(tmp_path / "out")["rejected"] == {"decode": {"line_too_long": 1}}
    (row,) = rows(tmp_path / "out", "quarantine")
    assert row["origin_position"] == 3
    assert len(Key(key).unseal(row["document"])) == 1 << 16
    assert [r["origin_position"] for r in rows(tmp_path / "out", "events")] == [1, 2, 4, 5]


def test_every_failure_of_a_row_has_its_pointer_and_no_value(tmp_path: Path, key: Path, warm: None) -> None:
    (tmp_path / "events.jsonl").write_bytes(
        one(user_id=4111111111111111, timestamp="ann@example.com", page_url=7)
    )
    run(tmp_path / "events.jsonl", tmp_path / "out", key)
    (row,) = rows(tmp_path / "out", "quarantine")
    errors = json.loads(row["errors"])
    assert [(e["code"], e["pointer"]) for e in errors] == [
        ("type", "/page_url"),
        ("format", "/timestamp"),
        ("type", "/user_id"),
    ]
    assert (row["reason"], row["pointer"], row["message"]) == ("type", "/page_url", errors[0]["message"])
    assert "4111" not in row["errors"]
    assert "ann" not in row["errors"]
    assert row["user_id"] is None


def unreadable(folder: Path) -> Path:
    path = folder / "secret.jsonl"
    path.write_bytes(FIRST)
    path.chmod(0)
    return path


def wrong(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def empty_folder(folder: Path) -> Path:
    (folder / "in").mkdir()
    return folder / "in"


REFUSED: dict[str, tuple[Callable[[Path], Path], type[Exception], str]] = {
    "missing file": (lambda f: f / "none.jsonl", InputError, "none.jsonl does not exist; check the path"),
    "pattern without a file": (lambda f: f / "*.jsonl", InputError, "no file matches"),
    "directory without files": (empty_folder, InputError, "is a directory without files"),
    "unknown content": (wrong("a.bin", b"\x01\x02\x03" * 99), InputError, "--format"),
    "bzip2": (wrong("a.jsonl", b"BZh91AY&SY"), InputError, "is compressed with bzip2, which can't be read"),
    "no parquet": (wrong("a.parquet", b"PAR1 and so on PAR1"), InputError, "is no readable Parquet file"),
    "no avro": (wrong("a.avro", avro(False)[:40]), InputError, "a.avro"),
    "csv without header": (wrong("a.csv", b",,\n1,2,3\n"), InputError, "a.csv"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_at_all_is_refused_before_anything_is_written(
    name: str, tmp_path: Path, key: Path
) -> None:
    make, kind, message = REFUSED[name]
    with pytest.raises(kind) as error:
        run(make(tmp_path), tmp_path / "out", key)
    assert message in str(error.value)
    assert verdict(error.value) == (WRONG_USE, str(error.value))
    assert not (tmp_path / "out").exists()


def test_a_file_without_permission_is_refused(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = unreadable(tmp_path)
    if os.geteuid() == 0:  # root may read everything: the system's answer is given in its place
        real = open

        def refusing(file: Any, *arguments: Any, **settings: Any) -> Any:
            if str(file) == str(path):
                raise PermissionError(13, "Permission denied", str(file))
            return real(file, *arguments, **settings)

        monkeypatch.setattr("builtins.open", refusing)
    with pytest.raises(
        InputError, match=r"secret.jsonl can't be read: Permission denied; check the permissions"
    ):
        run(path, tmp_path / "out", key)


def test_a_directory_is_read_with_all_its_files(tmp_path: Path, key: Path, warm: None) -> None:
    (tmp_path / "in" / "day").mkdir(parents=True)
    (tmp_path / "in" / "day" / "a.jsonl").write_bytes(FIRST)
    (tmp_path / "in" / "b.jsonl").write_bytes(LAST)
    (tmp_path / "in" / "empty.jsonl").touch()
    (tmp_path / "in" / "_SUCCESS").touch()
    run(tmp_path / "in", tmp_path / "out", key)
    assert [r["origin"] for r in rows(tmp_path / "out", "events")] == ["b.jsonl"] * 2 + ["day/a.jsonl"] * 2


def test_a_file_that_changes_while_it_is_read_ends_the_run(
    tmp_path: Path, key: Path, warm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headrace.pipelines import batch

    source = tmp_path / "events.jsonl"
    source.write_bytes(FIRST)
    process = batch._process

    def grown(*arguments: Any) -> None:
        source.write_bytes(FIRST + LAST)
        process(*arguments)

    monkeypatch.setattr(batch, "_process", grown)
    with pytest.raises(Exception, match="it changed after the run was planned") as error:
        run(source, tmp_path / "out", key)
    found = verdict(error.value)
    assert found is not None
    assert found[0] == WRONG_USE
    assert not (tmp_path / "out" / "events" / "_delta_log").exists()


@pytest.mark.parametrize("lake_format", ["delta", "parquet"])
def test_a_full_disk_ends_the_run_and_the_same_command_finishes_it(
    lake_format: str, tmp_path: Path, key: Path, warm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "events.jsonl"
    source.write_bytes(FIRST + LAST)

    class Full(finish_split_fn.PartitionedWriter):
        def close(self) -> Any:
            self.discard()
            raise OutputError(
                28, "can't be written: No space left on device; make room", str(tmp_path / "out")
            )

    with monkeypatch.context() as scope:
        scope.setattr(finish_split_fn, "PartitionedWriter", Full)
        with pytest.raises(Exception, match="No space left on device") as error:
            run(source, tmp_path / "out", key, lake_format=lake_format)
    found = verdict(error.value)
    assert found is not None
    assert found[0] == UNTRUSTED
    assert "No space left on device; make room" in found[1]
    run(source, tmp_path / "out", key, lake_format=lake_format)
    assert ledger(tmp_path / "out")["accepted"] == 4


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from headrace.pipelines.exits import verdict
from tests.pipelines.runs import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    run(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
except Exception as error:
    print(*(verdict(error) or (1, repr(error))))
"""


def test_a_disk_that_refuses_a_file_is_named_with_the_fix(tmp_path: Path, key: Path, warm: None) -> None:
    source, out = tmp_path / "events.jsonl", tmp_path / "out"
    source.write_bytes(
        lines(event(i, page_url=f"https://shop.example/{i * 7919:x}/{'a' * (i % 50)}") for i in range(900))
    )
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, source, out, key],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert done.stdout.startswith("3 "), done.stdout + done.stderr[-2000:]
    assert "File too large; make room or fix the permissions, then run the same command again" in done.stdout
    assert not (out / "events" / "_delta_log").exists()
    run(source, out, key)
    assert ledger(out)["accepted"] == 900
    assert not list(out.rglob("*.tmp"))


def test_an_output_that_cannot_be_made_is_refused(tmp_path: Path, key: Path) -> None:
    source = tmp_path / "events.jsonl"
    source.write_bytes(FIRST)
    with pytest.raises(ConfigError, match=r"output .*events.jsonl is a file; name a folder"):
        run(source, source, key)
    with pytest.raises(ConfigError, match=r"folder .*none does not exist; create it"):
        run(source, tmp_path / "none" / "out", key)
