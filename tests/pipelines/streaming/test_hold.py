"""Readers that wait for the stages after them."""

import threading
from pathlib import Path
from typing import Any

import pytest

from headrace.connectors.stream_ledger import StreamTotals, read_stream_ledger
from headrace.connectors.stream_output import StreamOutput
from headrace.pipelines.streaming.read_fn import TICK
from headrace.pipelines.streaming.stream_task import DRAIN, HOLD, StreamTask
from headrace.pipelines.streaming.supervise import MOST_IN_FLIGHT, Supervisor
from headrace.simulator.simulate import simulate
from tests.pipelines.streaming.line_source import LineSource
from tests.pipelines.streaming.local import COMMIT, NOW, Local, make_task


def task_of(folder: Path, key: Path, **changes: Any) -> StreamTask:
    path = folder / "events.jsonl"
    path.write_bytes(b"".join(simulate(100, 3)))
    return make_task(folder / "out", LineSource(str(path), NOW, per_poll=40), key, **changes)


def test_readers_that_are_held_read_nothing_and_go_on_after_it(tmp_path: Path, key: Path, warm: None) -> None:
    task = task_of(tmp_path, key)
    local = Local(task)
    local.heartbeat()
    poll, position = local.reader().poll, local.reader().position
    task.control.hold(True)
    assert local.heartbeat() == [(COMMIT, 0, TICK)]
    assert (local.reader().poll, local.reader().position) == (poll, position)
    task.control.hold(False)
    local.run()
    assert read_stream_ledger(tmp_path / "out").rows_in == 100


def test_a_drain_goes_before_a_hold_and_a_new_run_forgets_it(tmp_path: Path, key: Path) -> None:
    control = task_of(tmp_path, key).control
    control.hold(False)
    control.hold(True)
    assert control.asked() == HOLD
    control.ask(DRAIN)
    assert control.asked() == DRAIN
    control.clear()
    assert control.asked() is None


@pytest.mark.parametrize(
    ("checkpoints", "expected"), [(None, [False, True, True, False, False]), ("http://flink", [False] * 5)]
)
def test_readers_wait_while_too_many_rows_are_in_flight(
    checkpoints: str | None, expected: list[bool], tmp_path: Path, key: Path
) -> None:
    """On a runner with checkpoints, which holds them back itself, a job may go on without its launcher: nothing holds it there."""
    task = task_of(tmp_path, key, checkpoints=checkpoints)
    anything: Any = None
    supervisor = Supervisor(anything, task, anything, StreamOutput(tmp_path), stop=threading.Event())
    found = []
    for part in (1.0, 1.001, 0.6, 0.5, 0.9):
        supervisor._hold_readers(StreamTotals(in_flight=round(MOST_IN_FLIGHT * part)))
        found.append(task.control.asked() == HOLD)
    assert found == expected
