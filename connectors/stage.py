"""The stage: masked rows parked on disk between the two halves of the batch pipeline, so that no shuffle carries them."""

import os
from collections.abc import Iterator
from types import TracebackType

import pyarrow as pa

from headrace.connectors.atomic_file import AtomicFile, OutputError, naming

_OPTIONS = pa.ipc.IpcWriteOptions(use_threads=False)


class StageWriter:
    """Writes batches of one schema into one uncompressed Arrow IPC stream; rows are numbered from 0 over the whole file.

    Schema, row order and values are unchanged; dictionaries may differ from batch to batch (the stream carries the new
    ones). The file appears when :meth:`close` returns; without rows there is none, and one left by an earlier attempt is
    removed. Writing the same batches again gives the same bytes. As a context manager it closes on success and
    discards on an exception. Source: Arrow columnar format, "IPC Streaming Format".

    Args:
        path: the file; missing parents are made.

    Raises:
        OutputError: the disk refused; no file is left under ``path`` but one of an earlier attempt.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.rows = 0
        self._file: AtomicFile | None = None
        self._sink: pa.NativeFile | None = None
        self._stream: pa.RecordBatchStreamWriter | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends the rows; an empty batch is nothing.

        Raises:
            ValueError: its schema is not the first batch's.
            OutputError: as above; the file is given up.
        """
        if not batch.num_rows:
            return
        try:
            with naming(self.path):
                stream = self._stream or self._open(batch.schema)
                stream.write_batch(batch)
        except pa.ArrowInvalid as error:
            raise ValueError(f"stage {self.path}: batch after row {self.rows} has another schema") from error
        except OutputError:
            self.discard()
            raise
        self.rows += batch.num_rows

    def _open(self, schema: pa.Schema) -> pa.RecordBatchStreamWriter:
        self._file = AtomicFile(self.path)
        self._sink = pa.OSFile(str(self._file.temporary), "wb")
        self._stream = pa.ipc.new_stream(self._sink, schema, options=_OPTIONS)
        return self._stream

    def close(self) -> None:
        """Completes the file; harmless when repeated.

        Raises:
            OutputError: as above.
        """
        if self._stream is None or self._sink is None or self._file is None:
            if not self.rows and os.path.exists(self.path):
                os.unlink(self.path)
            return
        try:
            with naming(self.path):
                self._stream.close()
                self._sink.close()
        except OutputError:
            self.discard()
            raise
        self._file.commit()
        self._file = self._sink = self._stream = None

    def discard(self) -> None:
        """Gives up what was written; the file that had the name, if any, stays."""
        if self._sink is not None:
            self._sink.close()
        if self._file is not None:
            self._file.discard()
        self._file = self._sink = self._stream = None

    def __enter__(self) -> "StageWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def read_stage(path: str | os.PathLike[str]) -> Iterator[pa.RecordBatch]:
    """Yields the batches as they were written; their buffers lie in the mapped file, so they cost no memory of their own.

    A file that does not exist holds no rows. It may be removed while batches of it are in use.

    Raises:
        pyarrow.ArrowInvalid: the file is no Arrow stream.
    """
    if not os.path.exists(path):
        return
    with pa.memory_map(os.fspath(path)) as file, pa.ipc.open_stream(file) as stream:
        yield from stream
