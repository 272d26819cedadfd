"""Watching a running batch job from the launcher."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headrace.pipelines.progress import Progress
from headrace.pipelines.work_folder import WorkFolder

POLL_SECONDS = 0.5


@contextmanager
def watch(
    work: WorkFolder, on_progress: Callable[[Progress], None], *, bytes_total: int, began: float
) -> Iterator[None]:
    """Calls ``on_progress`` about twice a second, from a thread of its own, with the sum of the splits' progress files."""
    stop = threading.Event()

    def report() -> None:
        done = work.progress()
        read = min(done["bytes_read"], bytes_total)
        on_progress(
            Progress(
                rows=done["rows"],
                rejected=done["rejected"],
                bytes_read=read,
                bytes_total=bytes_total,
                elapsed_seconds=time.monotonic() - began,
                phase="writing" if done["finished"] else "reading",
            )
        )

    def poll() -> None:
        while not stop.wait(POLL_SECONDS):
            report()

    thread = threading.Thread(target=poll, name="headrace-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        report()
