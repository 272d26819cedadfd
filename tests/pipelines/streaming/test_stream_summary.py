import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from headrace.connectors.ledger import Ledger
from headrace.pipelines.stream import StreamResult
from headrace.pipelines.streaming.stream_summary import as_json, print_summary

LEDGER = Ledger(10, 6, {"validate": {"type": 1}, "dedupe": {"duplicate": 3}})


def result(**changes: Any) -> StreamResult:
    values: dict[str, Any] = {
        "output": Path("lake/[a]"),
        "job": "s0001-x",
        "ledger": LEDGER,
        "late": {},
        "restarts": 0,
        "elapsed_seconds": 61.23456,
    }
    return StreamResult(**{**values, **changes})


def printed(result: StreamResult) -> str:
    file = io.StringIO()
    print_summary(result, Console(file=file, width=40))
    return file.getvalue()


def test_json() -> None:
    found = as_json(result(late={"events_per_minute": 4}, state="file:/s", restarts=2))
    assert found == {
        "rows_in": 10,
        "accepted": 6,
        "rejected": {"validate": {"type": 1}, "dedupe": {"duplicate": 3}},
        "balanced": True,
        "late": {"events_per_minute": 4},
        "output": "lake/[a]",
        "job": "s0001-x",
        "restarts": 2,
        "state": "file:/s",
        "elapsed_seconds": 61.235,
    }
    assert json.loads(json.dumps(found)) == found
    assert "rows_in" not in as_json(result(ledger=None))


def test_the_text_is_whole_in_a_narrow_terminal() -> None:
    assert printed(result()).splitlines() == [
        "Ended after 1:01; everything that was read is in lake/[a]",
        "  rows in    10",
        "  accepted   6",
        "  rejected   4",
        "  ledger     balanced, over all jobs that wrote here",
        "    dedupe / duplicate: 3",
        "    validate / type: 1",
        "",
        "The same command goes on from here.",
    ]


def test_late_rows_and_restarts_are_told_if_there_were_any() -> None:
    text = printed(result(late={"events_per_minute": 1_500}, restarts=3))
    assert "  late for events_per_minute: 1,500 (in the lake; kept in late/events_per_minute)\n" in text
    assert "  restarts   3\n" in text


def test_an_imbalance_is_shouted() -> None:
    assert "NOT balanced" in printed(result(ledger=Ledger(11, 6, {})))


def test_a_dry_run_says_that_nothing_was_started() -> None:
    assert printed(result(ledger=None)) == (
        "Checked: configuration, options and graph are sound; nothing was started\n"
    )
