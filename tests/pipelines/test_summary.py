import io
import json
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from headrace.connectors.ledger import Ledger
from headrace.connectors.read_lake import find_event
from headrace.pipelines.summary import (
    BatchResult,
    Hints,
    as_json,
    next_commands,
    notes,
    print_summary,
    read_hints,
)
from tests.pipelines.small_output import NOW, result, write_output

STALE_TIMES = (datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 5, 10, 8, 30, 0, 500_000, UTC))
MOSTLY_STALE = Ledger(1000, 400, {"time": {"stale": 600}})


def printed(summary: BatchResult, hints: Hints | None = None) -> str:
    stream = io.StringIO()
    print_summary(summary, Console(file=stream, width=100), hints or Hints())
    return stream.getvalue()


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_it_says_what_came_in_and_where_it_went() -> None:
    text = lines(printed(result(Path("out"))))
    for expected in (
        "Done in 2.0 s, 2 rows/s",
        "rows in 4 100.0%",
        "accepted 2 50.0%",
        "rejected 2 50.0%",
        "ledger balanced: 4 = 2 + 2",
        "validate invalid 1",
        "time stale 1",
        "purchase 1",
        "[click] 1",
        "EUR 1,234.56",
        "enrich country country unknown 3",
    ):
        assert expected in text
    assert not [line for line in text if "profile missing" in line]
    assert text.index("validate invalid 1") < text.index("time stale 1")


def test_a_share_is_never_rounded_to_all_or_nothing() -> None:
    text = lines(
        printed(result(Path("out"), ledger=Ledger(10_000, 9_999, {"decode": {"malformed_line": 1}})))
    )
    assert "accepted 9,999 >99.9%" in text and "rejected 1 <0.1%" in text
    text = lines(printed(result(Path("out"), ledger=Ledger(3, 3))))
    assert "accepted 3 100.0%" in text and "rejected 0 0.0%" in text
    assert "rows in 0" in lines(printed(result(Path("out"), ledger=Ledger(0, 0))))


def test_into_a_file_nothing_is_wrapped_or_coloured() -> None:
    text = printed(result(Path("/a" * 100)), Hints(record="x:1"))
    assert "\x1b" not in text
    assert f"headrace explain x:1 --output {'/a' * 100}\n" in text
    assert not [line for line in text.splitlines() if line.endswith(" ")]


def test_a_ledger_that_does_not_balance_is_loud() -> None:
    text = printed(result(Path("out"), ledger=Ledger(5, 2, {"validate": {"invalid": 1}})))
    assert "NOT balanced" in text and "2 rows are missing" in " ".join(text.split())


def test_a_run_that_was_done_already_says_so() -> None:
    text = printed(result(Path("out"), already_done=True))
    assert text.startswith("Nothing to do: out holds this run already")
    assert "rows/s" not in text


def test_mostly_stale_rows_come_with_the_command_that_takes_them() -> None:
    summary = result(Path("out"), ledger=MOSTLY_STALE)
    (note,) = notes(summary, Hints(stale_times=STALE_TIMES))
    assert note == (
        "600 of 1,000 rows are stale against 2024-05-17T12:00:00Z (the start of the first run, as --now was not given). If the "
        "input is an archive, run again into another output with --now 2024-05-10T08:30:01Z --max-age-seconds 808201"
    )
    assert "note: 600 of 1,000 rows are stale" in printed(summary, Hints(stale_times=STALE_TIMES))


def test_a_short_archive_needs_no_wider_limit() -> None:
    end = datetime(2024, 5, 10, 8, tzinfo=UTC)
    (note,) = notes(result(Path("o"), ledger=MOSTLY_STALE, now_given=True), Hints(stale_times=(end, end)))
    assert "(--now)" in note and note.endswith("--now 2024-05-10T08:00:00Z")


def test_few_stale_rows_are_no_note_and_no_rows_are_one() -> None:
    assert notes(result(Path("out")), Hints()) == []
    assert notes(result(Path("out"), ledger=Ledger(0, 0)), Hints()) == ["the input holds no rows"]
    assert notes(result(Path("out"), ledger=MOSTLY_STALE), Hints())[0].endswith("--now END_OF_THE_DATA")


def test_json_has_every_figure_as_plain_values() -> None:
    found = json.loads(json.dumps(as_json(result(Path("out"), warnings=["careful"]), Hints())))
    assert found == {
        "rows_in": 4,
        "accepted": 2,
        "rejected": {"validate": {"invalid": 1}, "time": {"stale": 1}},
        "balanced": True,
        "output": "out",
        "now": "2024-05-17T12:00:00Z",
        "now_given": False,
        "already_done": False,
        "elapsed_seconds": 2.0,
        "rows_per_second": 2,
        "counts": {"enrich_country.country_unknown": 3, "enrich.profile_missing": 0},
        "top_event_types": [{"event_type": "purchase", "events": 1}, {"event_type": "[click]", "events": 1}],
        "revenue": [{"currency": "EUR", "amount": "1234.560000000"}],
        "warnings": ["careful"],
    }


def test_hints_come_from_the_committed_files(tmp_path: Path) -> None:
    write_output(tmp_path)
    hints = read_hints(result(tmp_path))
    assert hints.stale_times is None
    assert hints.record in ("it's.jsonl:3", "it's.jsonl:4")
    assert [row.table for row in find_event(tmp_path, str(hints.record))] == ["quarantine"]
    mostly = read_hints(result(tmp_path, ledger=Ledger(1, 0, {"time": {"stale": 1}})))
    assert mostly.stale_times == (datetime(2024, 5, 10, 8, 30, 0, 500_000, UTC),) * 2
    clean = read_hints(result(tmp_path, ledger=Ledger(2, 2)))
    assert clean.record == "it's.jsonl:1"
    assert read_hints(result(tmp_path, ledger=Ledger(0, 0))) == Hints()


def test_the_proposed_commands_run_as_they_stand(tmp_path: Path) -> None:
    out = tmp_path / "o'ut put"
    write_output(out)
    summary = result(out)
    explain, query = next_commands(summary, Hints(record="it's.jsonl:3"))
    assert shlex.split(explain)[1:] == ["explain", "it's.jsonl:3", "--output", str(out)]
    done = subprocess.run(query, shell=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert {"│click│1│", "│purchase│1│"} <= {line.replace(" ", "") for line in done.stdout.splitlines()}


def test_a_program_is_named_as_the_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "my env" / "bin"
    tools.mkdir(parents=True)
    for name in ("python", "headrace"):
        (tools / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tools / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    summary = result(Path("out"), ledger=Ledger(0, 0))
    command = f"'{tools}/headrace' explain x:1 --output out"
    assert next_commands(summary, Hints(record="x:1")) == [command]
    monkeypatch.chdir(tmp_path)
    assert next_commands(summary, Hints(record="x:1")) == ["'my env/bin/headrace' explain x:1 --output out"]
    monkeypatch.setenv("PATH", str(tools))
    assert next_commands(summary, Hints(record="x:1")) == ["headrace explain x:1 --output out"]


def test_a_simple_query_is_readable(tmp_path: Path) -> None:
    (query,) = next_commands(result(Path("out")), Hints())
    assert query.endswith("ORDER BY 2 DESC').show()\"") and "\\" not in query


@pytest.mark.parametrize("accepted", [0, 2])
def test_plain_parquet_is_read_as_a_folder(accepted: int, tmp_path: Path) -> None:
    commands = next_commands(result(tmp_path, ledger=Ledger(accepted, accepted)), Hints())
    assert len(commands) == (1 if accepted else 0)
    assert all("pyarrow.dataset.dataset(" in command and "DeltaTable" not in command for command in commands)


def test_outputs_that_exist_are_listed(tmp_path: Path) -> None:
    write_output(tmp_path)
    text = printed(result(tmp_path))
    assert f"{tmp_path / 'events'} the lake" in lines(text)
    assert "metrics" not in text
    assert NOW.isoformat()[:10] not in text
