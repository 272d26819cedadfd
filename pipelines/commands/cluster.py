"""``headrace cluster``: real servers on this machine, for development and tests."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.pipelines.exits import INVALID
from headrace.runners.servers.catalogue import SERVERS, known_servers, server_class
from headrace.runners.servers.pubsub import Kind
from headrace.runners.servers.server import Server, cluster_folder
from headrace.schemas.errors import ConfigError

_HELP = """Start and stop real servers on this machine, for development and tests: kafka, flink, prism, pubsub, spark.

They come from package registries (Maven, pip, Go) into $HEADRACE_CACHE, run without containers, listen on this machine and know no
passwords. Their state is in $HEADRACE_CLUSTER_DIR; name another folder to have several clusters side by side."""

app = typer.Typer(
    no_args_is_help=True, help=_HELP, epilog="Example: headrace cluster up kafka flink", rich_markup_mode=None
)

Folder = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        help="of the cluster; default $HEADRACE_CLUSTER_DIR, else ~/.cache/headrace/cluster",
        show_default=False,
    ),
]
Names = Annotated[
    list[str] | None, typer.Argument(metavar="NAME…", help=f"of {', '.join(SERVERS)}", show_default=False)
]


@app.command()
def up(
    names: Names = None,
    folder: Folder = None,
    port: Annotated[
        int | None, typer.Option(help="where the one named server answers; default: a free port")
    ] = None,
    slots: Annotated[int | None, typer.Option(help="flink: slots of each TaskManager; default 2")] = None,
    taskmanagers: Annotated[int | None, typer.Option(help="flink: number of TaskManagers; default 1")] = None,
    worker_pool: Annotated[
        bool | None,
        typer.Option("--worker-pool", help="flink: with a pool of Python workers", show_default=False),
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option(help="pubsub: default Google's emulator if it is installed")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="kafka, flink: a setting of the server's own; more than one may be given",
        ),
    ] = None,
) -> None:
    """Start servers, wait until they answer, and print what to pass to headrace. One that is up stays as it is.

    Example: headrace cluster up flink --slots 4 --worker-pool
    """
    if not names:
        raise ConfigError(
            f"name what to start: {', '.join(SERVERS)}; for example `headrace cluster up kafka`"
        )
    options = {
        "port": port,
        "slots": slots,
        "taskmanagers": taskmanagers,
        "worker_pool": worker_pool,
        "kind": kind,
        "settings": parse_settings(settings) if settings else None,
    }
    servers = make_servers(names, folder, options)
    with _telling():
        for server in servers:
            address = server.up()
            typer.echo(f"{server.name} is up at {address}")
            for line in server.hints():
                typer.echo(f"  {line}")


@app.command()
def status(
    names: Names = None,
    folder: Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a server.")] = False,
) -> None:
    """Say of each server whether it is up, dead (with its last log lines), paused, silent or down. Exit code 1 unless all are up.

    Example: headrace cluster status
    """
    servers = [server_class(name)(folder) for name in names or known_servers(folder)]
    if not servers:
        typer.echo(f"nothing was started in {folder or cluster_folder()}", err=as_json)
        return
    found = [server.status() for server in servers]
    for one in found:
        if as_json:
            typer.echo(json.dumps(asdict(one)))
            continue
        processes = ", ".join(f"{role} {pid}" for role, pid in one.pids.items())
        typer.echo(f"{one.name:<8}{one.state:<8}{one.address:<18}{processes}".rstrip())
        for line in one.detail.splitlines():
            typer.echo(f"        {line}")
    if any(one.state != "up" for one in found):
        raise typer.Exit(INVALID)


@app.command()
def down(
    names: Names = None,
    folder: Folder = None,
    keep_data: Annotated[bool, typer.Option("--keep-data", help="Leave what the servers stored.")] = False,
) -> None:
    """End servers, all if none is named, and remove their data, logs and ports.

    Example: headrace cluster down kafka --keep-data
    """
    servers = [server_class(name)(folder) for name in names or known_servers(folder)]
    for server in servers:
        there = server.down(keep_data=keep_data)
        kept = f"; its data are kept in {server.data}" if there and keep_data else ""
        typer.echo(f"{server.name} is down{kept}" if there else f"{server.name} was not up")
    if not servers:
        typer.echo(f"nothing was started in {folder or cluster_folder()}")


def make_servers(names: Sequence[str], folder: Path | None, options: dict[str, Any]) -> list[Server]:
    """Returns the named servers, each with the options that it takes.

    Args:
        names: as on the command line; twice is once.
        folder: of the cluster.
        options: by argument name; None is "not given".

    Raises:
        ConfigError: an unknown name, an option that none of them takes, or a port or settings for more than one.
    """
    classes = [server_class(name) for name in dict.fromkeys(names)]
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        flag = "--set" if name == "settings" else f"--{name.replace('_', '-')}"
        takers = [known.name for known in SERVERS.values() if _takes(known, name)]
        if not any(_takes(known, name) for known in classes):
            raise ConfigError(f"{flag} is for {', '.join(takers)}, not for {', '.join(names)}; leave it out")
        if name in ("port", "settings") and len(classes) > 1:
            raise ConfigError(
                f"{flag} is for one server, but {', '.join(names)} are named; start them one by one"
            )
    return [
        known(folder, **{name: value for name, value in given.items() if _takes(known, name)})
        for known in classes
    ]


def parse_settings(texts: Sequence[str]) -> dict[str, str]:
    """Returns ``KEY=VALUE`` texts as a dict; the value may hold more ``=``.

    Raises:
        ConfigError: there is no ``=``, or no key.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(
                f"--set {text!r} is no KEY=VALUE; write for example --set heartbeat.timeout=20000"
            )
        found[key] = value
    return found


def _takes(known: type[Server], option: str) -> bool:
    return option == "port" or option in known.defaults


@contextmanager
def _telling() -> Iterator[None]:
    """Shows what takes long on standard error."""
    logger = logging.getLogger("headrace.runners.servers")
    handler = logging.StreamHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
