"""``headrace verify``: do two ways lead to the same rows?"""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.pipelines.exits import DONE, INVALID
from headrace.schemas.errors import ConfigError

if TYPE_CHECKING:
    from headrace.pipelines.verify.tolerance import Tolerance

_EXAMPLES = """Examples:

headrace verify parity --input events.jsonl.gz --now 2026-01-05T13:00:00Z

headrace verify compare old-lake new-lake

headrace verify compare old/daily new/daily --key day --key country --tolerance revenue=0.01"""

app = typer.Typer(no_args_is_help=True, help="Prove that two ways lead to the same rows.", epilog=_EXAMPLES)

_Examples = Annotated[int, typer.Option(min=0, help="Most examples of each kind of difference.")]
_Report = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Also write all that was found to this JSON file."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the report.")]


@app.command(epilog=_EXAMPLES)
def compare(
    a: Annotated[
        Path, typer.Argument(metavar="A", help="An output, a lake, a warehouse, a table or a Parquet file.")
    ],
    b: Annotated[Path, typer.Argument(metavar="B", help="What to hold against it.")],
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Column that identifies a row, with the other keys. Repeatable. Without: whole rows.",
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Column that is not compared. Repeatable.")
    ] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=X",
            help="How far numbers may be apart: revenue=0.01, or revenue=1% of the larger. Repeatable.",
        ),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Compare this table only, by its path below A and B. Repeatable."),
    ] = None,
    examples: _Examples = 5,
    show_text: Annotated[
        bool,
        typer.Option(
            "--show-text",
            help="Show text in examples of tables that headrace did not write, too: it may be personal. Keys are always shown.",
        ),
    ] = False,
    report: _Report = None,
    as_json: _Json = False,
) -> None:
    """Compare two outputs, lakes or warehouses table by table, matched by path, or two tables.

    Delta tables and folders of Parquet files. The tables that headrace writes have keys of their own: events by event_id, window
    tables by window and groups (of a stream the rows that count), nightly tables by date and what else identifies a row, the
    quarantine by its counts. Where and when a record was read is not compared.

    Exit code 0 if all is equal, 1 if anything differs.
    """
    from headrace.pipelines.verify.compare_outputs import compare_outputs
    from headrace.pipelines.verify.compare_tables import Terms
    from headrace.pipelines.verify.report import describe_outputs

    _require_folder(report)
    terms = Terms(
        key=key or (),
        ignore=ignore or (),
        tolerances=_tolerances(tolerance or []),
        hide_text=not show_text,
        examples=examples,
    )
    found = compare_outputs(a, b, terms, only=table or ())
    _show(found.as_dict(), describe_outputs(found), report, as_json)
    raise typer.Exit(DONE if found.equal else INVALID)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=_EXAMPLES,
)
def parity(
    context: typer.Context,
    input: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="PATTERN",
            help="Files of events, as of `headrace run batch`. Repeatable.",
            show_default=False,
        ),
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="Configuration of a batch or of a stream; options go over it."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the disturbance: equal seeds send equal records.")] = 1,
    runner: Annotated[str, typer.Option(help="Runner of the stream: prism or flink.")] = "prism",
    work: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep both outputs here; what is finished there is not run again. Default: a temporary folder.",
        ),
    ] = None,
    now: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Reference time, as of `headrace run batch`: for an archive the end of its data.",
        ),
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Format of the input; default: told from each file.")
    ] = None,
    key_file: Annotated[str | None, typer.Option(metavar="FILE", help="Secret key for tokens.")] = None,
    shared_paths: Annotated[
        bool | None,
        typer.Option(
            "--shared-paths", help="All workers of the runner see the same paths.", show_default=False
        ),
    ] = None,
    examples: _Examples = 5,
    report: _Report = None,
    as_json: _Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Run one definition as a batch and as a stream over the same events, and compare every field.

    The stream gets them shuffled, delayed within watermark_delay_seconds + allowed_lateness_seconds, and some two or three times.
    The lake, the quarantine and the final rows of every window table are compared; ids that came with different content are listed
    apart. Any option of Beam is passed on to the stream's runner.

    Exit code 0 if all is equal, 1 if anything differs, 3 if a run can't be trusted.
    """
    _require_folder(report)
    from headrace.pipelines.logs import configure_logs
    from headrace.pipelines.verify.parity import prove_parity
    from headrace.pipelines.verify.parity_settings import load_definition
    from headrace.pipelines.verify.report import describe_parity
    from headrace.runners.options import check_known

    configure_logs("text", "warning")
    check_known(context.args, [name for parameter in context.command.params for name in parameter.opts])
    given = {
        "input": input or None,
        "now": now,
        "format": format,
        "key_file": key_file,
        "shared_paths": shared_paths,
    }
    batch, stream = load_definition(config_file, given)
    found = prove_parity(
        batch,
        stream,
        seed=seed,
        work=work,
        runner=runner,
        beam_args=context.args,
        examples=examples,
        on_step=_Steps(quiet),
        on_sent=_Sent(quiet),
    )
    _show(found.as_dict(), describe_parity(found), report, as_json)
    raise typer.Exit(DONE if found.equal else INVALID)


class _Steps:
    """Shows what is done next."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    def __call__(self, step: str) -> None:
        if not self._quiet:
            typer.echo(step, err=True)


class _Sent:
    """Shows how far the stream has come: on a terminal in one line, else every few seconds."""

    def __init__(self, quiet: bool) -> None:
        self._live = sys.stderr.isatty()
        self._every = float("inf") if quiet else 0.5 if self._live else 5.0
        self._shown_at = time.monotonic()

    def __call__(self, committed: int, total: int) -> None:
        now = time.monotonic()
        if now - self._shown_at >= self._every:
            self._shown_at = now
            end = "\r" if self._live and committed < total else "\n"
            print(f"  {committed:,} of {total:,} records committed", end=end, file=sys.stderr, flush=True)


def _tolerances(given: list[str]) -> dict[str, "Tolerance"]:
    from headrace.pipelines.verify.tolerance import Tolerance

    found = {}
    for text in given:
        column, equals, bound = text.rpartition("=")
        if not (column and equals):
            raise ConfigError(
                f"--tolerance {text}: name the column and the bound, for example revenue=0.01 or revenue=1%"
            )
        if column in found:
            raise ConfigError(f"--tolerance: {column} is given twice; leave one out")
        found[column] = Tolerance.parse(bound)
    return found


def _require_folder(report: Path | None) -> None:
    """Refuses a report that can't be written before anything runs."""
    if report is not None and not report.absolute().parent.is_dir():
        raise ConfigError(
            f"--report {report}: folder {report.absolute().parent} does not exist; create it first"
        )
    if report is not None and report.is_dir():
        raise ConfigError(f"--report {report} is a folder; name a file")


def _show(found: dict[str, Any], text: str, report: Path | None, as_json: bool) -> None:
    """Prints what was found, and writes it to a file if one is named."""
    from headrace.connectors.atomic_file import replace_file

    if report is not None:
        replace_file(report, json.dumps(found, indent=2, ensure_ascii=False).encode() + b"\n")
    typer.echo(json.dumps(found, ensure_ascii=False) if as_json else text)
