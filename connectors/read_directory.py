"""A growing directory of files as a stream."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.connectors.directory_options import DirectoryOptions
from headrace.connectors.directory_position import DirectoryPosition, file_key
from headrace.connectors.directory_reader import DirectoryReader
from headrace.connectors.directory_tree import DirectoryTree
from headrace.schemas.errors import ConfigError, InputError


@dataclass(frozen=True)
class DirectorySource:
    """The files below a directory, those that are there and those that come.

    JSON lines and web logs that are not compressed are read as they grow: complete lines only, a last line without its newline
    waits. Everything else (CSV, Parquet, Avro, gzip, zstd) is read once, as a whole, when it is complete: when its size and
    time have not changed for ``settle_seconds``, and, of what can tell, when nothing is missing at its end. Writers do best
    to write under a name that begins with ``.`` or ``_`` and to rename. ``origin``, ``origin_position`` and ``raw`` are those
    of the batch pipeline for the same files.

    Where a file stays unreadable for ``broken_seconds``, what can be read of it is read as the batch pipeline does, with a
    row of the fault ``truncated_input`` or ``broken_block``. If nothing can, one row stands for it, with position 0, its first
    64 KiB, and the fault ``unreadable_file``; such a file is read after all if it is mended. A web log in a stream of JSON,
    or the other way round, is one row with the fault ``foreign_format``. Neither holds up the others.

    Ingest time is the file's modification time when the rows were read, never a clock of a worker; with ``ingest_time=TIME``
    it is that, as with ``--now`` of the batch pipeline. Files that changed first are read first.

    Reader i of N owns the files whose name's hash is i modulo N. Each record is returned once along a chain of positions.
    Files may be deleted once they are read; ten minutes later the position forgets them. A file that was read must not be
    renamed below the directory: it would be read again.

    A growth is seen by the next poll if the file is among the 2,000 that changed last, else within (files / 1,000) polls.

    Args:
        options: from ``DirectoryOptions.parse(url)``.
    """

    options: DirectoryOptions

    @property
    def name(self) -> str:
        return f"dir:{self.options.path}"

    @property
    def format(self) -> str:
        return self.options.stream_format

    def check(self) -> None:
        path = self.options.path
        if not os.path.exists(path):
            raise InputError(f"{path} does not exist; make the directory first, or check the path")
        if not os.path.isdir(path):
            raise InputError(f"{path} is no directory; a single file is read by the batch pipeline")
        DirectoryTree(path, self.options.pattern).files(0.0)

    def start(self, readers: int, resume: Mapping[str, int] | None = None) -> list[str]:
        if readers < 1:
            raise ConfigError(f"{self.name}: {readers} readers can't read it; use 1 or more")
        shares: list[dict[int, int]] = [{} for _ in range(readers)]
        for origin, following in (resume or {}).items():
            key = file_key(origin)
            shares[key % readers][key] = following
        return [DirectoryPosition(i, readers, resume=share).pack() for i, share in enumerate(shares)]

    def open(self, position: str) -> DirectoryReader:
        return DirectoryReader(self.options, position)

    def acknowledge(self, receipts: Sequence[str]) -> None:
        """Does nothing: the position says what is read, and the files stay where they are."""
