"""One run at a time: a lock on an output folder that ends with its process."""

import errno
import fcntl
import os
from pathlib import Path

from headrace.schemas.errors import ConfigError

FILE = "_lock"


class OutputLock:
    """Holds ``OUT/_lock`` until :meth:`release`, or until the process and its forks are gone, however they end.

    The file stays (removing it would let two runs in); it holds the last owner's process id. Source: flock(2).

    Raises:
        ConfigError: another run holds it, or the file system can't lock or refuses the file.
    """

    def __init__(self, out: Path) -> None:
        self._descriptor = -1
        try:
            descriptor = os.open(out / FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(
                f"output {out} can't be written to: {os.strerror(error.errno or 0)}; fix its permissions or name "
                "another --output"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(descriptor, 64).decode("ascii", "replace").strip()
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ConfigError(
                    f"another run (process {owner or 'unknown'}) is writing to {out}; wait for it to end, or name another "
                    "--output"
                ) from error
            raise ConfigError(
                f"output {out} lies on a file system that can't lock files ({os.strerror(error.errno or 0)}), so two runs "
                "could mix; name an --output on another one"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Lets the next run in; harmless when repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.release()
