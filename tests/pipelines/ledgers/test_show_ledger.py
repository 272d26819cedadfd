"""The ledger by the hour."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.pipelines.cli import app
from headrace.pipelines.ledgers.show_ledger import as_text, show_ledger
from headrace.schemas.errors import ConfigError
from tests.pipelines.ledgers.outputs import drop_row, make_batch

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    return make_batch(tmp_path_factory.mktemp("show"), key)


def test_rows_are_counted_by_the_hour_of_the_event_else_of_ingest(out: Path) -> None:
    shown = show_ledger(out)
    assert [(p.start, p.received, p.accepted, p.rejected) for p in shown.periods] == [
        ("2026-01-05T12", 58, 54, {"dedupe": 4}),
        (
            "2026-01-05T13",
            6,
            0,
            {"validate": 6},
        ),  # No time is known of what did not validate: that of its ingest.
    ]
    assert (shown.total.received, shown.ledger, shown.held) == (64, 64, 64)


def test_by_day_and_reason_and_a_span(out: Path) -> None:
    day = show_ledger(out, per="day", by="reason")
    assert [p.as_dict() for p in day.periods] == [
        {
            "start": "2026-01-05",
            "received": 64,
            "accepted": 54,
            "rejected": {"dedupe/duplicate": 4, "validate/required": 6},
            "rejected_share": 0.15625,
            "recovered": 0,
            "removed": 0,
        }
    ]
    assert [p.start for p in show_ledger(out, since="2026-01-05T13:00:00Z").periods] == ["2026-01-05T13"]
    assert [p.start for p in show_ledger(out, until="2026-01-05T14:00:00+01:00").periods] == ["2026-01-05T12"]
    assert show_ledger(out, per="day", since="2026-01-06").periods == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"since": "noon"}, "--since 'noon' is no time"),
        ({"since": "2026-01-05T12:30:00"}, "not at a full hour"),
        ({"per": "day", "until": "2026-01-05T12:00:00"}, "not at a full day"),
        ({"since": "2026-01-05", "until": "2026-01-05"}, "nothing lies between"),
    ],
)
def test_wrong_spans_are_refused(out: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        show_ledger(out, **options)  # type: ignore[arg-type]


def test_the_command_prints_a_table_or_json(out: Path) -> None:
    text = CliRunner().invoke(app, ["ledger", "show", str(out)]).stdout
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["received", "accepted", "dedupe", "validate", "rejected", "share"]
    assert lines[3] == ["total", "64", "54", "4", "6", "10", "15.6%"]
    said = json.loads(
        CliRunner().invoke(app, ["ledger", "show", str(out), "--by", "reason", "--json"]).stdout
    )
    assert said["total"]["rejected"] == {"dedupe/duplicate": 4, "validate/required": 6}


def test_tables_that_differ_from_the_ledger_are_told(tmp_path: Path, key: Path) -> None:
    out = make_batch(tmp_path, key)
    drop_row(out, "events")
    assert "do NOT agree" in as_text(show_ledger(out))
