import json

import pytest
from typer.testing import CliRunner

from headrace.pipelines.cli import app


def run(*args: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["runners", *args])
    return done.exit_code, done.output


def test_the_list_names_every_runner_with_what_it_can() -> None:
    code, text = run("list")
    assert code == 0
    lines = {line.split()[0]: line for line in text.splitlines() if not line.startswith(" ")}
    assert list(lines) == ["direct", "portable", "prism", "flink", "dataflow", "spark"]
    assert "batch, stream" in lines["flink"] and "batch, stream" in lines["prism"]
    assert lines["direct"].split()[1:3] == ["batch", "batches"]
    assert "Flink 1.19 with Beam's job server 2.70" in text


def test_the_list_as_json_has_the_reasons() -> None:
    rows = {row["name"]: row for row in json.loads(run("list", "--json")[1])}
    assert (rows["dataflow"]["batch"], rows["dataflow"]["stream"]) == (False, True)
    assert "--runner=prism" in rows["direct"]["no_stream"] and rows["flink"]["no_stream"] == ""


def test_a_check_says_what_is_wrong_and_ends_with_1() -> None:
    code, text = run("check", "direct", "--for", "stream")
    assert code == 1
    assert text.splitlines()[0].startswith("wrong    options  it can't run streams: ")
    assert text.splitlines()[-1] == "direct is not ready: see the fixes above"


def test_a_check_that_finds_nothing_wrong() -> None:
    code, text = run("check", "direct")
    assert (code, text.splitlines()) == (
        0,
        ["ok       options  fit for a batch", "ok       beam     2.77.0", "direct is ready"],
    )


def test_a_check_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_PRISM", "/nothing/prism")
    code, text = run("check", "prism", "--json", "--experiments=one")
    found = json.loads(text)
    assert (code, found["fit"]) == (1, False)
    assert [(f["name"], f["status"]) for f in found["findings"]] == [("options", "wrong"), ("prism", "wrong")]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["check", "flnik"], "did you mean 'flink'?"),
        (["check", "flink", "--flink_rset=x"], "did you mean '--flink_rest'?"),
        (["check", "flink", "--for=both"], "give stream or batch"),
    ],
)
def test_wrong_use_ends_with_2(args: list[str], message: str) -> None:
    code, text = run(*args)
    assert code == 2 and message in text
