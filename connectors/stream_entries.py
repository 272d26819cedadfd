"""What the steps of a stream tell its committer: polls read, rows judged, files written, results fired.

Entries travel packed: one element is a list of entries as bytes. Two rules bind the senders, and the ledger checks both.

- *Counts travel with their files.* The counts of rows (``ShardEntry``, a poll's ``rejected_by_reader``) and the files that hold
  just these rows are in one packed list. So no poll counts as done whose rows are not in the lake.
- *Everybody reports, once.* Every poll has one ``PollEntry`` and one ``ShardEntry`` of every shard, rows or not. Window
  shards report several at once (``TakenEntry``): a poll is not done before what came of it in windows is in the tables, too.

Beyond that, packed lists may arrive in any order.
"""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec
import pyarrow as pa

from headrace.connectors.stream_source import Read
from headrace.connectors.write_lake import WrittenFile
from headrace.transforms.batches import plain

EVENTS: Final = "events"
QUARANTINE: Final = "quarantine"
TABLES = (EVENTS, QUARANTINE)
JOB = "job"
"""Column of late rows: the job that sent them, as the numbers of its polls are its own."""
_OPTIONS = pa.ipc.IpcWriteOptions(use_threads=False)


class PollEntry(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    """One poll of a reader."""

    reader: int
    poll: int
    """Number of the poll within the reader: 0, 1, 2, …"""
    rows_in: int
    """Records that the source gave, counted without decoding them."""
    reads: tuple[Read, ...]
    """What was taken, by partition; their records add up to ``rows_in``."""
    rejected_by_reader: int
    """Rows that went to quarantine files of the same list."""
    rows_to_shard: dict[int, int]
    """{shard: rows}, every shard of the job, with 0 for those that got none."""
    read_at: int
    """µs since 1970."""
    position: str = ""
    """Where the reader goes on after it."""
    receipt: str = ""
    """For ``Source.acknowledge``; empty: nothing to acknowledge."""
    watermark: int | None = None
    """Event time in µs since 1970 before which the reader expects no more events; None: not yet known."""
    behind: int = 0
    """Records still waiting in all partitions of the reader."""
    final: bool = False
    """True for the last poll of a reader that has come to the end it was given."""
    window_shards: int = 0
    """How many window shards take it."""


class ShardEntry(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """What a shard made of its rows of one poll."""

    reader: int
    poll: int
    shard: int
    accepted: int
    """Rows in files of the lake in the same list."""
    rejected: int
    """Rows in files of the quarantine in the same list."""


class FilesEntry(msgspec.Struct, frozen=True, array_like=True, tag="f"):
    """Files that are complete under their names and are to become part of a table."""

    table: Literal["events", "quarantine"]
    """The quarantine's ``stats`` have ``by_reason``."""
    files: tuple[WrittenFile, ...]


class MetricEntry(msgspec.Struct, frozen=True, array_like=True, tag="m"):
    """Rows of one firing of a window table, for ``OUT/metrics/NAME``."""

    name: str
    rows: bytes
    """Arrow IPC stream."""

    @classmethod
    def of(cls, name: str, rows: pa.Table | pa.RecordBatch) -> "MetricEntry":
        return cls(name, _to_ipc(rows))

    def table(self) -> pa.Table:
        return _from_ipc(self.rows)


class LateEntry(msgspec.Struct, frozen=True, array_like=True, tag="l"):
    """Partial rows that came after their window was final, for ``OUT/late/NAME``. Outside the ledger of rows: the lake has them."""

    name: str
    rows: bytes
    """Arrow IPC stream."""
    count: int
    """Rows in it."""

    @classmethod
    def of(cls, name: str, rows: pa.Table | pa.RecordBatch) -> "LateEntry":
        return cls(name, _to_ipc(rows), rows.num_rows)

    def table(self) -> pa.Table:
        return _from_ipc(self.rows)


class TakenEntry(msgspec.Struct, frozen=True, array_like=True, tag="t"):
    """How far a window shard has come: what came of these polls is in this list, and in lists before it."""

    key: int
    """Number of the window shard."""
    before: dict[int, int]
    after: dict[int, int]
    """{reader: polls taken without a gap}, before and after what the list tells."""


class EndEntry(msgspec.Struct, frozen=True, array_like=True, tag="e"):
    """A window shard has come to the end of the stream: all of its results went before this."""

    key: int


Entry = PollEntry | ShardEntry | FilesEntry | MetricEntry | LateEntry | TakenEntry | EndEntry

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[Entry])


def pack(entries: Sequence[Entry]) -> bytes:
    """Returns the entries as bytes (MessagePack; a shard's entry takes some 10)."""
    return _ENCODER.encode(list(entries))


def unpack(packed: bytes) -> list[Entry]:
    """Reads what :func:`pack` wrote.

    Raises:
        ValueError: it is something else.
    """
    return _DECODER.decode(packed)


def storable(table: pa.Table) -> pa.Table:
    """Returns the table in types that a Delta table holds: no dictionaries, binary of any length, lists of int32 length."""
    columns = [
        plain(c.combine_chunks()) if pa.types.is_dictionary(c.type) else c.cast(_storable_type(c.type))
        for c in table.columns
    ]
    return pa.table(columns, names=table.column_names)


def _storable_type(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_fixed_size_binary(type_) or pa.types.is_large_binary(type_):
        return pa.binary()
    if pa.types.is_large_string(type_):
        return pa.string()
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return pa.list_(_storable_type(type_.value_type))
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(_storable_type(field.type)) for field in type_])
    return type_


def _to_ipc(rows: pa.Table | pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=_OPTIONS) as writer:
        if isinstance(rows, pa.Table):
            writer.write_table(rows.unify_dictionaries().combine_chunks())
        else:
            writer.write_batch(rows)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def _from_ipc(packed: bytes) -> pa.Table:
    with pa.ipc.open_stream(packed) as reader:
        return reader.read_all()
