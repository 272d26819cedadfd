import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.pipelines.cli import app
from tests.pipelines.small_output import FIRST, SECOND, write_output


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    write_output(folder)
    return folder


def run(*args: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["explain", *args])
    return done.exit_code, done.stdout, done.stderr


def test_an_accepted_event_shows_its_row(out: Path) -> None:
    code, text, _ = run(FIRST.upper(), "--output", str(out))
    assert code == 0
    assert text.splitlines()[0] == "accepted: it's.jsonl:1 is in the lake"
    found = dict(line.split(maxsplit=1) for line in text.splitlines()[1:])
    assert found == {
        "event_id": FIRST,
        "event_time": "2024-05-17T12:00:00Z",
        "ingest_time": "2024-05-17T12:00:00Z",
        "event_type": "purchase",
        "price": "19.99",
        "properties": '{"colour":"[red]"}',
        "event_date": "2024-05-17",
    }


def test_a_rejected_record_shows_stage_reason_and_all_failures(out: Path) -> None:
    code, text, _ = run("it's.jsonl:3", "--output", str(out))
    assert code == 0
    assert text.splitlines()[:7] == [
        "rejected: it's.jsonl:3 is in the quarantine",
        "  stage    validate",
        "  reason   invalid",
        "  pointer  /price",
        "  message  expected a number",
        "  also     (the whole document): user_id is missing",
        "  document sealed, 6 bytes; it opens with the key only",
    ]
    code, text, _ = run("it's.jsonl:4", "--output", str(out))
    assert "  reason   stale\n  message  older than the limit\n" in text
    assert "pointer" not in text and "attempt" not in text


def test_json_has_the_rows(out: Path) -> None:
    code, text, _ = run(SECOND, "--output", str(out), "--json")
    assert code == 0
    found = json.loads(text)
    assert found["event"] == SECOND
    (row,) = found["found"]
    assert row["table"] == "events"
    assert row["columns"]["origin_position"] == 2
    assert row["columns"]["event_time"] == "2024-05-17T12:00:00Z"


def test_what_is_not_there_is_said_with_a_hint(out: Path) -> None:
    code, text, error = run("it's.jsonl:99", "--output", str(out))
    assert (code, text) == (1, "")
    assert (
        "it's.jsonl:99 is neither in the lake nor in the quarantine" in error and "ORIGIN:POSITION" in error
    )
    code, text, _ = run("it's.jsonl:99", "--output", str(out), "--json")
    assert (code, json.loads(text)) == (1, {"event": "it's.jsonl:99", "found": []})


def test_an_output_that_is_none_is_wrong_use(tmp_path: Path) -> None:
    code, _, error = run(FIRST, "--output", str(tmp_path / "no"))
    assert code == 2
    assert error.startswith("error: output ") and "does not exist" in error
