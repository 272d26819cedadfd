"""Runs one command and says what it cost: CPU seconds of it and its children, wall time, peak memory."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_TAIL_BYTES = 2000
_SAMPLE_SECONDS = 0.1


class RunFailedError(Exception):
    """The command failed; the message has the end of its output."""


@dataclass(frozen=True)
class Usage:
    """What one run cost."""

    cpu_seconds: float
    """User and system time of the process and of all children that it waited for."""
    wall_seconds: float
    peak_bytes: int
    """Largest resident memory: of one process by the kernel, or of the whole tree as sampled, whichever is more."""


def measure(command: Sequence[str], *, log: Path, environment: dict[str, str] | None = None) -> Usage:
    """Runs the command to its end.

    On Linux a process starts with its parent's high-water mark, even after exec, so the measuring process must stay small: it
    imports neither pyarrow nor Beam.

    Args:
        log: file for the command's output.
        environment: of the command; default: this process's.

    Raises:
        RunFailedError: the exit code is not 0.
    """
    with open(log, "wb") as sink:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment)
        done = threading.Event()
        sampled: list[int] = []
        sampler = threading.Thread(target=_sample, args=(process.pid, done, sampled))
        sampler.start()
        try:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            done.set()
            sampler.join()
        wall = time.perf_counter() - start
    if process.returncode:
        tail = log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
        raise RunFailedError(f"exit code {process.returncode}: {' '.join(command)}\n{tail}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Usage(used.ru_utime + used.ru_stime, wall, max(used.ru_maxrss * unit, *sampled, 0))


def _sample(pid: int, done: threading.Event, peaks: list[int]) -> None:
    """Appends the tree's resident memory whenever it is larger than before."""
    while not done.wait(_SAMPLE_SECONDS):
        total = 0
        try:
            root = psutil.Process(pid)
            for process in (root, *root.children(recursive=True)):
                total += process.memory_info().rss
        except psutil.Error:
            continue  # A process of the tree has just ended: take the next sample.
        if total > (peaks[-1] if peaks else 0):
            peaks.append(total)
