"""Files that appear under their name only when they are whole."""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from headrace.schemas.errors import HeadraceError

_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")


class OutputError(HeadraceError, OSError):
    """The disk, or whatever holds the output, refused a write; the message names the file and the cause."""

    def __str__(self) -> str:
        return f"{self.filename} {self.strerror}"


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an ``OSError`` of the body into an :class:`OutputError` that names ``path``, its cause and the fix.

    The body must not raise ``OSError`` for anything but this file.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        cause = os.strerror(error.errno) if error.errno else str(error)
        raise OutputError(
            error.errno,
            f"can't be written: {cause}; make room or fix the permissions, then run the same command again",
            os.fspath(path),
        ) from error


class AtomicFile:
    """A file written under a hidden temporary name beside its own and renamed by :meth:`commit`.

    Two attempts at one file never share a temporary; the last to commit wins. A process killed before the commit leaves
    the old content (or no file) and a temporary, which :func:`remove_temporaries` finds.

    Args:
        path: the final name; missing parents are made.

    Raises:
        OutputError: the folder can't be made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        with naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def commit(self) -> None:
        """Gives the written file its name, replacing one that has it.

        Raises:
            OutputError: the rename failed; the temporary is removed.
        """
        try:
            with naming(self.path):
                os.replace(self.temporary, self.path)
        except OutputError:
            self.discard()
            raise

    def discard(self) -> None:
        """Removes the temporary; harmless if there is none."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.temporary)


def replace_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a small file atomically and durably: after a power loss it holds the old content or the new.

    Raises:
        OutputError: it can't be written; what was there is unchanged.
    """
    file = AtomicFile(path)
    try:
        with naming(path), open(file.temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except OutputError:
        file.discard()
        raise
    file.commit()
    sync(file.path.parent)


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until a file's content, or a folder's entries, are on disk.

    Raises:
        OutputError: the disk reports a failure.
    """
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporaries(root: str | os.PathLike[str]) -> int:
    """Removes the temporaries that killed attempts left below ``root``; returns their number.

    Only while nothing writes there: call it after the job, or before it starts.
    """
    removed = 0
    for folder, _, names in os.walk(root):
        for name in names:
            if _TEMPORARY.fullmatch(name):
                os.unlink(os.path.join(folder, name))
                removed += 1
    return removed
