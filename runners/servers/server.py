"""What all local servers have in common: their state on disk, and coming up, going down and being told apart from dead ones.

A server lives in one folder of a *cluster folder* (``$HEADRACE_CLUSTER_DIR``, default ``~/.cache/headrace/cluster``), so several
clusters run side by side in different folders::

    kafka.lock          held while somebody changes the server
    kafka/state.json    {"mark", "address", "options", "ports": {name: port}, "processes": {role: {"pid", "started", "log"}}}
    kafka/logs/         output of the processes, one file a role
    kafka/data/         what the server stores

Another process that makes the same object over the same folder talks about the same server.
"""

import json
import os
import shutil
import signal
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from headrace.runners.servers.install import locked
from headrace.runners.servers.processes import HOST, ServerProcess, free_ports, spawn, stop
from headrace.schemas.errors import ConfigError

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Address:
    """Where a server answers; its text is ``host:port``."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class ServerStatus:
    """What is true of a server now.

    Args:
        state: ``up``; ``down`` (nothing is there); ``dead`` (a process is gone that nobody took down); ``paused`` (by SIGSTOP); or
            ``silent`` (its processes run, but it does not answer).
        address: as text; empty if down.
        detail: what is wrong, with the last log lines of dead processes; empty if up or down.
        pids: of the living processes, by role.
    """

    name: str
    state: str
    address: str
    detail: str
    pids: dict[str, int]


def cluster_folder() -> Path:
    """Returns ``$HEADRACE_CLUSTER_DIR``, by default ``~/.cache/headrace/cluster``."""
    named = os.environ.get("HEADRACE_CLUSTER_DIR")
    return Path(named).expanduser().absolute() if named else Path.home() / ".cache" / "headrace" / "cluster"


class Server(ABC):
    """A server of one or more processes.

    Nothing happens before :meth:`up`. Options that are not given are those of the server that is there, or the defaults.

    Args:
        folder: of the cluster; default: :func:`cluster_folder`.
        port: where it is to answer; default: a free one, which it keeps until it is taken down.
        options: what subclasses add; None is "not given".
    """

    name: ClassVar[str]
    """Of its folder and of the command line."""
    ports: ClassVar[tuple[str, ...]]
    """Names of the ports that it needs; ``port`` is for the first."""
    defaults: ClassVar[dict[str, Any]] = {}
    """Options with the values that they have if they are never given."""
    start_seconds: ClassVar[float] = 120.0
    """How long it may take until it answers."""

    def __init__(self, folder: Path | str | None = None, *, port: int | None = None, **options: Any) -> None:
        if port is not None and not 0 < port < 65_536:
            raise ConfigError(f"port {port} is none; give one between 1 and 65535, or none to get a free one")
        self.cluster = Path(folder).absolute() if folder is not None else cluster_folder()
        self.folder = self.cluster / self.name
        self.data = self.folder / "data"
        self._port = port
        self._given = {name: value for name, value in options.items() if value is not None}

    def up(self) -> Address:
        """Starts what does not run yet, waits until the server answers, and returns where.

        Does nothing to a server that is up. One with dead processes gets them back, with the ports and the data that it had.

        Raises:
            ConfigError: a program is missing, an installation failed, a port is taken, the server is up with other options, or a
                process died or did not answer in time, with the last lines of its log.
        """
        with self._locked():
            self._check_same()
            self.install()
            self._prepare()
            self._run(self.roles())
            return self.address

    def down(self, *, keep_data: bool = False) -> bool:
        """Ends all its processes and removes its folder; False if there was nothing to end or to remove.

        Args:
            keep_data: leave the data, so that the next :meth:`up` continues with it; logs and ports go.
        """
        with self._locked():
            started = (self.folder / "state.json").exists()
            if not started and (keep_data or not self.folder.exists()):
                return False
            if started:
                stop([self.process(role) for role in reversed(self._running())], mark=self._state()["mark"])
            if keep_data:
                for path in self.folder.iterdir():
                    if path != self.data:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
            else:
                shutil.rmtree(self.folder)
            return True

    def status(self) -> ServerStatus:
        """Looks at the processes and asks the server whether it answers."""
        if not (self.folder / "state.json").exists():
            return ServerStatus(self.name, "down", "", "", {})
        roles = self.roles()
        alive = {role: self.process(role) for role in roles if self.alive(role)}
        pids = {role: process.pid for role, process in alive.items()}
        dead = [role for role in roles if role not in alive]
        paused = [role for role, process in alive.items() if process.paused()]
        if dead:
            state, detail = "dead", "\n".join(self._obituary(role) for role in dead)
        elif paused:
            state, detail = "paused", ", ".join(paused)
        else:
            missing = self.missing()
            state, detail = ("silent", missing) if missing else ("up", "")
        return ServerStatus(self.name, state, str(self.address), detail, pids)

    @property
    def address(self) -> Address:
        """Where clients connect to.

        Raises:
            ConfigError: the server was never started, or is down.
        """
        return Address(HOST, self.port(self.ports[0]))

    def port(self, name: str) -> int:
        """Returns one of the ports that it got."""
        return int(self._state()["ports"][name])

    def option(self, name: str) -> Any:
        """Returns an option as it is in force."""
        return self._state()["options"][name]

    def process(self, role: str) -> ServerProcess:
        """Returns what runs, or ran, in this role.

        Raises:
            ConfigError: nothing ever did.
        """
        found = self._state()["processes"].get(role)
        if found is None:
            raise ConfigError(f"{self.name} has no {role}; it has {', '.join(self._running()) or 'nothing'}")
        return ServerProcess(found["pid"], found["started"], Path(found["log"]))

    def alive(self, role: str) -> bool:
        """Whether the process of this role runs."""
        return role in self._running() and self.process(role).alive()

    def kill(self, number: int = signal.SIGKILL, role: str | None = None) -> None:
        """Sends a signal, by default SIGKILL, to one process or to all, and waits for their end if the signal means that."""
        found = [self.process(name) for name in ([role] if role else self._running())]
        for process in found:
            process.send(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            for process in found:
                if not process.wait(10):
                    raise ConfigError(
                        f"process {process.pid} of {self.name} still runs 10 s after {number!r}"
                    )

    def pause(self, role: str | None = None) -> None:
        """Stops one process or all where they are (SIGSTOP): they keep their connections, and answer nobody."""
        self.kill(signal.SIGSTOP, role)

    def resume(self, role: str | None = None) -> None:
        """Lets paused processes go on (SIGCONT)."""
        self.kill(signal.SIGCONT, role)

    def restart(self) -> Address:
        """Ends what still runs and starts it again with the same ports and data; returns when it answers."""
        with self._locked():
            stop([self.process(role) for role in reversed(self._running())], mark=self._state()["mark"])
            self._prepare()
            self._run(self.roles())
            return self.address

    @abstractmethod
    def install(self) -> None:
        """Brings what it runs into the cache; does nothing if it is there."""

    @abstractmethod
    def roles(self) -> list[str]:
        """The processes that it is made of, in the order of their start."""

    @abstractmethod
    def configure(self) -> None:
        """Writes its configuration, and its data folder if that is new."""

    @abstractmethod
    def command(self, role: str) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        """The program with its arguments, and what it needs in its environment."""

    @abstractmethod
    def missing(self) -> str:
        """Asks the living processes once, for at most some two seconds; says what is not there, or nothing if all answer."""

    @abstractmethod
    def hints(self) -> list[str]:
        """What to pass to headrace and to other programs, one line each."""

    def _locked(self) -> Any:
        return locked(self.cluster / f"{self.name}.lock")

    def _state(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / "state.json").read_bytes()))
        except FileNotFoundError:
            raise ConfigError(
                f"{self.name} is not up in {self.cluster}; start it: headrace cluster up {self.name}"
            ) from None

    def _save(self, state: Mapping[str, Any]) -> None:
        aside = self.folder / "state.json.new"
        aside.write_text(json.dumps(state, indent=1) + "\n")
        aside.replace(self.folder / "state.json")

    def _running(self) -> list[str]:
        return list(self._state()["processes"])

    def _check_same(self) -> None:
        """Refuses options that differ from those of the server that is there."""
        if not (self.folder / "state.json").exists():
            return
        state = self._state()
        wanted = dict(self._given)
        if self._port is not None:
            wanted["port"] = self._port
        for name, value in wanted.items():
            found = state["ports"][self.ports[0]] if name == "port" else state["options"].get(name)
            if json.loads(json.dumps(value)) != found:
                raise ConfigError(
                    f"{self.name} is there with {name}={found}, not {value}; take it down first: "
                    f"headrace cluster down {self.name}"
                )

    def _prepare(self) -> None:
        """Gives a new server its ports; the mark is on disk before a process carries it."""
        if not (self.folder / "state.json").exists():
            numbers = free_ports(len(self.ports), () if self._port is None else (self._port,))
            self.folder.mkdir(parents=True, exist_ok=True)
            ports = dict(zip(self.ports, numbers, strict=True))
            self._save(
                {
                    "server": self.name,
                    "mark": uuid.uuid4().hex,
                    "address": f"{HOST}:{numbers[0]}",
                    "options": {**self.defaults, **self._given},
                    "ports": ports,
                    "processes": {},
                    "starts": {},
                }
            )
        self.configure()

    def _run(self, roles: Sequence[str]) -> None:
        """Starts those of the roles that don't run and waits until all answer; if one fails, those that were started are ended."""
        started = []
        try:
            for role in roles:
                if not self.alive(role):
                    self._start(role)
                    started.append(role)
            self._await(roles)
        except BaseException:
            stop([self.process(role) for role in reversed(started)])
            raise

    def _start(self, role: str) -> None:
        words, environment = self.command(role)
        state = self._state()
        log = self.folder / "logs" / f"{role}.log"
        process = spawn(words, log=log, mark=state["mark"], environment=environment)
        state["starts"][role] = state["starts"].get(role, 0) + 1
        state["processes"][role] = {"pid": process.pid, "started": process.started, "log": str(log)}
        self._save(state)

    def _await(self, roles: Sequence[str]) -> None:
        deadline = time.monotonic() + self.start_seconds
        while True:
            missing = self.missing()
            for role in roles:
                if not self.alive(role):
                    raise ConfigError(
                        f"{self.name} did not start: {self._obituary(role)}\nIts log is {self.process(role).log}; "
                        f"`headrace cluster down {self.name}` clears what is left"
                    )
            if not missing:
                return
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{self.name} did not answer within {self.start_seconds:g} s ({missing}); look at "
                    f"{self.folder / 'logs'}, give the machine more room, and start it again"
                )
            time.sleep(POLL_SECONDS)

    def _obituary(self, role: str) -> str:
        if role not in self._running():
            return f"{role} was never started"
        process = self.process(role)
        return f"{role} (process {process.pid}) is dead; its last lines:\n{process.tail()}"
