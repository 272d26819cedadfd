import base64
import csv
import hashlib
import importlib.metadata
import tarfile
import zipfile
from pathlib import Path

import pytest

from headrace.runners.package import make_setup_file
from headrace.runners.wheel_backend import build_sdist, build_wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_setup_file(tmp_path_factory.mktemp("backend") / "tree").parent


def test_every_file_of_the_wheel_is_recorded_with_its_checksum(source: Path, tmp_path: Path) -> None:
    name = build_wheel(str(tmp_path), source=source)
    stem = f"headrace-{importlib.metadata.version('headrace')}"
    assert name == f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / name) as wheel:
        content = {entry: wheel.read(entry) for entry in wheel.namelist()}
    record = f"{stem}.dist-info/RECORD"
    rows = {path: (digest, size) for path, digest, size in csv.reader(content[record].decode().splitlines())}
    assert rows.pop(record) == ("", "")
    assert rows == {
        path: (
            "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("="),
            str(len(data)),
        )
        for path, data in content.items()
        if path != record
    }
    assert "headrace/schemas/families/weblog/1.0.0.json" in content
    assert "headrace/runners/wheel_backend.py" in content
    stated = content[f"{stem}.dist-info/METADATA"].decode()
    assert "Requires-Dist: apache-beam[gcp]" in stated
    assert "Requires-Python: " in stated
    assert "Root-Is-Purelib: true" in content[f"{stem}.dist-info/WHEEL"].decode()


@pytest.mark.integration
def test_the_sdist_of_equal_trees_is_equal_and_builds_an_equal_wheel(source: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second", "third", "fourth")]
    for folder in folders:
        folder.mkdir()
    name = build_sdist(str(folders[0]), source=source)
    sdist = folders[0] / name
    with tarfile.open(sdist) as archive:
        archive.extractall(folders[1], filter="data")
    [unpacked] = folders[1].iterdir()
    assert unpacked.name == name.removesuffix(".tar.gz")
    (unpacked / "PKG-INFO").unlink()
    assert (folders[2] / build_sdist(str(folders[2]), source=unpacked)).read_bytes() == sdist.read_bytes()
    wheels = [
        zipfile.ZipFile(folders[3] / build_wheel(str(folders[3]), source=tree)).namelist()
        for tree in (source, unpacked)
    ]
    assert wheels[0] == wheels[1]
