"""Installed servers: a cache folder in which an installation is whole or absent.

``$HEADRACE_CACHE`` (default ``~/.cache/headrace``) holds one folder an installation, named by what went into it. It is built aside,
under a file lock, and renamed when it is whole; what a killed installation left is removed by the next one.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from headrace.schemas.errors import ConfigError

_log = logging.getLogger(__name__)

_PACKAGES = {
    "java": "openjdk-17-jre-headless",
    "mvn": "maven",
    "go": "golang-go (1.21 or newer; for Debian 12 from bookworm-backports)",
    "pip": "python3-pip",
}
"""Programs with the Debian package that brings them."""


def cache_folder() -> Path:
    """Returns ``$HEADRACE_CACHE``, by default ``~/.cache/headrace``."""
    named = os.environ.get("HEADRACE_CACHE")
    return Path(named).expanduser().absolute() if named else Path.home() / ".cache" / "headrace"


def template(name: str, values: Mapping[str, str]) -> str:
    """Returns a file of this package with ``@name@`` replaced by its value."""
    text = files("headrace.runners.servers").joinpath(name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def digest(*texts: str) -> str:
    """Returns a short name for what an installation is made from."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def file_digest(path: Path) -> str:
    """Returns a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def install(name: str, build: Callable[[Path], None], note: str = "") -> Path:
    """Returns the folder of an installation; makes it if there is none.

    Args:
        name: the folder's name, with version and digest: another content needs another name.
        build: fills the folder that it is given; whatever it raises leaves no installation.
        note: what a user who waits wants to know (size, time).

    Raises:
        ConfigError: the cache can't be written to.
    """
    cache = cache_folder()
    target = cache / name
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / f"{name}.lock"):
            if target.is_dir():
                return target
            for left in cache.glob(f".{name}.*"):
                shutil.rmtree(left)
            aside = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=cache))
            _log.info("installing %s into %s%s", name, cache, f" ({note})" if note else "")
            try:
                build(aside)
                aside.chmod(0o755)
                aside.rename(target)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
    except PermissionError as error:
        raise ConfigError(
            f"can't write to the cache {cache}: {error.strerror}; name another folder with HEADRACE_CACHE"
        ) from error
    return target


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a file's lock; another process, or another thread, that wants it waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def tool(name: str, use: str) -> str:
    """Returns the path of a program; java in ``$JAVA_HOME`` comes before those in PATH.

    Args:
        name: java, mvn or go.
        use: what it is needed for.

    Raises:
        ConfigError: there is none; names the package to install.
    """
    if name == "java" and (home := os.environ.get("JAVA_HOME")):
        path = Path(home) / "bin" / "java"
        if not os.access(path, os.X_OK):
            raise ConfigError(f"JAVA_HOME={home} has no bin/java; correct it, or unset it to use PATH's java")
        return str(path)
    found = shutil.which(name)
    if found is None:
        raise ConfigError(
            f"{name} is not in PATH; {use} needs it. On Debian or Ubuntu: apt install {_PACKAGES[name]}"
        )
    return found


def go_environment() -> dict[str, str]:
    """Returns variables for a build with Go that leaves half of the processors to others and stamps no checkout into it."""
    return {
        "GOMAXPROCS": str(max(1, (os.cpu_count() or 1) // 2)),
        "GOFLAGS": "-buildvcs=false",
        "GOWORK": "off",
    }


def run(
    command: Sequence[str | Path], *, what: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> str:
    """Runs a program to its end and returns its output.

    Raises:
        ConfigError: it failed; with the last lines of its output.
    """
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise ConfigError(
            f"{what} failed: {Path(command[0]).name} ended with code {done.returncode}. Check the network and "
            f"that the disk has room, then run the same command again. Its last lines:\n{last}"
        )
    return done.stdout
