import gzip
import io
import logging
import os
import pickle
import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.connectors import directory_files, directory_position, directory_tree, directory_watch
from headrace.connectors.directory_position import DirectoryPosition, Done, Open, file_key, tail_check
from headrace.connectors.directory_reader import NOTHING_WAITS, DirectoryReader
from headrace.connectors.inputs import plan_inputs
from headrace.connectors.read_directory import DirectoryOptions, DirectorySource
from headrace.connectors.read_lines import read_lines
from headrace.connectors.read_split import read_split
from headrace.connectors.stream_source import Poll
from headrace.schemas.columns import RAW_SCHEMA, TIME
from headrace.schemas.errors import ConfigError, InputError, UntrustedRunError
from headrace.transforms.event_clock import EventClock

NOW = datetime(2026, 1, 5, 10, tzinfo=UTC)
MTIME = 1_767_607_200
WEBLOG = b'192.0.2.7 - - [05/Jan/2026:10:00:00 +0000] "GET /a HTTP/1.1" 200 12 "-" "curl/8"\n'
Row = tuple[str, int, bytes, str | None]


class Clock:
    """Monotonic time that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Stream:
    """A source on a directory, with one reader that is polled; checks what holds for every poll."""

    def __init__(self, root: Path, options: str = "", readers: int = 1, resume: Any = None) -> None:
        self.clock = Clock()
        self.source = DirectorySource(DirectoryOptions.parse(f"dir:{root}?{options}"))
        self.position = self.source.start(readers, resume)[0]
        self.reopen()

    def reopen(self, position: str | None = None) -> None:
        self.position = position or self.position
        self.reader = DirectoryReader(self.source.options, self.position, clock=self.clock)

    def poll(self, max_rows: int = 10_000) -> Poll:
        poll = self.reader.poll(max_rows, 60)
        self.position = poll.position
        assert poll.batch.schema.equals(RAW_SCHEMA)
        assert poll.batch.num_rows == sum(read.records for read in poll.reads) <= max_rows
        assert poll.receipt == ""
        rows = rows_of(poll)
        for read in poll.reads:
            numbers = [row[1] for row in rows if row[0] == read.origin]
            assert (numbers[0], numbers[-1] + 1, len(numbers)) == (read.first, read.next, read.records)
            assert numbers == sorted(set(numbers))
        return poll

    def rows(self, *, wait: float = 0.0) -> list[Row]:
        """All rows that there are, ``wait`` seconds after a look."""
        found = rows_of(self.poll())
        if wait:
            self.clock.now += wait
            found += rows_of(self.poll())
        return found


def rows_of(poll: Poll) -> list[Row]:
    columns = (poll.batch.column(name).to_pylist() for name in ("origin", "origin_position", "raw", "fault"))
    return list(zip(*columns, strict=True))


def batch_rows(root: Path, format: str | None = None) -> list[Row]:
    """What the batch pipeline reads."""
    found: list[Row] = []
    for split in plan_inputs([str(root)], format=format).splits:
        for block in read_split(split, ingest_time=NOW):
            columns = (block.raw[n].to_pylist() for n in ("origin", "origin_position", "raw", "fault"))
            found += zip(*columns, strict=True)
    return found


def write(path: Path, data: bytes, mtime: float = MTIME) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (mtime, mtime))
    return path


def append(path: Path, data: bytes, mtime: float = MTIME + 1) -> None:
    write(path, path.read_bytes() + data, mtime)


def documents(n: int, start: int = 0) -> bytes:
    return b"".join(b'{"n":%d}\n' % i for i in range(start, start + n))


def parquet(rows: int) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"n": list(range(rows))}), sink, row_group_size=100)
    return sink.getvalue()


def avro(rows: int) -> bytes:
    sink = io.BytesIO()
    schema = {"type": "record", "name": "r", "fields": [{"name": "n", "type": "long"}]}
    fastavro.writer(sink, schema, [{"n": i} for i in range(rows)], sync_interval=500)
    return sink.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "lines.jsonl": lambda: documents(300),
    "sub/deep/bom.jsonl": lambda: b"\xef\xbb\xbf" + documents(5) + b"\n\r\n" + documents(3),
    "table.csv": lambda: b"n,name\n" + b"".join(b'%d,"a\nb"\n' % i for i in range(300)),
    "unended.csv": lambda: b"n;name\n1;x\n2;y",
    "rows.parquet": lambda: parquet(350),
    "sub/rows.avro": lambda: avro(500),
    "lines.jsonl.gz": lambda: gzip.compress(documents(200)) + gzip.compress(documents(100)),
    "lines.ndjson.zst": lambda: zstandard.compress(documents(300)[:-1]),
    "sub/rows.avro.gz": lambda: gzip.compress(avro(50)),
    "rows.parquet.zst": lambda: zstandard.compress(parquet(50)),
    "empty.parquet": lambda: parquet(0),
    "empty.jsonl": lambda: b"",
}


@pytest.mark.parametrize("follow", ["true", "false"])
@pytest.mark.parametrize("max_rows", [97, 10_000])
def test_every_format_gives_the_rows_of_the_batch_pipeline(
    tmp_path: Path, follow: str, max_rows: int
) -> None:
    for name, data in FILES.items():
        write(tmp_path / name, data())
    stream = Stream(tmp_path, f"follow={follow}")
    found: list[Row] = []
    for i in range(80):
        stream.clock.now += 2
        found += rows_of(stream.poll(max_rows))
        if i % 3 == 2:
            stream.reopen()  # after a crash, from the last position
    expected = batch_rows(tmp_path)
    assert len(expected) == 2160
    assert sorted(found) == sorted(expected)
    assert stream.poll().behind == NOTHING_WAITS


def test_web_logs_are_read_as_they_grow(tmp_path: Path) -> None:
    log = write(tmp_path / "access.log", WEBLOG * 2)
    stream = Stream(tmp_path, "format=weblog")
    assert stream.source.format == "weblog"
    assert [row[1] for row in stream.rows()] == [1, 2]
    append(log, WEBLOG)
    assert stream.rows() == [("access.log", 3, WEBLOG[:-1], None)]


def test_a_line_without_its_end_waits(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"n":1}\n{"n":')
    stream = Stream(tmp_path)
    poll = stream.poll()
    assert rows_of(poll) == [("a.jsonl", 1, b'{"n":1}', None)]
    assert poll.behind == {"a.jsonl": 0}
    assert stream.rows(wait=5) == []
    append(path, b"2", MTIME + 1)
    assert stream.rows(wait=5) == []
    append(path, b"}\n\n\n", MTIME + 2)
    assert stream.rows() == [("a.jsonl", 2, b'{"n":2}', None)]
    append(path, b'{"n":3}\n', MTIME + 3)
    stream.reopen()
    assert stream.rows() == [("a.jsonl", 5, b'{"n":3}', None)]
    assert stream.rows() == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.lists(st.sampled_from([b"{}", b"ab", b" ", b"\r", b"\n", b"\n", b"\xef\xbb\xbf"]), max_size=60),
    steps=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5), st.booleans()), max_size=30),
)
def test_growing_lines_are_read_once_whatever_the_steps(
    tmp_path_factory: pytest.TempPathFactory, data: list[bytes], steps: list[tuple[int, int, bool]]
) -> None:
    root = tmp_path_factory.mktemp("grow")
    text = b"".join(data)
    path = write(root / "a.jsonl", b"")
    stream = Stream(root)
    found, at = [], 0
    for i, (grow, max_rows, crash) in enumerate([*steps, (len(text), 1000, True), (0, 1000, True)]):
        path.write_bytes(text[: at + grow])
        os.utime(path, (MTIME + i, MTIME + i))
        at += grow
        stream.clock.now += 1
        found += rows_of(stream.poll(max_rows))
        if crash:
            stream.reopen()
    whole = text[: text.rfind(b"\n") + 1]
    path.write_bytes(whole)
    expected = batch_rows(root, "jsonl")
    assert found == expected


def test_a_window_boundary_and_a_line_longer_than_a_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_files, "WINDOW_BYTES", 64)
    monkeypatch.setattr(directory_files, "_PIECE", 16)
    data = documents(40) + b'{"long":"' + b"x" * 300 + b'"}\n' + documents(3) + b"x" * 100
    path = write(tmp_path / "a.jsonl", data)
    stream = Stream(tmp_path, "max-record-bytes=200")
    found: list[Row] = []
    for _ in range(20):
        found += rows_of(stream.poll(7))
        stream.reopen()
    assert [row[1] for row in found] == list(range(1, 45))
    assert [row[3] for row in found if row[3]] == ["line_too_long"]
    assert len(found[40][2]) == 200
    path.write_bytes(data[:-100])
    expected = batch_rows(tmp_path)
    assert [r for r in found if not r[3]] == [r for r in expected if r[1] != 41]


def test_half_written_files_wait_until_they_are_complete(tmp_path: Path) -> None:
    whole = {name: make() for name, make in FILES.items() if name.endswith(("gz", "zst", "quet", "avro"))}
    stream = Stream(tmp_path)
    for name, data in whole.items():
        write(tmp_path / name, data[: len(data) // 2])
    for _ in range(5):
        assert stream.rows(wait=20) == []
    behind = stream.poll().behind
    assert behind == {name: len(data) // 2 for name, data in whole.items()}
    for name, data in whole.items():
        write(tmp_path / name, data, MTIME + 1)
    assert stream.rows() == []  # not settled
    stream.clock.now += 1.9
    assert stream.rows() == []
    stream.clock.now += 0.1
    assert sorted(stream.rows()) == sorted(batch_rows(tmp_path))
    assert stream.poll().behind == NOTHING_WAITS


def test_a_settled_file_is_read_only_if_size_and_time_stand_still(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"n\n1\n")
    stream = Stream(tmp_path, "settle-seconds=10")
    for i in range(5):
        stream.clock.now += 9
        assert stream.rows() == []
        append(path, b"%d\n" % i, MTIME + i + 1)
    assert len(stream.rows(wait=10)) == 6


def test_what_stays_broken_is_given_up_and_holds_nothing_up(tmp_path: Path) -> None:
    cut = gzip.compress(documents(500))[:-30]
    write(tmp_path / "cut.jsonl.gz", cut)
    write(tmp_path / "cut.parquet", parquet(10)[:-5])
    write(tmp_path / "foreign.jsonl", b"BZh91AY&SY....\n")
    write(tmp_path / "text.bin", b"\x00\x01 neither\n")
    write(tmp_path / "unended.bin", b"\x00\x01 neither")
    write(tmp_path / "good.jsonl", documents(1))
    stream = Stream(tmp_path, "broken-seconds=60")
    assert [row[0] for row in stream.rows(wait=59)] == ["good.jsonl"]
    stream.clock.now += 1
    rows = stream.rows()
    salvaged = [row for row in rows if row[0] == "cut.jsonl.gz"]
    assert salvaged == batch_rows(tmp_path / "cut.jsonl.gz")
    assert salvaged[-1][3] == "truncated_input" and len(salvaged) > 300
    lost = sorted(row for row in rows if row[0] != "cut.jsonl.gz")
    assert [(row[0], row[1], row[3]) for row in lost] == [
        ("cut.parquet", 0, "unreadable_file"),
        ("foreign.jsonl", 0, "unreadable_file"),
        ("text.bin", 0, "unreadable_file"),
        ("unended.bin", 0, "unreadable_file"),
    ]
    assert lost[2][2] == b"\x00\x01 neither\n"
    stream.reopen()
    assert stream.rows(wait=100) == []
    # Mended, they are read after all; still broken, they get no second row.
    write(tmp_path / "cut.parquet", parquet(10), MTIME + 5)
    write(tmp_path / "text.bin", b"\x00\x01 neither nor\n", MTIME + 5)
    assert stream.rows(wait=2) == batch_rows(tmp_path / "cut.parquet")
    assert stream.rows(wait=100) == []
    assert stream.poll().behind == NOTHING_WAITS


def test_a_web_log_among_json_is_one_row(tmp_path: Path) -> None:
    log = write(tmp_path / "access.log", WEBLOG * 3)
    write(tmp_path / "b.jsonl", documents(1))
    stream = Stream(tmp_path)
    assert sorted(stream.rows()) == [
        ("access.log", 0, WEBLOG * 3, "foreign_format"),
        ("b.jsonl", 1, b'{"n":0}', None),
    ]
    append(log, WEBLOG)
    assert stream.rows(wait=3) == []
    append(log, WEBLOG, MTIME + 9)
    stream.reopen()
    assert stream.rows(wait=3) == []
    other = Stream(tmp_path, "pattern=b*&format=weblog")
    assert [row[:2] for row in other.rows()] == [("b.jsonl", 1)]  # what is stated is believed


@pytest.mark.parametrize("crash", [False, True])
def test_a_file_that_shrinks_is_an_error(tmp_path: Path, crash: bool) -> None:
    path = write(tmp_path / "a.jsonl", documents(3))
    stream = Stream(tmp_path)
    stream.rows()
    write(path, documents(2), MTIME + 1)
    if crash:
        stream.reopen()
    with pytest.raises(InputError, match=r"a\.jsonl has become shorter, 16 bytes, though 24 bytes of it"):
        stream.poll()


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("longer", [0, 1])
def test_a_file_that_is_rewritten_is_an_error(tmp_path: Path, crash: bool, longer: int) -> None:
    path = write(tmp_path / "a.jsonl", documents(3))
    stream = Stream(tmp_path)
    stream.rows()
    write(path, documents(3 + longer, 5), MTIME + 1)
    if crash:
        stream.reopen()
    if crash and not longer:
        assert stream.rows() == []  # of equal size: not looked into
        return
    with pytest.raises(InputError, match=r"a\.jsonl holds other bytes than before, though 24 bytes of it"):
        stream.poll()


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize(
    ("name", "data"),
    [("a.gz", gzip.compress(documents(3), mtime=0)), ("a.csv", b"n\n1\n")],
    ids=["gzip", "csv"],
)
def test_a_complete_file_that_grows_is_an_error(tmp_path: Path, name: str, data: bytes, crash: bool) -> None:
    path = write(tmp_path / name, data)
    stream = Stream(tmp_path)
    assert stream.rows(wait=3)
    append(path, data)
    if crash:
        stream.reopen()
    with pytest.raises(InputError, match=rf"{name} has become longer, {2 * len(data)} bytes, though"):
        stream.rows(wait=3)


def test_a_touched_file_is_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", documents(3))
    stream = Stream(tmp_path)
    assert len(stream.rows()) == 3
    os.utime(path, (MTIME + 9, MTIME + 9))
    assert stream.rows() == []


def test_read_files_may_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_tree, "_FRESH_SECONDS", 1e9)
    path = write(tmp_path / "a.jsonl", documents(3))
    other = write(tmp_path / "b.jsonl", documents(1))
    stream = Stream(tmp_path)
    stream.rows()
    path.unlink()
    assert stream.rows() == []
    stream.clock.now += 601
    other.rename(tmp_path / ".b")  # hides the last one: nothing is forgotten while all are absent
    stream.rows()
    assert stream.reader._position.done(file_key("b.jsonl")) is not None
    (tmp_path / ".b").rename(other)
    stream.rows()
    assert stream.reader._position.done(file_key("a.jsonl")) is None
    assert stream.reader._position.done(file_key("b.jsonl")) is not None
    write(path, documents(2, 7))
    assert [row[:2] for row in stream.rows()] == [("a.jsonl", 1), ("a.jsonl", 2)]


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_deleted_in_the_middle_is_an_error(tmp_path: Path, crash: bool, name: str) -> None:
    data = documents(20_000)
    path = write(tmp_path / name, gzip.compress(data, 1) if name.endswith("gz") else data)
    stream = Stream(tmp_path, "settle-seconds=0")
    assert stream.poll(5).batch.num_rows == 5
    path.unlink()
    if crash:
        stream.reopen()
        with pytest.raises(InputError, match=r"a\.jsonl(\.gz)? was removed before it was read to its end"):
            stream.poll()
    else:
        assert len(stream.rows()) == 10_000  # it is open
        assert len(stream.rows()) == 9_995


def test_a_growing_file_deleted_before_the_next_window_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(directory_files, "WINDOW_BYTES", 64)
    monkeypatch.setattr(directory_files, "_PIECE", 16)
    path = write(tmp_path / "a.jsonl", documents(50))
    partial = write(tmp_path / "b.jsonl", documents(1) + b"{", MTIME - 1)
    stream = Stream(tmp_path)
    stream.poll(3)
    partial.unlink()
    stream.clock.now += 2
    with caplog.at_level(logging.WARNING):
        stream.poll(1)
    assert "b.jsonl was removed; its last line had no end and was not read" in caplog.text
    path.unlink()
    with pytest.raises(InputError, match=r"a\.jsonl was removed before it was read to its end"):
        stream.poll()


def test_an_unread_file_may_be_renamed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gz", gzip.compress(documents(3)))
    stream = Stream(tmp_path)
    assert stream.rows() == []
    path.rename(tmp_path / "b.gz")
    assert {row[0] for row in stream.rows(wait=5)} == {"b.gz"}


def test_files_that_changed_first_are_read_first(tmp_path: Path) -> None:
    for i in random.Random(1).sample(range(20), 20):
        write(tmp_path / f"{i * 7 % 20}.jsonl", documents(2), MTIME + i)
    stream = Stream(tmp_path)
    poll = stream.poll()
    times = poll.batch.column("ingest_time").to_pylist()
    assert times == sorted(times)
    assert times[0] == datetime.fromtimestamp(MTIME, UTC)
    assert times[-1] == datetime.fromtimestamp(MTIME + 19, UTC)


def test_one_ingest_time_for_all(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", documents(2))
    stream = Stream(tmp_path, "ingest_time=2026-01-05T10:00:00Z")
    assert stream.poll().batch.column("ingest_time").to_pylist() == [NOW, NOW]


def test_readers_share_the_files(tmp_path: Path) -> None:
    for i in range(60):
        write(tmp_path / f"{i}.jsonl", documents(1))
    source = DirectorySource(DirectoryOptions.parse(f"dir:{tmp_path}"))
    shares = []
    for position in source.start(3):
        with_reader = source.open(position)
        shares.append({row[0] for row in rows_of(with_reader.poll(1000, 60))})
        with_reader.close()
    assert sum(map(len, shares)) == len(set.union(*shares)) == 60
    assert all(len(share) > 8 for share in shares)


def test_pattern_hidden_names_and_links(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("a.jsonl", "b.txt", ".c.jsonl", "_d.jsonl", "_sub/e.jsonl", "sub/f.jsonl"):
        write(root / name, documents(1))
    write(tmp_path / "other/g.jsonl", documents(1))
    (root / "folder").symlink_to(tmp_path / "other")
    (root / "again.jsonl").symlink_to(root / "a.jsonl")
    (root / "nothing.jsonl").symlink_to(root / "missing.jsonl")
    (root / "sub" / "up").symlink_to(root)
    os.mkfifo(root / "pipe.jsonl")
    stream = Stream(root, "pattern=*.jsonl")
    found = stream.rows()
    assert [row[0] for row in sorted(found)] == ["a.jsonl", "sub/f.jsonl", tmp_path.name + "/other/g.jsonl"]


def test_origins_of_links_are_those_of_the_batch_pipeline(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write(root / "a.jsonl", documents(1))
    write(tmp_path / "other" / "deep" / "g.jsonl", documents(1))
    write(tmp_path / "single.jsonl", documents(1))
    (root / "folder").symlink_to(tmp_path / "other")
    (root / "s.jsonl").symlink_to(tmp_path / "single.jsonl")
    assert sorted(Stream(root).rows()) == sorted(batch_rows(root))


def test_two_files_of_one_origin_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write(root / tmp_path.name / "x.jsonl", documents(1))
    write(tmp_path / "x.jsonl", documents(2))
    (root / "link").symlink_to(tmp_path / "x.jsonl")
    stream = Stream(root)
    with pytest.raises(InputError, match=r"would both be called \S+x\.jsonl in the rows"):
        stream.poll()


def test_equal_hashes_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_watch, "file_key", lambda origin: 7)
    write(tmp_path / "a.jsonl", documents(1))
    write(tmp_path / "b.jsonl", documents(1))
    with pytest.raises(InputError, match=r"the names [ab]\.jsonl and [ab]\.jsonl have equal hashes"):
        Stream(tmp_path).poll()


def test_resume_from_a_ledger(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", b"\n" + documents(5) + b"{")
    write(tmp_path / "b.csv", b"n\n1\n2\n3\n")
    write(tmp_path / "c.jsonl", documents(2))
    stream = Stream(tmp_path, resume={"a.jsonl": 5, "b.csv": 4, "gone.jsonl": 9})
    assert sorted((row[0], row[1]) for row in stream.rows(wait=3)) == [
        ("a.jsonl", 5),
        ("a.jsonl", 6),
        ("b.csv", 4),
        ("c.jsonl", 1),
        ("c.jsonl", 2),
    ]
    stream.reopen()
    assert stream.rows(wait=3) == []


@pytest.mark.parametrize(("name", "data"), [("a.jsonl", documents(3)), ("a.csv", b"n\n1\n2\n")])
def test_a_ledger_that_knows_more_than_there_is(tmp_path: Path, name: str, data: bytes) -> None:
    write(tmp_path / name, data)
    stream = Stream(tmp_path, resume={name: 9})
    with pytest.raises(InputError, match=rf"{name} ends at record 3, but its records up to 8 were read"):
        stream.rows(wait=3)


def test_from_once_to_following(tmp_path: Path) -> None:
    ended = write(tmp_path / "ended.jsonl", documents(3))
    stream = Stream(tmp_path, "follow=false")
    assert len(stream.rows()) == 3
    append(ended, documents(1))
    assert stream.rows() == []
    stream.source = replace(stream.source, options=replace(stream.source.options, follow=True))
    stream.reopen()
    assert [row[:2] for row in stream.rows()] == [("ended.jsonl", 4)]
    append(ended, b"{}", MTIME + 2)
    stream.source = replace(stream.source, options=replace(stream.source.options, follow=False))
    stream.reopen()
    assert [row[:2] for row in stream.rows()] == [("ended.jsonl", 5)]  # its last line has no end
    stream.source = replace(stream.source, options=replace(stream.source.options, follow=True))
    stream.reopen()
    append(ended, b"{}\n", MTIME + 3)
    with pytest.raises(InputError, match="has become longer in the middle of its last line"):
        stream.poll()


def test_a_file_that_grows_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", documents(3))
    stream = Stream(tmp_path)

    def grow_first(*args: Any, **more: Any) -> Any:
        with path.open("ab") as file:
            file.write(documents(1, 50) + b"{")
        return read_lines(*args, **more)

    monkeypatch.setattr("headrace.connectors.directory_reader.read_lines", grow_first)
    assert [row[1] for row in stream.rows()] == [1, 2, 3]
    monkeypatch.undo()
    stream.clock.now += 2
    assert stream.rows() == [("a.jsonl", 4, b'{"n":50}', None)]


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", documents(3))
    stream = Stream(tmp_path)
    stream.poll(1)
    write(path, documents(2), MTIME + 1)
    with pytest.raises(InputError, match=r"a\.jsonl has become shorter, 16 bytes, though 0 bytes of it were"):
        stream.poll()


def test_a_miscount_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", documents(3))
    stream = Stream(tmp_path)

    def one_less(*args: Any, **more: Any) -> Any:
        for block in read_lines(*args, **more):
            yield block._replace(raw=block.raw.slice(1))

    monkeypatch.setattr("headrace.connectors.directory_reader.read_lines", one_less)
    with pytest.raises(UntrustedRunError, match=r"a\.jsonl: 3 records were counted, but 2 rows were made"):
        stream.poll()


def test_time_ends_a_poll(tmp_path: Path) -> None:
    for i in range(5):
        write(tmp_path / f"{i}.jsonl", documents(1))
    stream = Stream(tmp_path)
    assert stream.reader.poll(1000, 0.0).batch.num_rows == 1
    assert stream.reader.poll(1000, 60.0).batch.num_rows == 4


@pytest.mark.integration
def test_twenty_thousand_files(tmp_path: Path) -> None:
    rng = random.Random(3)
    names = [f"{folder}/{rng.getrandbits(64):016x}.jsonl" for folder in range(20) for _ in range(1000)]
    for folder in range(20):
        (tmp_path / str(folder)).mkdir()
    (tmp_path / "first").write_bytes(b"{}\n")
    for name in names:
        os.link(tmp_path / "first", tmp_path / name)
    position = DirectoryPosition()
    for name in names:
        position.finish(file_key(name), Done(rng.randrange(1 << 24), rng.randrange(1, 1 << 16)))
    for name in names[:100]:
        position.grown(name, Open(rng.randrange(1 << 24), 10_000, 10_000, 0, 65_535))
    assert len(position) == 20_000
    assert len(position.pack()) < 300_000
    again = DirectoryPosition.unpack(position.pack())
    assert len(again) == 20_000 and again.pack() == position.pack()
    assert all(again.done(file_key(name)) == position.done(file_key(name)) for name in names)

    position = DirectoryPosition()
    for name in ["first", *names]:
        position.finish(file_key(name), Done(3, tail_check(b"{}\n")))
    stream = Stream(tmp_path)
    stream.reopen(position.pack())
    stream.poll()
    stream.clock.now += 5
    stream.poll()
    began = time.process_time()
    polls = [stream.poll() for _ in range(3)]
    took = (time.process_time() - began) / 3
    assert [poll.batch.num_rows for poll in polls] == [0, 0, 0]
    assert took < 0.05
    path = tmp_path / names[12_345]
    path.unlink()
    write(path, b"{}\n{}\n")
    found = [row for _ in range(22) for row in rows_of(stream.poll())]
    assert found == [(names[12_345], 2, b"{}", None)]


def test_a_folder_is_listed_again_while_its_time_is_fresh(tmp_path: Path) -> None:
    tree = directory_tree.DirectoryTree(str(tmp_path))
    assert tree.files(0.0) == {}
    stamp = os.stat(tmp_path).st_mtime_ns
    write(tmp_path / "a.jsonl", b"")
    os.utime(tmp_path, ns=(stamp, stamp))
    assert list(tree.files(2.9)) == ["a.jsonl"]
    assert list(tree.files(3.0)) == ["a.jsonl"]
    write(tmp_path / "b.jsonl", b"")
    os.utime(tmp_path, ns=(stamp, stamp))
    assert list(tree.files(3.1)) == ["a.jsonl"]
    assert sorted(tree.files(63.1)) == ["a.jsonl", "b.jsonl"]


def test_a_directory_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "in"
    write(root / "sub/a.jsonl", documents(1))
    stream = Stream(root)
    stream.rows()
    monkeypatch.setattr(stream.reader._watch._tree, "_device", -1)
    with pytest.raises(InputError, match="lies on another file system than before; mount it again"):
        stream.poll()
    monkeypatch.undo()
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="does not exist; check the path"):
        stream.poll()


def test_names_that_are_no_text(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.jsonl", "wb"):
        pass
    with pytest.raises(InputError, match=r"\\udcff\.jsonl' has a name that is not UTF-8; rename it"):
        Stream(tmp_path).poll()


def test_position_of_something_else() -> None:
    for text in ("", "{}", '{"v":2}', '{"v":1,"reader":[0,1],"open":{},"done":["x","x"],"resume":"x"}'):
        with pytest.raises(InputError, match="a position in a directory can't be read"):
            DirectoryPosition.unpack(text)


def test_the_last_files_keep_their_line_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_position, "_MOST_OPEN", 3)
    position = DirectoryPosition()
    position.open["whole"] = Open(0, 0, 5, 100, 1)
    for i in range(6):
        position.grown(f"{i}", Open(10, 2, 2, 0, 1))
    assert list(position.open) == ["whole", "4", "5"]


def test_check_and_options(tmp_path: Path) -> None:
    source = DirectorySource(DirectoryOptions.parse(f"dir:{tmp_path}?pattern=*.gz&format=jsonl"))
    source.check()
    source.acknowledge(["", "x"])
    assert pickle.loads(pickle.dumps(source)) == source
    assert (source.name, source.format) == (f"dir:{tmp_path}", "json")
    write(tmp_path / "file", b"")
    for path, why in (("missing", "does not exist; make the directory"), ("file", "is no directory")):
        with pytest.raises(InputError, match=why):
            DirectorySource(DirectoryOptions.parse(f"dir:{tmp_path}/{path}")).check()
    with pytest.raises(ConfigError, match="0 readers can't read it; use 1 or more"):
        source.start(0)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("dir:", "is no directory's address; write dir:PATH"),
        ("dir://host/path", "write dir:/absolute/path or dir:relative/path, without a host"),
        ("dir:x?patern=a", "directory option 'patern' is not known; did you mean 'pattern'?"),
        ("dir:x?zzz=a", "directory option 'zzz' is not known; known: pattern, format, follow"),
        ("dir:x?pattern=a/b", "pattern=a/b: a pattern is for the names of files"),
        ("dir:x?pattern=", "pattern=: a value is needed"),
        ("dir:x?follow=yes", "follow=yes: use one of true, false"),
        ("dir:x?follow=true&follow=true", "follow is given twice; leave one out"),
        ("dir:x?settle-seconds=x", "settle_seconds=x: use a number from 0 to 86400"),
        ("dir:x?max.record.bytes=0", "max_record_bytes=0: use a whole number from 1 to "),
        ("dir:x?ingest_time=now", "ingest_time=now: use a time such as 2026-01-05T10:00:00Z"),
        ("dir:x?format=json", "format=json: use one of jsonl, csv, parquet, avro, weblog"),
    ],
)
def test_wrong_addresses(url: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        DirectoryOptions.parse(url)
    assert message in str(error.value)


def test_a_directory_without_news_is_idle_and_lets_the_watermark_go_on(tmp_path: Path) -> None:
    """Two files, then silence, then another file: windows close while nothing comes, and nothing closes while a file waits."""
    stream, clock = Stream(tmp_path), EventClock(timedelta(seconds=30), 60)
    second = 1_000_000
    noon = 1_767_614_400 * second

    def poll(at: float, event_time: int = noon) -> int | None:
        found = stream.poll()
        stream.clock.now += 5
        origins = found.batch.column("origin")
        times = pa.array([event_time] * found.batch.num_rows, TIME)
        rows = pa.record_batch({"origin": origins, "event_time": times})
        return clock.observe(rows, found.behind, noon + round(at * second))

    assert poll(0) is None
    write(tmp_path / "a.jsonl", documents(3))
    write(tmp_path / "b.jsonl", documents(2))
    assert poll(1) == noon - 30 * second
    assert [poll(at) for at in (2, 30, 60)] == [noon - 30 * second] * 3
    assert not clock.idle
    assert (
        poll(63) == noon - 29 * second
    )  # idle since 62 s: 60 s after the poll at 2 s, the first one without records
    assert clock.idle
    assert poll(100) == noon + 8 * second
    write(tmp_path / "c.jsonl.gz", gzip.compress(documents(2)))
    for at in (101, 400):  # it settles first: a file that waits holds the watermark
        held = stream.reader.poll(10, 0).behind
        assert held == {"c.jsonl.gz": os.path.getsize(tmp_path / "c.jsonl.gz")}
        assert clock.observe(empty_events(), held, noon + at * second) == noon + 8 * second
    stream.clock.now += 5
    assert poll(401, noon + 300 * second) == noon + 270 * second


def empty_events() -> pa.RecordBatch:
    return pa.record_batch({"origin": pa.array([], pa.string()), "event_time": pa.array([], TIME)})
