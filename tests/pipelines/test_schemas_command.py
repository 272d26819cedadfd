"""``headrace schemas list | show | check`` from argv to exit code."""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from headrace.pipelines.commands.schemas import app
from headrace.schemas.errors import ConfigError, InputError
from headrace.schemas.registry import Registry


def run(*args: Any) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_list_names_every_family_with_its_versions() -> None:
    result = run("list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == Registry.default().names()
    assert lines[2].split(maxsplit=2)[1:] == ["1.0.0", "Product views, carts, purchases and refunds."]


def test_show_prints_the_document() -> None:
    for reference in ("commerce", "commerce:1.0.0"):
        assert json.loads(run("show", reference).stdout) == Registry.default().get("commerce").document
    assert isinstance(run("show", "commerse").exception, ConfigError)


def test_check_compatible_and_not(tmp_path: Path) -> None:
    old = dict(Registry.default().get("weblog").document)
    new = write(
        tmp_path / "new.json", {**old, "properties": {**old["properties"], "host": {"type": "string"}}}
    )
    result = run("check", "weblog", new)
    assert (result.exit_code, result.stdout) == (0, f"{new} is backward compatible with weblog\n")
    result = run("check", "weblog:1.0.0", new, "--mode", "forward")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == (
        "forward  /additionalProperties  NEW has property 'host', OLD forbids it"
    )
    assert run("check", "weblog", new, "--mode", "full").exit_code == 1


def test_check_closed(tmp_path: Path) -> None:
    old = write(tmp_path / "old.json", {"type": "object"})
    new = write(tmp_path / "new.json", {"type": "object", "properties": {"a": {"type": "string"}}})
    result = run("check", old, new)
    assert result.exit_code == 1
    assert "/properties/a" in result.stdout and "1 reason(s)" in result.stdout
    assert run("check", old, new, "--closed").exit_code == 0


def test_check_unusable(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.json", {"type": "no"})
    assert isinstance(run("check", "weblog", bad).exception, ConfigError)
    assert isinstance(run("check", "weblog", tmp_path / "none.json").exception, InputError)
    assert run("check", "weblog", bad, "--mode", "sideways").exit_code == 2


def test_help_shows_examples() -> None:
    for command in ("list", "show", "check"):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert f"headrace schemas {command}" in result.stdout
