"""Virtual environments with all that headrace needs and without headrace."""

import os
import subprocess
import sysconfig
import venv
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILDERS = ("setuptools", "pkg_resources", "_distutils_hack", "wheel")


def make_bare_environment(
    folder: Path, *, libraries: Path | None = None, without: Collection[str] = ()
) -> Path:
    """Makes an environment with links to every library of this one but headrace; returns its interpreter.

    Args:
        libraries: the folder that is linked, by default this environment's site-packages.
        without: packages that are left out.
    """
    venv.create(folder, symlinks=True)
    for found in (libraries or Path(sysconfig.get_paths()["purelib"])).iterdir():
        name = found.name.partition("-")[0]
        if "headrace" not in name and found.suffix != ".pth" and name not in without:
            (packages_of(folder) / found.name).symlink_to(found)
    python = folder / "bin" / "python"
    missing = run(python, "-c", "import headrace", cwd=folder, code=1)
    assert "ModuleNotFoundError: No module named 'headrace'" in missing.stderr
    return python


def packages_of(folder: Path) -> Path:
    """Returns an environment's site-packages."""
    [packages] = folder.glob("lib/python*/site-packages")
    return packages


def clean_environ() -> dict[str, str]:
    """Returns this process's variables without what would let another environment see its modules."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}


def run(*command: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a command and asserts its exit code."""
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env=clean_environ(), text=True, capture_output=True)
    assert done.returncode == code, f"{words}: code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
