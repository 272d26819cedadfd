"""Replaying into the output of a batch: the lake becomes that of a run over undamaged input."""

import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

from headrace.connectors.ledger import Ledger
from headrace.connectors.removals import Step
from headrace.pipelines.cli import app
from headrace.pipelines.config import BatchConfig
from headrace.pipelines.replay import commit_replay as commits
from headrace.pipelines.replay import run_replay as module
from headrace.pipelines.replay.fixes import Fix
from headrace.pipelines.replay.replay_folder import records
from headrace.pipelines.replay.replay_rows import GONE
from headrace.pipelines.replay.run_replay import ReplayResult, run_replay
from headrace.schemas.errors import ConfigError
from headrace.transforms.keys import Key
from headrace.transforms.ready_windows import METRICS
from tests.pipelines.replay.damaged import FIXES, load, rows_of, write_events
from tests.pipelines.runs import files, run

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Runs:
    good: Path
    bad: Path
    key: Path
    fixes: list[Fix]
    damaged: int


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Runs:
    folder = tmp_path_factory.mktemp("replay")
    good, bad = write_events(folder)
    for name, path in (("good", good), ("bad", bad)):
        run(path, folder / name, key)
    damaged = Ledger.load(folder / "bad" / "ledger.json").total_rejected
    assert damaged > 100
    return Runs(folder / "good", folder / "bad", key, load(folder), damaged)


@pytest.fixture
def out(runs: Runs, tmp_path: Path) -> Path:
    shutil.copytree(runs.bad, tmp_path / "out")
    return tmp_path / "out"


def replay(out: Path, runs: Runs, *, fixes: bool = True, **more: Any) -> ReplayResult:
    own = runs.fixes if fixes else []
    config = more.pop("config", None) or BatchConfig(key_file=str(runs.key), rules={})
    return run_replay(out, config, fixes=own, fixes_text=FIXES if fixes else None, **more)


def metrics_of(out: Path) -> dict[str, list[str]]:
    return {
        name: sorted(map(str, pq.read_table(out / "metrics" / name, partitioning=None).to_pylist()))
        for name in METRICS
    }


def whole(out: Path) -> dict[str, Any]:
    """All that a reader of the output sees, without what differs between an undamaged and a mended record."""
    return {
        "events": rows_of(out, "events", "origin"),
        "quarantine": rows_of(out, "quarantine"),
        "metrics": metrics_of(out),
        "ledger": Ledger.load(out / "ledger.json").as_dict(),
    }


def test_what_is_mended_is_as_if_it_had_come_so(out: Path, runs: Runs) -> None:
    before = metrics_of(out)
    result = replay(out, runs)
    assert (result.record.recovered, result.record.failed, result.record.state) == (runs.damaged, {}, "done")
    assert whole(out) == whole(runs.good)
    assert result.record.corrected["events_per_minute"] > 30
    for name in result.record.corrected:
        _apply(out, name, before[name], metrics_of(runs.good)[name])
    again = replay(out, runs)
    assert (again.record.selected, again.record.state) == (0, "done")
    assert whole(out) == whole(runs.good)
    assert [each.recovered for each in records(out)] == [runs.damaged, 0]


def _apply(out: Path, name: str, before: list[str], after: list[str]) -> None:
    """Old rows taken out and new ones put in, the corrections lead from the table before to the one after."""
    held = Counter(before)
    corrections = DeltaTable(str(out / "corrections" / name)).to_pyarrow_table()
    assert set(corrections.column("cause").to_pylist()) == {
        f"replay {each.id}" for each in records(out) if each.recovered
    }
    for row in corrections.drop_columns(["cause", "corrected_at"]).to_pylist():
        old = row.pop("retraction")
        held[str(row)] += -1 if old else 1
    assert +held == Counter(after)
    assert min(held.values()) >= 0


def test_a_dry_run_says_the_same_and_changes_nothing(out: Path, runs: Runs) -> None:
    before = files(out, "events", "quarantine", "metrics", "replays")
    preview = replay(out, runs, dry_run=True)
    assert files(out, "events", "quarantine", "metrics", "replays") == before
    real = replay(out, runs)
    assert (preview.record.recovered, preview.record.corrected) == (
        real.record.recovered,
        real.record.corrected,
    )


def command(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["quarantine", "replay", *arguments], env={"COLUMNS": "200"})
    return done.exit_code, done.stdout, done.stderr


def test_the_command_tells_what_would_happen(out: Path, runs: Runs) -> None:
    config = out.parent / "batch.yaml"
    config.write_text("rules: {}")
    own = [str(out), "--config", str(config), "--key-file", str(runs.key)]
    own += ["--fix", str(runs.good.parent / "fixes.yaml")]
    code, text, _ = command(*own, "--where", "pointer = '/properties/price'", "--dry-run")
    assert code == 0
    assert re.search(r"^(\d+) rows selected: \1 would recover, 0 would fail again$", text, re.M)
    assert re.search(r"^    2026-01-05 12:\d\d to 12:\d\d event_type .*: events \d+ → \d+", text, re.M)
    assert text.endswith("nothing was changed (--dry-run)\n")
    code, text, _ = command(*own, "--json")
    assert (code, json.loads(text)["recovered"]) == (0, runs.damaged)
    assert command(*own, "--most-attempts", "0")[0] == 2
    code, _, error = command(str(out), "--fix", str(out / "none.yaml"))
    assert (code, "none.yaml can't be read: No such file" in error) == (2, True)


def test_what_fails_again_is_counted_up_and_parked(out: Path, runs: Runs) -> None:
    for attempt in (2, 3):
        result = replay(out, runs, fixes=False)
        assert (result.record.recovered, result.record.selected) == (0, runs.damaged)
        assert sum(sum(reasons.values()) for reasons in result.record.failed.values()) == runs.damaged
        found = DeltaTable(str(out / "quarantine")).to_pyarrow_table()
        assert set(found.column("attempt").to_pylist()) == {attempt}
        assert rows_of(out, "quarantine", "attempt") == rows_of(runs.bad, "quarantine", "attempt")
    parked = replay(out, runs)
    assert (parked.record.parked, parked.record.recovered) == (runs.damaged, 0)
    assert replay(out, runs, most_attempts=9).record.recovered == runs.damaged
    assert whole(out) == whole(runs.good)


def test_only_what_is_selected_is_replayed(out: Path, runs: Runs) -> None:
    result = replay(out, runs, where="reason = 'malformed_json'")
    assert result.record.taken == {"decode": {"malformed_json": result.record.recovered}}
    ledger = Ledger.load(out / "ledger.json")
    assert ledger.balanced
    assert ledger.total_rejected == runs.damaged - result.record.recovered
    assert "malformed_json" not in ledger.rejected.get("decode", {})
    assert replay(out, runs).record.recovered == ledger.total_rejected
    assert whole(out) == whole(runs.good)


STEPS = ["commit_files", "_change_quarantine", "_append", "_replace", "Ledger"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_interruption_is_finished_by_the_next(
    step: str, after: bool, out: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        real = getattr(commits, step)

        def interrupted(*arguments: Any, **more: Any) -> Any:
            if after:
                real(*arguments, **more)
            raise KeyboardInterrupt

        patch.setattr(commits, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            replay(out, runs)
    result = replay(out, runs)
    assert len(result.finished_before) == 1
    assert result.record.selected == 0
    assert whole(out) == whole(runs.good)
    for name in METRICS:
        rows = rows_of(out, f"corrections/{name}")
        assert len(rows) == len(set(rows))


def test_an_interruption_before_anything_is_committed_leaves_nothing(
    out: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "correct", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            replay(out, runs)
    assert whole(out) == whole(runs.bad)
    result = replay(out, runs, where="reason = 'malformed_json'")
    assert result.finished_before == []
    listed = {path.split("/")[-1] for path in DeltaTable(str(out / "events")).file_uris()}
    assert {path.name for path in (out / "events").rglob("*.parquet")} == listed


def test_an_event_that_came_again_meanwhile_is_a_duplicate(out: Path, runs: Runs, tmp_path: Path) -> None:
    """The first replay takes half of the rows; their copies are put back as they were."""
    replay(out, runs)
    other = tmp_path / "other"
    shutil.copytree(runs.bad, other)
    shutil.rmtree(other / "events")
    shutil.copytree(out / "events", other / "events")
    result = replay(other, runs)
    assert result.record.recovered == 0
    assert result.record.failed == {"dedupe": {"duplicate": runs.damaged}}


def test_rows_of_rules_are_mended_by_column(runs: Runs, tmp_path: Path, key: Path) -> None:
    rules = {"cheap": "price < 20"}
    input_ = runs.good.parent / "good.jsonl"
    ruled = run(input_, tmp_path / "ruled", key, rules=rules)
    lost = ruled.ledger.rejected["rules"]["cheap"]
    assert lost > 10
    fixes = tmp_path / "fixes.yaml"
    fixes.write_text("fixes: [{where: reason = 'cheap', steps: [{set: price, value: 20}]}]")
    own = module_fixes(fixes)
    result = run_replay(tmp_path / "ruled", BatchConfig(key_file=str(key), rules=rules), fixes=own)
    assert result.record.recovered == lost
    prices = DeltaTable(str(tmp_path / "ruled" / "events")).to_pyarrow_table().column("price").to_pylist()
    assert min(p for p in prices if p is not None) == 20
    pointers = tmp_path / "pointers.yaml"
    pointers.write_text("fixes: [{steps: [{drop: /a}]}]")
    run(input_, tmp_path / "again", key, rules=rules)
    waits = run_replay(
        tmp_path / "again", BatchConfig(key_file=str(key), rules=rules), fixes=module_fixes(pointers)
    )
    assert sum(waits.record.waiting.values()) == lost
    assert waits.record.recovered == 0


def module_fixes(path: Path) -> list[Fix]:
    from headrace.pipelines.replay.fixes import load_fixes
    from headrace.schemas.registry import Registry

    return load_fixes(path, Registry.default())


def test_what_would_not_fit_is_refused(out: Path, runs: Runs, tmp_path: Path) -> None:
    other = tmp_path / "key"
    Key(other, create=True)
    with pytest.raises(ConfigError, match="key differ from the run's"):
        replay(out, runs, config=BatchConfig(key_file=str(other), rules={}))
    with pytest.raises(ConfigError, match="metrics differ"):
        few = {"events_per_minute": None}
        replay(out, runs, config=BatchConfig(key_file=str(runs.key), rules={}, metrics=few))
    with pytest.raises(ConfigError, match="is no output of a run"):
        replay(tmp_path, runs)
    differing = replay(out, runs, config=BatchConfig(key_file=str(runs.key)), dry_run=True)
    assert differing.differences == ["rules"]


def test_rows_of_dates_that_went_by_policy_stay(
    out: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Step("events", "raw", "retention-1", "2026-01-06", partitions=["2026-01-05"])
    monkeypatch.setattr(module, "removed", lambda out, table: [step])
    result = replay(out, runs)
    assert (result.record.recovered, result.record.failed) == (0, {})
    assert result.record.waiting == {GONE: runs.damaged}
    assert whole(out) == whole(runs.bad)


def test_a_plain_lake_is_refused(tmp_path: Path, runs: Runs, key: Path) -> None:
    run(runs.good.parent / "bad.jsonl", tmp_path / "plain", key, lake_format="parquet")
    with pytest.raises(ConfigError, match="plain Parquet lake"):
        replay(tmp_path / "plain", runs)
