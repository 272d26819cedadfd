"""An archive of Parquet files: which files it has, and on which date each arrived, told from the folders."""

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from deltalake import DeltaTable

from headrace.connectors.compression import unreadable
from headrace.connectors.delta_commit import committed_files
from headrace.schemas.columns import EVENT_SCHEMA
from headrace.schemas.errors import ConfigError, InputError

Layout = Literal["hive", "dates", "delta", "plain"]

DATE_KEYS = ("event_date", "ingest_date", "date", "dt", "day")
"""Names of hive folders with a whole date; ``year=/month=/day=`` are known too."""
_SUFFIXES = (".parquet", ".pq", ".parq")
_HIDING = (".", "_")
_YEAR, _TWO = re.compile(r"\d{4}"), re.compile(r"\d{1,2}")


@dataclass(frozen=True)
class ArchiveFile:
    """One file of an archive."""

    path: str
    origin: str
    """Its path relative to the archive, with forward slashes."""
    date: date | None
    """When it arrived, by its folder; None if no folder says so."""
    size_bytes: int
    changed_ns: int
    """When it was last changed."""


@dataclass(frozen=True)
class Archive:
    """The files of an archive, ordered by origin."""

    root: str
    layout: Layout
    files: tuple[ArchiveFile, ...]


def find_archive(root: str, *, exclude: Sequence[str] = ()) -> Archive:
    """Finds an archive's files and their dates.

    A Delta table's files are those of its newest version, never what else lies in its folder. Otherwise all files below count but
    those whose name, or a folder's, begins with ``.`` or ``_``; each must be Parquet by its suffix. Dates are hive folders
    (``dt=2026-01-31``, see ``DATE_KEYS``, or ``year=2026/month=1/day=31``), folders ``2026/01/31``, or none at all.

    Args:
        exclude: patterns of origins to leave out (``*`` stands for any characters, ``/`` too).

    Raises:
        ConfigError: an address that can't be read, layouts that are mixed, or a lake of headrace.
        InputError: there is no such folder, nothing in it, or something that is no Parquet.
    """
    if re.match(r"[a-z][a-z0-9+.-]+://", root):
        raise ConfigError(
            f"--archive {root}: a backfill reads local folders only; mount the bucket (gcsfuse, mountpoint-s3, rclone mount), "
            "or copy the dates that are wanted (gcloud storage rsync, aws s3 sync), and name that folder"
        )
    top = os.path.abspath(os.path.expanduser(root))
    if not os.path.isdir(top):
        raise InputError(f"--archive {root} is no folder; name the folder that holds the archive's dates")
    if DeltaTable.is_deltatable(top):
        found = list(_delta(top))
    else:
        found = list(_folders(top))
    files = [(f, how) for f, how in found if not any(fnmatch.fnmatchcase(f.origin, p) for p in exclude)]
    if not files:
        raise InputError(f"--archive {root} holds no Parquet file{' that is not excluded' if found else ''}")
    kinds = {how: f.origin for f, how in files}
    if len(kinds) > 1:
        examples = ", ".join(f"{origin} ({how})" for how, origin in sorted(kinds.items()))
        raise ConfigError(
            f"--archive {root} mixes layouts: {examples}; name the folder of one of them, or leave files out with --exclude"
        )
    (layout,) = kinds
    return Archive(top, layout, tuple(sorted((f for f, _ in files), key=lambda f: f.origin)))


def date_of(folders: Sequence[str]) -> tuple[date | None, Layout]:
    """Returns the date that the names of folders say, from the top down, and how they say it.

    Raises:
        ValueError: a folder that is named like a date and is none.
    """
    named = dict(part.split("=", 1) for part in folders if "=" in part)
    for key in DATE_KEYS:
        if key in named and not (key == "day" and "month" in named):
            return date.fromisoformat(unquote(named[key])[:10]), "hive"
    if {"year", "month", "day"} <= named.keys():
        return date(int(named["year"]), int(named["month"]), int(named["day"])), "hive"
    for i in range(len(folders) - 2):
        year, month, day = folders[i : i + 3]
        if _YEAR.fullmatch(year) and _TWO.fullmatch(month) and _TWO.fullmatch(day):
            return date(int(year), int(month), int(day)), "dates"
    return None, "plain"


def _folders(top: str) -> Iterator[tuple[ArchiveFile, Layout]]:
    for folder, names, files in os.walk(top, onerror=_refuse):
        names[:] = sorted(n for n in names if not n.startswith(_HIDING))
        parts = Path(folder).relative_to(top).parts
        for name in sorted(files):
            if name.startswith(_HIDING) or name.endswith(".crc"):
                continue
            path = os.path.join(folder, name)
            if not name.lower().endswith(_SUFFIXES):
                raise InputError(
                    f"{path} lies in the archive and is no Parquet file by its name; take it away, or leave it out with --exclude"
                )
            yield _file(top, path, parts)


def _delta(top: str) -> Iterator[tuple[ArchiveFile, Layout]]:
    """The files of the log; partition values stand in the folders' names, as all writers of Delta have them."""
    table = DeltaTable(top)
    names = {field.name for field in table.schema().fields}
    if set(EVENT_SCHEMA.names) <= names:
        raise ConfigError(
            f"--archive {top} is a lake of headrace: its users are tokens already, its addresses are cut, and what was rejected or "
            "masked is not in it, so the stages can't be run again over it; name the archive that it was made from"
        )
    for path in committed_files(top):
        origin = unquote(path)
        try:
            file, _ = _file(top, os.path.join(top, origin), Path(origin).parts[:-1])
        except InputError as error:
            raise InputError(
                f"{error}; the table's log names it: restore it, or the version before"
            ) from error
        yield file, "delta"


def _file(top: str, path: str, folders: Sequence[str]) -> tuple[ArchiveFile, Layout]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        day, how = date_of(folders)
    except ValueError as error:
        raise InputError(
            f"{path}: its folder is named like a date and is none ({error}); rename it"
        ) from error
    origin = Path(path).relative_to(top).as_posix()
    return ArchiveFile(path, origin, day, found.st_size, found.st_mtime_ns), how


def _refuse(error: OSError) -> None:
    raise unreadable(str(error.filename), error) from error
