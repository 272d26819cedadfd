"""Processes that outlive their launcher, and are found again without being mistaken for others.

A process is known by its pid *and* the moment that it started, so a pid that the system gave to another process is never signalled.
Every process carries its server's mark in its environment (``HEADRACE_SERVER``), and so do its children: on Linux those that a
killed parent left behind are found by it.
"""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from headrace.schemas.errors import ConfigError

HOST = "127.0.0.1"
GRACE_SECONDS = 10.0
"""How long a process that is told to stop may take before it is killed."""
POLL_SECONDS = 0.02
TAIL_LINES = 15
TAIL_BYTES = 16_384

_MARK = "HEADRACE_SERVER"
_PORTS = range(20_000, 32_000)
"""Below the ports that systems give to outgoing connections: one that is free now stays free until a server binds it."""

_children: dict[int, subprocess.Popen[bytes]] = {}
"""Those that this process started: a parent has to collect its dead children."""


@dataclass(frozen=True)
class ServerProcess:
    """A process that :func:`spawn` started, perhaps in another run of Python.

    Args:
        pid: its id, which is also its session's and its group's.
        started: from :func:`start_of`, at its start.
        log: the file of its output.
    """

    pid: int
    started: str
    log: Path

    def alive(self) -> bool:
        """Whether it still runs; a paused one does."""
        return start_of(self.pid) == self.started

    def paused(self) -> bool:
        """Whether it is stopped by SIGSTOP."""
        return self.alive() and _paused(self.pid)

    def send(self, number: int) -> bool:
        """Sends a signal; False if the process is gone. After SIGSTOP it waits until the process has stopped."""
        sent = _send(self.pid, self.started, number)
        while sent and number == signal.SIGSTOP and self.alive() and not self.paused():
            time.sleep(POLL_SECONDS)
        return sent

    def wait(self, seconds: float) -> bool:
        """Waits for its end; False if it still runs after so many seconds."""
        return _wait([(self.pid, self.started)], seconds)

    def tail(self) -> str:
        """Returns the last lines of its log."""
        return tail(self.log)


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """Returns the last lines of a file; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def spawn(
    command: Sequence[str | Path],
    *,
    log: Path,
    mark: str,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> ServerProcess:
    """Starts a process in a session of its own, so that a Ctrl-C for the launcher does not reach it.

    Args:
        command: the program with its arguments.
        log: its output is appended here.
        mark: what its environment is marked with; see :func:`marked`.
        environment: variables beside those of this process.
        cwd: its working directory; default: that of its log, so that it holds no other folder.

    Raises:
        ConfigError: the program can't be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in command]
    with log.open("ab") as sink:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=cwd or log.parent,
                env={**os.environ, **(environment or {}), _MARK: mark},
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigError(
                f"can't start {words[0]}: {error.strerror}; check that it is there and may be executed"
            ) from error
    _children[process.pid] = process
    return ServerProcess(process.pid, start_of(process.pid) or "gone", log)


def stop(found: Iterable[ServerProcess], *, mark: str = "", grace_seconds: float = GRACE_SECONDS) -> None:
    """Ends processes, politely first; then those that carry the mark.

    Args:
        found: told to stop in this order, all at once; paused ones are woken up for it.
        mark: ends what else carries it too; empty: nothing else.
        grace_seconds: after so many seconds what still runs is killed.
    """
    _end([(process.pid, process.started) for process in found], grace_seconds)
    if mark:
        _end(marked(mark), grace_seconds)


def marked(mark: str) -> list[tuple[int, str]]:
    """Returns pid and start of all living processes with this mark (Linux only, elsewhere none)."""
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile, or another user's
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                pid = int(entry.name)
                started = start_of(pid)
                if started is not None and pid != os.getpid():
                    found.append((pid, started))
    return found


def start_of(pid: int) -> str | None:
    """Returns the moment that a process started, as the system tells it; None if none of this pid runs."""
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        del _children[pid]
    if Path("/proc/self/stat").exists():
        fields = _stat(pid)
        if fields is None or fields[0] in "ZX":
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{fields[19]}"
    return _ps(pid, "lstart=") or None


def free_ports(count: int, wanted: Sequence[int] = ()) -> list[int]:
    """Returns ports on which nobody listens, all different.

    Args:
        count: how many.
        wanted: these come first and have to be free.

    Raises:
        ConfigError: a wanted port is taken, or no port is free.
    """
    ports: list[int] = []
    with ExitStack() as held:
        for port in wanted:
            if not _hold(port, held):
                raise ConfigError(
                    f"port {port} is taken; name another with --port, or none to get a free one"
                )
            ports.append(port)
        for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
            if len(ports) >= count:
                return ports
            if _hold(port, held):
                ports.append(port)
    raise ConfigError(f"no free port between {_PORTS.start} and {_PORTS.stop}; stop what holds them")


def listens(port: int, seconds: float = 1.0) -> bool:
    """Whether a connection to the port on this machine is taken."""
    try:
        socket.create_connection((HOST, port), timeout=seconds).close()
    except OSError:
        return False
    return True


def _hold(port: int, held: ExitStack) -> bool:
    probe = held.enter_context(socket.socket())
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((HOST, port))
    except OSError:
        return False
    return True


def _stat(pid: int) -> list[str] | None:
    """Returns the fields of ``/proc/PID/stat`` from the third (state) on; the start is the twenty-second of all."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _paused(pid: int) -> bool:
    fields = _stat(pid)
    return fields[0] == "T" if fields else _ps(pid, "stat=").startswith("T")


def _ps(pid: int, column: str) -> str:
    """Asks ``ps`` (other systems than Linux have no ``/proc``)."""
    command = ["ps", "-p", str(pid), "-o", column]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _send(pid: int, started: str, number: int) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except (AttributeError, OSError):  # no Linux, or an old one: the pid itself
        if start_of(pid) != started:
            return False
        os.kill(pid, number)
        return True
    try:
        if start_of(pid) != started:
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def _end(found: Sequence[tuple[int, str]], grace_seconds: float) -> None:
    for number in (signal.SIGTERM, signal.SIGCONT):
        for pid, started in found:
            _send(pid, started, number)
    if not _wait(found, grace_seconds):
        for pid, started in found:
            _send(pid, started, signal.SIGKILL)
        _wait(found, grace_seconds)


def _wait(found: Sequence[tuple[int, str]], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(start_of(pid) == started for pid, started in found):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
