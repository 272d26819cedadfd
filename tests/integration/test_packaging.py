"""Every way of installing headrace gives the modules, the schemas and the command."""

import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from headrace.runners.package import ROOMS
from tests.integration.bare_environment import BUILDERS, ROOT, make_bare_environment, packages_of, run

pytestmark = pytest.mark.integration

FAMILIES = {"behaviour", "clickstream", "commerce", "envelope", "financial", "interaction", "weblog"}
_LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "*.egg-info")


def packaged(root: Path) -> set[str]:
    """Returns the files that belong into a package, by their path under the namespace."""
    return {
        path.relative_to(root).as_posix()
        for room in ROOMS
        for pattern in (
            "*.py",
            "families/*/*.json",
            "servers/*.xml",
            "servers/pubsub_fake/*",
            "report/*.html",
            "py.typed",
        )
        for path in (root / room).rglob(pattern)
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, so that builds leave nothing behind in it."""
    folder = tmp_path_factory.mktemp("source") / "checkout"
    shutil.copytree(ROOT, folder, ignore=_LEFT_OUT)
    return folder


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the build backend that pyproject.toml asks for; returns its interpreter."""
    folder = tmp_path_factory.mktemp("builder")
    python = make_bare_environment(folder, without=BUILDERS)
    run(python, "-m", "pip", "install", "-q", "setuptools>=77", cwd=folder)
    return python


@pytest.fixture(scope="module")
def built(source: Path, builder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with an sdist and the wheel that was built from that sdist."""
    dist = tmp_path_factory.mktemp("dist")
    run(builder, "-m", "build", "--no-isolation", "--outdir", dist, source, cwd=dist)
    return dist


@pytest.fixture(scope="module")
def installable(source: Path, builder: Path, built: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What pip is told to install, by the way of installing."""
    again = tmp_path_factory.mktemp("again")
    [sdist], [wheel] = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(sdist) as archive:
        archive.extractall(again, filter="data")
    [unpacked] = again.iterdir()
    (unpacked / "README.md").unlink()
    run(builder, "-m", "build", "--no-isolation", "--sdist", "--outdir", again / "dist", unpacked, cwd=again)
    [second] = (again / "dist").iterdir()
    editable = again / "checkout"
    shutil.copytree(source, editable, ignore=_LEFT_OUT)
    return {
        "wheel": [wheel],
        "sdist": [sdist],
        "sdist of the sdist, without a README": [second],
        "folder": [source],
        "editable": ["-e", editable],
    }


def test_the_wheel_holds_the_rooms_and_nothing_else(source: Path, built: Path) -> None:
    [wheel] = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    stem = wheel.name.removesuffix("-py3-none-any.whl")
    about = {name for name in names if name.startswith(f"{stem}.dist-info/")}
    assert names - about == {f"headrace/{name}" for name in packaged(source)}
    assert {name.rpartition("/")[2] for name in about} == {
        "LICENSE",
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "top_level.txt",
    }


def test_the_sdist_holds_the_rooms_and_no_tests_or_build_output(source: Path, built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert packaged(source) <= names
    assert {"setup.py", "pyproject.toml", "README.md", "PKG-INFO"} <= names
    tops = {name.partition("/")[0] for name in names if "/" in name}
    assert tops == {*ROOMS, "headrace.egg-info"}


@pytest.mark.parametrize(
    "way", ["wheel", "sdist", "sdist of the sdist, without a README", "folder", "editable"]
)
def test_an_installed_headrace_is_whole(
    way: str, installable: dict, source: Path, builder: Path, tmp_path: Path
) -> None:
    home, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    python = make_bare_environment(home, libraries=packages_of(builder.parents[1]))
    pip = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    run(*pip, *installable[way], cwd=elsewhere)

    root = packages_of(home) / "headrace" if way != "editable" else installable[way][1]
    code = (
        "import headrace.transforms, headrace.pipelines.batch, headrace.schemas.registry as registry\n"
        "print(headrace.transforms.__file__, headrace.pipelines.batch.__file__, registry.__file__, sep='\\n')\n"
        "print(*registry.Registry.default().names())\n"
    )
    *files, names = run(python, "-c", code, cwd=elsewhere).stdout.splitlines()
    assert files == [
        str(root / path) for path in ("transforms/__init__.py", "pipelines/batch.py", "schemas/registry.py")
    ]
    assert set(names.split()) == FAMILIES
    assert packaged(root) == packaged(source)

    headrace = home / "bin" / "headrace"
    assert run(headrace, "--version", cwd=elsewhere).stdout == "headrace 0.1.0\n"
    listed = run(headrace, "schemas", "list", cwd=elsewhere).stdout.splitlines()
    assert {line.split()[0] for line in listed} == FAMILIES
