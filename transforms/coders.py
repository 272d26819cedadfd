"""The Arrow IPC coder of RecordBatch elements."""

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import Coder


class RecordBatchCoder(Coder):
    """Encodes a RecordBatch as one Arrow IPC stream (schema, dictionaries, one batch).

    Beam has no Arrow coder: without this one a batch is pickled, and a slice ships its whole parent. A slice is written
    as its own rows only. Source: Arrow columnar format, "IPC Streaming Format".
    """

    def encode(self, value: pa.RecordBatch) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(
            sink, value.schema, options=pa.ipc.IpcWriteOptions(use_threads=False)
        ) as writer:
            writer.write_batch(value)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_next_batch()

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type:
        return pa.RecordBatch

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


def register_coders() -> None:
    """Makes Beam use the IPC coder for RecordBatch; called when a transform is expanded, harmless when repeated."""
    beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
