"""``headrace doctor``: is this installation fit to run, and what to do about what is missing."""

import importlib.metadata
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from headrace.pipelines.exits import WRONG_USE
from headrace.pipelines.findings import print_findings
from headrace.schemas.errors import ConfigError, HeadraceError

Status = Literal["ok", "warning", "missing"]

LEAST_DISK_BYTES = 2 * 2**30
FAMILIES = ("behaviour", "clickstream", "commerce", "envelope", "financial", "interaction", "weblog")
TOOLS = (
    (
        "java",
        "only for job servers and Kafka on this machine",
        "install Java 17, for example `apt install openjdk-17-jre-headless`",
    ),
    ("go", "only for building Prism", "see https://go.dev/doc/install"),
    (
        "prism",
        "only for streaming on this machine",
        "`go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0`, then put $(go env GOPATH)/bin in PATH",
    ),
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``missing`` means that headrace does not work without it."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
) -> None:
    """Check the installation and say how to mend it. Exit code 2 if something that headrace needs is missing.

    Example: headrace doctor
    """
    findings = examine()
    usable = all(f.status != "missing" for f in findings)
    if as_json:
        typer.echo(json.dumps({"usable": usable, "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        print_findings(findings)
        typer.echo("headrace is ready" if usable else "headrace can't run yet: see the fixes above")
    if not usable:
        raise typer.Exit(WRONG_USE)


def examine() -> list[Finding]:
    """Returns all findings, needed ones first."""
    return [
        check_python(sys.version_info[:3]),
        *check_packages(),
        check_schemas(),
        check_key(),
        check_disk(Path(tempfile.gettempdir()), "temporary files"),
        check_disk(Path.cwd(), "working directory"),
        *check_tools(),
    ]


def check_python(found: tuple[int, int, int]) -> Finding:
    """Python 3.11 to 3.13."""
    detail = ".".join(map(str, found))
    if (3, 11) <= found[:2] < (3, 14):
        return Finding("python", "ok", detail)
    return Finding(
        "python",
        "missing",
        f"{detail}; 3.11, 3.12 or 3.13 is needed",
        "make a new environment with one of them",
    )


def check_packages(
    stated: list[str] | None = None, installed: Callable[[str], str] = importlib.metadata.version
) -> Iterator[Finding]:
    """Every requirement in headrace's own metadata against what is installed.

    Args:
        stated: the requirements; default: those of the installed headrace.
        installed: returns a distribution's version or raises PackageNotFoundError.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError as error:
        yield Finding(
            "packaging", "missing", f"{error}; without it no version can be compared", "pip install packaging"
        )
        return
    if stated is None:
        try:
            stated = importlib.metadata.requires("headrace") or []
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                "headrace", "missing", "imported, but not installed", "run `pip install -e .` in its folder"
            )
            return
    for text in stated:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        wanted = str(requirement.specifier) or "any version"
        fix = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            version = installed(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(requirement.name, "missing", f"not installed; {wanted} is needed", fix)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield Finding(requirement.name, "ok", f"{version} ({wanted})")
        else:
            yield Finding(requirement.name, "missing", f"{version} is installed; {wanted} is needed", fix)


def check_schemas() -> Finding:
    """The packaged event families."""
    fix = (
        "mend the packages above, or install headrace again: pip install --force-reinstall --no-deps headrace"
    )
    try:
        from headrace.schemas.registry import Registry

        names = Registry.default().names()
    except (HeadraceError, OSError, ImportError) as error:
        return Finding("schemas", "missing", str(error), fix)
    lost = sorted(set(FAMILIES) - set(names))
    if lost:
        return Finding("schemas", "missing", f"not packaged: {', '.join(lost)}", fix)
    return Finding("schemas", "ok", ", ".join(names))


def check_key() -> Finding:
    """The default key file: there, long enough, and readable by its owner only."""
    try:
        from headrace.transforms.keys import Key, default_key_file
    except ImportError as error:
        return Finding("key file", "missing", f"not looked at: {error}", "mend the packages above")
    path = default_key_file()
    if not path.exists():
        return Finding(
            "key file", "warning", f"{path} does not exist; the first run makes it", "headrace key create"
        )
    try:
        key = Key(path)
    except ConfigError as error:
        return Finding(
            "key file", "missing", str(error), "mend or move the file, or name another with --key-file"
        )
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Finding(
            "key file", "warning", f"{path} has mode {mode:04o}: others may read it", f"chmod 600 {path}"
        )
    return Finding("key file", "ok", f"{path} (fingerprint {key.fingerprint})")


def check_disk(folder: Path, name: str) -> Finding:
    """A folder that can be written to and has some room."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(
            name,
            "warning",
            f"{folder} can't be written to",
            "choose another (TMPDIR, --output) or change its permissions",
        )
    free = shutil.disk_usage(folder).free
    detail = f"{folder}: {free / 2**30:.1f} GB free"
    if free < LEAST_DISK_BYTES:
        return Finding(
            name,
            "warning",
            detail,
            "a run stages about as many bytes as its plain input has; make room, or use another disk",
        )
    return Finding(name, "ok", detail)


def check_tools(find: Callable[[str], str | None] = shutil.which) -> Iterator[Finding]:
    """Programs that only some uses need."""
    for name, use, fix in TOOLS:
        path = find(name)
        if path is None:
            yield Finding(name, "warning", f"not found; {use}", fix)
        else:
            yield Finding(name, "ok", f"{path} ({use})")
