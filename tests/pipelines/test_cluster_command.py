import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner, Result

from headrace.pipelines.cli import app
from headrace.pipelines.commands.cluster import parse_settings
from headrace.runners.servers import catalogue
from headrace.runners.servers.server import Server
from headrace.schemas.errors import ConfigError


class Plain(Server):
    """One ``sleep``."""

    name: ClassVar[str] = "plain"
    ports: ClassVar[tuple[str, ...]] = ("main",)

    def install(self) -> None:
        pass

    def roles(self) -> list[str]:
        return ["main"]

    def configure(self) -> None:
        self.data.mkdir(exist_ok=True)

    def command(self, role: str) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        return ["sleep", "60"], {}

    def missing(self) -> str:
        return ""

    def hints(self) -> list[str]:
        return [f"--plain={self.address}"]


class Tunable(Plain):
    name: ClassVar[str] = "tunable"
    defaults: ClassVar[dict[str, Any]] = {"slots": 2, "settings": {}}


@pytest.fixture(autouse=True)
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    servers: dict[str, type[Server]] = {"plain": Plain, "tunable": Tunable}
    monkeypatch.setattr(catalogue, "SERVERS", servers)
    monkeypatch.setattr("headrace.pipelines.commands.cluster.SERVERS", servers)
    monkeypatch.setenv("HEADRACE_CLUSTER_DIR", str(tmp_path))
    yield tmp_path
    for server in servers.values():
        server(tmp_path).down()


def headrace(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["cluster", *arguments], env={"COLUMNS": "200"})


def test_up_status_down(cluster: Path) -> None:
    done = headrace("up", "plain", "tunable", "--slots", "3")
    assert done.exit_code == 0, done.output
    plain, tunable = Plain(cluster), Tunable(cluster)
    assert done.stdout == (
        f"plain is up at {plain.address}\n  --plain={plain.address}\n"
        f"tunable is up at {tunable.address}\n  --plain={tunable.address}\n"
    )
    assert tunable.option("slots") == 3
    assert headrace("up", "plain").stdout == f"plain is up at {plain.address}\n  --plain={plain.address}\n"

    done = headrace("status")
    assert done.exit_code == 0
    first, second = done.stdout.splitlines()
    assert first.split() == ["plain", "up", str(plain.address), "main", str(plain.status().pids["main"])]
    assert second.startswith("tunable up ")

    plain.kill()
    done = headrace("status")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[0].split() == ["plain", "dead", str(plain.address)]
    assert "is dead; its last lines:" in done.stdout
    [found] = map(json.loads, headrace("status", "plain", "--json").stdout.splitlines())
    assert (found["name"], found["state"], found["pids"]) == ("plain", "dead", {})

    assert (
        headrace("down", "plain", "--keep-data").stdout
        == f"plain is down; its data are kept in {plain.data}\n"
    )
    assert headrace("down").stdout == "tunable is down\n"
    assert headrace("down", "tunable").stdout == "tunable was not up\n"
    assert headrace("status", "plain").exit_code == 1
    assert headrace("status").stdout == headrace("down").stdout == f"nothing was started in {cluster}\n"


def test_clusters_are_side_by_side_in_other_folders(cluster: Path) -> None:
    other = cluster / "other"
    headrace("up", "plain")
    headrace("up", "plain", "--folder", str(other))
    try:
        assert Plain(other).address != Plain(cluster).address
        headrace("down")
        assert headrace("status", "--folder", str(other)).exit_code == 0
    finally:
        assert headrace("down", "--folder", str(other)).stdout == "plain is down\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up"], "name what to start: plain, tunable; for example `headrace cluster up kafka`"),
        (["up", "plian"], "unknown server 'plian'; did you mean 'plain'?"),
        (["status", "x"], "unknown server 'x'; known: plain, tunable"),
        (["down", "x"], "unknown server 'x'; known: plain, tunable"),
        (["up", "plain", "--slots", "1"], "--slots is for tunable, not for plain; leave it out"),
        (["up", "plain", "--set", "a=b"], "--set is for tunable, not for plain; leave it out"),
        (["up", "plain", "--worker-pool"], "--worker-pool is for"),
        (
            ["up", "plain", "tunable", "--port", "1234"],
            "--port is for one server, but plain, tunable are named; start them one by one",
        ),
        (["up", "tunable", "--set", "=b"], "--set '=b' is no KEY=VALUE"),
    ],
)
def test_wrong_use_is_told_and_starts_nothing(arguments: list[str], message: str, cluster: Path) -> None:
    done = headrace(*arguments)
    assert done.exit_code == 2
    assert f"error: {message}" in done.stderr
    assert catalogue.known_servers(cluster) == []


def test_settings() -> None:
    assert parse_settings(["a=1", "b=c=d", "e="]) == {"a": "1", "b": "c=d", "e": ""}
    with pytest.raises(ConfigError, match="--set 'a' is no KEY=VALUE; write for example"):
        parse_settings(["a"])
    done = headrace("up", "tunable", "--set", "a=1", "--set", "b=2")
    assert done.exit_code == 0
    assert Tunable().option("settings") == {"a": "1", "b": "2"}
