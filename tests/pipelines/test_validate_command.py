"""``headrace validate`` from argv to exit code."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from headrace.pipelines.commands.validate import validate
from headrace.schemas.errors import ConfigError, InputError

app = typer.Typer()
app.command()(validate)

EVENT = {
    "event_id": "3f2504e0-4f89-41d3-9a0c-0305e82c3301",
    "user_id": "u",
    "timestamp": "2024-01-02T03:04:05Z",
    "event_type": "view",
}


def run(*args: Any, text: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], input=text)


def write(path: Path, *documents: Any) -> Path:
    path.write_text("\n".join(item if isinstance(item, str) else json.dumps(item) for item in documents))
    return path


def test_json_gives_one_line_a_document(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", EVENT, "", {**EVENT, "event_id": "secret"}, "{oops")
    result = run("--schema", "interaction", "--input", source, "--output-format", "json")
    assert result.exit_code == 1
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[0] == {"document": 1, "valid": True, "errors": []}
    failure = {"code": "format", "pointer": "/event_id", "message": "is not a valid uuid"}
    assert lines[1] == {"document": 2, "valid": False, "errors": [failure]}
    assert list(lines[1]) == ["document", "valid", "errors"]
    assert lines[2]["document"] == 3
    assert lines[2]["errors"][0]["code"] == "malformed"
    assert lines[2]["errors"][0]["message"].startswith("line 4, column 2: not JSON")
    assert "secret" not in result.stdout


def test_text_shows_the_invalid_and_a_summary(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", EVENT, {"event_id": 5})
    result = run("--schema", "interaction:1.0.0", "--input", source)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "document 2 (line 2) is invalid"
    assert '  (whole document): property "user_id" is missing [required]' in lines
    assert "  /event_id: expected string, found number [type]" in lines
    assert lines[-1] == "2 document(s): 1 valid, 1 invalid"


def test_all_valid_is_exit_0(tmp_path: Path) -> None:
    source = tmp_path / "pretty.json"
    source.write_text(json.dumps(EVENT, indent=2))
    result = run("--schema", "interaction", "--input", source)
    assert (result.exit_code, result.stdout) == (0, "1 document(s): 1 valid, 0 invalid\n")
    (tmp_path / "empty").write_text("")
    assert (
        run("--schema", "interaction", "--input", tmp_path / "empty").stdout
        == "0 document(s): 0 valid, 0 invalid\n"
    )


def test_any_schema_file_with_refs_into_its_folder_and_standard_input(tmp_path: Path) -> None:
    write(tmp_path / "count.json", {"type": "integer", "minimum": 1})
    draft = "http://json-schema.org/draft-04/schema#"
    schema = write(tmp_path / "any.json", {"$schema": draft, "additionalProperties": {"$ref": "count.json"}})
    result = run(
        "--schema", schema, "--input", "-", "--output-format", "json", text='{"a": 1}\n{"a": 1.0}\n{"a": 0}\n'
    )
    found = [[error["code"] for error in json.loads(line)["errors"]] for line in result.stdout.splitlines()]
    assert found == [[], ["type"], ["minimum"]]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("interacton", "unknown schema 'interacton'; did you mean interaction"),
        ("interaction:2.0.0", "has no version '2.0.0'"),
        ("none.json", "none.json can't be read: No such file"),
        ("bad.json", "unusable schema at /type"),
        ("text.json", "is not JSON: line 1, column 1"),
        ("list.json", "a schema is a JSON object or a boolean"),
        ("latin.json", "is not UTF-8"),
        ("far.json", "never to the network"),
    ],
)
def test_unusable_schema_is_a_configuration_error(tmp_path: Path, schema: str, message: str) -> None:
    write(tmp_path / "bad.json", {"type": "no"})
    write(tmp_path / "text.json", "nope")
    write(tmp_path / "list.json", [])
    write(tmp_path / "far.json", {"$ref": "https://example.com/x"})
    (tmp_path / "latin.json").write_bytes(b'"\xff"')
    source = write(tmp_path / "in.jsonl", EVENT)
    result = run("--schema", tmp_path / schema if schema.endswith("json") else schema, "--input", source)
    assert isinstance(result.exception, ConfigError | InputError)
    assert message in str(result.exception)
    assert result.stdout == ""


def test_missing_input_is_an_input_error(tmp_path: Path) -> None:
    result = run("--schema", "interaction", "--input", tmp_path / "none")
    assert isinstance(result.exception, InputError)
    assert "does not exist" in str(result.exception)


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    schema = write(tmp_path / "s.json", {"additionalProperties": {"type": "null"}})
    source = write(tmp_path / "in.jsonl", {"\x1b[2J\u009b": 1})
    result = run("--schema", schema, "--input", source)
    assert "  /\\x1b[2J\\x9b: expected null, found number [type]" in result.stdout.splitlines()


def test_help_shows_an_example() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "Example:" in result.stdout and "--schema commerce" in result.stdout
