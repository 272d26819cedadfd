"""Processes and the state of a server, with ``sleep`` as the server."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from headrace.runners.servers import processes
from headrace.runners.servers.processes import (
    ServerProcess,
    free_ports,
    listens,
    marked,
    spawn,
    start_of,
    stop,
    tail,
)
from headrace.runners.servers.server import Address, Server, cluster_folder
from headrace.schemas.errors import ConfigError


class Sleeper(Server):
    """Two processes that do nothing; ``says`` is what it does not have yet."""

    name: ClassVar[str] = "sleeper"
    ports: ClassVar[tuple[str, ...]] = ("first", "second")
    defaults: ClassVar[dict[str, Any]] = {"seconds": 60}
    says = ""
    words: Sequence[str] = ()

    def install(self) -> None:
        pass

    def roles(self) -> list[str]:
        return ["one", "two"]

    def configure(self) -> None:
        self.data.mkdir(exist_ok=True)

    def command(self, role: str) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        return self.words or ["sleep", str(self.option("seconds"))], {"ROLE": role}

    def missing(self) -> str:
        return self.says

    def hints(self) -> list[str]:
        return []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sleeper]:
    server = Sleeper(tmp_path)
    yield server
    server.down()


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is none of ours."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def state(server: Server) -> dict[str, Any]:
    return dict(json.loads((server.folder / "state.json").read_bytes()))


def test_a_process_runs_in_its_own_session_with_its_mark_and_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "x.log"
    code = "import os; print(os.getsid(0) == os.getpid(), os.environ['HEADRACE_SERVER'], os.environ['MORE'], os.getcwd())"
    process = spawn([sys.executable, "-c", code], log=log, mark="m1", environment={"MORE": "more"})
    assert process.wait(20)
    assert log.read_text() == f"True m1 more {log.parent}\n"
    assert not process.alive()
    assert process.tail() == f"True m1 more {log.parent}"


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"can't start /no/such: No such file or directory; check that it is there"
    ):
        spawn(["/no/such"], log=tmp_path / "log", mark="m")


def test_a_pid_that_another_process_got_is_neither_alive_nor_signalled(
    bystander: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    impostor = ServerProcess(bystander.pid, "another moment", tmp_path / "log")
    assert not impostor.alive()
    assert not impostor.paused()
    assert impostor.send(signal.SIGKILL) is False
    stop([impostor], mark="nobody has this mark")
    assert bystander.poll() is None


@pytest.mark.parametrize("missing", [AttributeError, PermissionError])
def test_the_same_holds_where_there_are_no_process_handles(
    missing: type[Exception],
    bystander: subprocess.Popen[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pidfd_open(pid: int) -> int:
        raise missing

    monkeypatch.setattr(os, "pidfd_open", pidfd_open, raising=False)
    assert ServerProcess(bystander.pid, "another moment", tmp_path).send(signal.SIGTERM) is False
    started = start_of(bystander.pid)
    assert started is not None
    assert ServerProcess(bystander.pid, started, tmp_path).send(signal.SIGTERM) is True
    assert bystander.wait(20) == -signal.SIGTERM


def test_a_dead_child_that_was_not_collected_is_dead(tmp_path: Path) -> None:
    process = spawn(["sleep", "60"], log=tmp_path / "log", mark="m")
    assert process.alive()
    assert process.send(signal.SIGKILL)
    assert process.wait(20)
    assert process.send(signal.SIGKILL) is False
    assert start_of(process.pid) is None


def test_what_ignores_sigterm_is_killed_and_what_is_paused_is_woken(tmp_path: Path) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    deaf = spawn([sys.executable, "-c", code], log=tmp_path / "deaf", mark="m")
    paused = spawn(["sleep", "60"], log=tmp_path / "paused", mark="m")
    while not deaf.tail():
        assert deaf.alive()
    assert paused.send(signal.SIGSTOP)
    assert paused.paused()
    assert not deaf.paused()
    stop([deaf, paused], grace_seconds=0.2)
    assert not deaf.alive()
    assert not paused.alive()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="marks are found on Linux only")
def test_children_that_a_killed_parent_left_are_found_by_the_mark(tmp_path: Path) -> None:
    parent = spawn(["sh", "-c", "sleep 61 & echo ready; wait"], log=tmp_path / "log", mark="orphans")
    while parent.tail() != "ready":
        assert parent.alive()
    parent.send(signal.SIGKILL)
    assert parent.wait(20)
    [(child, started)] = marked("orphans")
    assert start_of(child) == started
    stop([parent], mark="orphans")
    assert marked("orphans") == []
    assert start_of(child) is None


def test_systems_without_proc_are_asked_by_ps(
    bystander: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoProc(type(Path())):  # type: ignore[misc]
        def exists(self, **_: Any) -> bool:
            return False

    asked: list[list[str]] = []

    def ps(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="Mon Jan  5 12:00:00 2026\n")

    monkeypatch.setattr(processes, "Path", NoProc)
    monkeypatch.setattr(subprocess, "run", ps)
    assert start_of(bystander.pid) == "Mon Jan  5 12:00:00 2026"
    assert asked == [["ps", "-p", str(bystander.pid), "-o", "lstart="]]


def test_free_ports_differ_and_a_taken_one_is_refused() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert all(20_000 <= port < 32_000 for port in ports)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert listens(number)
        with pytest.raises(ConfigError, match=f"port {number} is taken; name another with --port, or none"):
            free_ports(2, [number])
    assert not listens(number)
    assert free_ports(2, [number])[0] == number


def test_when_every_port_is_taken_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_PORTS", range(20_000, 20_000))
    with pytest.raises(ConfigError, match="no free port between 20000 and 20000; stop what holds them"):
        free_ports(1)


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == ""
    log.write_text("".join(f"line {i}\n" for i in range(5000)))
    assert tail(log, 2) == "line 4998\nline 4999"


def test_up_starts_all_and_writes_down_what_runs(server: Sleeper) -> None:
    address = server.up()
    assert address == Address("127.0.0.1", server.port("first"))
    assert str(address) == f"127.0.0.1:{server.port('first')}"
    found = state(server)
    assert found["address"] == str(address)
    assert found["options"] == {"seconds": 60}
    assert found["ports"].keys() == {"first", "second"}
    assert [*found["processes"]] == ["one", "two"]
    status = server.status()
    assert (status.state, status.address, status.detail) == ("up", str(address), "")
    assert status.pids == {role: one["pid"] for role, one in found["processes"].items()}
    environment = Path(f"/proc/{status.pids['two']}/environ").read_bytes()
    assert f"HEADRACE_SERVER={found['mark']}".encode() in environment
    assert b"ROLE=two" in environment


def test_up_twice_changes_nothing_and_another_object_sees_the_same_server(
    server: Sleeper, tmp_path: Path
) -> None:
    server.up()
    before = state(server)
    assert Sleeper(tmp_path).up() == server.address
    assert state(server) == before
    assert Sleeper(tmp_path, port=server.address.port, seconds=60).up() == server.address
    with pytest.raises(ConfigError, match=r"sleeper is there with seconds=60, not 5; take it down first"):
        Sleeper(tmp_path, seconds=5).up()
    with pytest.raises(ConfigError, match=r"sleeper is there with port=\d+, not 1234; take it down first"):
        Sleeper(tmp_path, port=1234).up()
    assert state(server) == before


def test_a_killed_process_is_told_and_up_brings_back_only_that_one(server: Sleeper) -> None:
    server.up()
    before = server.status()
    with (server.folder / "logs" / "two.log").open("a") as log:
        log.write("the last word\n")
    server.kill(role="two")
    status = server.status()
    assert status.state == "dead"
    assert status.detail == f"two (process {before.pids['two']}) is dead; its last lines:\nthe last word"
    assert status.pids == {"one": before.pids["one"]}
    server.up()
    after = server.status()
    assert after.state == "up"
    assert after.address == before.address
    assert after.pids["one"] == before.pids["one"]
    assert after.pids["two"] != before.pids["two"]
    assert state(server)["starts"] == {"one": 1, "two": 2}


def test_a_reused_pid_in_the_state_is_dead_and_outlives_down(
    server: Sleeper, bystander: subprocess.Popen[bytes]
) -> None:
    server.up()
    server.kill()
    found = state(server)
    found["processes"]["one"] = {**found["processes"]["one"], "pid": bystander.pid}
    server._save(found)
    assert server.status().state == "dead"
    server.kill()
    assert server.down()
    assert bystander.poll() is None


def test_pause_resume_and_silence(server: Sleeper) -> None:
    server.up()
    server.pause()
    assert server.status().state == "paused"
    assert server.status().detail == "one, two"
    server.resume()
    server.says = "no answer"
    assert (server.status().state, server.status().detail) == ("silent", "no answer")
    server.pause("one")
    assert server.status().detail == "one"


def test_restart_keeps_ports_and_data(server: Sleeper) -> None:
    server.up()
    (server.data / "kept").write_text("1")
    before = server.status()
    assert server.restart() == server.address
    after = server.status()
    assert after.address == before.address
    assert not set(after.pids.values()) & set(before.pids.values())
    assert (server.data / "kept").read_text() == "1"


def test_down_leaves_nothing_or_only_the_data(server: Sleeper, tmp_path: Path) -> None:
    assert server.down() is False
    server.up()
    pids = server.status().pids
    (server.data / "kept").write_text("1")
    assert server.down(keep_data=True)
    assert all(start_of(pid) is None for pid in pids.values())
    assert [path.name for path in server.folder.iterdir()] == ["data"]
    assert server.status() == type(server.status())("sleeper", "down", "", "", {})
    server.up()
    assert (server.data / "kept").read_text() == "1"
    server.down()
    assert not server.folder.exists()


def test_a_process_that_dies_at_the_start_is_told_with_its_log_and_takes_the_others_along(
    server: Sleeper,
) -> None:
    server.says = "not there"
    server.words = ["sh", "-c", 'echo "no such option: $ROLE"; test "$ROLE" = one && exec sleep 60']
    with pytest.raises(ConfigError) as error:
        server.up()
    message = str(error.value)
    assert message.startswith("sleeper did not start: two (process ")
    assert "is dead; its last lines:\nno such option: two\n" in message
    assert str(server.folder / "logs" / "two.log") in message
    assert "`headrace cluster down sleeper` clears what is left" in message
    assert server.status().pids == {}


def test_what_does_not_answer_in_time_is_told_and_ended(
    server: Sleeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sleeper, "start_seconds", 0.0)
    server.says = "no slots"
    with pytest.raises(ConfigError, match=r"sleeper did not answer within 0 s \(no slots\); look at .*logs"):
        server.up()
    assert server.status().pids == {}


def test_a_server_that_is_not_there_says_how_to_start_it(server: Sleeper, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"sleeper is not up in {tmp_path}; start it: headrace cluster up sleeper"
    ):
        _ = server.address
    server.up()
    with pytest.raises(ConfigError, match="sleeper has no three; it has one, two"):
        server.kill(role="three")


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match=f"port {port} is none; give one between 1 and 65535"):
        Sleeper(port=port)


def test_the_cluster_folder_is_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_CLUSTER_DIR", str(tmp_path / "other"))
    assert cluster_folder() == tmp_path / "other"
    assert Sleeper().folder == tmp_path / "other" / "sleeper"
    monkeypatch.delenv("HEADRACE_CLUSTER_DIR")
    assert cluster_folder() == Path.home() / ".cache" / "headrace" / "cluster"


@pytest.mark.integration
def test_two_that_start_the_same_server_at_once_start_it_once(tmp_path: Path) -> None:
    code = (
        "import sys; from tests.runners.test_servers import Sleeper; "
        "print(Sleeper(sys.argv[1]).up(), flush=True)"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate(timeout=60)[0] for process in both}
    server = Sleeper(tmp_path)
    try:
        assert said == {f"{server.address}\n"}
        assert state(server)["starts"] == {"one": 1, "two": 1}
        assert server.status().state == "up"
    finally:
        server.down()
