"""``headrace ledger``: where every row went, and whether the tables hold it."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from headrace.pipelines.exits import UNTRUSTED

app = typer.Typer(
    no_args_is_help=True,
    help="Received = accepted + rejected by the hour, and proof that the tables hold it.",
    epilog="Examples:\n\nheadrace ledger show out --per day\n\nheadrace ledger verify out",
)

_Out = Annotated[
    Path, typer.Argument(metavar="OUT", help="The output of a batch, a stream (it may run) or backfills.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


class Per(StrEnum):
    """How long a period is."""

    HOUR = "hour"
    DAY = "day"


class By(StrEnum):
    """What rejected rows are counted by."""

    STAGE = "stage"
    REASON = "reason"


@app.command(epilog="Example: headrace ledger show out --per day --by reason --since 2026-01-05")
def show(
    output: _Out,
    per: Annotated[Per, typer.Option(help="Length of a period.")] = Per.HOUR,
    by: Annotated[By, typer.Option(help="Columns of rejected rows.")] = By.STAGE,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Full hour or date, UTC unless it says a zone.", show_default=False
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Likewise; not included.", show_default=False)
    ] = None,
    as_json: _Json = False,
) -> None:
    """Print received, accepted and rejected rows by the hour of their event time (of ingest, where that is not known)."""
    from headrace.pipelines.ledgers.show_ledger import as_text, show_ledger

    shown = show_ledger(
        output,
        per=per.value,
        by=by.value,
        since=since,
        until=until,
    )
    typer.echo(json.dumps(shown.as_dict(), ensure_ascii=False) if as_json else as_text(shown))


@app.command(epilog="Example: headrace ledger verify out || echo 'not everything is there'")
def verify(
    output: _Out,
    limit: Annotated[int, typer.Option(min=1, help="How many places of a kind are named.")] = 20,
    as_json: _Json = False,
) -> None:
    """Count the rows that the tables hold, and hold them against every ledger and record. Ends with 3 if they differ."""
    from headrace.pipelines.ledgers.verify_ledger import verify_ledger

    found = verify_ledger(output, limit=limit)
    rejected = sum(sum(reasons.values()) for reasons in found.rejected.values())
    if as_json:
        content = {
            "output": str(found.output),
            "kind": found.kind,
            "received": found.received,
            "accepted": found.accepted,
            "rejected": found.rejected,
            "removed": found.removed,
            "in_flight": found.in_flight,
            "without_position": found.unplaced,
            "clean": found.clean,
            "findings": [finding.as_dict() for finding in found.findings],
        }
        typer.echo(json.dumps(content, ensure_ascii=False))
    else:
        gone = f" + {found.removed:,} gone by policy" if found.removed else ""
        sign = "=" if found.received == found.accepted + rejected + found.removed else "≠"
        typer.echo(
            f"{found.kind}: received {found.received:,} {sign} accepted {found.accepted:,} + rejected {rejected:,}{gone}"
        )
        if found.in_flight:
            typer.echo(f"{found.in_flight:,} rows are read and not yet in a table")
        if found.unplaced:
            typer.echo(f"{found.unplaced:,} rows have no position and are not held against what was read")
        for finding in found.findings:
            typer.echo(f"{finding.kind}: {finding.message}")
        if found.clean:
            typer.echo(
                "clean: every row that came in is in one table, once"
                + (", or went by policy" if gone else "")
            )
    if not found.clean:
        raise typer.Exit(UNTRUSTED)
