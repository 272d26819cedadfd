"""``headrace key``: the secret key."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="The secret key for tokens and sealed documents.",
    epilog="Example: headrace key create",
)


@app.callback()
def _key() -> None:
    """Makes ``create`` a command of its own although it is the only one."""


@app.command()
def create(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="The file to make; default $HEADRACE_KEY_FILE, else ~/.config/headrace/key.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a key file that only you can read; one that exists is kept. The secret is never printed.

    Keep a copy of the file in a safe place: without it no sealed document can be opened, and new events get other tokens.

    Example: headrace key create ~/keys/headrace
    """
    from headrace.transforms.keys import Key

    key = Key(path, create=True)
    done = "created" if key.created else "exists already, kept"
    typer.echo(f"key file {key.path}: {done} (fingerprint {key.fingerprint})")
