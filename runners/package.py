"""Packs the headrace that runs here, so that a runner's workers get the same one.

Beam's ``--setup_file`` names a ``setup.py``; Beam builds an sdist beside it and the worker's boot program installs that with pip
(``apache_beam/runners/portability/stager.py``). The modules are taken from where they were imported, so it works from a checkout,
an editable install and a wheel alike. The sdist brings what builds its wheel (:mod:`headrace.runners.wheel_backend`), as a worker
may have no setuptools. Beam's worker pool installs nothing when it is started without ``--container_executable``: use
:mod:`headrace.runners.worker_pool`, or install headrace there beforehand.
"""

import importlib
import importlib.metadata
import importlib.util
import re
import shutil
from pathlib import Path

from headrace.runners import wheel_backend
from headrace.runners.wheel_backend import METADATA
from headrace.schemas.errors import ConfigError

ROOMS = ("pipelines", "runners", "connectors", "simulator", "transforms", "schemas")
"""The folders that ``setup.py`` maps into the namespace."""

_IGNORED = shutil.ignore_patterns("__pycache__", "*.py[cod]")

_SETUP = '''"""Made by headrace.runners.package: the headrace that launched this job."""

from setuptools import find_namespace_packages, setup

setup(
    name="headrace",
    version={version!r},
    python_requires={python!r},
    packages=find_namespace_packages("src", include=["headrace", "headrace.*"]),
    package_dir={{"": "src"}},
    package_data={{"": ["*.json", "py.typed"]}},
    install_requires={requires!r},
)
'''

_PYPROJECT = """[build-system]
requires = []
build-backend = "wheel_backend"
backend-path = ["."]
"""

_MANIFEST = "include METADATA wheel_backend.py pyproject.toml\nrecursive-include src *.py *.json py.typed\n"


def make_setup_file(work_dir: Path) -> Path:
    """Writes a source tree with the imported headrace and returns its ``setup.py``, for Beam's ``--setup_file``.

    Args:
        work_dir: an empty or missing folder; must exist until the job is submitted.

    Raises:
        ConfigError: the folder is not empty, headrace's metadata is missing, or setuptools, which Beam builds with, is not
            installed.
    """
    if importlib.util.find_spec("setuptools") is None:
        raise ConfigError(
            "workers get headrace as an sdist, and building one needs setuptools; run `pip install setuptools`, or name an image "
            "that has headrace with --sdk_container_image"
        )
    if work_dir.exists() and any(work_dir.iterdir()):
        raise ConfigError(f"{work_dir} is not empty; a package is made in a folder of its own")
    try:
        metadata = importlib.metadata.metadata("headrace")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            "headrace is imported but not installed, so its requirements are unknown; run `pip install -e .` in its folder"
        ) from None
    for room in ROOMS:
        found = importlib.import_module(f"headrace.{room}").__file__
        assert found is not None
        shutil.copytree(Path(found).parent, work_dir / "src" / "headrace" / room, ignore=_IGNORED)
    version, python = metadata["Version"], metadata["Requires-Python"] or ">=3.11"
    requires = _requirements(importlib.metadata.requires("headrace") or [])
    core = ["Metadata-Version: 2.1", "Name: headrace", f"Version: {version}", f"Requires-Python: {python}"]
    texts = {
        "setup.py": _SETUP.format(version=version, python=python, requires=requires),
        "pyproject.toml": _PYPROJECT,
        "MANIFEST.in": _MANIFEST,
        METADATA: "\n".join([*core, *(f"Requires-Dist: {each}" for each in requires), ""]),
        "wheel_backend.py": Path(wheel_backend.__file__).read_text(encoding="utf-8"),
    }
    for name, text in texts.items():
        (work_dir / name).write_text(text, encoding="utf-8")
    return (work_dir / "setup.py").absolute()


def _requirements(stated: list[str]) -> list[str]:
    """Leaves out what only an extra (``dev``) requires."""
    return [requirement for requirement in stated if not re.search(r";.*\bextra\s*==", requirement)]
