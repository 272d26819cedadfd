"""Pub/Sub on this machine: Google's emulator where it is installed, else the fake that Google's Go client is tested with."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from headrace.runners.servers.install import digest, go_environment, install, run, template, tool
from headrace.runners.servers.processes import HOST, listens
from headrace.runners.servers.server import Server
from headrace.schemas.errors import ConfigError

Kind = Literal["emulator", "fake"]

_SOURCES = ("go.mod", "go.sum", "main.go")
_SYSTEM = Path("/usr/lib/google-cloud-sdk")
"""Where Debian's packages of Google put it."""
_JARS = "platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar"


class PubSubServer(Server):
    """Any project, no passwords; clients find it by ``PUBSUB_EMULATOR_HOST``.

    Topics, subscriptions and messages are in memory: a process that ends has forgotten them.

    Args:
        folder: of the cluster.
        port: where it answers.
        kind: ``emulator`` (Google's own, in Java, strict about names) or ``fake`` (Go's ``pstest``); default: the emulator if
            this machine has it.

    Example::

        pubsub = PubSubServer("/tmp/cluster")
        os.environ["PUBSUB_EMULATOR_HOST"] = str(pubsub.up())
    """

    name: ClassVar[str] = "pubsub"
    ports: ClassVar[tuple[str, ...]] = ("pubsub",)
    defaults: ClassVar[dict[str, Any]] = {"kind": None}

    def __init__(
        self, folder: Path | str | None = None, *, port: int | None = None, kind: Kind | None = None
    ) -> None:
        if kind is not None and kind not in get_args(Kind):
            raise ConfigError(f"kind={kind!r} is unknown; it is one of {', '.join(get_args(Kind))}")
        super().__init__(folder, port=port, kind=kind)

    @property
    def kind(self) -> Kind:
        """What runs, or would run."""
        return self.option("kind") or ("fake" if emulator_jar() is None else "emulator")

    def install(self) -> None:
        kind = self._given.get("kind")
        if kind == "emulator" and emulator_jar() is None:
            raise ConfigError(
                "Google's Pub/Sub emulator is not on this machine; apt install google-cloud-cli-pubsub-emulator, "
                "or `gcloud components install pubsub-emulator`, or leave the kind open to get the fake"
            )
        if kind == "fake" or emulator_jar() is None:
            _fake()
        else:
            tool("java", "Google's Pub/Sub emulator")

    def roles(self) -> list[str]:
        return ["pubsub"]

    def configure(self) -> None:
        self.data.mkdir(exist_ok=True)

    def command(self, role: str) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        port = str(self.port("pubsub"))
        jar = emulator_jar()
        if self.kind == "fake" or jar is None:
            return [_fake(), "-port", port], {}
        return [tool("java", "Pub/Sub"), "-Xmx512m", "-jar", jar, f"--host={HOST}", f"--port={port}"], {}

    def missing(self) -> str:
        return "" if listens(self.port("pubsub")) else f"nobody listens on {self.address}"

    def hints(self) -> list[str]:
        return [f"PUBSUB_EMULATOR_HOST={self.address}"]


def emulator_jar() -> Path | None:
    """Returns the jar of Google's emulator, of Debian's package or beside ``gcloud``; None if it isn't on this machine."""
    roots = [_SYSTEM]
    gcloud = shutil.which("gcloud")
    if gcloud is not None:
        roots.insert(0, Path(gcloud).resolve().parents[1])
    return next((jar for root in roots for jar in sorted(root.glob(_JARS), reverse=True)), None)


def _fake() -> Path:
    texts = [template(f"pubsub_fake/{name}", {}) for name in _SOURCES]

    def build(folder: Path) -> None:
        go = tool("go", "building the Pub/Sub fake (there is no emulator of Google's here)")
        for name, text in zip(_SOURCES, texts, strict=True):
            (folder / name).write_text(text, encoding="utf-8")
        run(
            [go, "build", "-o", "pubsub-fake", "."],
            what="building the Pub/Sub fake",
            cwd=folder,
            environment=go_environment(),
        )

    return (
        install(f"pubsub-fake-{digest(*texts)}", build, "Go builds it from source, one to three minutes")
        / "pubsub-fake"
    )
