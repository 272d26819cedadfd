"""``headrace run stream``: read a stream until told to stop."""

import dataclasses
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.pipelines.config_file import load_settings
from headrace.pipelines.settings import dump, identity
from headrace.pipelines.stream_config import StreamConfig
from headrace.schemas.errors import UntrustedRunError

if TYPE_CHECKING:
    from headrace.pipelines.streaming.stream_progress import StreamProgress

_HELP = {field.name: field.metadata["help"].replace("[", "\\[") for field in dataclasses.fields(StreamConfig)}
EXAMPLES = """Examples:

headrace run stream --source kafka://localhost:9092/events --output lake

headrace run stream --source dir:incoming --output lake --until now

headrace run stream --config stream.yaml --runner flink --job_endpoint localhost:8099 --flink-rest http://localhost:8081

Any option of Beam is passed on to the runner. Every setting: headrace run stream --print-config"""


def stream(
    context: typer.Context,
    source: Annotated[str | None, typer.Option(metavar="URL", help=_HELP["source"])] = None,
    output: Annotated[str | None, typer.Option(metavar="OUT", help=_HELP["output"])] = None,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="Configuration in YAML, JSON or TOML; options go over it."
        ),
    ] = None,
    format: Annotated[str | None, typer.Option(help=_HELP["format"])] = None,
    schema: Annotated[str | None, typer.Option(metavar="NAME", help=_HELP["schema"])] = None,
    sink: Annotated[list[str] | None, typer.Option(metavar="URL", help=_HELP["sink"])] = None,
    quarantine_sink: Annotated[str | None, typer.Option(metavar="URL", help=_HELP["quarantine_sink"])] = None,
    readers: Annotated[int | None, typer.Option(help=_HELP["readers"])] = None,
    max_age_seconds: Annotated[int | None, typer.Option(help=_HELP["max_age_seconds"])] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help=_HELP["until"])] = None,
    max_events: Annotated[int | None, typer.Option(help=_HELP["max_events"])] = None,
    key_file: Annotated[str | None, typer.Option(metavar="FILE", help=_HELP["key_file"])] = None,
    runner: Annotated[
        str, typer.Option(help="prism runs on this machine; flink on a cluster (`headrace runners list`).")
    ] = "prism",
    rebuild_state_from: Annotated[
        str | None,
        typer.Option(
            metavar="LAKE",
            help="Start a new job whose state is rebuilt from this lake, which must be OUT: after a change of the "
            "configuration, or where no savepoint can be used.",
        ),
    ] = None,
    shared_paths: Annotated[
        bool | None, typer.Option("--shared-paths", help=_HELP["shared_paths"], show_default=False)
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Serve Prometheus metrics at /metrics, and /healthz and /readyz, on this port."),
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Address to serve them on.")] = "127.0.0.1",
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Send metrics to this OpenTelemetry collector (extra: headrace\\[otel])."
        ),
    ] = None,
    log_format: Annotated[str, typer.Option(help="text or json, one object a line.")] = "text",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "warning",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check configuration, options and graph, and stop.")
    ] = False,
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
    """Read a stream into a lake, a quarantine, window tables and a ledger, until SIGTERM or Ctrl-C.

    Then it stops reading, commits what is under way, and ends. The same command goes on where the last one stopped; after a
    crash it goes on from the last checkpoint, or from the lake itself. No event is lost or doubled.
    """
    given = {
        "source": source,
        "output": output,
        "format": format,
        "schema": schema,
        "sink": sink or None,
        "quarantine_sink": quarantine_sink,
        "readers": readers,
        "max_age_seconds": max_age_seconds,
        "until": until,
        "max_events": max_events,
        "key_file": key_file,
        "shared_paths": shared_paths,
    }
    config = load_settings(StreamConfig, config_file, given)
    if print_config:
        typer.echo(dump(config), nl=False)
        return
    config.require_paths()

    from headrace.pipelines.lineage.run_events import tables_below, told
    from headrace.pipelines.logs import ProgressLog, configure_logs

    configure_logs(log_format, log_level)
    from headrace.pipelines.progress import Reporter
    from headrace.pipelines.stream import run_stream
    from headrace.runners.options import check_known

    own = [name for parameter in context.command.params for name in parameter.opts]
    check_known(context.args, own)
    with ExitStack() as stack:
        stop = stack.enter_context(_stopping())
        shown: Callable[[StreamProgress], None] | None = None
        if not quiet and log_format == "json":
            shown = ProgressLog()
        elif not quiet:
            live = sys.stderr.isatty() and not as_json
            shown = stack.enter_context(Reporter(sys.stderr, live=live))
        lineage = told(
            f"stream.{Path(config.output).absolute().name}",
            inputs=[config.source],
            outputs=tables_below(config.output),
            configuration=identity(config),
            kind="STREAMING",
        )
        run = None if dry_run else stack.enter_context(lineage)
        result = run_stream(
            config,
            beam_args=[f"--runner={runner}", *context.args],
            rebuild_state_from=rebuild_state_from,
            metrics_port=metrics_port,
            metrics_host=metrics_host,
            otlp_endpoint=otlp_endpoint,
            dry_run=dry_run,
            stop=stop,
            on_progress=shown,
        )
        if run is not None:
            run.wrote(config.output)

    from rich.console import Console

    from headrace.pipelines.streaming.stream_summary import as_json as to_json
    from headrace.pipelines.streaming.stream_summary import print_summary

    if as_json:
        typer.echo(json.dumps(to_json(result)))
    elif not quiet:
        print_summary(result, Console(file=sys.stdout))
    if result.ledger is not None and not result.ledger.balanced:
        raise UntrustedRunError(result.ledger.explain_imbalance())


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Gives an event that the first SIGTERM or Ctrl-C sets; a second one ends the program at once."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("stopping: what is under way is committed first (again to end at once)", file=sys.stderr)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
