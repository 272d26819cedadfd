"""Builds headrace's wheel on a worker with nothing but Python; :mod:`headrace.runners.package` copies this file into the sdist.

Beam's workers install without build isolation, so what builds an sdist must be on the worker already; but Python 3.12 brings no
setuptools, and the one of 3.11 needs ``wheel`` besides. A tree of pure Python is a zip file with three text files more.

Source: PEP 517 (hooks), PEP 427 and the binary distribution format (wheel), PEP 503 and PEP 625 (names).
"""

import base64
import gzip
import hashlib
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

METADATA = "METADATA"
"""File beside this one: the core metadata of the wheel."""
PACKAGES = "src"
"""Folder beside this one: what is installed."""

_WHEEL = "Wheel-Version: 1.0\nGenerator: headrace\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
    *,
    source: Path | None = None,
) -> str:
    """Writes the wheel and returns its name (PEP 517). ``source`` is the tree, by default the folder of this file."""
    root = source or Path(__file__).parent
    stem = _stem(root)
    files = {
        path.relative_to(root / PACKAGES).as_posix(): path.read_bytes()
        for path in sorted((root / PACKAGES).rglob("*"))
        if path.is_file() and not path.relative_to(root / PACKAGES).parts[0].endswith(".egg-info")
    }
    files[f"{stem}.dist-info/METADATA"] = (root / METADATA).read_bytes()
    files[f"{stem}.dist-info/WHEEL"] = _WHEEL.encode()
    record = f"{stem}.dist-info/RECORD"
    lines = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    name = f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(Path(wheel_directory) / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return name


def build_sdist(
    sdist_directory: str, config_settings: dict[str, Any] | None = None, *, source: Path | None = None
) -> str:
    """Writes the sdist and returns its name (PEP 517). Equal trees give equal bytes, so that workers know a package again."""
    root = source or Path(__file__).parent
    stem = _stem(root)
    files = {f"{stem}/PKG-INFO": root / METADATA}
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            files[f"{stem}/{path.relative_to(root).as_posix()}"] = path
    name = f"{stem}.tar.gz"
    with (
        open(Path(sdist_directory) / name, "wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for inside, path in files.items():
            entry = tarfile.TarInfo(inside)
            entry.size = path.stat().st_size
            with path.open("rb") as content:
                archive.addfile(entry, content)
    return name


def _stem(root: Path) -> str:
    stated = Parser().parsestr((root / METADATA).read_text(encoding="utf-8"))
    return f"{stated['Name']}-{stated['Version']}"


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
