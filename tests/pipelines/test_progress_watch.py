import threading
from pathlib import Path

import pytest

from headrace.pipelines import progress_watch
from headrace.pipelines.progress import Progress
from headrace.pipelines.progress_watch import watch
from headrace.pipelines.work_folder import ProgressFile, WorkFolder


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    work = WorkFolder(tmp_path)
    work.create()
    return work


def test_it_reports_while_the_job_runs_and_once_when_it_is_over(
    work: WorkFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_watch, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(progress_watch.time, "monotonic", lambda: 12.0)
    seen: list[Progress] = []
    polled, threads = threading.Event(), set()

    def on_progress(progress: Progress) -> None:
        seen.append(progress)
        threads.add(threading.current_thread().name)
        polled.set()

    with watch(work, on_progress, bytes_total=100, began=2.0):
        ProgressFile(work, 0).update(rows=3, rejected=1, bytes_read=40)
        polled.clear()
        assert polled.wait(10)
        polled.clear()
        assert polled.wait(10)
        during = seen[-1]
        ProgressFile(work, 1).update(rows=4, bytes_read=70)
        ProgressFile(work, 0, kind="finish").update(finished=2, rejected=1)
    assert (during.rows, during.rejected, during.bytes_read, during.phase) == (3, 1, 40, "reading")
    last = seen[-1]
    assert (last.rows, last.rejected, last.phase) == (7, 2, "writing")
    assert (last.bytes_read, last.bytes_total, last.elapsed_seconds) == (100, 100, 10.0)
    assert "headrace-progress" in threads
    assert not [t for t in threading.enumerate() if t.name == "headrace-progress"]


def test_it_stops_when_the_job_fails_and_reports_that_error(work: WorkFolder) -> None:
    seen: list[Progress] = []
    with pytest.raises(RuntimeError, match="job"), watch(work, seen.append, bytes_total=0, began=0.0):
        raise RuntimeError("job")
    assert len(seen) == 1
    assert not [t for t in threading.enumerate() if t.name == "headrace-progress"]
