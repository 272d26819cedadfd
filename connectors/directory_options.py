"""Where a growing directory is and how it is read: ``dir:PATH?option=value&…``."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self
from urllib.parse import unquote

from headrace.connectors.formats import FORMATS
from headrace.connectors.map_fields import FieldMapping
from headrace.connectors.url_options import Convert, flag, instant, number, one_of, read_options, word
from headrace.schemas.errors import ConfigError


def _instant_or_mtime(text: str) -> datetime | None:
    return None if text == "mtime" else instant(text)


def _pattern(text: str) -> str:
    if "/" in text:
        raise ValueError("a pattern is for the names of files, in all folders; leave the '/' out")
    return word(text)


_KNOWN: dict[str, Convert] = {
    "pattern": _pattern,
    "format": one_of(*FORMATS),
    "follow": flag,
    "settle_seconds": number(float, 0, 86_400),
    "broken_seconds": number(float, 0, 30 * 86_400),
    "ingest_time": _instant_or_mtime,
    "max_record_bytes": number(int, 1, 1 << 30),
}


@dataclass(frozen=True, kw_only=True)
class DirectoryOptions:
    """How files are found and read."""

    path: str
    """The directory, absolute."""
    pattern: str = "*"
    """Names of the files that are read, in all folders below; names that begin with ``.`` or ``_`` never are."""
    format: str | None = None
    """``jsonl``, ``csv``, ``parquet``, ``avro`` or ``weblog`` for all files; None: told from each, and web logs are refused."""
    follow: bool = True
    """False: the files that are there are taken for complete, and no others are looked for."""
    settle_seconds: float = 2.0
    """How long a file that is read as a whole must have been left alone."""
    broken_seconds: float = 300.0
    """How long a file that can't be read, or seems cut, must have been left alone until it is given up."""
    ingest_time: datetime | None = None
    """One ingest time for all rows; None (``mtime``): the file's modification time when the rows were read."""
    max_record_bytes: int = 16 << 20
    """Longer records are rejected; only their beginning is kept."""
    mapping: FieldMapping | None = field(default=None, repr=False)
    """The configuration's ``mapping`` section, compiled."""
    schema: Mapping[str, Any] | None = field(default=None, repr=False)
    """JSON Schema by which CSV cells are cast; None: the family that the header belongs to."""

    def __post_init__(self) -> None:
        if self.format == "weblog" and self.mapping is not None:
            raise ConfigError(
                f"dir:{self.path}: 'mapping' applies to jsonl, csv, parquet and avro, not to web logs; leave it out"
            )

    @classmethod
    def parse(cls, url: str) -> Self:
        """Reads ``dir:PATH?option=value&…``; the options are the fields of this class.

        Raises:
            ConfigError: not such an address, an unknown, repeated or impossible option.
        """
        path, _, query = url.removeprefix("dir:").partition("?")
        if not url.startswith("dir:") or not path:
            raise ConfigError(f"{url!r} is no directory's address; write dir:PATH?option=value")
        if path.startswith("//") and not path.startswith("///"):
            raise ConfigError(f"{url!r}: write dir:/absolute/path or dir:relative/path, without a host")
        path = os.path.abspath(os.path.expanduser(unquote(path)))
        return cls(path=path, **read_options(query, _KNOWN, "directory"))

    @property
    def stream_format(self) -> str:
        """``json`` or ``weblog``, what Decode takes."""
        return "weblog" if self.format == "weblog" else "json"
