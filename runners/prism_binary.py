"""Finds the Prism binary on this machine and reads its version."""

import mmap
import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from headrace.runners.servers.install import cache_folder

VARIABLE = "HEADRACE_PRISM"
_BEAM_CACHE = Path("~/.apache_beam/cache/prism/bin")
_PROGRAM = b"github.com/apache/beam/sdks/v2/go/cmd/prism"
"""In every Prism that Go built; other programs have its name."""
_MODULE = re.compile(rb"\b(?:mod|dep)\tgithub\.com/apache/beam/sdks/v2\tv(\d+\.\d+\.\d+[^\t\n]*)")
"""What Go writes into a program about the module that it was built from."""


def find_prism(location: str | None = None) -> Path | None:
    """Returns the first Prism binary that is there; None if none is.

    In this order: ``location``, which excludes all others; ``$HEADRACE_PRISM``, likewise; what ``headrace cluster up prism`` built;
    ``prism`` in PATH; what Beam has downloaded for its own version.
    """
    named = location or os.environ.get(VARIABLE)
    if named:
        path = Path(named).expanduser()
        return path.absolute() if _runs(path) else None
    return next((path for path in _places() if _runs(path) and is_prism(path)), None)


def describe_search() -> str:
    """Returns where :func:`find_prism` looked, for an error."""
    if os.environ.get(VARIABLE):
        return f"{VARIABLE}={os.environ[VARIABLE]} is no program that may be executed"
    return f"neither named by {VARIABLE}, nor in {cache_folder()}, PATH or {_BEAM_CACHE}"


def is_prism(binary: Path) -> bool:
    """Tells Beam's Prism from other programs of that name, without running it."""
    if not binary.stat().st_size:
        return False
    with binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(_PROGRAM) >= 0


def prism_version(binary: Path) -> str:
    """Returns the version of Beam that a Prism binary was built from; empty if Go did not note it."""
    with binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = _MODULE.search(content)
        return found[1].decode() if found else ""


def _places() -> Iterator[Path]:
    built = [path for path in cache_folder().glob("prism-*/**/prism") if path.is_file()]
    yield from sorted(built, key=lambda path: path.stat().st_mtime, reverse=True)
    found = shutil.which("prism")
    if found:
        yield Path(found)
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    name = f"apache_beam-v{version('apache-beam')}-prism-{platform.system().lower()}-{machine}"
    yield _BEAM_CACHE.expanduser() / name
    yield _BEAM_CACHE.expanduser() / "prism"


def _runs(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
