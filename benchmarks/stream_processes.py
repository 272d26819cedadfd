"""CPU and memory of the processes that take part in a stream, by what they do, as time goes by."""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import psutil  # type: ignore[import-untyped]

_MARKS = (
    ("benchmarks.stream_producer", "producer"),
    ("kafka.Kafka", "kafka"),
    ("KafkaRaftServer", "kafka"),
    ("kafka/kafka", "kafka"),
    ("TaskManagerRunner", "flink taskmanager"),
    ("StandaloneSession", "flink jobmanager"),
    ("flink-job-server", "flink job server"),
    ("sdk_worker_main", "python worker"),
    ("headrace.runners.worker_pool", "worker pool"),
    ("headrace.pipelines.cli", "launcher"),
)
"""Part of a command line, and what such a process is called; the first that fits counts."""
OTHER = "other"


def role(command: Sequence[str]) -> str:
    """Returns what a process with this command line does."""
    if command and command[0].rpartition("/")[2] == "prism":
        return "prism"
    line = " ".join(command)
    return next((name for mark, name in _MARKS if mark in line), OTHER)


@dataclass(frozen=True)
class Sample:
    """All processes of one role at one moment."""

    at: float
    """Seconds since 1970."""
    cpu_seconds: float
    """User and system time since their starts, those that have ended included."""
    rss_bytes: int
    processes: int


@dataclass
class Usage:
    """What the sampler saw."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def cpu_between(self, name: str, first: float, last: float) -> float:
        """Returns the CPU seconds that a role used from the sample nearest to one time to that nearest to another."""
        found = self.samples.get(name, [])
        if len(found) < 2:
            return 0.0
        a = min(found, key=lambda s: abs(s.at - first))
        b = min(found, key=lambda s: abs(s.at - last))
        return b.cpu_seconds - a.cpu_seconds

    def memory(self, name: str, first: float, last: float) -> tuple[float, float, float]:
        """Returns resident megabytes at the beginning, at the end, and the growth per minute by least squares."""
        found = [s for s in self.samples.get(name, []) if first <= s.at <= last]
        if len(found) < 2:
            return 0.0, 0.0, 0.0
        times = [s.at / 60 for s in found]
        sizes = [s.rss_bytes / 1e6 for s in found]
        return sizes[0], sizes[-1], slope(times, sizes)


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Returns the slope of the line through the points by least squares; 0 if all x are one."""
    n = len(xs)
    mean_x, mean_y = sum(xs) / n, sum(ys) / n
    spread = sum((x - mean_x) ** 2 for x in xs)
    if not spread:
        return 0.0
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread


class Sampler:
    """Looks at some processes and all that they start, once a second, in a thread of its own.

    Args:
        roots: process ids; those started later can be added with :meth:`add`.
    """

    def __init__(self, roots: Iterable[int] = (), seconds: float = 1.0) -> None:
        self._roots = set(roots)
        self._seconds = seconds
        self._known: dict[int, psutil.Process] = {}
        self._names: dict[int, str] = {}
        self._last: dict[int, float] = {}
        self._ended: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.usage = Usage()

    def add(self, pid: int) -> None:
        self._roots.add(pid)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> Usage:
        """Takes a last sample."""
        self._stop.set()
        self._thread.join()
        self.look()
        return self.usage

    def look(self) -> None:
        """Takes one sample."""
        now = time.time()
        cpu: dict[str, float] = dict(self._ended)
        rss: dict[str, int] = {}
        count: dict[str, int] = {}
        living = self._living()
        for pid in set(self._last) - set(living):
            name = self._names[pid]
            self._ended[name] = self._ended.get(name, 0.0) + self._last[pid]
            cpu[name] = cpu.get(name, 0.0) + self._last.pop(pid)
        for pid, process in living.items():
            try:
                with process.oneshot():
                    # A process that was just forked has its parent's command line.
                    if self._names.get(pid, OTHER) in (OTHER, "launcher", "worker pool"):
                        self._names[pid] = role(process.cmdline())
                    times, memory = process.cpu_times(), process.memory_info().rss
            except psutil.Error:
                continue  # It has just ended; the next look books what it used.
            name = self._names[pid]
            self._last[pid] = times.user + times.system
            cpu[name] = cpu.get(name, 0.0) + self._last[pid]
            rss[name] = rss.get(name, 0) + memory
            count[name] = count.get(name, 0) + 1
        for name, seconds in cpu.items():
            self.usage.samples.setdefault(name, []).append(
                Sample(now, seconds, rss.get(name, 0), count.get(name, 0))
            )

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            self.look()

    def _living(self) -> Mapping[int, psutil.Process]:
        found: dict[int, psutil.Process] = {}
        for pid in list(self._roots):
            try:
                root = self._known.get(pid) or psutil.Process(pid)
                if not root.is_running():
                    continue
                for process in (root, *root.children(recursive=True)):
                    found[process.pid] = self._known.get(process.pid) or process
            except psutil.Error:
                continue
        self._known = found
        return found
