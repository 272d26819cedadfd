import pickle
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from headrace.pipelines.streaming.stream_task import DRAIN, FINISH, SEEDED, Control, StreamTask
from headrace.transforms.ready_windows import METRICS
from tests.pipelines.streaming.line_source import LineSource
from tests.pipelines.streaming.local import make_task


def test_names_and_keys(tmp_path: Path, key: Path) -> None:
    source = LineSource(str(tmp_path / "x"), datetime(2026, 1, 5, tzinfo=UTC))
    task = make_task(tmp_path / "out", source, key, readers=3, window_shards=4)
    assert task.readers == 3
    assert [name for name, _ in task.metrics] == sorted(METRICS)
    assert task.window_keys == 4
    assert replace(task, definition=replace(task.definition, metrics={})).window_keys == 0
    assert task.job_name == StreamTask.name_of(task.output, task.job)
    assert task.job_name.startswith("headrace-") and task.job_name.endswith(f"-{task.job}")
    assert StreamTask.name_of("/other", task.job) != task.job_name
    again = pickle.loads(pickle.dumps(task))
    assert (again.positions, again.source, again.definition.key) == (
        task.positions,
        source,
        task.definition.key,
    )


def test_what_the_launcher_asks(tmp_path: Path) -> None:
    control = Control(tmp_path / "_control" / "job")
    assert control.asked() is None and not control.seeded
    control.clear()
    control.ask(SEEDED)
    assert control.asked() is None and control.seeded
    control.ask(DRAIN)
    assert control.asked() == DRAIN
    control.ask(FINISH)
    assert control.asked() == FINISH
    control.clear()
    assert control.asked() is None and control.seeded


def test_the_first_reader_tells_how_long_its_seed_was(tmp_path: Path) -> None:
    control = Control(tmp_path / "_control" / "job")
    assert control.seed_polls() is None
    control.tell_seed(3)
    control.tell_seed(3)
    assert control.seed_polls() == 3 and control.asked() is None
    control.clear()
    assert control.seed_polls() == 3
    assert [p.name for p in (tmp_path / "_control" / "job").iterdir()] == ["seed-polls"]
