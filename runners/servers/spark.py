"""A Spark job server with Spark inside: batches on this machine, by Maven's jars."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from headrace.runners.servers.install import tool
from headrace.runners.servers.maven import jars
from headrace.runners.servers.processes import HOST, listens
from headrace.runners.servers.server import Server

BEAM_VERSION = "2.70.0"
_PACKAGES = (
    *("java.lang", "java.lang.invoke", "java.lang.reflect", "java.io", "java.net", "java.nio", "java.util"),
    *(
        "java.util.concurrent",
        "java.util.concurrent.atomic",
        "sun.nio.ch",
        "sun.nio.cs",
        "sun.security.action",
    ),
    "sun.util.calendar",
)
"""What Spark 3.5 opens of Java 17 (``org.apache.spark.launcher.JavaModuleOptions``)."""


class SparkServer(Server):
    """Beam's Spark job server at ``address``; each job runs in a Spark within its process, on ``cores`` cores.

    For trials and tests; a Spark cluster has a job server of its own with ``--spark-master-url=spark://HOST:7077``.

    Args:
        folder: of the cluster.
        port: of the job service.
        cores: for the tasks of a job.
        heap_megabytes: of Java.

    Example::

        spark = SparkServer("/tmp/cluster")
        flags = ["--runner=spark", f"--job_endpoint={spark.up()}", "--environment_type=LOOPBACK"]
    """

    name: ClassVar[str] = "spark"
    ports: ClassVar[tuple[str, ...]] = ("jobs",)
    defaults: ClassVar[dict[str, Any]] = {"cores": 2, "heap_megabytes": 1024}

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        port: int | None = None,
        cores: int | None = None,
        heap_megabytes: int | None = None,
    ) -> None:
        super().__init__(folder, port=port, cores=cores, heap_megabytes=heap_megabytes)

    @property
    def job_endpoint(self) -> str:
        """For ``--job_endpoint``."""
        return str(self.address)

    def install(self) -> None:
        tool("java", "Spark")
        self._jars()

    def roles(self) -> list[str]:
        return ["job-server"]

    def configure(self) -> None:
        self.data.mkdir(exist_ok=True)

    def command(self, role: str) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        spark = {
            "spark.ui.enabled": "false",
            "spark.driver.host": HOST,
            "spark.driver.bindAddress": HOST,
            "spark.local.dir": str(self.data),
        }
        words: list[str | Path] = [
            tool("java", "Spark"),
            f"-Xmx{self.option('heap_megabytes')}m",
            *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _PACKAGES),
            *(f"-D{name}={value}" for name, value in spark.items()),
            f"-Djava.io.tmpdir={self.data}",
            *("-cp", f"{self._jars()}/*", "org.apache.beam.runners.spark.SparkJobServerDriver"),
            *(f"--job-host={HOST}", f"--job-port={self.port('jobs')}"),
            *("--artifact-port=0", "--expansion-port=0"),
            f"--artifacts-dir={self.data / 'artifacts'}",
            f"--spark-master-url=local[{self.option('cores')}]",
        ]
        return words, {}

    def missing(self) -> str:
        return "" if listens(self.port("jobs")) else f"nobody listens on {self.address}"

    def hints(self) -> list[str]:
        return [f"--runner=spark --job_endpoint={self.job_endpoint} --environment_type=LOOPBACK"]

    def _jars(self) -> Path:
        return jars(
            "spark-job-server", BEAM_VERSION, "spark-job-server-pom.xml", "350 MB by Maven, about a minute"
        )
