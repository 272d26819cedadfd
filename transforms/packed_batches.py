"""RecordBatches as bytes: one as an Arrow IPC stream, several with a number each."""

import struct
from collections.abc import Iterator, Sequence

import pyarrow as pa

_OPTIONS = pa.ipc.IpcWriteOptions(use_threads=False)
_ENTRY = struct.Struct("<HI")


def to_bytes(batch: pa.RecordBatch) -> bytes:
    """Encodes as an Arrow IPC stream; a slice is written as its own rows only."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_OPTIONS) as writer:
        writer.write_batch(batch)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def from_bytes(packed: bytes | memoryview) -> pa.RecordBatch:
    """Reads what :func:`to_bytes` wrote, without copying."""
    with pa.ipc.open_stream(pa.py_buffer(packed)) as stream:
        return stream.read_next_batch()


def pack_parts(parts: Sequence[tuple[int, pa.RecordBatch]]) -> bytes:
    """Returns batches, each with a number below 65,536: their count, number and length of each, then each as a stream."""
    streams = [(number, to_bytes(part)) for number, part in parts]
    entries = [_ENTRY.pack(number, len(stream)) for number, stream in streams]
    return b"".join([struct.pack("<H", len(entries)), *entries, *(stream for _, stream in streams)])


def unpack_parts(packed: bytes | memoryview) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Reads what :func:`pack_parts` wrote, without copying."""
    view = memoryview(packed)
    (count,) = struct.unpack_from("<H", view)
    at = 2 + _ENTRY.size * count
    for place in range(count):
        number, length = _ENTRY.unpack_from(view, 2 + _ENTRY.size * place)
        yield number, from_bytes(view[at : at + length])
        at += length
