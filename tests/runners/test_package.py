import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from apache_beam.runners.portability.stager import Stager

from headrace.runners.package import ROOMS, make_setup_file
from headrace.schemas.errors import ConfigError

FAMILIES = ["behaviour", "clickstream", "commerce", "envelope", "financial", "interaction", "weblog"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as Beam builds it when a job is submitted."""
    folder = tmp_path_factory.mktemp("package")
    setup_file = make_setup_file(folder / "source")
    (folder / "dist").mkdir()
    return Path(Stager._build_setup_package(str(setup_file), str(folder / "dist")))


def test_the_rooms_are_those_of_the_packaging() -> None:
    stated = re.search(r"ROOMS = \[(.*?)\]", (ROOT / "setup.py").read_text(), re.DOTALL)
    assert stated is not None
    assert re.findall(r'"(\w+)"', stated[1]) == list(ROOMS)


@pytest.mark.integration
def test_the_sdist_has_all_modules_and_schemas_and_nothing_compiled(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/src/")[2] for name in archive.getnames()}
    expected = {
        f"headrace/{path.relative_to(ROOT).as_posix()}"
        for room in ROOMS
        for pattern in ("*.py", "*.json", "py.typed")
        for path in (ROOT / room).rglob(pattern)
    }
    assert "headrace/schemas/families/weblog/1.0.0.json" in expected
    assert expected <= names
    assert not [name for name in names if "__pycache__" in name]


def names_from(target: Path) -> list[str]:
    """Returns the families that headrace, imported from this folder alone, finds."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:2]; sys.path += sys.argv[2:]\n"
        "import headrace.transforms.batches as batches\n"
        "from headrace.schemas.registry import Registry\n"
        "assert batches.__file__.startswith(sys.argv[1]), batches.__file__\n"
        "print(*Registry.default().names())\n"
    )
    # -S leaves out the path files of an editable install; the libraries of this environment are named again.
    found = importlib.util.find_spec("pyarrow")
    assert found is not None and found.origin is not None
    command = [sys.executable, "-S", "-c", code, str(target), str(Path(found.origin).parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=target)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.integration
def test_what_the_sdist_builds_is_importable_on_its_own(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    target = tmp_path / "target"
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(target)]
    subprocess.run(build, cwd=next(tmp_path.glob("headrace-*")), check=True, capture_output=True)
    assert names_from(target) == FAMILIES


@pytest.mark.integration
def test_pip_installs_the_sdist(sdist: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(tmp_path),
        str(sdist),
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert names_from(tmp_path) == FAMILIES
    assert list(tmp_path.glob("headrace-*.dist-info"))


def test_version_and_requirements_are_those_of_the_launcher(tmp_path: Path) -> None:
    text = make_setup_file(tmp_path).read_text()
    assert f"version={importlib.metadata.version('headrace')!r}" in text
    assert "apache-beam[gcp]" in text
    assert "pytest" not in text


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        make_setup_file(tmp_path)


def test_missing_setuptools_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install setuptools"):
        make_setup_file(tmp_path)


def test_missing_metadata_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", absent)
    with pytest.raises(ConfigError, match="imported but not installed"):
        make_setup_file(tmp_path)
