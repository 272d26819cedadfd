"""The command line ``headrace``.

Commands import what they need when they run: ``headrace --help`` must not wait for Beam.
"""

import sys
import traceback
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from headrace.pipelines.commands.doctor import doctor
from headrace.pipelines.commands.explain import explain
from headrace.pipelines.commands.key import app as key_app
from headrace.pipelines.commands.run import app as run_app
from headrace.pipelines.commands.schemas import app as schemas_app
from headrace.pipelines.commands.simulate import simulate
from headrace.pipelines.commands.validate import validate
from headrace.pipelines.exits import EXIT_CODES, INTERRUPTED, UNTRUSTED, verdict

_EPILOG = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."


class _Group(TyperGroup):
    """Turns errors into a message on standard error and the exit code that stands for them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command continues where it can", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if type(error).__module__.split(".")[0] in ("typer", "click"):
                raise
            known = verdict(error)
            if known is None:
                traceback.print_exc(file=sys.stderr)
                typer.echo("error: unexpected, please report it with the lines above", err=True)
                raise typer.Exit(UNTRUSTED) from error
            code, message = known
            typer.echo(f"error: {message}", err=True)
            raise typer.Exit(code) from error


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headrace {version('headrace')}")
        raise typer.Exit


app = typer.Typer(
    cls=_Group,
    name="headrace",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=_EPILOG,
)


@app.callback()
def _headrace(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Columnar, exact and conserving pipelines for event data.

    Try it: headrace simulate --events 10000 --seed 1 --output events.jsonl && headrace run batch --input events.jsonl --output out
    """


app.add_typer(run_app, name="run")
app.command()(validate)
app.command()(simulate)
app.add_typer(schemas_app, name="schemas")
app.command()(explain)
app.command()(doctor)
app.add_typer(key_app, name="key")


def main() -> None:
    """Runs the command line; the entry point of the ``headrace`` script."""
    app()
