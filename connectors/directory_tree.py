"""The files below a directory, listed again and again at little cost."""

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from headrace.connectors.compression import unreadable
from headrace.schemas.errors import InputError

_HIDING = (".", "_")
_FRESH_SECONDS = 3.0
"""How long a folder is listed again after its modification time changed: the time may stand still for one more file."""
_LIST_SECONDS = 60.0
"""How often every folder is listed whatever its time says."""


class _Folder(NamedTuple):
    """A listed folder."""

    mtime_ns: int
    seen: float
    """When this time of the folder was first seen."""
    listed: float
    files: dict[str, str]
    """Path by origin."""
    folders: list[str]


class DirectoryTree:
    """Lists the files below a directory with the origins that the batch pipeline gives them.

    Names that begin with ``.`` or ``_`` are left out, and so are files whose name does not match the pattern. A folder
    whose modification time stands still is not listed again, except once a minute. Files and folders behind a link are
    known by their real path, and so listed once.
    """

    def __init__(self, root: str, pattern: str = "*") -> None:
        self._root = os.path.realpath(root)
        self._pattern = pattern
        self._folders: dict[str, _Folder] = {}
        self._device: int | None = None
        self._found: dict[str, str] = {}

    def files(self, now: float) -> dict[str, str]:
        """Returns the path of each file by its origin, the same mapping as before if nothing changed.

        Args:
            now: monotonic time in seconds.

        Raises:
            InputError: the directory is gone, or another file system stands in its place; a folder can't be read; two
                files have one origin.
        """
        self._require_root()
        folders: dict[str, _Folder] = {}
        todo = [self._root]
        while todo:
            path = todo.pop()
            if path in folders:
                continue
            folder = self._list_folder(path, now)
            if folder is None:
                continue
            folders[path] = folder
            todo += folder.folders
        same = folders.keys() == self._folders.keys() and all(
            folder.files == self._folders[path].files for path, folder in folders.items()
        )
        self._folders = folders
        if not same:
            self._found = self._merged()
        return self._found

    def _merged(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for folder in self._folders.values():
            for origin, file in folder.files.items():
                if found.setdefault(origin, file) != file:
                    raise InputError(
                        f"{found[origin]} and {file} would both be called {origin} in the rows; put no links to files of "
                        f"equal names into {self._root}"
                    )
        return found

    def _require_root(self) -> None:
        try:
            device = os.stat(self._root).st_dev
        except OSError as error:
            raise unreadable(self._root, error) from error
        if self._device not in (None, device):
            raise InputError(
                f"{self._root} lies on another file system than before; mount it again, and resume the stream"
            )
        self._device = device

    def _list_folder(self, path: str, now: float) -> _Folder | None:
        """Returns the folder as it is now, None if it is gone by now."""
        known = self._folders.get(path)
        try:
            mtime_ns = os.stat(path).st_mtime_ns
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(path, error) from error
        seen = now
        if known is not None and known.mtime_ns == mtime_ns:
            if known.listed - known.seen >= _FRESH_SECONDS and now - known.listed < _LIST_SECONDS:
                return known
            seen = known.seen
        files: dict[str, str] = {}
        folders: list[str] = []
        prefix = self._prefix(path)
        try:
            for name, link, is_folder in _entries(path):
                if link:
                    self._follow(os.path.join(path, name), files, folders)
                elif is_folder:
                    folders.append(os.path.join(path, name))
                elif fnmatch.fnmatchcase(name, self._pattern):
                    files[prefix + name] = os.path.join(path, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(path, error) from error
        return _Folder(mtime_ns, seen, now, files, folders)

    def _follow(self, link: str, files: dict[str, str], folders: list[str]) -> None:
        """Adds what a link leads to; one that leads to nothing is looked at again when its folder changes."""
        target = os.path.realpath(link)
        if os.path.isdir(target):
            folders.append(target)
        elif os.path.isfile(target) and fnmatch.fnmatchcase(os.path.basename(link), self._pattern):
            files[self._prefix(os.path.dirname(target)) + os.path.basename(target)] = target

    def _prefix(self, folder: str) -> str:
        """Returns what stands before a file's name in its origin: the path below the root, or as many parts of another."""
        if folder == self._root:
            return ""
        depth = len(Path(os.path.relpath(folder, self._root)).parts)
        return "/".join(Path(folder).parts[-depth:]) + "/"


def _entries(folder: str) -> Iterator[tuple[str, bool, bool]]:
    """Yields (name, is a link, is a folder) of what may be read; sockets, pipes and devices are not."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(_HIDING):
                continue
            link = entry.is_symlink()
            is_folder = not link and entry.is_dir(follow_symlinks=False)
            if not (link or is_folder or entry.is_file(follow_symlinks=False)):
                continue
            if not name.isascii():
                try:
                    name.encode()
                except UnicodeEncodeError as error:
                    raise InputError(
                        f"{os.path.join(folder, name)!a} has a name that is not UTF-8; rename it"
                    ) from error
            yield name, link, is_folder
