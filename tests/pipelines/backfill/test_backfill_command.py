import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from headrace.pipelines.backfill import backfill
from headrace.pipelines.backfill.backfill import BackfillResult, DateResult
from headrace.pipelines.backfill.backfill_config import BackfillConfig
from headrace.pipelines.cli import app
from headrace.schemas.errors import ConfigError
from tests.pipelines.backfill.archives import at, event, write_day

GIVEN = ("--archive", "a", "--from", "2026-01-01", "--to", "2026-01-02", "--output", "out")
LEDGER = {"rows_in": 6, "accepted": 3, "rejected": {"time": {"stale": 2}}, "outside": 1, "balanced": True}
DAY = date(2026, 1, 5)


def run(*args: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["run", "backfill", *args])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[BackfillConfig, dict[str, Any]]]:
    """Notes what the pipeline is asked for, in place of running it."""
    found: list[tuple[BackfillConfig, dict[str, Any]]] = []

    def fake(config: BackfillConfig, **named: Any) -> BackfillResult:
        found.append((config, named))
        dates = [
            DateResult(date(2026, 1, 1), 3, {"time": {"stale": 2}}, False),
            DateResult(date(2026, 1, 2), 0, {}, True),
        ]
        return BackfillResult(Path("out"), LEDGER, dates, [date(2026, 1, 2)], 1.0)

    monkeypatch.setattr(backfill, "run_backfill", fake)
    return found


def test_options_become_the_configuration(calls: list[tuple[BackfillConfig, dict[str, Any]]]) -> None:
    code, shown, error = run(
        *GIVEN, "--exclude", "x/*", "--exclude", "y", "--allow-missing", "--ingest-column", "seen", "--parallel", "2",
        "--save_main_session",
    )  # fmt: skip
    assert (code, error) == (0, "")
    ((config, named),) = calls
    assert config == BackfillConfig(
        archive="a",
        first="2026-01-01",
        last="2026-01-02",
        output="out",
        exclude=["x/*", "y"],
        allow_missing=True,
        ingest_column="seen",
    )
    assert named["beam_args"] == [
        "--runner=direct",
        "--direct_running_mode=multi_processing",
        "--direct_num_workers=2",
        "--save_main_session",
    ]
    assert named["resume"] is False
    assert "rows in 6 = accepted 3 + rejected 2 + outside of the dates 1" in shown
    assert "without a file of their own: 2026-01-02" in shown


def test_lineage_is_told(
    calls: list[tuple[BackfillConfig, dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_LINEAGE", str(tmp_path / "lineage.jsonl"))
    assert run(*GIVEN)[0] == 0
    events = [json.loads(line) for line in (tmp_path / "lineage.jsonl").read_text().splitlines()]
    assert [(e["eventType"], e["job"]["name"]) for e in events] == [
        ("START", "backfill.out"),
        ("COMPLETE", "backfill.out"),
    ]
    assert [each["name"].rsplit("/", 1)[-1] for each in events[0]["inputs"]] == ["a"]


def test_the_summary_as_json(calls: list[tuple[BackfillConfig, dict[str, Any]]]) -> None:
    code, shown, _ = run(*GIVEN, "--json", "--quiet")
    assert code == 0
    found = json.loads(shown)
    assert found["rejected"] == {"time": {"stale": 2}}
    assert (found["missing"], found["already_done"]) == (["2026-01-02"], ["2026-01-02"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--archive", "a", "--output", "o"], "--from is missing"),
        ([*GIVEN[:2], "--from", "2026-02-30", *GIVEN[4:]], "'2026-02-30' is no date"),
        ([*GIVEN[:2], "--from", "2026-01-09", *GIVEN[4:]], "--from 2026-01-09 is after --to 2026-01-02"),
        (["--from", "2026-01-01", "--to", "2026-01-02", "--output", "o"], "no archive"),
        ([*GIVEN, "--runner", "flink", "--parallel", "2"], "--parallel is for --runner direct"),
        ([*GIVEN, "--direct_num_workers", "3", "--parallel", "2"], "--parallel is for --runner direct"),
        ([*GIVEN, "--paralel", "2"], "unknown option --paralel"),
        (["--resume"], "--resume needs --output"),
        (["--resume", "--output", "nowhere"], "has no plan of a backfill"),
        (["--archive", "s3://b/x", *GIVEN[2:]], "mount the bucket"),
    ],
)
def test_wrong_use_is_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_KEY_FILE", str(tmp_path / "key"))
    CliRunner().invoke(app, ["key", "create", str(tmp_path / "key")])
    code, _, error = run(*arguments)
    assert code == 2
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing_and_says_what_would_be_read(tmp_path: Path, key: Path) -> None:
    for n in range(-1, 2):
        day = date.fromordinal(DAY.toordinal() + n)
        write_day(tmp_path / "a", day, [event(100 + n * 50 + i, at(day, i)) for i in range(20)])
    asked = [
        "--archive",
        str(tmp_path / "a"),
        "--from",
        str(DAY),
        "--to",
        str(DAY),
        "--output",
        str(tmp_path / "out"),
    ]
    code, shown, error = run(*asked, "--key-file", str(key), "--dry-run", "--json")
    assert (code, error) == (0, "")
    found = json.loads(shown)
    assert (found["files"], found["row_groups"], found["row_groups_pruned"], found["rows"]) == (1, 2, 4, 20)
    assert (found["layout"], found["columns"], found["columns_skipped"], found["jobs"]) == ("hive", 24, 1, 1)
    assert found["sample_rows"] == 20
    assert found["seconds"] == pytest.approx(20 / found["rows_per_second"] + 5)
    code, shown, _ = run(*asked, "--key-file", str(key), "--dry-run", "--parallel", "2")
    assert "row groups  2 read, 4 left out by their statistics" in shown
    assert "in 2 processes; measured just now" in shown
    assert not (tmp_path / "out").exists()


def test_a_foreign_output_is_refused(tmp_path: Path, key: Path) -> None:
    write_day(tmp_path / "a", DAY, [event(1, at(DAY))])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    asked = [
        "--archive",
        str(tmp_path / "a"),
        "--from",
        str(DAY),
        "--to",
        str(DAY),
        "--output",
        str(tmp_path / "out"),
    ]
    code, _, error = run(*asked, "--key-file", str(key))
    assert code == 2
    assert "was not made by a backfill (it holds manifest.json)" in error


def test_dates_are_checked() -> None:
    config = BackfillConfig(archive="a", output="o", first="2026-02-27", last="2026-03-01")
    assert [day.isoformat() for day in config.dates()] == ["2026-02-27", "2026-02-28", "2026-03-01"]
    assert (config.days_before, config.days_after) == (1, 1)
    wide = BackfillConfig(max_age_seconds=86_401, max_ahead_seconds=0)
    assert (wide.days_before, wide.days_after) == (0, 2)
    with pytest.raises(ConfigError, match="rows_at_once is 0"):
        BackfillConfig(rows_at_once=0)
