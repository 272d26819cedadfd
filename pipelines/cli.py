"""The command line ``headrace``.

A command's module is imported when the command is used, and a command imports Beam when it runs: help must not wait for it, and
``headrace doctor`` must work where something is missing.
"""

import importlib
import sys
import traceback
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from headrace.pipelines.exits import EXIT_CODES, INTERRUPTED, UNTRUSTED, WRONG_USE, verdict

_COMMANDS = {
    "run": "app",
    "validate": "validate",
    "simulate": "simulate",
    "schemas": "app",
    "explain": "explain",
    "quarantine": "app",
    "report": "report",
    "runners": "app",
    "doctor": "doctor",
    "key": "app",
    "cluster": "app",
    "lake": "app",
    "verify": "app",
    "ledger": "app",
    "retention": "app",
}
"""Module of ``pipelines/commands`` to what it holds: ``app``, with commands of its own, or a function."""

_EXAMPLES = {"schemas": "Examples: headrace schemas list; headrace schemas show commerce"}
"""For apps that show none themselves."""

_EPILOG = """Try it:

headrace simulate --events 10000 --output events.jsonl.gz

headrace run batch --input events.jsonl.gz --now 2026-01-05T13:00:00Z --output out

Exit codes: """ + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())


class _Commands(TyperGroup):
    """Imports commands when they are asked for; turns errors into a message on standard error and an exit code."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands.update(dict.fromkeys(_COMMANDS))  # type: ignore[arg-type]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in _COMMANDS and self.commands[cmd_name] is None:
            self.commands[cmd_name] = load(cmd_name)
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command continues where it can", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise  # the reader (`| head`) had enough: typer ends quietly
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "headrace":
                _show(error)
            typer.echo(f"error: {error}; `headrace doctor` says how to mend the installation", err=True)
            raise typer.Exit(WRONG_USE) from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("typer", "click"):
                raise
            known = verdict(error)
            if known is None:
                _show(error)
                known = UNTRUSTED, "unexpected, please report it with the lines above"
            typer.echo(f"error: {known[1]}", err=True)
            raise typer.Exit(known[0]) from error


def load(name: str) -> Any:
    """Imports a command and returns it as typer runs it."""
    found = getattr(importlib.import_module(f"headrace.pipelines.commands.{name}"), _COMMANDS[name])
    if isinstance(found, typer.Typer):
        command: Any = get_group(found)
        command.epilog = command.epilog or _EXAMPLES.get(name)
    else:
        single = typer.Typer(add_completion=False, rich_markup_mode="rich")
        single.command()(found)
        command = get_command(single)
    command.name = name
    return command


def _show(error: BaseException) -> None:
    traceback.print_exception(error, file=sys.stderr)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headrace {version('headrace')}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
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
    """Columnar, exact and conserving pipelines for event data."""


def main() -> None:
    """Runs the command line; the entry point of the ``headrace`` script."""
    app()
