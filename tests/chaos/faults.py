"""What the faults do, and to what: a site with a broker, a runner, a launcher, a network and a disk."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from headrace.connectors.stream_ledger import StreamTotals, read_stream_ledger
from headrace.runners.servers.flink import FlinkCluster
from headrace.runners.servers.kafka import KafkaServer
from headrace.runners.servers.processes import free_ports
from headrace.schemas.errors import HeadraceError
from tests.chaos.producer import make_topic
from tests.chaos.tcp_proxy import TcpProxy

TOPIC = "chaos"
BROKEN = Path(__file__).parent / "broken"
BREAK = "HEADRACE_CHAOS_BREAK"
SITE = "HEADRACE_CHAOS_SITE"
SETTINGS = {
    "watermark_delay_seconds": 10,
    "allowed_lateness_seconds": 20,
    "idle_seconds": 10,
    "early_seconds": 5,
    "max_age_seconds": 86_400,
}
"""So that windows end and rows come late within a short run."""
TAKEOVER_SECONDS = 120.0
_BALLAST = ".ballast"


class Launcher:
    """The command under test, started again with the same words whenever it is asked.

    Args:
        words: the command.
        log: of all its runs.
    """

    def __init__(self, words: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self._words, self._log, self._environment = list(words), log, dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self, *more: str) -> None:
        """Starts it; further words come last."""
        with self._log.open("ab") as sink:
            sink.write(f"--- start {self.starts} at {time.strftime('%H:%M:%S')} {' '.join(more)}\n".encode())
            sink.flush()
            self._process = subprocess.Popen(
                [*self._words, *more],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        self.starts += 1

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def send(self, number: int) -> None:
        """Sends a signal to it alone, not to what it has started."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, seconds: float) -> int | None:
        """Waits for its end; None if it still runs."""
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """SIGKILL, and waits."""
        self.send(signal.SIGKILL)
        self.wait(30)


class Site:
    """Broker, proxy, runner and output of one run. What the broker tells its clients leads through the proxy.

    Args:
        folder: new; everything is in it.
        runner: ``flink`` or ``prism``.
        disk_megabytes: size of the output's own file system; 0, or if it can't be mounted: the folder is on the one around it.
        broken: a protection that is to be off (:mod:`tests.chaos.broken.sitecustomize`).
    """

    def __init__(self, folder: Path, runner: str, *, disk_megabytes: int = 0, broken: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.runner = folder, runner
        self._stack = contextlib.ExitStack()
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.own_disk = disk_megabytes > 0 and self._mount(disk_megabytes)
        self.out = self.disk / "out"
        self.environment = {SITE: str(folder)}
        self.broken = broken
        if broken:
            path = os.pathsep.join(filter(None, (str(BROKEN), os.environ.get("PYTHONPATH"))))
            self.environment |= {BREAK: broken, "PYTHONPATH": path}

    def __enter__(self) -> Self:
        try:
            self._up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def totals(self) -> StreamTotals:
        """Returns where the stream stands; all zeros while the ledger can't be read."""
        with contextlib.suppress(HeadraceError, OSError):
            return read_stream_ledger(self.out, positions=False)
        return StreamTotals()

    def inject(self, kind: str, hold_seconds: float) -> None:
        """Does what a fault of this kind does, lets it last, and takes it back; returns at the end of that."""
        _FAULTS[kind](self, hold_seconds)

    def _up(self) -> None:
        broker_port, proxy_port = free_ports(2, ())
        self.proxy = TcpProxy(broker_port, proxy_port)
        self._stack.callback(self.proxy.close)
        cluster = self.folder / "cluster"
        settings = {"advertised.listeners": f"PLAINTEXT://127.0.0.1:{proxy_port}"}
        self.kafka = KafkaServer(cluster, port=broker_port, settings=settings)
        self._stack.callback(self.kafka.down)
        self.kafka.up()
        self.broker = f"127.0.0.1:{proxy_port}"
        make_topic(self.broker, TOPIC, 4)
        config = self.folder / "stream.json"
        config.write_text(json.dumps(SETTINGS))
        words = [str(Path(sys.executable).with_name("headrace")), "run", "stream"]
        words += ["--source", f"kafka://{self.broker}/{TOPIC}", "--output", str(self.out)]
        words += ["--config", str(config), "--key-file", str(self._key()), "--quiet", "--runner", self.runner]
        if self.runner == "flink":
            self.flink = FlinkCluster(cluster, slots=2, worker_pool=True)
            with _variables(self.environment):
                self._stack.callback(self.flink.down)
                self.flink.up()
            words += [f"--job_endpoint={self.flink.job_endpoint}", f"--flink-rest={self.flink.rest_url}"]
            words += ["--environment_type=EXTERNAL", f"--environment_config={self.flink.worker_pool_address}"]
            # As with an image that has headrace: the workers use the pool's own, so no package is built and installed.
            words += ["--shared-paths", "--sdk_container_image=installed"]
            if self.broken:
                # Rare checkpoints, so that no kill falls right after one, where there is nothing to double.
                words += ["--checkpointing_interval=20000"]
        self.launcher = Launcher(words, self.folder / "launcher.log", self.environment)
        self._stack.callback(self._end_launcher)

    def _key(self) -> Path:
        key = self.folder / "key"
        command = [str(Path(sys.executable).with_name("headrace")), "key", "create", str(key)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return key

    def _end_launcher(self) -> None:
        if self.launcher.starts:
            self.launcher.kill()

    def _mount(self, megabytes: int) -> bool:
        if os.geteuid() != 0 or shutil.which("mount") is None:
            return False
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(self.disk)], capture_output=True
        )
        if done.returncode:
            return False
        self._stack.callback(subprocess.run, ["umount", "-l", str(self.disk)], capture_output=True)
        return True

    def _fill_disk(self, hold_seconds: float) -> None:
        ballast = self.disk / _BALLAST
        try:
            with ballast.open("wb") as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * (1 << 16))
                    file.flush()
            time.sleep(hold_seconds)
        finally:
            ballast.unlink()

    def _paused(self, role: str, hold_seconds: float, server: KafkaServer | FlinkCluster) -> None:
        server.pause(role)
        try:
            time.sleep(hold_seconds)
        finally:
            server.resume(role)

    def _pause_workers(self, hold_seconds: float) -> None:
        self.flink.kill_workers(signal.SIGSTOP)
        try:
            time.sleep(hold_seconds)
        finally:
            self.flink.kill_workers(signal.SIGCONT)

    def _kill_taskmanager(self, hold_seconds: float) -> None:
        self.flink.kill_taskmanager()
        self.flink.start_taskmanager()

    def _kill_jobmanager(self, hold_seconds: float) -> None:
        self.flink.kill_jobmanager()
        self.flink.restart_jobmanager()

    def _kill_workers(self, hold_seconds: float) -> None:
        if not self.flink.kill_workers():
            raise RuntimeError("there were no workers to kill")

    def _kill_pool(self, hold_seconds: float) -> None:
        self.flink.kill(signal.SIGKILL, "worker-pool")
        self.flink.kill_workers()
        self.flink.up()

    def _kill_broker(self, hold_seconds: float) -> None:
        self.kafka.kill()
        self.kafka.restart()

    def _kill_launcher(self, hold_seconds: float) -> None:
        jobs = self._jobs()
        self.launcher.kill()
        self.launcher.start()
        # The job goes on without its launcher, so what it commits is no proof that the new one is up.
        deadline = time.monotonic() + TAKEOVER_SECONDS
        while self.runner == "flink" and self.launcher.code is None and time.monotonic() < deadline:
            if (now := self._jobs()) and not now & jobs:
                break
            time.sleep(0.5)

    def _jobs(self) -> set[str]:
        """Flink's ids of the jobs that run; empty if it can't be asked."""
        if self.runner == "flink":
            with contextlib.suppress(OSError, ValueError):
                found = self.flink.rest("/jobs/overview")["jobs"]
                return {job["jid"] for job in found if job["state"] == "RUNNING"}
        return set()

    def _kill_prism(self, hold_seconds: float) -> None:
        for pid in self._prisms():
            os.kill(pid, signal.SIGKILL)

    def _pause_prism(self, hold_seconds: float) -> None:
        pids = self._prisms()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(hold_seconds)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def _prisms(self) -> list[int]:
        """The processes of Prism that this run's launchers have started: they have its environment."""
        found = []
        mark = f"{SITE}={self.folder}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    prism = "prism" in Path(os.fsdecode(words[0])).name
                    if prism and mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

    def _stop_and_restart(self, hold_seconds: float) -> None:
        self.launcher.send(signal.SIGTERM)
        code = self.launcher.wait(180)
        if code is None:
            raise RuntimeError("the launcher has not ended 180 s after SIGTERM")
        if code:
            raise RuntimeError(f"the launcher ended with {code} after SIGTERM")
        self.launcher.start()

    def _proxied(self, begin: Callable[[], None], hold_seconds: float) -> None:
        begin()
        try:
            time.sleep(hold_seconds)
        finally:
            self.proxy.heal()


@contextlib.contextmanager
def _variables(more: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for what is started meanwhile."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_FAULTS: dict[str, Callable[[Site, float], None]] = {
    "kill_taskmanager": Site._kill_taskmanager,
    "kill_jobmanager": Site._kill_jobmanager,
    "kill_workers": Site._kill_workers,
    "kill_pool": Site._kill_pool,
    "kill_broker": Site._kill_broker,
    "kill_launcher": Site._kill_launcher,
    "kill_prism": Site._kill_prism,
    "pause_taskmanager": lambda site, hold: site._paused("taskmanager-0", hold, site.flink),
    "pause_jobmanager": lambda site, hold: site._paused("jobmanager", hold, site.flink),
    "pause_workers": Site._pause_workers,
    "pause_broker": lambda site, hold: site._paused("broker", hold, site.kafka),
    "pause_prism": Site._pause_prism,
    "stop_and_restart": Site._stop_and_restart,
    "cut_network": lambda site, hold: site._proxied(site.proxy.cut, hold),
    "silence_network": lambda site, hold: site._proxied(site.proxy.silence, hold),
    "slow_network": lambda site, hold: site._proxied(lambda: site.proxy.slow(0.2), hold),
    "fill_disk": Site._fill_disk,
}
