"""Which files of a growing directory have something to read."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

from headrace.connectors.compression import unreadable
from headrace.connectors.directory_files import Kind, tail_of
from headrace.connectors.directory_position import DirectoryPosition, file_key
from headrace.connectors.directory_tree import DirectoryTree
from headrace.schemas.errors import InputError

_LOG = logging.getLogger(__name__)
_MOST_HOT = 2000
"""Files that are looked at every time: those with something to read, and those that changed last."""
_COLD_LOOKS = 1000
"""How many of the others are."""
_FORGET_SECONDS = 600.0


@dataclass
class WatchedFile:
    """What this process knows of one file."""

    origin: str
    path: str
    key: int
    offset: int = 0
    """Read to here: the start of a line, or the end of a file that was read as a whole."""
    line: int = 0
    """Number of the line at ``offset``; 0: unknown."""
    next: int = 1
    """Number of the next record."""
    whole: int = 0
    """Size of a file that is being read as a whole, or was."""
    check: int = 0
    """Of the bytes before ``offset``, or before ``whole``."""
    started: bool = False
    """True once something of it was read, here or before."""
    quarantined: bool = False
    """True if it was given up, and one row stands for all of it."""
    size: int = -1
    mtime_ns: int = -1
    since: float = 0.0
    """When it was first seen as it is."""
    kind: Kind | None = None
    scanned: int = 0
    """There is no newline from ``offset`` to here."""
    looked: bool = False
    """True if it was tried as it is, in vain."""
    broken: str | None = None
    """The fault that it gets if it stays as it is."""

    @property
    def waits(self) -> bool:
        """True if there may be records after those that were read."""
        return self.size > max(self.offset, self.scanned)

    def start_anew(self) -> None:
        """Forgets what was told from bytes that are no longer there."""
        self.offset = self.line = self.whole = self.check = self.scanned = 0
        self.next, self.started, self.kind, self.broken = 1, False, None, None


class ChangedError(InputError):
    """A file is no longer what was read of it."""


def changed(file: WatchedFile, what: str) -> ChangedError:
    """Returns the error for a file of which the reader can't know what is new."""
    return ChangedError(
        f"{file.path} {what}, though {max(file.offset, file.whole)} bytes of it were read: a file may only grow by lines at its "
        "end, and only if it is not compressed; put the old content back, and write new records to a new file"
    )


def lacking(file: WatchedFile, has: int, read: int) -> ChangedError:
    """Returns the error for a file of which another run has read more than there is."""
    return ChangedError(
        f"{file.path} ends at record {has}, but its records up to {read} were read before; put the old content back"
    )


def removed(path: str) -> InputError:
    """Returns the error for a file that is gone too early."""
    return InputError(
        f"{path} was removed before it was read to its end; put it back, and remove files once they are read"
    )


def require_unchanged(file: WatchedFile) -> None:
    """Raises ``ChangedError`` if the last bytes that were read are others now."""
    if tail_of(file.path, max(file.offset, file.whole)) != file.check:
        raise changed(file, "holds other bytes than before")


class DirectoryWatch:
    """Keeps a list of the files of one reader, and looks at those that may have changed.

    Nothing is told from times of other clocks: a file is as it was if its size and modification time are.
    """

    def __init__(self, tree: DirectoryTree, position: DirectoryPosition, *, follow: bool) -> None:
        self._tree = tree
        self._position = position
        self._follow = follow
        self._listing: dict[str, str] | None = None
        self._names: dict[int, str] = {}
        self._files: dict[str, WatchedFile] = {}
        self._hot: dict[str, WatchedFile] = {}
        self._cold: list[WatchedFile] = []

    def look(self, now: float, busy: WatchedFile | None) -> list[WatchedFile]:
        """Returns the files that may have records to read, the one that changed first at the end.

        Args:
            now: monotonic time in seconds.
            busy: the file that is being read; neither judged nor returned.

        Raises:
            InputError: the directory or a file can't be read, a file was removed in the middle, or is shorter than what was
                read of it.
        """
        if self._follow or self._listing is None:
            listing = self._tree.files(now)
            if listing is not self._listing:
                self._take(listing, now, busy)
            self._stat_files(now, busy)
        return sorted(
            (file for file in self.waiting() if file is not busy),
            key=lambda file: (file.mtime_ns, file.origin),
            reverse=True,
        )

    def waiting(self) -> Iterator[WatchedFile]:
        """Yields the files that may have records to read."""
        return (file for file in self._hot.values() if file.waits)

    def _stat_files(self, now: float, busy: WatchedFile | None) -> None:
        some, self._cold = self._cold[:_COLD_LOOKS], self._cold[_COLD_LOOKS:]
        for file in self._hot.values():
            self._stat(file, now, busy)
        for file in some:
            if self._files.get(file.origin) is file:
                if self._stat(file, now, busy):
                    self._hot[file.origin] = file
                else:
                    self._cold.append(file)
        self._cool()

    def _take(self, listing: dict[str, str], now: float, busy: WatchedFile | None) -> None:
        for origin in [origin for origin in self._files if origin not in listing]:
            self._gone(self._files.pop(origin), busy)
        if self._listing is None:
            for origin, state in self._position.open.items():
                if origin not in listing and (state.whole or state.next > state.line):
                    raise removed(origin)
        names: dict[int, str] = {}
        for origin, path in listing.items():
            known = self._files.get(origin)
            key = known.key if known else file_key(origin)
            if names.setdefault(key, origin) != origin:
                raise InputError(
                    f"the names {names[key]} and {origin} have equal hashes; give one of them another name"
                )
            if known is None and key % self._position.readers == self._position.reader:
                self._files[origin] = self._hot[origin] = self._recall(WatchedFile(origin, path, key))
        self._position.forget(names, now, _FORGET_SECONDS)
        self._listing = listing

    def _recall(self, file: WatchedFile) -> WatchedFile:
        """Adds what the position says of a file."""
        state = self._position.open.get(file.origin)
        done = self._position.done(file.key)
        if state is not None:
            file.offset, file.line, file.next, file.whole, file.check = state
            file.started = True
        elif done is not None:
            file.offset, file.check = done
            file.started, file.quarantined = done.check != 0, done.check == 0
        else:
            file.next = self._position.resume.get(file.key, 1)
        return file

    def _gone(self, file: WatchedFile, busy: WatchedFile | None) -> None:
        self._hot.pop(file.origin, None)
        if file is busy:
            return
        if file.started and not file.quarantined and file.size > file.offset:
            if file.waits:
                raise removed(file.path)
            _LOG.warning("%s was removed; its last line had no end and was not read", file.path)
        self._position.open.pop(file.origin, None)

    def _stat(self, file: WatchedFile, now: float, busy: WatchedFile | None) -> bool:
        """Looks at size and time; true if they changed so that there may be more to read."""
        try:
            found = os.stat(file.path)
        except FileNotFoundError:
            return False  # The next listing lacks it.
        except OSError as error:
            raise unreadable(file.path, error) from error
        if (found.st_size, found.st_mtime_ns) == (file.size, file.mtime_ns) or file is busy:
            return False
        first = file.size < 0
        file.size, file.mtime_ns, file.since, file.looked = found.st_size, found.st_mtime_ns, now, False
        if file.quarantined:
            if not first or file.size != file.offset:
                file.start_anew()
        elif not file.started:
            file.kind = file.broken = None
            file.scanned = min(file.scanned, file.size)
        elif file.size < max(file.offset, file.whole):
            raise changed(file, f"has become shorter, {file.size} bytes")
        elif not first and file.size == file.offset:
            require_unchanged(file)
        return file.waits

    def _cool(self) -> None:
        """Puts files aside in which nothing happened for longest."""
        over = len(self._hot) - _MOST_HOT
        if over > 0:
            idle = sorted((f for f in self._hot.values() if not f.waits), key=lambda f: f.since)
            for file in idle[:over]:
                del self._hot[file.origin]
                self._cold.append(file)
