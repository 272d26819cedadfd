import json
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from headrace.connectors.commit_stream import StreamCommitter
from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.connectors.stream_output import StreamOutput, open_stream_output
from headrace.pipelines.build_definition import build_definition
from headrace.pipelines.stream_config import StreamConfig
from headrace.pipelines.streaming.start import Start
from headrace.pipelines.streaming.stream_task import SEEDED, StreamTask
from headrace.schemas.errors import ConfigError
from headrace.simulator.simulate import simulate
from headrace.simulator.summary import SimulationSummary
from tests.pipelines.runs import event, lines, rows
from tests.pipelines.streaming.line_source import LineSource
from tests.pipelines.streaming.local import NOW, Local, check_windows


@dataclass
class NoEngine:
    """A runner that keeps no state, or keeps some; notes what it is asked for."""

    point: str | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def recover(self, name: str, state: str | None) -> str | None:
        self.asked.append((name, state))
        return self.point


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationSummary]:
    simulation = simulate(600, 3, fault_rate=0.5)
    path = tmp_path_factory.mktemp("simulated") / "events.jsonl"
    path.write_bytes(b"".join(simulation))
    return path, simulation.summary


def config_of(tmp_path: Path, key: Path, **changes: Any) -> StreamConfig:
    settings: dict[str, Any] = {
        "source": "dir:x",
        "output": str(tmp_path / "out"),
        "key_file": str(key),
        "shards": 2,
        "early_seconds": 0,
        "accumulation": "accumulating",
        "commit_seconds": 1.0,
        "poll_seconds": 0.01,
        "until": "2026-01-05T13:00:01Z",
    }
    return StreamConfig(**{**settings, **changes})


def plan(
    output: StreamOutput,
    config: StreamConfig,
    source: LineSource,
    engine: NoEngine | None = None,
    rebuild: str | None = None,
) -> Start:
    return Start.plan(
        output,
        config,
        build_definition(config),
        source,
        engine or NoEngine(),  # type: ignore[arg-type]
        rebuild=rebuild,
        clock=lambda: NOW,
    )


def job(
    config: StreamConfig, source: LineSource, *, rebuild: str | None = None, engine: NoEngine | None = None
) -> StreamTask:
    """Starts a job as the launcher does, without a runner."""
    with open_stream_output(config.output) as output:
        task = plan(output, config, source, engine, rebuild).task(None)
    StreamCommitter(task.output, app_id=task.job, lake_schema=task.definition.lake_schema()).prepare()
    return task


def cut(local: Local, seed: int) -> None:
    """Runs a job until it is in the middle, and leaves it there: committed, half committed and uncommitted files."""
    local.random.seed(seed)
    while read_stream_ledger(local.task.output).rows_in < 120 + 80 * seed:
        for _ in range(4):
            local.now += 200_000
            local.step()
    for _ in range(6):
        local.step()


def seeded_then_run(local: Local) -> None:
    """Runs a job whose first reader seeds; tells the others as the launcher does."""
    while not local.ended():
        for _ in range(6):
            local.step()
        polls = local.task.control.seed_polls()
        done = read_stream_ledger(local.task.output).readers
        if polls is not None and 0 in done and done[0].done >= polls:
            local.task.control.ask(SEEDED)
    local.settle()


def finals(out: Path) -> list[dict[str, Any]]:
    if not (out / "metrics" / "events_per_minute").exists():
        return []
    found = DeltaTable(str(out / "metrics" / "events_per_minute")).to_pyarrow_table().to_pylist()
    return [row for row in found if row["is_final"]]


@pytest.mark.integration
@pytest.mark.parametrize(("seed", "readers"), [(0, 1), (1, 2), (2, 1), (3, 2)])
def test_a_job_from_the_lake_completes_what_a_crash_left(
    seed: int,
    readers: int,
    simulated: tuple[Path, SimulationSummary],
    tmp_path: Path,
    key: Path,
    warm: None,
) -> None:
    path, summary = simulated
    source = LineSource(str(path), NOW, per_poll=20)
    config = config_of(
        tmp_path, key, readers=readers, rules={}, watermark_delay_seconds=60, allowed_lateness_seconds=60
    )
    first = Local(job(config, source), seed=seed)
    cut(first, seed)
    out = tmp_path / "out"
    before = read_stream_ledger(out)
    assert 0 < before.rows_in < 600
    fired = finals(out)

    task = job(config, source)
    assert task.seed is not None and task.number == 1 and task.job != first.task.job
    second = Local(task, seed=seed + 10)
    if readers == 1:
        second.run()
    else:
        seeded_then_run(second)

    totals = read_stream_ledger(out)
    assert totals.balanced and totals.drained and totals.rows_in == 600
    events = [row["event_id"] for row in rows(out, "events")]
    assert len(events) == len(set(events)) == totals.accepted == summary.classes["accepted"]
    assert len(rows(out, "quarantine")) == 600 - totals.accepted
    check_windows(out)
    closed = task.seed.closed["events_per_minute"]
    assert any(closed) and fired
    for row in finals(out):
        if row["pane_index"] >= 1 << 20:
            end = closed[row["window_shard"]]
            assert end is None or row["window_end"].timestamp() * 1_000_000 > end


@pytest.mark.integration
def test_another_definition_needs_a_word_and_goes_on_from_the_lake(
    simulated: tuple[Path, SimulationSummary], tmp_path: Path, key: Path, warm: None
) -> None:
    path, summary = simulated
    source = LineSource(str(path), NOW, per_poll=20)
    config = config_of(tmp_path, key, rules={})
    first = Local(job(config, source))
    cut(first, 1)
    changed = replace(config, rules={"clicks": "event_type = 'page_view'"})
    with pytest.raises(ConfigError, match=r"rules was \{\}, is \{'clicks': .*add --rebuild-state-from OUT"):
        job(changed, source)
    with pytest.raises(ConfigError, match="state can be rebuilt only from the lake that the stream goes on"):
        job(changed, source, rebuild=str(tmp_path))

    second = Local(job(changed, source, rebuild=config.output))
    old = {row["event_id"] for row in rows(tmp_path / "out", "events")}
    second.run()
    totals = read_stream_ledger(tmp_path / "out")
    assert totals.balanced and totals.rows_in == 600
    events = rows(tmp_path / "out", "events")
    assert len({row["event_id"] for row in events}) == len(events) == totals.accepted
    assert totals.accepted + totals.rejected["rules"]["clicks"] == summary.classes["accepted"]
    assert all(row["event_type"] != "page_view" for row in events if row["event_id"] not in old)
    check_windows(tmp_path / "out")


def test_copies_of_what_the_job_before_accepted_are_known(tmp_path: Path, key: Path, warm: None) -> None:
    path = tmp_path / "events"
    path.write_bytes(lines(event(number) for number in range(40)))
    source = LineSource(str(path), NOW, partitions=1, per_poll=20)
    config = config_of(tmp_path, key, rules={})
    Local(job(config, source)).run()
    more = tmp_path / "more" / "events"
    more.parent.mkdir()
    again = [
        event(number % 40, user_id="other" if number == 47 else f"user-{number % 40 % 7}")
        for number in range(40, 60)
    ]
    more.write_bytes(path.read_bytes() + lines(again) + lines([event(99)]))
    second = Local(job(config, replace(source, path=str(more))), seed=1)
    second.run()
    totals = read_stream_ledger(tmp_path / "out")
    assert (totals.rows_in, totals.accepted) == (61, 41)
    assert totals.rejected == {"dedupe": {"duplicate": 19, "duplicate_conflict": 1}}
    check_windows(tmp_path / "out")


@pytest.mark.integration
def test_the_same_command_reads_nothing_twice(
    simulated: tuple[Path, SimulationSummary], tmp_path: Path, key: Path, warm: None
) -> None:
    source = LineSource(str(simulated[0]), NOW, per_poll=100)
    config = config_of(tmp_path, key)
    Local(job(config, source)).run()
    out = tmp_path / "out"
    before, ledger = rows(out, "events"), read_stream_ledger(out)
    Local(job(config, source)).run()
    after = read_stream_ledger(out)
    assert (after.rows_in, after.accepted, after.rejected, after.late) == (
        ledger.rows_in,
        ledger.accepted,
        ledger.rejected,
        ledger.late,
    )
    assert rows(out, "events") == before and after.balanced and after.drained
    check_windows(out)


def test_a_job_whose_state_is_kept_goes_on_as_itself(tmp_path: Path, key: Path) -> None:
    source = LineSource(str(tmp_path / "x"), NOW)
    config = config_of(tmp_path, key)
    with open_stream_output(config.output) as output:
        first = plan(output, config, source)
        assert first.restore is None and first.task(None).seed is None
        assert output.last is not None
        output.last.state = "file:/chk-1"
        engine = NoEngine("file:/chk-2")
        again = plan(output, config, source, engine)
        assert engine.asked == [(StreamTask.name_of(str(output.out), first.record.name), "file:/chk-1")]
        assert again.restore == "file:/chk-2" and len(output.jobs) == 1
        one, two = first.task(None), again.task("http://h:1")
        assert (one.job, one.positions, one.number) == (two.job, two.positions, two.number)
        assert one.run != two.run and two.checkpoints == "http://h:1"

        other = plan(output, replace(config, readers=2), source, engine)
        assert other.restore is None and len(output.jobs) == 2 and len(other.task(None).positions) == 2
        rebuilt = plan(output, config, source, engine, rebuild=config.output)
        assert rebuilt.restore is None and len(output.jobs) == 3 and rebuilt.task(None).number == 2
        assert len({record.name for record in output.jobs}) == 3


def test_another_source_and_other_window_shards_are_refused(tmp_path: Path, key: Path) -> None:
    source = LineSource(str(tmp_path / "x"), NOW)
    config = config_of(tmp_path, key)
    with open_stream_output(config.output) as output:
        plan(output, config, source)
        with pytest.raises(ConfigError, match="source was lines://x, is lines://y"):
            plan(output, config, LineSource(str(tmp_path / "y"), NOW))
        with pytest.raises(ConfigError, match=r"window_shards was 2, is 3: .*leave it as it was"):
            plan(output, replace(config, window_shards=3), source, rebuild=config.output)
        assert len(output.jobs) == 1


def test_the_task_is_what_the_configuration_says(tmp_path: Path, key: Path) -> None:
    config = config_of(tmp_path, key, until="10m", dedupe_seconds=90, commit_seconds=0.5)
    with open_stream_output(config.output) as output:
        start = plan(output, config, LineSource(str(tmp_path / "x"), NOW))
        task = start.task(None)
    assert task.until_us == round((NOW + timedelta(minutes=10)).timestamp() * 1_000_000)
    assert (task.horizon, task.commit_us) == (timedelta(seconds=90), 500_000)
    assert json.loads(task.positions[0]) == {"0": 0, "1": 0, "2": 0, "3": 0}
