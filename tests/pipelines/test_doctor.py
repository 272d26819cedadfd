import importlib.metadata
import json
import os
from collections import namedtuple
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.pipelines.cli import app
from headrace.pipelines.commands import doctor as module
from headrace.pipelines.commands.doctor import (
    Finding,
    check_disk,
    check_key,
    check_packages,
    check_python,
    check_schemas,
    check_tools,
)
from headrace.transforms.keys import KEY_FILE_VARIABLE, Key


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "key"
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(path))
    return path


@pytest.mark.parametrize(
    ("found", "status"),
    [((3, 10, 9), "missing"), ((3, 11, 0), "ok"), ((3, 13, 5), "ok"), ((3, 14, 0), "missing")],
)
def test_python_versions(found: tuple[int, int, int], status: str) -> None:
    finding = check_python(found)
    assert finding.status == status
    assert ("3.11, 3.12 or 3.13" in finding.detail) == (status == "missing")


def test_packages_are_held_against_their_ranges() -> None:
    installed = {"apache-beam": "2.76.0", "pyarrow": "25.0.1"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    stated = ["apache-beam[gcp]<2.78,>=2.77", "pyarrow<26,>=24", "orjson>=3.10", 'pytest>=8; extra == "dev"']
    assert list(check_packages(stated, version)) == [
        Finding(
            "apache-beam",
            "missing",
            "2.76.0 is installed; <2.78,>=2.77 is needed",
            "pip install 'apache-beam<2.78,>=2.77'",
        ),
        Finding("pyarrow", "ok", "25.0.1 (<26,>=24)"),
        Finding("orjson", "missing", "not installed; >=3.10 is needed", "pip install 'orjson>=3.10'"),
    ]


def test_this_environment_has_what_it_needs() -> None:
    found = {finding.name: finding for finding in check_packages()}
    assert {"apache-beam", "pyarrow", "deltalake", "typer"} <= set(found)
    assert {finding.status for finding in found.values()} == {"ok"}
    assert check_schemas().status == "ok"


def test_headrace_without_metadata_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    (finding,) = check_packages()
    assert (finding.name, finding.status) == ("headrace", "missing")


def test_lost_schemas_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.schemas.errors import ConfigError
    from headrace.schemas.registry import Registry

    monkeypatch.setattr(Registry, "default", lambda: Registry({}))
    assert check_schemas().detail.startswith("not packaged: behaviour, clickstream")

    def broken() -> None:
        raise ConfigError("schema file a is not JSON")

    monkeypatch.setattr(Registry, "default", broken)
    assert check_schemas().detail == "schema file a is not JSON"


def test_the_key_file_is_made_by_the_first_run(key_file: Path) -> None:
    finding = check_key()
    assert (finding.status, finding.fix) == ("warning", "headrace key create")


def test_a_key_that_others_can_read_is_a_warning(key_file: Path) -> None:
    key = Key(key_file, create=True)
    assert check_key() == Finding("key file", "ok", f"{key_file} (fingerprint {key.fingerprint})")
    key_file.chmod(0o640)
    assert check_key().fix == f"chmod 600 {key_file}"
    assert "mode 0640" in check_key().detail


def test_a_key_that_is_none_is_missing(key_file: Path) -> None:
    key_file.write_text("short")
    finding = check_key()
    assert finding.status == "missing" and "holds 5 bytes" in finding.detail
    assert "short" not in finding.detail


def test_disks_need_room_and_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage(0, 0, 5 * 2**30))
    assert check_disk(tmp_path, "tmp") == Finding("tmp", "ok", f"{tmp_path}: 5.0 GB free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage(0, 0, 2**30))
    assert (check_disk(tmp_path, "tmp").status, check_disk(tmp_path, "tmp").detail) == (
        "warning",
        f"{tmp_path}: 1.0 GB free",
    )
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    assert "can't be written to" in check_disk(tmp_path, "tmp").detail


def test_missing_tools_are_warnings_that_say_what_they_are_for() -> None:
    found = {f.name: f for f in check_tools(lambda name: "/usr/bin/java" if name == "java" else None)}
    assert found["java"].status == "ok"
    assert found["prism"].status == "warning" and "go install" in found["prism"].fix
    assert found["go"].detail == "not found; only for building Prism"


def test_the_command_says_that_all_is_well(key_file: Path) -> None:
    Key(key_file, create=True)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == "headrace is ready"
    assert "ok       apache-beam" in done.stdout


def test_the_command_fails_when_something_is_missing(key_file: Path) -> None:
    key_file.write_text("short")
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 2
    assert "fix: mend or move the file" in done.stdout
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 2
    found = json.loads(done.stdout)
    assert found["usable"] is False
    assert {"name", "status", "detail", "fix"} == set(found["findings"][0])
    assert [f["name"] for f in found["findings"] if f["status"] == "missing"] == ["key file"]
