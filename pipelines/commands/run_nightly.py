"""``headrace run nightly``: dates of a lake to the tables of a warehouse."""

import dataclasses
import json
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.pipelines.config_file import load_settings
from headrace.pipelines.nightly.nightly_config import NightlyConfig
from headrace.pipelines.settings import dump
from headrace.schemas.errors import ConfigError

if TYPE_CHECKING:
    from headrace.pipelines.nightly.nightly import NightlyResult
    from headrace.pipelines.nightly.run_day import DayResult

_HELP = {
    field.name: field.metadata["help"].replace("[", "\\[") for field in dataclasses.fields(NightlyConfig)
}
EXAMPLES = """Examples:

headrace run nightly --date 2026-01-05 --lake lake --output warehouse

headrace run nightly --lake lake --output warehouse --timezone Europe/Berlin --catch-up

headrace run nightly --from 2026-01-01 --to 2026-01-31 --lake lake --output warehouse

headrace run nightly --stale --lake lake --output warehouse

Any option of Beam is passed on to the runner. Every setting: headrace run nightly --print-config"""


def nightly(
    context: typer.Context,
    day: Annotated[
        str | None,
        typer.Option(
            "--date", metavar="DATE", help="Date to run. Default: yesterday in the warehouse's zone."
        ),
    ] = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="DATE", help="First of several dates to run.")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", metavar="DATE", help="Last of several dates to run.")
    ] = None,
    lake: Annotated[str | None, typer.Option(metavar="LAKE", help=_HELP["lake"])] = None,
    output: Annotated[str | None, typer.Option(metavar="WAREHOUSE", help=_HELP["output"])] = None,
    timezone: Annotated[str | None, typer.Option(metavar="ZONE", help=_HELP["timezone"])] = None,
    gap_seconds: Annotated[int | None, typer.Option(help=_HELP["gap_seconds"])] = None,
    catch_up: Annotated[
        bool,
        typer.Option(
            "--catch-up",
            help="Run the dates whose events in the lake changed since their run, too, in order.",
        ),
    ] = False,
    stale: Annotated[
        bool, typer.Option("--stale", help="List the dates that --catch-up would run, and run none.")
    ] = False,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="Configuration in YAML, JSON or TOML; options go over it."
        ),
    ] = None,
    runner: Annotated[
        str,
        typer.Option(
            help="direct runs in this process; portable uses a job server (--job_endpoint, --environment_type)."
        ),
    ] = "direct",
    shared_paths: Annotated[
        bool | None, typer.Option("--shared-paths", help=_HELP["shared_paths"], show_default=False)
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the configuration in effect as YAML and stop.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON object on standard output.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress; without --json no summary either.")
    ] = False,
) -> None:
    """Make the nightly tables of a date: sessions, users' metrics, cube, cohorts, products and funnels.

    Running a date replaces exactly its own rows. Running it again changes nothing, and finishes a run that was interrupted.
    """
    given = {
        "lake": lake,
        "output": output,
        "timezone": timezone,
        "gap_seconds": gap_seconds,
        "shared_paths": shared_paths,
    }
    config = load_settings(NightlyConfig, config_file, given)
    if print_config:
        typer.echo(dump(config), nl=False)
        return
    config.require_paths()
    dates = read_dates(day, first, last)
    if stale and (dates is not None or catch_up):
        raise ConfigError("--stale runs no date; leave --date, --from, --to and --catch-up out, or --stale")

    from headrace.pipelines.nightly.nightly import list_stale, run_nightly
    from headrace.runners.options import check_known

    own = [name for parameter in context.command.params for name in parameter.opts]
    check_known(context.args, own)
    if stale:
        result = list_stale(config)
    else:
        result = run_nightly(
            config,
            dates,
            catch_up=catch_up,
            beam_args=[f"--runner={runner}", *context.args],
            on_day=(lambda found: None) if quiet else _show_day,
        )
    if as_json:
        typer.echo(json.dumps(to_json(result)))
    elif not quiet:
        _show(result)


def read_dates(day: str | None, first: str | None, last: str | None) -> tuple[date, date] | None:
    """Returns the first and the last date that are asked for; None if none is.

    Raises:
        ConfigError: a text that is no date, or options that don't go together.
    """
    if day is not None and (first is not None or last is not None):
        raise ConfigError("--date is one date, --from and --to are several; give one or the other")
    if (first is None) != (last is None):
        raise ConfigError(f"--{'to' if last is None else 'from'} is missing; give both --from and --to")
    if day is not None:
        found = _date("--date", day)
        return found, found
    if first is None or last is None:
        return None
    return _date("--from", first), _date("--to", last)


def to_json(result: "NightlyResult") -> dict[str, Any]:
    """Returns the summary as plain JSON values; dates and times are ISO 8601."""
    return {
        "output": str(result.output),
        "timezone": result.timezone,
        "lake_version": result.lake_version,
        "elapsed_seconds": round(result.elapsed_seconds, 3),
        "days": [
            {
                "date": each.day.date.isoformat(),
                "start": each.day.start.isoformat().replace("+00:00", "Z"),
                "end": each.day.end.isoformat().replace("+00:00", "Z"),
                "lake_version": each.lake_version,
                "events": each.events,
                "without_user": each.without_user,
                "rows": each.rows,
                "already_done": each.already_done,
                "reasons": each.reasons,
                "elapsed_seconds": round(each.elapsed_seconds, 3),
            }
            for each in result.days
        ],
        "stale": [{"date": each.date.isoformat(), "reason": each.reason} for each in result.stale],
    }


def _date(option: str, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is no date; write it as 2026-01-31") from None


def _show_day(found: "DayResult") -> None:
    """One line a date on standard error, as soon as it is committed."""
    what = "nothing had changed" if found.already_done else f"{found.elapsed_seconds:.1f} s"
    print(f"{found.day.date}: {found.events:,} events, {what}", file=sys.stderr, flush=True)


def _show(result: "NightlyResult") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(file=sys.stdout)
    if result.days:
        table = Table("date", box=None, header_style="bold")
        for name in ("hours", "events", "without user", "sessions", "users", "new users"):
            table.add_column(name, justify="right", no_wrap=True)
        for each in result.days:
            counts = (
                each.events,
                each.without_user,
                *(each.rows[name] for name in ("user_sessions", "user_daily_metrics", "user_first_seen")),
            )
            table.add_row(
                each.day.date.isoformat(), f"{each.day.hours:g}", *(f"{count:,}" for count in counts)
            )
        console.print(table)
        console.print(
            f"{escape(str(result.output))}: dates in {result.timezone}, lake version {result.lake_version}, "
            f"{result.elapsed_seconds:.1f} s",
            highlight=False,
        )
    if result.stale:
        console.print("To run again (--catch-up runs them):", highlight=False)
        for old in result.stale:
            console.print(f"  {old.date}  {escape(old.reason)}", highlight=False)
    elif not result.days:
        console.print("No date has to be run again.")
