"""``headrace runners``: which runners there are, and whether one is fit to run."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from headrace.pipelines.exits import INVALID
from headrace.pipelines.findings import print_findings

app = typer.Typer(
    help="List the runners, and check one.",
    no_args_is_help=True,
    epilog="Examples: headrace runners list; headrace runners check prism; "
    "headrace runners check flink --job_endpoint=HOST:PORT --flink-rest=http://HOST:PORT --environment_type=LOOPBACK",
)


@app.command("list")
def list_runners(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """List the runners: what each is for, and the versions that its tests ran with."""
    from headrace.runners.profiles import PROFILES

    rows = [
        {
            "name": profile.name,
            "batch": not profile.no_batch,
            "stream": not profile.no_stream,
            "about": profile.about,
            "versions": profile.versions,
            "no_batch": profile.no_batch,
            "no_stream": profile.no_stream,
        }
        for profile in PROFILES
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        kinds = ", ".join(kind for kind in ("batch", "stream") if row[kind])
        typer.echo(f"{row['name']:<10}{kinds:<15}{row['about']}")
        typer.echo(f"{'':<25}{row['versions']}")


@app.command("check", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def check(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="RUNNER", help="A name that `headrace runners list` shows.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="KIND",
            help="stream or batch; without it streams, where the runner can.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
) -> None:
    """Look at what a runner needs, and say how to mend what is wrong. Exit code 1 if a job would fail or not be exact.

    Options of the runner (--job_endpoint, --flink-rest, --environment_type, --prism_location, …) are those of `headrace run`.
    """
    from headrace.runners.checks import check_runner, require_mode

    findings = check_runner(name, context.args, mode=require_mode(kind) if kind else None)
    fit = all(found.status != "wrong" for found in findings)
    if as_json:
        typer.echo(json.dumps({"fit": fit, "findings": [asdict(found) for found in findings]}, indent=2))
    else:
        print_findings(findings)
        typer.echo(f"{name} is {'ready' if fit else 'not ready: see the fixes above'}")
    if not fit:
        raise typer.Exit(INVALID)
