"""``headrace schemas``: lists, shows and compares schemas."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from headrace.schemas import compatibility
from headrace.schemas.errors import ConfigError
from headrace.schemas.references import CheckedSchema, read_schema
from headrace.schemas.registry import Registry

app = typer.Typer(
    help="List, show and compare the schemas of the event families.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Mode(StrEnum):
    """Which documents have to stay valid."""

    BACKWARD = "backward"
    FORWARD = "forward"
    FULL = "full"


def find_schema(reference: str) -> CheckedSchema:
    """Returns the schema that a file or ``NAME[:VERSION]`` names; a name is taken for a file only if it isn't registered.

    Raises:
        ConfigError: neither a file nor a known name, or a schema that can't be used.
        InputError: the file can't be read.
    """
    registry = Registry.default()
    path = Path(reference)
    if reference.partition(":")[0] not in registry.names() and (
        path.exists() or path.suffix or len(path.parts) > 1
    ):
        return CheckedSchema(read_schema(path), folder=path.parent)
    try:
        return CheckedSchema(registry.get(reference).document)
    except ConfigError as error:
        raise ConfigError(f"{error}; there is no file of that name either") from error


@app.command("list", help="List the families with their versions.\n\nExample:  headrace schemas list")
def list_schemas() -> None:
    """Prints one line a family: name, versions, description."""
    registry = Registry.default()
    for name in registry.names():
        versions = ", ".join(registry.versions(name))
        typer.echo(f"{name:<13}{versions:<16}{registry.get(name).document.get('description', '')}")


@app.command("show", help="Print a schema.\n\nExample:  headrace schemas show commerce:1.0.0")
def show(
    reference: Annotated[
        str, typer.Argument(metavar="NAME[:VERSION]", help="the highest version if none is given")
    ],
) -> None:
    """Prints the schema's JSON."""
    typer.echo(json.dumps(Registry.default().get(reference).document, indent=2, ensure_ascii=False))


@app.command(
    "check",
    help="Say whether NEW can follow OLD: exit 0 if that is proven, else 1 with the reasons.\n\n"
    "backward: documents valid under OLD stay valid under NEW. forward: those valid under NEW are valid under OLD.\n\n"
    "Example:  headrace schemas check commerce:1.0.0 commerce-1.1.0.json --mode full",
)
def check(
    old: Annotated[str, typer.Argument(metavar="OLD", help="NAME[:VERSION] or a file")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="NAME[:VERSION] or a file")],
    mode: Annotated[Mode, typer.Option(help="which direction has to hold")] = Mode.BACKWARD,
    closed: Annotated[
        bool,
        typer.Option("--closed", help="assume that documents hold only properties that their schema names"),
    ] = False,
) -> None:
    """Prints one line a break and exits with 1, or says that the schemas are compatible."""
    breaks = compatibility.check(find_schema(old), find_schema(new), mode.value, closed=closed)
    for item in breaks:
        typer.echo(f"{item.direction}  {item.pointer or '(top level)'}  {item.message}")
    if breaks:
        typer.echo(f"{new} is not proven {mode.value} compatible with {old}: {len(breaks)} reason(s)")
        raise typer.Exit(1)
    typer.echo(f"{new} is {mode.value} compatible with {old}")
