"""Beam's Prism: a portable runner in one Go program, found on this machine or built from Beam's Go module."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from headrace.runners.servers.install import cache_folder, digest, go_environment, install, run, tool
from headrace.runners.servers.processes import listens
from headrace.runners.servers.server import Server
from headrace.schemas.errors import ConfigError

VERSION = "v2.77.0"
_MODULE = "github.com/apache/beam/sdks/v2/go/cmd/prism"


class PrismServer(Server):
    """A Prism that stays, with its job service at ``address``.

    It keeps jobs in memory and starts no failed bundle again: a killed Prism has lost its jobs. It listens on all interfaces, which
    Prism has no option against, so use it where others can't reach the port.

    Args:
        folder: of the cluster.
        port: of the job service.
        binary: Prism itself; default: what :func:`prism_binary` finds or builds.

    Example::

        prism = PrismServer("/tmp/cluster")
        flags = ["--runner=PortableRunner", f"--job_endpoint={prism.up()}", "--environment_type=LOOPBACK"]
    """

    name: ClassVar[str] = "prism"
    ports: ClassVar[tuple[str, ...]] = ("jobs",)
    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, folder: Path | str | None = None, *, port: int | None = None, binary: Path | None = None
    ) -> None:
        super().__init__(folder, port=port)
        self._binary = binary

    @property
    def job_endpoint(self) -> str:
        """For ``--job_endpoint``."""
        return str(self.address)

    def install(self) -> None:
        self._program()

    def roles(self) -> list[str]:
        return ["prism"]

    def configure(self) -> None:
        self.data.mkdir(exist_ok=True)

    def command(self, role: str) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        options = [f"--job_port={self.port('jobs')}", "--serve_http=false", "--log_kind=text"]
        # staged files go to the temporary folder: it is removed with the rest
        return [self._program(), *options], {"TMPDIR": str(self.data)}

    def missing(self) -> str:
        return "" if listens(self.port("jobs")) else f"nobody listens on {self.address}"

    def hints(self) -> list[str]:
        return [f"--job_endpoint={self.job_endpoint}", f"--prism_location={self._program()}"]

    def _program(self) -> Path:
        return self._binary or prism_binary()


def prism_binary(*, build: bool = True) -> Path:
    """Returns Beam's prism: ``$HEADRACE_PRISM``, the one in PATH, or that of the cache, which is built if it isn't there.

    Args:
        build: build it if there is none.

    Raises:
        ConfigError: what ``$HEADRACE_PRISM`` names is no prism, there is no Go to build it, the build failed, or there is none and
            it is not to be built.
    """
    named = os.environ.get("HEADRACE_PRISM")
    if named:
        if not _is_prism(named):
            raise ConfigError(
                f"HEADRACE_PRISM={named} is not Beam's prism; correct it, or unset it to have one built"
            )
        return Path(named).absolute()
    found = shutil.which("prism")
    if found is not None and _is_prism(found):
        return Path(found)
    name = f"prism-{VERSION}-{digest(_MODULE)}"
    if not build and not (cache_folder() / name).is_dir():
        raise ConfigError(
            "there is no prism; build it with `headrace cluster up prism` (needs Go), put it in PATH, or name it in HEADRACE_PRISM"
        )
    return install(name, _build, "Go builds it from source, about five minutes") / "prism"


def _is_prism(path: str) -> bool:
    """Tells Beam's prism from other programs of that name."""
    try:
        done = subprocess.run([path, "--help"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "-job_port" in done.stdout + done.stderr


def _build(folder: Path) -> None:
    go = tool("go", "building Prism")
    nice = ["nice", "-n", "10"] if shutil.which("nice") else []
    run(
        [*nice, go, "install", f"{_MODULE}@{VERSION}"],
        what="building Prism",
        cwd=folder,
        environment={**go_environment(), "GOBIN": str(folder)},
    )
