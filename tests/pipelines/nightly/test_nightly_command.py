import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from headrace.pipelines.cli import app
from headrace.pipelines.nightly import nightly
from headrace.pipelines.nightly.nightly import NightlyResult
from headrace.pipelines.nightly.nightly_config import FunnelConfig, NightlyConfig
from headrace.pipelines.nightly.stale_dates import StaleDate
from headrace.schemas.errors import ConfigError
from tests.pipelines.nightly.lakes import BEGIN, add_events, random_events

GIVEN = ("--lake", "lake", "--output", "out")


def run(*args: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["run", "nightly", *args])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Notes what the pipeline is asked for, in place of running it."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    stale = [StaleDate(date(2026, 1, 2), "the lake's version 7 changed 1 of its files")]

    def fake(*args: Any, **named: Any) -> NightlyResult:
        found.append((args, named))
        return NightlyResult(Path("out"), "UTC", 7, [], stale, 1.0)

    monkeypatch.setattr(nightly, "run_nightly", fake)
    monkeypatch.setattr(nightly, "list_stale", fake)
    return found


def test_options_become_the_configuration(calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
    code, shown, error = run(
        *GIVEN, "--date", "2026-01-05", "--timezone", "Europe/Berlin", "--gap-seconds", "60", "--catch-up",
        "--direct_num_workers", "1",
    )  # fmt: skip
    assert (code, error) == (0, "")
    ((config, dates), named) = calls[0]
    assert config == NightlyConfig(lake="lake", output="out", timezone="Europe/Berlin", gap_seconds=60)
    assert dates == (date(2026, 1, 5), date(2026, 1, 5))
    assert named["catch_up"]
    assert named["beam_args"] == ["--runner=direct", "--direct_num_workers", "1"]
    assert "2026-01-02" in shown


def test_the_default_date_is_left_to_the_pipeline(
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]],
) -> None:
    assert run(*GIVEN)[0] == 0
    assert calls[0][0][1] is None


def test_stale_lists_dates_and_runs_none(calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
    code, shown, _ = run(*GIVEN, "--stale", "--json")
    assert code == 0
    assert [each["date"] for each in json.loads(shown)["stale"]] == ["2026-01-02"]
    assert len(calls[0][0]) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--output", "out"), "no lake"),
        (("--lake", "lake"), "no output"),
        ((*GIVEN, "--date", "5.1.2026"), "2026-01-31"),
        ((*GIVEN, "--from", "2026-01-05"), "--to is missing"),
        ((*GIVEN, "--date", "2026-01-05", "--from", "2026-01-05", "--to", "2026-01-06"), "one or the other"),
        ((*GIVEN, "--stale", "--date", "2026-01-05"), "--stale runs no date"),
        ((*GIVEN, "--timezone", "Europe/Berln"), "did you mean"),
        ((*GIVEN, "--gap-seconds", "0"), "gap_seconds is 0"),
        ((*GIVEN, "--gap-seconds", "86401"), "86400"),
        ((*GIVEN, "--catchup"), "--catch-up"),
        (GIVEN, "no Delta table"),
    ],
)
def test_wrong_use_is_refused_with_the_fix(args: tuple[str, ...], message: str) -> None:
    code, _, error = run(*args)
    assert code == 2
    assert message in error


def test_the_printed_configuration_reads_back(tmp_path: Path) -> None:
    code, shown, _ = run("--print-config", "--timezone", "Asia/Kolkata")
    assert code == 0
    (tmp_path / "c.yaml").write_text(shown)
    assert run("--print-config", "--config", str(tmp_path / "c.yaml"))[1] == shown


def test_a_wrong_funnel_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"funnels\.f: "):
        NightlyConfig(funnels={"f": FunnelConfig(steps={"a": {}})})


def test_a_run_from_the_command_line(tmp_path: Path) -> None:
    add_events(tmp_path / "lake", random_events(60, 1, BEGIN, 24), "a", 1)
    (tmp_path / "c.yaml").write_text("shards: 2\n")
    args = (
        "--lake",
        str(tmp_path / "lake"),
        "--output",
        str(tmp_path / "out"),
        "--config",
        str(tmp_path / "c.yaml"),
    )
    code, shown, error = run(*args, "--date", "2026-03-27", "--json")
    assert code == 0
    (day,) = json.loads(shown)["days"]
    assert (day["date"], day["already_done"], day["rows"]["cube_geo"] > 0) == ("2026-03-27", False, True)
    assert "2026-03-27" in error
    code, shown, _ = run(*args, "--from", "2026-03-27", "--to", "2026-03-28")
    assert code == 0
    assert "new users" in shown
    assert run(*args, "--stale")[1].startswith("No date")
