"""The frames of Avro object container files. Source: Avro specification 1.12, "Object Container Files"."""

import bz2
import io
import json
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import fastavro
import pyarrow as pa
import zstandard

from headrace.connectors.compression import ByteStream
from headrace.connectors.raw_blocks import FAULT_BYTES
from headrace.schemas.errors import InputError

MAX_BLOCK_BYTES = 64 << 20
"""A longer block is taken for broken; writers make blocks of 16 to 64 kB."""

_MAX_CONTENT = 256 << 20
_READ_BYTES = 1 << 20
_SYNC_BYTES = 16
_HEADER_SCHEMA: Any = fastavro.parse_schema(
    {
        "type": "record",
        "name": "header",
        "fields": [
            {"name": "magic", "type": {"type": "fixed", "name": "magic", "size": 4}},
            {"name": "meta", "type": {"type": "map", "values": "bytes"}},
            {"name": "sync", "type": {"type": "fixed", "name": "sync", "size": _SYNC_BYTES}},
        ],
    }
)

DECODE_ERRORS = (
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    TypeError,
    StopIteration,
    MemoryError,
    RecursionError,
    OSError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    pa.ArrowException,
)
"""What the codecs and fastavro raise over damaged bytes; the readers of the file itself raise ``InputError``."""


class Header(NamedTuple):
    """The header of a file."""

    meta: dict[str, bytes]
    schema: Any
    """The writer's schema, as JSON has it."""
    codec: str
    sync: bytes


class Frame(NamedTuple):
    """One block as it stands in the file."""

    start: int
    """Offset in the (decompressed) file."""
    records: int
    """Records that it states; 0 if its frame is broken."""
    payload: bytes
    """What the codec made; of a broken one the beginning of its bytes, with the frame."""
    sound: bool
    """Its frame is; the payload may yet be corrupt."""

    @property
    def positions(self) -> int:
        """By how much it moves the number of the next record."""
        return self.records if self.sound else 1


class Window:
    """A stream with a look ahead."""

    def __init__(self, stream: ByteStream, start: int = 0) -> None:
        self.stream = stream
        self.start = start
        """Offset of the next byte."""
        self.cut = b""
        """Beginning of a block that the end of a cut or corrupt compressed stream left incomplete."""
        self._data = bytearray()

    def has(self, n: int) -> bool:
        """Reads ahead; false if the stream ends before ``n`` bytes."""
        while len(self._data) < n:
            more = self.stream.read(max(n - len(self._data), _READ_BYTES))
            if not more:
                return False
            self._data += more
        return True

    def peek(self, n: int) -> bytes:
        """Returns up to ``n`` bytes without passing them."""
        self.has(n)
        return bytes(self._data[:n])

    def read(self, n: int) -> bytes:
        """Returns up to ``n`` bytes and passes them; makes this a file for fastavro."""
        data = self.peek(min(n, MAX_BLOCK_BYTES))
        self.skip(len(data))
        return data

    def skip(self, n: int) -> None:
        """Passes bytes that were looked at."""
        del self._data[:n]
        self.start += n

    def skip_behind(self, marker: bytes) -> bool:
        """Passes everything up to the end of the marker; false if there is none, and the stream is at its end."""
        while True:
            at = self._data.find(marker)
            if at >= 0:
                self.skip(at + len(marker))
                return True
            self.skip(max(len(self._data) - len(marker) + 1, 0))
            if not self.has(len(marker)):
                self.skip(len(self._data))
                return False


def read_header(window: Window, path: str) -> Header:
    """Reads the header and leaves the window at the first block.

    Raises:
        InputError: it is damaged, or names a codec that can't be decompressed.
    """
    try:
        header: Any = fastavro.schemaless_reader(window, _HEADER_SCHEMA, None)
        schema = json.loads(header["meta"]["avro.schema"])
        codec = header["meta"].get("avro.codec", b"null").decode("ascii")
        fastavro.parse_schema(schema)
    except (*DECODE_ERRORS, fastavro.schema.SchemaParseException) as error:
        raise InputError(
            f"{path} is no readable Avro file: its header is damaged or cut off; fetch it again"
        ) from error
    if codec not in _CODECS:
        raise InputError(f"{path} uses the Avro codec {codec!r}; rewrite it with one of {', '.join(_CODECS)}")
    return Header(header["meta"], schema, codec, header["sync"])


def frames(window: Window, sync: bytes) -> Iterator[Frame]:
    """Yields the blocks from the window's place on.

    A block whose size is senseless, or that the sync marker does not follow, is broken: it reaches to the next marker.
    """
    while window.has(1):
        start = window.start
        head = window.peek(20)
        count, at = _long(head, 0)
        size, at = _long(head, at)
        if count >= 0 and 0 <= size <= MAX_BLOCK_BYTES and at and window.has(at + size + _SYNC_BYTES):
            data = window.peek(at + size + _SYNC_BYTES)
            if data.endswith(sync):
                window.skip(len(data))
                yield Frame(start, count, data[at : at + size], True)
                continue
        beginning = window.peek(FAULT_BYTES)
        found = window.skip_behind(sync)
        if not found and window.stream.truncated:
            window.cut = beginning
            return
        yield Frame(start, 0, beginning[: window.start - start], False)


def content(header: Header, frame: Frame) -> bytes:
    """Returns the block as a whole container file of its own, without compression.

    Raises:
        One of ``DECODE_ERRORS``: its payload is corrupt.
    """
    payload = _CODECS[header.codec](frame.payload)
    out = io.BytesIO()
    meta = {**header.meta, "avro.codec": b"null", "avro.schema": json.dumps(header.schema).encode()}
    fastavro.schemaless_writer(out, _HEADER_SCHEMA, {"magic": b"Obj\x01", "meta": meta, "sync": header.sync})
    fastavro.schemaless_writer(out, {"type": "long"}, frame.records)
    fastavro.schemaless_writer(out, {"type": "bytes"}, payload)
    out.write(header.sync)
    return out.getvalue()


def _long(data: bytes, at: int) -> tuple[int, int]:
    """Decodes a zig-zag varint; returns (value, place behind it), or (-1, 0) if there is none."""
    value = shift = 0
    for i in range(at, min(at + 10, len(data))):
        value |= (data[i] & 0x7F) << shift
        shift += 7
        if not data[i] & 0x80:
            return (value >> 1) ^ -(value & 1), i + 1
    return -1, 0


def _deflate(data: bytes) -> bytes:
    inner = zlib.decompressobj(-15)
    out = inner.decompress(data, _MAX_CONTENT)
    if not inner.eof:
        raise EOFError("deflate stream is cut")
    return out


def _snappy(data: bytes) -> bytes:
    size = shift = 0
    for byte in data[:5]:
        size |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
    if size > _MAX_CONTENT:
        raise ValueError("a block of more than 256 MiB")
    out = pa.Codec("snappy").decompress(data[:-4], decompressed_size=size, asbytes=True)
    if zlib.crc32(out) != int.from_bytes(data[-4:], "big"):
        raise ValueError("checksum differs")
    return out


_CODECS: dict[str, Callable[[bytes], bytes]] = {
    "null": lambda data: data,
    "deflate": _deflate,
    "snappy": _snappy,
    "zstandard": lambda data: zstandard.ZstdDecompressor().decompress(data, max_output_size=_MAX_CONTENT),
    "bzip2": bz2.decompress,
    "xz": lzma.decompress,
}
