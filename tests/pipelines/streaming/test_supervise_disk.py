"""The supervisor on a full disk: the job goes on, its last state is not lost."""

from collections.abc import Callable
from typing import Any

import pytest

from headrace.connectors.atomic_file import OutputError
from headrace.connectors.stream_output import JobRecord
from headrace.pipelines.streaming.supervise import Supervisor

FULL = OutputError("stream.json: can't be written: No space left on device")


class _Output:
    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        self.saved = 0

    def save(self) -> None:
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        self.saved += 1


def _supervisor(output: Any) -> Supervisor:
    record = JobRecord("s0001-a", "2026-01-05T13:00:00Z", "lines://x", {}, {})
    task: Any = None
    engine: Any = None
    return Supervisor(engine, task, record, output, stop=None)  # type: ignore[arg-type]


def test_what_a_full_disk_refused_is_saved_once_there_is_room(caplog: pytest.LogCaptureFixture) -> None:
    output = _Output(FULL, FULL, None)
    supervisor = _supervisor(output)
    for _ in range(4):
        supervisor._remember("file:/chk-7")
    assert output.saved == 1
    assert [record.message for record in caplog.records] == [str(FULL)]
    assert supervisor._record.state == "file:/chk-7"


@pytest.mark.parametrize("remember", [lambda s: s._remember(None), lambda s: s._remember("file:/chk-7")])
def test_what_is_saved_is_not_written_again(remember: Callable[[Supervisor], None]) -> None:
    output = _Output()
    supervisor = _supervisor(output)
    supervisor._record.state = "file:/chk-7"
    remember(supervisor)
    assert output.saved == 0
