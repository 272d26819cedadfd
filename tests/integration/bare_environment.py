"""Virtual environments with all that headrace needs and without headrace."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make_bare_environment(folder: Path) -> Path:
    """Makes an environment with links to every library of this one but headrace; returns its interpreter."""
    venv.create(folder, symlinks=True)
    [packages] = folder.glob("lib/python*/site-packages")
    for found in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "headrace" not in found.name and found.suffix != ".pth" and found.name != "__pycache__":
            (packages / found.name).symlink_to(found)
    python = folder / "bin" / "python"
    missing = run(python, "-c", "import headrace", cwd=folder, check=False)
    assert missing.returncode == 1
    assert "ModuleNotFoundError: No module named 'headrace'" in missing.stderr
    return python


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a command without this process's import path; shows its output if it fails."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, text=True, capture_output=True
    )
    if check and done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        raise AssertionError(f"{command[0]} ended with code {done.returncode}: {done.stderr[-2000:]}")
    return done
