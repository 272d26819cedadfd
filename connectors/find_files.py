"""From patterns to files: paths, globs and directories."""

import fnmatch
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from headrace.connectors.compression import unreadable
from headrace.schemas.errors import InputError

_MAGIC = re.compile(r"[*?\[]")
_HIDING = (".", "_")


def find_files(patterns: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (origin, absolute path) of every file that the patterns name, ordered by origin.

    A pattern is a file, a directory (all files below), or a glob (``*``, ``?``, ``[]`` in one component, ``**`` over any
    number; a directory that it matches stands for the files below). Names that begin with ``.`` or ``_`` (``_delta_log``,
    ``_SUCCESS``) are found only if the pattern has them so. A file that is named twice, or through a link, is read once.
    The origin is the path relative to the pattern's fixed folder; where two files would get the same one, both get more
    of their path.

    Raises:
        InputError: a pattern that names nothing, a folder or file that can't be read, a directory without files.
    """
    if not patterns:
        raise InputError("no input: name a file, a directory or a pattern with --input")
    roots: dict[str, str] = {}
    for pattern in patterns:
        for root, path in _expand(pattern):
            known = roots.get(path)
            if known is None or (len(root), root) > (len(known), known):
                roots[path] = root
    return sorted(_origins(roots).items())


def _expand(pattern: str) -> Iterator[tuple[str, str]]:
    """Yields (fixed folder, real path) for each file of one pattern."""
    if re.match(r"[a-z][a-z0-9+.-]+://", pattern):
        raise InputError(f"{pattern}: only local files can be read; copy it here, or mount its bucket")
    path = os.path.abspath(os.path.expanduser(pattern))
    if os.path.lexists(path) or not _MAGIC.search(pattern):
        names = [path]
        root = path if os.path.isdir(path) else os.path.dirname(path)
    else:
        parts = Path(path).parts
        fixed = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
        root = os.path.join(*parts[:fixed])
        names = list(_glob(root, parts[fixed:]))
    found = False
    for name in names:
        for file in _files(name):
            found = True
            yield os.path.realpath(root), file
    if not found:
        if names == [path]:
            raise InputError(
                f"{pattern} is a directory without files (hidden and _-prefixed ones do not count)"
            )
        raise InputError(f"no file matches {pattern}; check it, and quote it if the shell expands it")


def _files(path: str) -> Iterator[str]:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise unreadable(path, error) from error
    if stat.S_ISREG(mode):
        yield os.path.realpath(path)
    elif stat.S_ISDIR(mode):
        yield from _below(path, frozenset())
    else:
        raise InputError(f"{path} is neither a file nor a directory; write what it delivers to a file first")


def _below(folder: str, parents: frozenset[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in parents:
        return
    for entry in _entries(folder):
        if entry.name.startswith(_HIDING):
            continue
        if entry.is_dir():
            yield from _below(entry.path, parents | {real})
        else:
            yield from _files(entry.path)


def _glob(folder: str, parts: Sequence[str]) -> Iterator[str]:
    """Like ``glob.glob(recursive=True)``, but a folder that can't be listed is an error, and ``_`` hides as ``.`` does."""
    if not parts:
        yield folder
        return
    head, rest = parts[0], parts[1:]
    if not _MAGIC.search(head):
        path = os.path.join(folder, head)
        if os.path.lexists(path):
            yield from _glob(path, rest)
        return
    if not os.path.isdir(folder):
        return
    entries = [e for e in _entries(folder) if head[0] in _HIDING or e.name[0] not in _HIDING]
    if head == "**":
        yield from _glob(folder, rest)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _glob(entry.path, parts)
        return
    for entry in entries:
        if fnmatch.fnmatchcase(entry.name, head) and (not rest or entry.is_dir()):
            yield from _glob(entry.path, rest)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda e: e.name)
    except OSError as error:
        raise unreadable(folder, error) from error


def _origins(roots: dict[str, str]) -> dict[str, str]:
    """Returns path by origin; equal origins grow to the left until they differ."""
    depths = {path: len(Path(os.path.relpath(path, root)).parts) for path, root in roots.items()}
    while True:
        by_origin: dict[str, list[str]] = {}
        for path, depth in depths.items():
            by_origin.setdefault("/".join(Path(path).parts[-depth:]), []).append(path)
        double = [path for paths in by_origin.values() if len(paths) > 1 for path in paths]
        if not double:
            return {origin: paths[0] for origin, paths in by_origin.items()}
        for path in double:
            depths[path] += 1
