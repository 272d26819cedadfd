"""Planning: which files are read, in which format, and how they are cut into splits."""

from collections.abc import Iterable, Sequence

import numpy as np
import xxhash

from headrace.connectors.compression import ByteStream, detect_compression
from headrace.connectors.find_files import find_files
from headrace.connectors.formats import FORMATS, LINE_FORMATS, detect_format
from headrace.connectors.read_avro import avro_ranges
from headrace.connectors.read_csv import check_csv
from headrace.connectors.read_parquet import parquet_ranges
from headrace.connectors.splits import InputFile, Plan, Split
from headrace.schemas.errors import ConfigError

__all__ = ["InputFile", "Plan", "Split", "plan_inputs"]

HEAD_BYTES = 1 << 18
_READ_BYTES = 4 << 20
_NEWLINE = 10

Range = tuple[int, int, int]
"""Start, end, position of the first record."""


def plan_inputs(patterns: Sequence[str], *, format: str | None = None, split_bytes: int = 64 << 20) -> Plan:
    """Finds the files, tells their formats, reads each once for its checksum, and cuts them into splits.

    Plain lines are cut by bytes (a line belongs to the split in which it begins), Avro at block boundaries, Parquet at row
    groups; CSV (a newline may be quoted) and whatever is compressed with gzip or zstd are one split each. An empty
    file has no split. The same files give the same plan.

    Args:
        patterns: files, directories or globs; see :func:`headrace.connectors.find_files.find_files`.
        format: one of ``FORMATS`` for all files; None: told from each file's content.
        split_bytes: how large a split is, about.

    Raises:
        ConfigError: unknown format, or ``split_bytes`` below 1.
        InputError: nothing to read, or a file that can't be read, whose format can't be told, or that is corrupt where
            nothing can be salvaged (Parquet's footer, Avro's or CSV's header).
    """
    if format is not None and format not in FORMATS:
        raise ConfigError(f"format {format!r} is unknown; use one of {', '.join(FORMATS)}")
    if split_bytes < 1:
        raise ConfigError(f"split_bytes is {split_bytes}; it must be 1 or more")
    files: list[InputFile] = []
    splits: list[Split] = []
    for origin, path in find_files(patterns):
        file, ranges = _plan_file(path, origin, format, split_bytes)
        files.append(file)
        for start, end, first in ranges:
            splits.append(
                Split(
                    len(splits),
                    path,
                    origin,
                    file.format,
                    file.compression,
                    start,
                    end,
                    first,
                    file.size_bytes,
                )
            )
    return Plan(tuple(files), tuple(splits))


def _plan_file(
    path: str, origin: str, forced: str | None, split_bytes: int
) -> tuple[InputFile, Iterable[Range]]:
    with ByteStream(path) as stream:
        compression = detect_compression(stream.read(16), path)
    with ByteStream(path, compression) as stream:
        head = stream.read(HEAD_BYTES)
    detect_compression(head, path)
    format = detect_format(path, head, forced)
    lines = compression == "plain" and format in LINE_FORMATS
    size, checksum, counts = _scan(path, split_bytes if lines else None)
    file = InputFile(path, origin, format, compression, size, checksum)
    if not size or (not head and format in ("parquet", "avro")):
        return file, []
    if format == "parquet":
        return file, parquet_ranges(path, compression, split_bytes)
    if format == "avro":
        return file, avro_ranges(path, compression, size, split_bytes)
    if format == "csv":
        check_csv(path, head)
    if not lines:
        return file, [(0, size, 1)]
    return file, [
        (start, min(start + split_bytes, size), first)
        for start, first in zip(range(0, size, split_bytes), counts, strict=True)
    ]


def _scan(path: str, split_bytes: int | None) -> tuple[int, str, list[int]]:
    """Reads a file once.

    Returns size, checksum, and for each split the number of its first line: the line after the one that holds the byte
    before the split, so 2 + newlines before that byte.
    """
    digest = xxhash.xxh3_128()
    buffer = bytearray(_READ_BYTES)
    firsts = [1]
    size = newlines = 0
    with ByteStream(path) as stream, memoryview(buffer) as view:
        while got := stream.readinto(view):
            digest.update(view[:got])
            if split_bytes is not None:
                is_newline = np.frombuffer(view[:got], np.uint8) == _NEWLINE
                done = 0
                while (byte := len(firsts) * split_bytes - 1) < size + got:
                    newlines += int(np.count_nonzero(is_newline[done : byte - size]))
                    done = byte - size
                    firsts.append(2 + newlines)
                newlines += int(np.count_nonzero(is_newline[done:]))
                del is_newline
            size += got
    if split_bytes is not None:
        del firsts[max(-(-size // split_bytes), 0) :]
    return size, digest.hexdigest(), firsts
