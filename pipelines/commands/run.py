"""``headrace run``: start a pipeline on a runner."""

import dataclasses
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from headrace.pipelines.commands import run_backfill, run_nightly, run_stream
from headrace.pipelines.config import BatchConfig, load_config
from headrace.pipelines.settings import dump, identity
from headrace.schemas.errors import UntrustedRunError

_HELP = {field.name: field.metadata["help"].replace("[", "\\[") for field in dataclasses.fields(BatchConfig)}
_EXAMPLES = """Examples:

headrace run batch --input 'events/*.jsonl.gz' --output out

headrace run batch --input access.log.gz --format weblog --now 2015-05-20T21:06:00Z --max-age-seconds 604800 --output out

headrace run batch --config batch.yaml --direct_running_mode multi_processing --direct_num_workers 2

Any option of Beam is passed on to the runner. Every setting: headrace run batch --print-config"""

app = typer.Typer(no_args_is_help=True, help="Run a pipeline.", epilog=_EXAMPLES)


@app.callback()
def _run() -> None:
    """Run a pipeline."""


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=_EXAMPLES,
)
def batch(
    context: typer.Context,
    input: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="PATTERN", help=_HELP["input"] + " Repeatable.", show_default=False),
    ] = None,
    output: Annotated[str | None, typer.Option(metavar="OUT", help=_HELP["output"])] = None,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="Configuration in YAML, JSON or TOML; options go over it."
        ),
    ] = None,
    format: Annotated[str | None, typer.Option(help=_HELP["format"])] = None,
    schema: Annotated[str | None, typer.Option(metavar="NAME", help=_HELP["schema"])] = None,
    now: Annotated[str | None, typer.Option(metavar="TIME", help=_HELP["now"])] = None,
    max_age_seconds: Annotated[int | None, typer.Option(help=_HELP["max_age_seconds"])] = None,
    key_file: Annotated[str | None, typer.Option(metavar="FILE", help=_HELP["key_file"])] = None,
    lake_format: Annotated[str | None, typer.Option(help=_HELP["lake_format"])] = None,
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
    """Read files of events; write a lake, a quarantine, metrics and a ledger.

    Running the same command again changes nothing, and finishes a run that was interrupted.
    """
    given = {
        "input": input or None,
        "output": output,
        "format": format,
        "schema": schema,
        "now": now,
        "max_age_seconds": max_age_seconds,
        "key_file": key_file,
        "lake_format": lake_format,
        "shared_paths": shared_paths,
    }
    config = load_config(config_file, given)
    if print_config:
        typer.echo(dump(config), nl=False)
        return
    config.require_paths()
    own = [name for parameter in context.command.params for name in parameter.opts]
    run(config, runner, context.args, own=own, as_json=as_json, quiet=quiet)


app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=run_stream.EXAMPLES,
)(run_stream.stream)

app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=run_nightly.EXAMPLES,
)(run_nightly.nightly)

app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=run_backfill.EXAMPLES,
)(run_backfill.backfill)


def run(
    config: BatchConfig, runner: str, beam_args: list[str], *, own: list[str], as_json: bool, quiet: bool
) -> None:
    """Runs the pipeline and shows progress and summary.

    Args:
        own: the command's own options, to find the nearest name of an unknown one.

    Raises:
        ConfigError: an unknown option, or a job that the runner refuses.
        UntrustedRunError: the ledger does not balance; the summary is shown first.
    """
    from headrace.pipelines.batch import run_batch
    from headrace.pipelines.lineage.run_events import tables_below, told
    from headrace.pipelines.progress import Reporter
    from headrace.runners.options import check_known

    check_known(beam_args, own)
    live = sys.stderr.isatty() and not as_json
    with (
        told(
            f"batch.{Path(config.output).absolute().name}",
            inputs=config.input,
            outputs=tables_below(config.output),
            configuration=identity(config),
        ) as lineage,
        nullcontext() if quiet else Reporter(sys.stderr, live=live) as reporter,
    ):
        result = run_batch(config, beam_args=[f"--runner={runner}", *beam_args], on_progress=reporter)
        lineage.wrote(config.output, result.ledger)

    from rich.console import Console

    from headrace.pipelines.summary import Hints, print_summary, read_hints
    from headrace.pipelines.summary import as_json as to_json

    if as_json:
        typer.echo(json.dumps(to_json(result, read_hints(result))))
    elif not quiet:
        hints = read_hints(result) if result.ledger.balanced else Hints()
        print_summary(result, Console(file=sys.stdout), hints)
    if not result.ledger.balanced:
        raise UntrustedRunError(result.ledger.explain_imbalance())
