"""The position of a reader in a growing directory: small however many files are done.

A file is known by 56 bits of its origin's hash; of a done file there are these, how far it was read and 16 bits of its last bytes:
about 13 characters a file. Two files of one hash are noticed when they are listed, so none is ever taken for another.
"""

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import xxhash

from headrace.schemas.errors import InputError

_VERSION = 1
_RECENT = 512
_MOST_OPEN = 64


class Done(NamedTuple):
    """How far a file was read when it was last looked at."""

    offset: int
    """Bytes."""
    check: int
    """Of the last bytes before ``offset``; see :func:`tail_check`."""


class Open(NamedTuple):
    """A file that is being read: its records before ``next`` were delivered."""

    offset: int
    """Where the reading goes on: the start of a line; 0 for a file that is read as a whole."""
    line: int
    """Number of the record at ``offset``; 0: unknown."""
    next: int
    """Number of the next record."""
    whole: int
    """Size of a file that is read as a whole; 0 for one that may grow."""
    check: int
    """Of the last bytes before ``offset``, or before ``whole``."""


def file_key(origin: str) -> int:
    """Returns the 56 bits by which a position knows the file."""
    return xxhash.xxh3_64_intdigest(origin.encode("utf-8", "surrogateescape")) >> 8


def tail_check(tail: bytes) -> int:
    """Returns 16 bits of up to 4 KiB of bytes; never 0, which stands for a file that was given up."""
    return xxhash.xxh3_64_intdigest(tail) % 0xFFFF + 1


@dataclass
class DirectoryPosition:
    """What :class:`DirectoryReader` has read; which changes it in place."""

    reader: int = 0
    readers: int = 1
    open: dict[str, Open] = field(default_factory=dict)
    """Files in the middle, and those that grew last, by origin."""
    resume: dict[int, int] = field(default_factory=dict)
    """Number of the next record of files that another run has read in part, by key."""
    _base: dict[int, Done] = field(default_factory=dict)
    _recent: dict[int, Done] = field(default_factory=dict)
    _base_text: str | None = None
    _resume_text: str | None = None

    def __post_init__(self) -> None:
        self._absent: dict[int, float] = {}

    def done(self, key: int) -> Done | None:
        """Returns how far the file was read; None if it is new."""
        return self._recent.get(key) or self._base.get(key)

    def finish(self, key: int, done: Done) -> None:
        """Notes that the file was read so far, and that nothing of it is held back."""
        self._recent[key] = done
        if len(self._recent) > max(_RECENT, len(self._base) // 16):
            self._base.update(self._recent)
            self._recent = {}
            self._base_text = None

    def grown(self, origin: str, state: Open) -> None:
        """Notes a file that may grow on; the one that grew longest ago is kept as done only.

        A done file lacks the number of its last line only, which is counted again when it grows.
        """
        self.open.pop(origin, None)
        self.open[origin] = state
        over = len(self.open) - _MOST_OPEN
        if over > 0:
            idle = [o for o, s in self.open.items() if not s.whole and s.next == s.line][:over]
            for old in idle:
                del self.open[old]

    def forget(self, present: Mapping[int, object], now: float, after_seconds: float) -> None:
        """Drops done files that were absent for so long; none if all are absent, as in a folder that is not mounted."""
        gone = [k for part in (self._base, self._recent) for k in part if k not in present]
        if len(gone) >= len(self._base) + len(self._recent):
            return
        self._absent = {k: self._absent.get(k, now) for k in gone}
        for key in [k for k, since in self._absent.items() if now - since >= after_seconds]:
            del self._absent[key]
            self._recent.pop(key, None)
            self.resume.pop(key, None)
            if self._base.pop(key, None) is not None:
                self._base_text = None

    def __len__(self) -> int:
        return len(self._base.keys() | self._recent.keys())

    def pack(self) -> str:
        """Returns the position as text; what did not change is not packed again."""
        if self._base_text is None:
            self._base_text = _packed(self._base)
            self.resume = {k: n for k, n in self.resume.items() if k not in self._base}
            self._resume_text = None
        if self._resume_text is None:
            self._resume_text = _packed({k: Done(n, 0) for k, n in self.resume.items()})
        value = {
            "v": _VERSION,
            "reader": [self.reader, self.readers],
            "open": self.open,
            "done": [self._base_text, _packed(self._recent)],
            "resume": self._resume_text,
        }
        return json.dumps(value, separators=(",", ":"), ensure_ascii=True)

    @classmethod
    def unpack(cls, text: str) -> "DirectoryPosition":
        """Reads what :meth:`pack` wrote.

        Raises:
            InputError: it is something else, or was written by a later version.
        """
        try:
            value: dict[str, Any] = json.loads(text)
            if value["v"] != _VERSION:
                raise ValueError("version")
            reader, readers = value["reader"]
            base, recent = value["done"]
            return cls(
                reader,
                readers,
                {origin: Open(*state) for origin, state in value["open"].items()},
                {k: d.offset for k, d in _unpacked(value["resume"])},
                dict(_unpacked(base)),
                dict(_unpacked(recent)),
                base,
                value["resume"],
            )
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise InputError(
                "a position in a directory can't be read: it was saved by another kind of source or a later version; resume with "
                "the source and version that wrote it, or start a new stream"
            ) from error


def _packed(files: Mapping[int, Done]) -> str:
    """Sorted keys as differences, byte planes of one significance side by side, deflated, in base 85."""
    keys = np.fromiter(files, np.uint64, len(files))
    order = np.argsort(keys)
    offsets = np.fromiter((d.offset for d in files.values()), np.uint64, len(files))[order]
    checks = np.fromiter((d.check for d in files.values()), np.uint16, len(files))[order]
    steps = np.diff(keys[order], prepend=np.uint64(0))
    planes = b"".join(_planes(a) for a in (steps, offsets, checks))
    return base64.b85encode(zlib.compress(planes, 6)).decode("ascii")


def _unpacked(text: str) -> Iterable[tuple[int, Done]]:
    planes = zlib.decompress(base64.b85decode(text))
    count, rest = divmod(len(planes), 18)
    if rest:
        raise ValueError("cut")
    keys = np.cumsum(_numbers(planes[: 8 * count], np.dtype("<u8")), dtype=np.uint64)
    offsets = _numbers(planes[8 * count : 16 * count], np.dtype("<u8"))
    checks = _numbers(planes[16 * count :], np.dtype("<u2"))
    return zip(keys.tolist(), map(Done, offsets.tolist(), checks.tolist()), strict=True)


def _planes(numbers: np.ndarray) -> bytes:
    little = numbers.astype(numbers.dtype.newbyteorder("<"))
    return little.view(np.uint8).reshape(len(little), little.itemsize).T.tobytes()


def _numbers(planes: bytes, type_: np.dtype[Any]) -> np.ndarray:
    rows = np.frombuffer(planes, np.uint8).reshape(type_.itemsize, len(planes) // type_.itemsize).T
    return np.ascontiguousarray(rows).view(type_).reshape(-1)
