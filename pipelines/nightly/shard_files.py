"""The stage of a nightly run: a split's events cut by shard of users, parked on disk so that no shuffle carries them."""

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from headrace.connectors.atomic_file import AtomicFile, naming
from headrace.transforms.batches import as_type, concat
from headrace.transforms.hashing import hash_values

FLUSH_ROWS = 1 << 18
"""So many rows are held before they are cut: pieces are large, and memory is bounded."""
_OPTIONS = pa.ipc.IpcWriteOptions(use_threads=False)


class Reference(NamedTuple):
    """Where a piece of a shard lies: one Arrow IPC stream within a file."""

    path: str
    offset: int
    size_bytes: int


class ShardWriter:
    """Writes batches of one schema into one file, rows together that are of one shard.

    A user's shard is the XXH3 hash of ``user_id`` modulo ``shards``, equal on all machines and in all runs. Rows with a null
    ``user_id`` must not come here. The file appears when :meth:`close` returns; the same batches give the same bytes.

    Raises:
        OutputError: the disk refused; no file is left under ``path`` but one of an earlier attempt.
    """

    def __init__(self, path: str | os.PathLike[str], shards: int) -> None:
        self.path = os.fspath(path)
        self._shards = shards
        self._file = AtomicFile(path)
        with naming(self.path):
            self._sink = pa.OSFile(str(self._file.temporary), "wb")
        self._held: list[pa.RecordBatch] = []
        self._rows = 0
        self._references: list[tuple[int, Reference]] = []

    def write(self, batch: pa.RecordBatch) -> None:
        """Takes rows in."""
        if batch.num_rows:
            self._held.append(batch)
            self._rows += batch.num_rows
            if self._rows >= FLUSH_ROWS:
                self._flush()

    def close(self) -> list[tuple[int, Reference]]:
        """Completes the file; returns (shard, where its piece lies), several for a shard of many rows."""
        self._flush()
        with naming(self.path):
            self._sink.close()
        self._file.commit()
        return self._references

    def discard(self) -> None:
        """Gives up what was written."""
        self._sink.close()
        self._file.discard()

    def _flush(self) -> None:
        if not self._held:
            return
        rows = concat(self._held)
        self._held, self._rows = [], 0
        shard = shard_of(rows.column("user_id"), self._shards)
        order = np.argsort(shard, kind="stable")
        ends = np.searchsorted(shard[order], np.arange(self._shards + 1))
        for number in range(self._shards):
            start, end = int(ends[number]), int(ends[number + 1])
            if start == end:
                continue
            piece = rows.take(pa.array(order[start:end]))
            with naming(self.path):
                offset = self._sink.tell()
                with pa.ipc.new_stream(self._sink, piece.schema, options=_OPTIONS) as stream:
                    stream.write_batch(piece)
                size = self._sink.tell() - offset
            self._references.append((number, Reference(self.path, offset, size)))


def shard_of(users: pa.Array, shards: int) -> np.ndarray:
    """Returns the shard of each user, from 0."""
    values = as_type(users, pa.dictionary(pa.int32(), pa.string()))
    return (hash_values(values, 0) % np.uint64(shards)).astype(np.uint16)


def read_pieces(references: Iterable[Reference]) -> Iterator[pa.RecordBatch]:
    """Yields the pieces, by path and offset; their buffers lie in the mapped files."""
    for path, offset, size in sorted(references):
        with pa.memory_map(path) as file:
            file.seek(offset)
            with pa.ipc.open_stream(file.read_buffer(size)) as stream:
                yield from stream
