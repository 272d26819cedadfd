"""A Flink cluster: JobManager, TaskManagers, Beam's job server, and headrace's worker pool if wanted."""

import json
import signal
import sys
import tarfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from headrace.runners.servers.flink_config import (
    JOB_SERVER_HEAP_MEGABYTES,
    JOBMANAGER_HEAP_MEGABYTES,
    LOG_SETTINGS,
    OPENS,
    Setting,
    as_yaml,
    flink_settings,
    taskmanager_memory,
)
from headrace.runners.servers.install import digest, file_digest, install, run, tool
from headrace.runners.servers.maven import shaded
from headrace.runners.servers.processes import HOST, ServerProcess, listens, marked
from headrace.runners.servers.server import Address, Server
from headrace.schemas.errors import ConfigError

FLINK_VERSION = "1.19.3"
FLINK_SHA256 = "4a58e3a1fb7d83340bc96b6c080624c6d792d69fae5d294b96224775204a9c60"
"""Of the source archive of ``apache-flink-libraries``, which holds Flink's own jars."""
BEAM_VERSION = "2.70.0"
"""Of Beam's Java side: the newest whose Flink runner and its dependencies can be had as thin artifacts."""
REST_SECONDS = 2.0

_KEPT = ("deps/lib/flink-dist-", "deps/lib/log4j-", "deps/plugins/metrics-prometheus/")
_ENTRY = "org.apache.flink.runtime"
_WORKER = "apache_beam.runners.worker.sdk_worker_main"


class FlinkCluster(Server):
    """A session cluster whose ``address`` is its REST interface, and a job server for Beam in any language.

    A killed TaskManager is missed after 10 s; its jobs are restored once there are slots again. The JobManager has no standby: when
    it is killed its jobs are gone, and are started again from a retained checkpoint or a savepoint.

    Args:
        folder: of the cluster.
        port: of the REST interface.
        slots: of each TaskManager.
        taskmanagers: how many are started.
        worker_pool: start :mod:`headrace.runners.worker_pool` too, for jobs with ``--environment_type=EXTERNAL``.
        settings: Flink's own, over the defaults of :func:`~headrace.runners.servers.flink_config.flink_settings`.

    Example::

        flink = FlinkCluster("/tmp/cluster", slots=2)
        flink.up()
        flags = ["--runner=PortableRunner", f"--job_endpoint={flink.job_endpoint}", "--environment_type=LOOPBACK"]
    """

    name: ClassVar[str] = "flink"
    ports: ClassVar[tuple[str, ...]] = ("rest", "rpc", "jobs", "artifacts", "expansion", "pool")
    defaults: ClassVar[dict[str, Any]] = {"slots": 2, "taskmanagers": 1, "worker_pool": False, "settings": {}}
    start_seconds: ClassVar[float] = 180.0

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        port: int | None = None,
        slots: int | None = None,
        taskmanagers: int | None = None,
        worker_pool: bool | None = None,
        settings: Mapping[str, Setting] | None = None,
    ) -> None:
        for name, value in (("slots", slots), ("taskmanagers", taskmanagers)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: a cluster needs at least 1")
        super().__init__(
            folder,
            port=port,
            slots=slots,
            taskmanagers=taskmanagers,
            worker_pool=worker_pool,
            settings=None if settings is None else dict(settings),
        )

    @property
    def rest_url(self) -> str:
        """Of the REST interface, and of the web page; without a slash at the end."""
        return f"http://{self.address}"

    @property
    def job_endpoint(self) -> str:
        """For ``--job_endpoint``."""
        return f"{HOST}:{self.port('jobs')}"

    @property
    def worker_pool_address(self) -> str:
        """For ``--environment_config`` with ``--environment_type=EXTERNAL``.

        Raises:
            ConfigError: the cluster was started without a worker pool.
        """
        if not self.option("worker_pool"):
            raise ConfigError(
                "the cluster has no worker pool; start it with worker_pool=True (--worker-pool)"
            )
        return f"{HOST}:{self.port('pool')}"

    @property
    def checkpoints_dir(self) -> Path:
        """Holds a folder a job, named by its id, with ``chk-N`` in it."""
        return self.data / "checkpoints"

    @property
    def savepoints_dir(self) -> Path:
        """Where savepoints go that name no other folder."""
        return self.data / "savepoints"

    def rest(self, path: str) -> Any:
        """Returns the parsed answer of the REST interface to a GET, for example ``/jobs/overview``."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{self.rest_url}{path}", timeout=REST_SECONDS) as answer:
            return json.load(answer)

    def kill_taskmanager(self, index: int = 0, number: int = signal.SIGKILL) -> None:
        """Sends a signal, by default SIGKILL, to one TaskManager; they count from 0."""
        self.kill(number, f"taskmanager-{index}")

    def start_taskmanager(self, index: int = 0) -> None:
        """Starts a TaskManager that was killed, or one more; returns when its slots are there."""
        with self._locked():
            self._run([f"taskmanager-{index}"])

    def kill_jobmanager(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal, by default SIGKILL, to the JobManager."""
        self.kill(number, "jobmanager")

    def restart_jobmanager(self) -> Address:
        """Starts the JobManager on the ports that it had; returns when the living TaskManagers have registered with it."""
        with self._locked():
            self._run(["jobmanager"])
            return self.address

    def kill_workers(self, number: int = signal.SIGKILL) -> int:
        """Sends a signal, by default SIGKILL, to the pool's workers, not to the pool; returns how many there were (Linux only)."""
        killed = 0
        for pid, started in marked(self._state()["mark"]):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if _WORKER.encode() in words:
                killed += ServerProcess(pid, started, self.folder / "logs" / "worker-pool.log").send(number)
        return killed

    def install(self) -> None:
        tool("java", "Flink")
        self._flink()
        self._job_server()

    def roles(self) -> list[str]:
        wanted = [f"taskmanager-{i}" for i in range(self.option("taskmanagers"))]
        more = [name for name in self._running() if name.startswith("taskmanager-") and name not in wanted]
        pool = ["worker-pool"] if self.option("worker_pool") else []
        return ["jobmanager", *wanted, *more, "job-server", *pool]

    def configure(self) -> None:
        for path in (
            self.checkpoints_dir,
            self.savepoints_dir,
            self.data / "artifacts",
            self._scratch,
            self._conf,
        ):
            path.mkdir(parents=True, exist_ok=True)
        settings = flink_settings(
            rest=self.port("rest"),
            rpc=self.port("rpc"),
            slots=self.option("slots"),
            data=self.data,
            scratch=self._scratch,
            settings=self.option("settings"),
        )
        (self._conf / "flink-conf.yaml").write_text(as_yaml(settings))
        (self._conf / "log4j.properties").write_text(LOG_SETTINGS)

    def command(self, role: str) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        environment = {"FLINK_CONF_DIR": str(self._conf), "FLINK_PLUGINS_DIR": str(self._flink() / "plugins")}
        if role == "jobmanager":
            main = f"{_ENTRY}.entrypoint.StandaloneSessionClusterEntrypoint"
            options = ["--configDir", str(self._conf), "--executionMode", "cluster"]
            return [*self._java(f"-Xmx{JOBMANAGER_HEAP_MEGABYTES}m"), main, *options], environment
        if role == "job-server":
            return self._job_server_command(), environment
        if role == "worker-pool":
            pool = [sys.executable, "-m", "headrace.runners.worker_pool", "--host", HOST]
            return [*pool, "--port", str(self.port("pool"))], {"TMPDIR": str(self._scratch)}
        main = f"{_ENTRY}.taskexecutor.TaskManagerRunner"
        options = ["--configDir", str(self._conf), f"-Dtaskmanager.resource-id={self._resource(role, 1)}"]
        return [*self._java(*taskmanager_memory()), main, *options], environment

    def missing(self) -> str:
        if self.alive("jobmanager"):
            try:
                found = {tm["id"]: tm["slotsNumber"] for tm in self.rest("/taskmanagers")["taskmanagers"]}
            except (OSError, ValueError) as error:
                return f"the REST interface says {error}"
            for role in self._running():
                if role.startswith("taskmanager-") and self.alive(role):
                    slots = found.get(self._resource(role), 0)
                    if slots != self.option("slots"):
                        return f"{role} brings {slots} of {self.option('slots')} slots"
        for role, port in (("job-server", "jobs"), ("worker-pool", "pool")):
            if self.alive(role) and not listens(self.port(port)):
                return f"{role} does not listen on port {self.port(port)}"
        return ""

    def hints(self) -> list[str]:
        lines = [
            f"--job_endpoint={self.job_endpoint}",
            f"Flink's REST interface and web page: {self.rest_url}",
        ]
        if self.option("worker_pool"):
            lines.insert(1, f"--environment_type=EXTERNAL --environment_config={self.worker_pool_address}")
        return lines

    @property
    def _conf(self) -> Path:
        return self.folder / "conf"

    @property
    def _scratch(self) -> Path:
        return self.folder / "tmp"

    def _resource(self, role: str, next_: int = 0) -> str:
        """The id under which a TaskManager registers: another at each start, for Flink lists a dead one for a while."""
        return f"{role}-{self._state()['starts'].get(role, 0) + next_}"

    def _java(self, *limits: str) -> list[str | Path]:
        log = f"-Dlog4j.configurationFile={self._conf / 'log4j.properties'}"
        return [tool("java", "Flink"), *limits, *OPENS, log, "-cp", f"{self._flink() / 'lib'}/*"]

    def _job_server_command(self) -> list[str | Path]:
        return [
            *(
                tool("java", "Beam's job server"),
                f"-Xmx{JOB_SERVER_HEAP_MEGABYTES}m",
                "-jar",
                self._job_server(),
            ),
            *("--flink-master", self.rest_url, "--flink-conf-dir", self._conf, "--job-host", HOST),
            *("--job-port", str(self.port("jobs")), "--artifact-port", str(self.port("artifacts"))),
            *("--expansion-port", str(self.port("expansion")), "--artifacts-dir", self.data / "artifacts"),
            *("--clean-artifacts-per-job", "false"),
        ]

    @staticmethod
    def _job_server() -> Path:
        note = "160 MB by Maven, one to three minutes"
        return shaded("flink-job-server", BEAM_VERSION, "flink-job-server-pom.xml", note)

    @staticmethod
    def _flink() -> Path:
        name = f"flink-{FLINK_VERSION}-{digest(FLINK_SHA256, *_KEPT)}"
        return install(name, _unpack_flink, "230 MB by pip, about a minute")


def _unpack_flink(folder: Path) -> None:
    package = "apache-flink-libraries"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
    run(
        [*pip, "--no-binary", package, "-d", folder, f"{package}=={FLINK_VERSION}"],
        what="fetching Flink",
        cwd=folder,
    )
    [archive] = folder.glob("*.tar.gz")
    found = file_digest(archive)
    if found != FLINK_SHA256:
        raise ConfigError(
            f"{archive.name} has SHA-256 {found}, not {FLINK_SHA256}; look at pip's index settings"
        )
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = member.name.partition("/")[2]
            source = tar.extractfile(member) if inside.startswith(_KEPT) else None
            if source is not None:
                target = folder / inside.removeprefix("deps/")
                target.parent.mkdir(parents=True, exist_ok=True)
                with source, target.open("wb") as sink:
                    while block := source.read(1 << 20):
                        sink.write(block)
    archive.unlink()
