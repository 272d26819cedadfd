"""Reading a file as a sequence of decompressed bytes: plain, gzip (RFC 1952) or Zstandard (RFC 8878).

Members and frames may be concatenated. Memory is bounded whatever the compression ratio is, and a stream that is cut or corrupt
yields every byte that can be read before it is reported.
"""

import os
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Protocol, Self

import zstandard

from headrace.schemas.errors import InputError

COMPRESSIONS = ("plain", "gzip", "zstd")
SUFFIXES = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}

_MAGIC = [(b"\x1f\x8b\x08", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd")]
_FOREIGN = [
    *((b"BZh%d1AY&SY" % level, "bzip2") for level in range(1, 10)),
    (b"\xfd7zXZ\x00", "xz"),
    (b"PK\x03\x04", "zip"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\xff\x06\x00\x00sNaPpY", "snappy"),
]
_PIECE = 1 << 16
_ZSTD_STEP = 1 << 10
"""Fed to Zstandard at once; a block of 4 bytes may stand for 128 KiB, so this bounds the output of one step to 32 MiB."""
_OUTPUT = 1 << 20


def detect_compression(head: bytes, path: str) -> str:
    """Returns ``plain``, ``gzip`` or ``zstd`` from a file's first bytes.

    Raises:
        InputError: compressed in a way that is not supported.
    """
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if len(head) >= 4 and 0x50 <= head[0] <= 0x5F and head[1:4] == b"\x2a\x4d\x18":
        return "zstd"
    for magic, name in _FOREIGN:
        if head.startswith(magic):
            raise InputError(
                f"{path} is compressed with {name}, which can't be read; decompress it, or use gzip or zstd"
            )
    return "plain"


def unreadable(path: str, error: OSError) -> InputError:
    """Returns the error to raise for a file that the operating system refuses."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} does not exist; check the path, or the pattern that named it")
    if isinstance(error, IsADirectoryError):
        return InputError(f"{path} is a directory where a file is expected")
    cause = error.strerror or str(error)
    if isinstance(error, PermissionError):
        return InputError(f"{path} can't be read: {cause}; check the permissions of the file and its folders")
    return InputError(f"{path} can't be read: {cause}")


class ByteStream:
    """The decompressed content of a file from front to back; a context manager.

    Args:
        start: byte to begin at; plain files only.
        size_bytes: what the file must measure, as found when the run was planned; None: do not check.

    Raises:
        InputError: missing, unreadable, or of another size than ``size_bytes`` (at opening or at its end).
    """

    def __init__(
        self, path: str, compression: str = "plain", *, start: int = 0, size_bytes: int | None = None
    ) -> None:
        if compression not in COMPRESSIONS:
            raise ValueError(f"compression {compression!r} is none of {COMPRESSIONS}")
        if start and compression != "plain":
            raise ValueError(f"{path} is compressed ({compression}) and can only be read from its start")
        self.path = path
        self.truncated = False
        """True once the compressed stream turned out to be cut or corrupt; the content ends there."""
        self._size = size_bytes
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise unreadable(path, error) from error
        try:
            if size_bytes is not None and os.fstat(self._file.fileno()).st_size != size_bytes:
                raise self._changed()
            self._file.seek(start)
        except BaseException:
            self._file.close()
            raise
        self.position = start
        """Bytes of the file consumed so far."""
        self._pieces = None if compression == "plain" else self._decompressed(compression)
        self._rest = memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._pieces is not None:
            self._pieces.close()
        self._file.close()

    def readinto(self, target: memoryview) -> int:
        """Fills the front of ``target`` and returns how much; 0 only at the end (or if ``target`` is empty)."""
        if self._pieces is None:
            return self._fill(target)
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        n = min(len(target), len(self._rest))
        target[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        return n

    def read(self, n: int) -> bytes:
        """Returns ``n`` bytes, fewer only at the end."""
        buffer = bytearray(n)
        view = memoryview(buffer)
        have = 0
        while have < n and (got := self.readinto(view[have:])):
            have += got
        view.release()
        del buffer[have:]
        return bytes(buffer)

    def _fill(self, target: memoryview) -> int:
        try:
            got = self._file.readinto(target) or 0
        except OSError as error:
            raise unreadable(self.path, error) from error
        self.position += got
        if not got and len(target) and self._size is not None and self.position != self._size:
            raise self._changed()
        return got

    def _changed(self) -> InputError:
        return InputError(
            f"{self.path} is no longer {self._size} bytes long: it changed after the run was planned; run again "
            "when nothing writes to it"
        )

    def _feed(self) -> Iterator[bytes]:
        buffer = bytearray(_PIECE)
        with memoryview(buffer) as view:
            while got := self._fill(view):
                yield bytes(view[:got])

    def _decompressed(self, compression: str) -> Generator[bytes, None, None]:
        make = _Gzip if compression == "gzip" else _Zstd
        decoder: _Decoder | None = None
        member = delivered = done = 0
        for data in self._feed():
            while data:
                if decoder is None:
                    if compression == "gzip" and not data.strip(b"\x00"):  # padding of tapes and blocks
                        done += len(data)
                        break
                    decoder, member, delivered = make(), done, 0
                try:
                    for out in decoder.feed(data):
                        delivered += len(out)
                        yield out
                except (zlib.error, zstandard.ZstdError):
                    self.truncated = True
                    yield from self._rescued(make(), member, done, data, delivered)
                    return
                rest = decoder.unused if decoder.eof else b""
                done += len(data) - len(rest)
                data = rest
                if decoder.eof:
                    decoder = None
        self.truncated = decoder is not None

    def _rescued(
        self, decoder: "_Decoder", member: int, piece: int, data: bytes, delivered: int
    ) -> Iterator[bytes]:
        """What a corrupt piece still holds: decodes the member again and the piece byte by byte."""
        with ByteStream(self.path, start=member) as again:
            left = piece - member
            while left:
                part = again.read(min(left, _PIECE))
                left -= len(part)
                for out in decoder.feed(part):
                    delivered -= len(out)
        for i in range(len(data)):
            try:
                for out in decoder.feed(data[i : i + 1]):
                    if delivered < len(out):
                        yield out[max(delivered, 0) :]
                    delivered -= len(out)
            except (zlib.error, zstandard.ZstdError):
                return


class _Decoder(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused(self) -> bytes: ...


class _Gzip:
    """One gzip member."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    def feed(self, data: bytes) -> Iterator[bytes]:
        while not self._inner.eof:
            out = self._inner.decompress(data, _OUTPUT)
            data = self._inner.unconsumed_tail
            if out:
                yield out
            if not data and len(out) < _OUTPUT:
                return

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused(self) -> bytes:
        return self._inner.unused_data


class _Zstd:
    """One Zstandard frame."""

    def __init__(self) -> None:
        self._inner = zstandard.ZstdDecompressor().decompressobj()
        self._after = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        for i in range(0, len(data), _ZSTD_STEP):
            if out := self._inner.decompress(data[i : i + _ZSTD_STEP]):
                yield out
            if self._inner.eof:
                self._after = self._inner.unused_data + data[i + _ZSTD_STEP :]
                return

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused(self) -> bytes:
        return self._after


def without_suffix(path: str) -> str:
    """Returns the path without a suffix that names a compression."""
    base, suffix = os.path.splitext(path)
    return base if suffix.lower() in SUFFIXES else path


def decompress_small(path: str, compression: str, limit_bytes: int) -> bytes:
    """Returns the whole content of a file that must be read at random.

    Raises:
        InputError: larger than ``limit_bytes``, cut or corrupt.
    """
    with ByteStream(path, compression) as stream:
        pieces: list[bytes] = []
        size = 0
        while size <= limit_bytes and (piece := stream.read(_OUTPUT)):
            pieces.append(piece)
            size += len(piece)
        if size > limit_bytes:
            raise InputError(
                f"{path} holds more than {limit_bytes >> 20} MiB of Parquet inside {compression}, and Parquet needs random "
                f"access; decompress {Path(path).name} first (Parquet compresses its own pages)"
            )
        if stream.truncated:
            raise InputError(f"{path} ends in the middle of its {compression} stream; fetch it again")
    return b"".join(pieces)
