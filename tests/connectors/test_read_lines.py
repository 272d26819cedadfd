import gzip
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.connectors.inputs import plan_inputs
from headrace.connectors.read_lines import read_lines
from headrace.connectors.splits import Split
from headrace.schemas.columns import RAW_SCHEMA
from headrace.schemas.errors import InputError

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
Row = tuple[int, bytes, str | None]


def rows_of(splits: tuple[Split, ...], **options: int) -> list[Row]:
    """Reads the splits; checks what holds for every block."""
    rows: list[Row] = []
    for split in splits:
        for block in read_lines(split, ingest_time=NOW, **options):
            assert block.raw.schema.equals(RAW_SCHEMA)
            assert 0 < block.raw.num_rows <= 16_384
            assert block.records == block.raw.num_rows
            assert block.read_bytes >= 0
            assert set(block.raw["origin"].to_pylist()) == {split.origin}
            assert set(block.raw["ingest_time"].to_pylist()) == {NOW}
            columns = (block.raw[name].to_pylist() for name in ("origin_position", "raw", "fault"))
            rows += zip(*columns, strict=True)
    return rows


def oracle(data: bytes, limit: int) -> list[Row]:
    """The same, line by line."""
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    rows: list[Row] = []
    for number, line in enumerate(lines[:-1] if not lines[-1] else lines, 1):
        line = line.removesuffix(b"\r")
        if len(line) > limit:
            rows.append((number, line[: min(limit, 65_536)], "line_too_long"))
        elif line.strip():
            rows.append((number, line, None))
    return rows


def read(path: Path, data: bytes, **options: int) -> list[Row]:
    path.write_bytes(data)
    return rows_of(plan_inputs([str(path)], format="jsonl").splits, **options)


lines = st.lists(st.lists(st.sampled_from(b"ab \r\t\x00\xff"), max_size=40).map(bytes), max_size=20)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=lines,
    ended=st.booleans(),
    bom=st.booleans(),
    split_bytes=st.sampled_from([1, 2, 3, 7, 50, 1000]),
    block_bytes=st.sampled_from([1, 2, 5, 64, 1000]),
    limit=st.sampled_from([1, 3, 25, 10_000]),
)
def test_splits_read_every_line_once(
    tmp_path: Path,
    lines: list[bytes],
    ended: bool,
    bom: bool,
    split_bytes: int,
    block_bytes: int,
    limit: int,
) -> None:
    data = bom * b"\xef\xbb\xbf" + b"\n".join(lines) + ended * b"\n"
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    plan = plan_inputs([str(path)], format="jsonl", split_bytes=split_bytes)
    assert rows_of(plan.splits, max_record_bytes=limit, block_bytes=block_bytes) == oracle(data, limit)
    assert plan.files[0].size_bytes == len(data)
    for suffix, compress in ((".gz", gzip.compress), (".zst", zstandard.compress)):
        packed = tmp_path / f"in{suffix}"
        packed.write_bytes(compress(data))
        whole = plan_inputs([str(packed)], format="jsonl").splits
        assert rows_of(whole, max_record_bytes=limit, block_bytes=block_bytes) == oracle(data, limit)


def test_large_blocks_are_cut_into_even_batches(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"a":1}\n' * 40_000)
    (split,) = plan_inputs([str(path)]).splits
    blocks = list(read_lines(split, ingest_time=NOW))
    assert [b.raw.num_rows for b in blocks] == [13_334, 13_333, 13_333]
    assert sum(b.read_bytes for b in blocks) == 320_000
    assert blocks[2].raw["origin_position"][-1].as_py() == 40_000
    assert pa.types.is_binary(blocks[0].raw["raw"].type)


def test_progress_covers_the_file(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(b'{"number":%d}\n' % i for i in range(5_000)))
    for target in (path, tmp_path / "in.jsonl.gz"):
        if target != path:
            target.write_bytes(gzip.compress(path.read_bytes()))
        plan = plan_inputs([str(target)], split_bytes=10_000)
        done = [b.read_bytes for s in plan.splits for b in read_lines(s, ingest_time=NOW, block_bytes=3_000)]
        assert sum(done) == plan.files[0].size_bytes


def test_odd_bytes_are_kept_for_decode(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"a":1}\r\n{"b":\x00}\n\n{"c":"\xff"}\n{"d":NaN}\n   \n{"e":1}'
    assert read(tmp_path / "in.jsonl", data) == [
        (1, b'{"a":1}', None),
        (2, b'{"b":\x00}', None),
        (4, b'{"c":"\xff"}', None),
        (5, b'{"d":NaN}', None),
        (7, b'{"e":1}', None),
    ]


def test_very_many_very_short_lines(tmp_path: Path) -> None:
    rows = read(tmp_path / "in.jsonl", b"1\n" * 20_000 + b"\n" * 1_100_000 + b"2")
    assert len(rows) == 20_001
    assert rows[19_999:] == [(20_000, b"1", None), (1_120_001, b"2", None)]


def test_empty_and_blank_files_have_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path / "empty.jsonl", b"") == []
    assert read(tmp_path / "blank.jsonl", b"\n \r\n\t") == []
    assert read(tmp_path / "empty.jsonl.gz", gzip.compress(b"")) == []


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_line_of_100_megabytes_is_one_row_and_bounded_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"in.jsonl{suffix}"
    opener = gzip.GzipFile(path, "wb", compresslevel=1) if suffix else path.open("wb")
    with opener as file:
        file.write(b'{"first":1}\n{"long":"')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"last":1}\n')
    splits = plan_inputs([str(path)], format="jsonl", split_bytes=64 << 20).splits
    tracemalloc.start()
    rows = rows_of(splits, max_record_bytes=4 << 20, block_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(n, len(raw), fault) for n, raw, fault in rows] == [
        (1, 11, None),
        (2, 65_536, "line_too_long"),
        (3, 10, None),
    ]
    assert peak < 32 << 20


def numbered(count: int) -> bytes:
    return b"".join(b'{"number":%d,"text":"%d"}\n' % (i, i * 7919) for i in range(count))


@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.jsonl.zst"])
def test_truncated_stream_gives_every_line_before_and_one_fault(tmp_path: Path, name: str) -> None:
    data = numbered(20_000)
    packed = gzip.compress(data) if name.endswith("gz") else zstandard.compress(data)
    for kept in (len(packed) // 2, len(packed) - 1, 400):
        rows = read(tmp_path / name, packed[:kept])
        *whole, (last, raw, fault) = rows
        assert fault == "truncated_input"
        assert [r[0] for r in whole] == list(range(1, last))
        readable = b"".join(row[1] + b"\n" for row in whole) + raw
        assert data.startswith(readable)
        if kept == len(packed) - 1 and name.endswith("gz"):
            assert readable == data
            assert raw == b""


def test_everything_before_a_corrupt_byte_is_read(tmp_path: Path) -> None:
    data = numbered(20_000)
    for name, packed in (("in.gz", gzip.compress(data)), ("in.zst", zstandard.compress(data))):
        damaged = bytearray(packed)
        damaged[-3] ^= 0xFF  # gzip: its length; zstd: the last block
        rows = read(tmp_path / name, bytes(damaged))
        assert rows[-1][2] == "truncated_input"
        assert len(rows) > 15_000
        assert [row[1] for row in rows[:-1]] == data.split(b"\n")[: len(rows) - 1]
        if name == "in.gz":
            assert len(rows) == 20_001


def test_members_and_frames_are_read_one_after_the_other(tmp_path: Path) -> None:
    parts = [b'{"a":1}\n{"b"', b":2}\n", b"", b'{"c":3}\n']
    want = [(1, b'{"a":1}', None), (2, b'{"b":2}', None), (3, b'{"c":3}', None)]
    assert read(tmp_path / "in.gz", b"".join(map(gzip.compress, parts))) == want
    assert read(tmp_path / "in.gz", b"".join(map(gzip.compress, parts)) + b"\0" * 512) == want
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00meta"
    assert read(tmp_path / "in.zst", skippable + b"".join(map(zstandard.compress, parts))) == want
    garbage = read(tmp_path / "in.gz", b"".join(map(gzip.compress, parts)) + b"not gzip")
    assert garbage == [*want, (4, b"", "truncated_input")]


def test_a_bomb_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "in.zst"
    path.write_bytes(zstandard.compress(b"\n" * (64 << 20)))
    splits = plan_inputs([str(path)], format="jsonl").splits
    tracemalloc.start()
    assert rows_of(splits) == []
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


def test_a_file_that_changed_or_vanished_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"a":1}\n')
    splits = plan_inputs([str(path)]).splits
    path.write_bytes(b'{"a":1}\n{"b":1}\n')
    with pytest.raises(
        InputError, match=r"in\.jsonl is no longer 8 bytes long: it changed after the run was planned"
    ):
        rows_of(splits)
    path.unlink()
    with pytest.raises(InputError, match="does not exist"):
        rows_of(splits)
