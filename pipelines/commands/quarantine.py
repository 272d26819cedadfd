"""``headrace quarantine``: what was rejected, and why."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.pipelines.commands import quarantine_replay
from headrace.schemas.errors import ConfigError

if TYPE_CHECKING:
    from headrace.pipelines.quarantine.documents import Unsealer

app = typer.Typer(
    no_args_is_help=True,
    help="Look into the quarantine of an output: count, find patterns, show, export, replay.",
    epilog="Examples:\n\nheadrace quarantine summary out\n\nheadrace quarantine show out --where \"reason = 'type'\"\n\n"
    "headrace quarantine export out --to rejected.jsonl",
)

_Out = Annotated[Path, typer.Argument(metavar="OUT", help="The output of a batch, a stream or a backfill.")]
_Where = Annotated[
    str | None,
    typer.Option(
        metavar="EXPRESSION",
        help="Rows to take: what follows WHERE in SQL, over the quarantine's columns, e.g. \"reason = 'type'\".",
        show_default=False,
    ),
]
_Since = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Rows that reached us then or later (ingest_time).", show_default=False
    ),
]
_Until = Annotated[
    str | None, typer.Option(metavar="TIME", help="Rows that reached us before.", show_default=False)
]
_Unseal = Annotated[bool, typer.Option("--unseal", help="Open the sealed documents with the key.")]
_KeyFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The key that the run had; default $HEADRACE_KEY_FILE, else ~/.config/headrace/key.",
        show_default=False,
    ),
]
_Clear = Annotated[
    bool, typer.Option("--clear", help="With --unseal: documents as they came, PII not masked.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


@app.command(
    epilog="Example: headrace quarantine summary out --since 2026-01-05T12:00:00Z --html quarantine.html"
)
def summary(
    output: _Out,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN[,COLUMN]",
            help="One table by these columns in place of the usual ones; 'hour' is the hour of ingest.",
            show_default=False,
        ),
    ] = None,
    where: _Where = None,
    since: _Since = None,
    until: _Until = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Also write a page with plots that works offline.",
            show_default=False,
        ),
    ] = None,
    unseal: Annotated[
        bool,
        typer.Option(
            "--unseal",
            help="Read source, versions and device from the documents of rows that were rejected before they were read.",
        ),
    ] = False,
    key_file: _KeyFile = None,
    as_json: _Json = False,
) -> None:
    """Count the rejected rows by stage and reason, source, schema, app version and hour, and find patterns in them.

    Patterns: a reason that is new, a field that changed its type, a share of the events that jumped, a burst, one producer,
    version, device or file behind a reason. Each comes with the rows behind it, as a --where for the other commands. Nothing
    personal is shown.
    """
    from headrace.pipelines.quarantine.describe import describe
    from headrace.pipelines.quarantine.page import write_page
    from headrace.pipelines.quarantine.summary import as_dict, summarise

    if html is not None and html.suffix not in (".html", ".htm"):
        raise ConfigError(f"--html {html}: the page is HTML; let the file's name end in .html")
    columns = [name.strip() for name in by.split(",")] if by is not None else []
    found = summarise(
        output,
        where=where,
        since=since,
        until=until,
        by=columns,
        unsealer=_unsealer(unseal, key_file),
    )
    if html is not None:
        size = write_page(found, html)
        typer.echo(f"{html}: {size / 1000:,.0f} kB", err=True)
    typer.echo(json.dumps(as_dict(found), ensure_ascii=False) if as_json else describe(found))


@app.command(epilog="Example: headrace quarantine show out --where \"stage = 'validate'\" --limit 3")
def show(
    output: _Out,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most rows.")] = 10,
    where: _Where = None,
    since: _Since = None,
    until: _Until = None,
    unseal: _Unseal = False,
    key_file: _KeyFile = None,
    clear: _Clear = False,
    as_json: _Json = False,
) -> None:
    """Show some rejected rows: first one of each reason, then of each other place in the documents. The same rows each time.

    Sensitive columns and the sealed documents are not shown. With --unseal and the key the documents are, their PII masked as in
    the lake as far as their schema tells it; with --clear as they came.
    """
    from headrace.pipelines.quarantine.show import as_dicts, sample

    unsealer = _unsealer(unseal, key_file, clear)
    rows = sample(output, limit, where=where, since=since, until=until, unsealer=unsealer, clear=clear)
    if rows:
        _warn(unsealer, clear)
    if as_json:
        typer.echo(json.dumps({"rows": as_dicts(rows)}, ensure_ascii=False))
    elif rows:
        typer.echo(_described(rows))
    else:
        selected = " that is selected" if where or since or until else ""
        typer.echo(f"the quarantine of {output} has no row{selected}", err=True)


@app.command(epilog="Example: headrace quarantine export out --to stale.parquet --where \"reason = 'stale'\"")
def export(
    output: _Out,
    to: Annotated[
        Path, typer.Option("--to", metavar="FILE", help="A new file that ends in .parquet, .jsonl or .csv.")
    ],
    where: _Where = None,
    since: _Since = None,
    until: _Until = None,
    unseal: _Unseal = False,
    key_file: _KeyFile = None,
    clear: _Clear = False,
) -> None:
    """Write the selected rows to one file, whole or not at all. Documents stay sealed, unless --unseal opens them."""
    from headrace.pipelines.quarantine.export import export_rows

    unsealer = _unsealer(unseal, key_file, clear)
    rows = export_rows(output, to, where=where, since=since, until=until, unsealer=unsealer, clear=clear)
    _warn(unsealer, clear)
    typer.echo(f"{to}: {rows:,} row{'' if rows == 1 else 's'}")


app.command(epilog=f"Example: {quarantine_replay.EXAMPLE}")(quarantine_replay.replay)


def _unsealer(unseal: bool, key_file: str | None, clear: bool = False) -> "Unsealer | None":
    if not unseal:
        for name, given in (("--clear", clear), ("--key-file", key_file is not None)):
            if given:
                raise ConfigError(f"{name} is for documents that are opened; add --unseal, or leave it out")
        return None
    from headrace.pipelines.quarantine.documents import Unsealer
    from headrace.transforms.keys import Key

    return Unsealer(Key(key_file))


def _warn(unsealer: "Unsealer | None", clear: bool) -> None:
    if unsealer is None:
        return
    said = (
        "warning: opened documents follow, with PII in clear; keep them out of tickets, chats and logs"
        if clear
        else "warning: opened documents follow; PII is masked as far as their schema tells it, so treat them as PII in clear"
    )
    typer.echo(said, err=True)


def _described(rows: list[dict[str, Any]]) -> str:
    """Returns rows as ``headrace explain`` does, with what was opened of the document in place of its size."""
    from headrace.connectors.read_lake import Found
    from headrace.pipelines.commands.explain import describe

    texts = []
    for row in rows:
        document = row.get("document")
        lines = describe(Found("quarantine", {n: v for n, v in row.items() if n != "document"})).split("\n")
        if document is not None:
            at = next(n for n, line in enumerate(lines) if line.startswith("  document sealed"))
            lines[at] = "  document " + document.replace("\n", "\n           ")
        texts.append("\n".join(lines))
    return "\n\n".join(texts)
