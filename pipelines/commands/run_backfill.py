"""``headrace run backfill``: dates of archived Parquet to a lake."""

import dataclasses
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.pipelines.backfill.backfill_config import BackfillConfig
from headrace.pipelines.config_file import load_settings
from headrace.pipelines.settings import dump, identity
from headrace.schemas.errors import ConfigError

if TYPE_CHECKING:
    from headrace.pipelines.backfill.backfill import BackfillResult, DateResult
    from headrace.pipelines.backfill.estimate import Estimate

_HELP = {
    field.name: field.metadata["help"].replace("[", "\\[") for field in dataclasses.fields(BackfillConfig)
}
EXAMPLES = """Examples:

headrace run backfill --archive archive --from 2026-01-01 --to 2026-01-31 --output lake --dry-run

headrace run backfill --archive archive --from 2026-01-01 --to 2026-01-31 --output lake --parallel 2

headrace run backfill --output lake --resume

Any option of Beam is passed on to the runner. Every setting: headrace run backfill --print-config"""


def backfill(
    context: typer.Context,
    archive: Annotated[str | None, typer.Option(metavar="DIR", help=_HELP["archive"])] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="DATE", help=_HELP["first"])] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="DATE", help=_HELP["last"])] = None,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="OUT",
            help="Folder to write to: new, or of earlier backfills, whose other dates are not touched.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the plan saved in OUT; archive and dates need not be said again. Refused if the archive changed.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and an estimate, and write nothing.")
    ] = False,
    parallel: Annotated[
        int, typer.Option(metavar="N", min=1, help="Processes that work at once, on this machine.")
    ] = 1,
    schema: Annotated[str | None, typer.Option(metavar="NAME", help=_HELP["schema"])] = None,
    ingest_column: Annotated[str | None, typer.Option(metavar="COLUMN", help=_HELP["ingest_column"])] = None,
    now: Annotated[str | None, typer.Option(metavar="TIME", help=_HELP["now"])] = None,
    max_age_seconds: Annotated[int | None, typer.Option(help=_HELP["max_age_seconds"])] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help=_HELP["exclude"] + " Repeatable.", show_default=False),
    ] = None,
    allow_missing: Annotated[
        bool | None, typer.Option("--allow-missing", help=_HELP["allow_missing"], show_default=False)
    ] = None,
    key_file: Annotated[str | None, typer.Option(metavar="FILE", help=_HELP["key_file"])] = None,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="Configuration in YAML, JSON or TOML; options go over it."
        ),
    ] = None,
    runner: Annotated[
        str,
        typer.Option(
            help="direct runs on this machine; portable uses a job server (--job_endpoint, --environment_type)."
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
    """Make dates of a lake again from archived Parquet: the stages of a batch, each event judged against its own time.

    Exactly the dates from --from to --to are replaced, each as a whole. Running it again changes nothing, and finishes a run that
    was interrupted.
    """
    given = {
        "archive": archive,
        "first": first,
        "last": last,
        "output": output,
        "schema": schema,
        "ingest_column": ingest_column,
        "now": now,
        "max_age_seconds": max_age_seconds,
        "exclude": exclude or None,
        "allow_missing": allow_missing,
        "key_file": key_file,
        "shared_paths": shared_paths,
    }
    config = load_settings(BackfillConfig, config_file, given)
    if resume:
        config = _resumed(config)
    if print_config:
        typer.echo(dump(config), nl=False)
        return
    config.require_paths()

    from headrace.runners.options import check_known

    own = [name for parameter in context.command.params for name in parameter.opts]
    check_known(context.args, own)
    if dry_run:
        _show_estimate(config, parallel, as_json)
        return

    from headrace.pipelines.backfill.backfill import run_backfill
    from headrace.pipelines.lineage.run_events import tables_below, told
    from headrace.pipelines.progress import Reporter

    live = sys.stderr.isatty() and not as_json
    with (
        told(
            f"backfill.{Path(config.output).absolute().name}",
            inputs=[config.archive] if config.archive else [],
            outputs=tables_below(config.output),
            configuration=identity(config),
        ) as lineage,
        nullcontext() if quiet else Reporter(sys.stderr, live=live) as reporter,
    ):
        result = run_backfill(
            config,
            resume=resume,
            beam_args=[f"--runner={runner}", *_workers(runner, parallel, context.args), *context.args],
            on_progress=reporter,
            on_date=(lambda found: None) if quiet else _show_date,
        )
        lineage.wrote(config.output)
    if as_json:
        typer.echo(json.dumps(to_json(result)))
    elif not quiet:
        _show(result)


def to_json(result: "BackfillResult") -> dict[str, Any]:
    """Returns the summary as plain JSON values."""
    return {
        "output": str(result.output),
        **result.ledger,
        "missing": [day.isoformat() for day in result.missing],
        "already_done": [each.date.isoformat() for each in result.dates if each.already_done],
        "rows_read": result.rows_read,
        "counts": result.counts,
        "elapsed_seconds": round(result.elapsed_seconds, 3),
    }


def _resumed(config: BackfillConfig) -> BackfillConfig:
    """Fills in from the saved plan what was not said again."""
    from headrace.pipelines.backfill.backfill_folder import saved_plan

    if not config.output:
        raise ConfigError("--resume needs --output, the folder whose backfill is to go on")
    plan = saved_plan(config.output)
    filled = {
        name: plan[name]
        for name in ("archive", "first", "last", "exclude", "allow_missing", "now")
        if not getattr(config, name) and plan[name]
    }
    return dataclasses.replace(config, **filled)


def _workers(runner: str, parallel: int, beam_args: list[str]) -> list[str]:
    if parallel == 1:
        return []
    if runner != "direct" or any(a.startswith("--direct_") for a in beam_args):
        raise ConfigError(
            "--parallel is for --runner direct, and stands for its --direct_running_mode and --direct_num_workers; give the "
            "runner's own options instead"
        )
    return ["--direct_running_mode=multi_processing", f"--direct_num_workers={parallel}"]


def _show_estimate(config: BackfillConfig, parallel: int, as_json: bool) -> None:
    from headrace.pipelines.backfill.estimate import estimate
    from headrace.pipelines.backfill.plan_backfill import plan_backfill
    from headrace.pipelines.build_definition import build_definition

    plan = plan_backfill(config, checksums=False)
    found = estimate(config, plan, build_definition(config), workers=parallel)
    if as_json:
        values = dataclasses.asdict(found)
        for name in ("dates", "missing"):
            values[name] = [day.isoformat() for day in values[name]]
        typer.echo(json.dumps(values))
        return
    typer.echo("\n".join(describe(found, parallel)))


def describe(found: "Estimate", parallel: int) -> list[str]:
    """Returns the estimate as lines."""
    from headrace.pipelines.progress import clock_time

    lines = [
        f"dates       {found.dates[0]} to {found.dates[-1]} ({len(found.dates)}), {found.jobs} job{'s' * (found.jobs != 1)}",
        f"layout      {found.layout}",
        f"files       {found.files:,}",
        f"row groups  {found.row_groups:,} read, {found.row_groups_pruned:,} left out by their statistics",
        f"columns     {found.columns:,} in all files, {found.columns_skipped:,} left out because they are empty",
        f"rows        {found.rows:,}",
        f"bytes       {found.size_bytes:,}",
    ]
    if found.missing:
        lines.insert(1, f"missing     {', '.join(day.isoformat() for day in found.missing)}")
    if found.rows_per_second is not None and found.seconds is not None:
        lines.append(
            f"time        about {clock_time(found.seconds)} at {found.rows_per_second:,.0f} rows/s in {parallel} "
            f"process{'es' * (parallel > 1)}; measured just now: stages and writers over {found.sample_rows:,} rows of "
            f"{found.sample_file}, without the shuffle"
        )
    return lines


def _show_date(found: "DateResult") -> None:
    """One line a date on standard error, as soon as it is committed."""
    rejected = sum(sum(reasons.values()) for reasons in found.rejected.values())
    print(f"{found.date}: {found.accepted:,} accepted, {rejected:,} rejected", file=sys.stderr, flush=True)


def _show(result: "BackfillResult") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(file=sys.stdout)
    table = Table("date", box=None, header_style="bold")
    for name in ("accepted", "rejected", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for each in result.dates:
        rejected = sum(sum(reasons.values()) for reasons in each.rejected.values())
        note = "nothing had changed" if each.already_done else ""
        table.add_row(each.date.isoformat(), f"{each.accepted:,}", f"{rejected:,}", note)
    console.print(table)
    ledger = result.ledger
    total = sum(sum(reasons.values()) for reasons in ledger["rejected"].values())
    console.print(
        f"rows in {ledger['rows_in']:,} = accepted {ledger['accepted']:,} + rejected {total:,} + outside of the dates "
        f"{ledger['outside']:,}; {escape(str(result.output))}, {result.elapsed_seconds:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    if result.missing:
        console.print(
            f"without a file of their own: {', '.join(d.isoformat() for d in result.missing)}", soft_wrap=True
        )
