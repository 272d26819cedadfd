"""``headrace explain``: where one event went."""

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.pipelines.exits import INVALID

if TYPE_CHECKING:
    from headrace.connectors.read_lake import Found

_VERDICT = ("stage", "reason", "pointer", "message", "errors", "attempt")


def explain(
    event: Annotated[
        str,
        typer.Argument(
            metavar="EVENT_ID|ORIGIN:POSITION",
            help="The event's id, or where it was read: file relative to the input's root, and line or row.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", metavar="OUT", help="The output of the run.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: event, found [{table, columns}].")
    ] = False,
) -> None:
    """Say where an event went: its row in the lake, or the stage, reason and place for which it was rejected.

    Exit code 1 if the output does not hold it.

    Example: headrace explain access.log:17 --output out
    """
    from headrace.connectors.read_lake import find_event

    found = find_event(output, event)
    if as_json:
        rows = [{"table": row.table, "columns": _jsonable(row.columns)} for row in found]
        typer.echo(json.dumps({"event": event, "found": rows}, ensure_ascii=False))
    elif found:
        typer.echo("\n\n".join(describe(row) for row in found))
    else:
        typer.echo(
            f"{event} is neither in the lake nor in the quarantine of {output}. An id is compared whole; a record of a file "
            "is named as ORIGIN:POSITION, as the columns origin and origin_position state it, for example app.jsonl.gz:17",
            err=True,
        )
    if not found:
        raise typer.Exit(INVALID)


def describe(found: "Found") -> str:
    """Returns a row for people: the verdict, then its columns, one a line; a JSON column as it is."""
    columns = dict(found.columns)
    where = f"{columns.pop('origin', '?')}:{columns.pop('origin_position', '?')}"
    verdict = {name: columns.pop(name) for name in _VERDICT if name in columns}
    if found.table == "events":
        lines = [f"accepted: {where} is in the lake"]
    else:
        lines = [
            f"rejected: {where} is in the quarantine",
            f"  stage    {verdict.get('stage')}",
            f"  reason   {verdict.get('reason')}",
        ]
        if "pointer" in verdict:
            lines.append(f"  pointer  {verdict['pointer'] or '(the whole document)'}")
        if "message" in verdict:
            lines.append(f"  message  {verdict['message']}")
        for failure in json.loads(verdict.get("errors") or "[]")[1:]:
            lines.append(f"  also     {failure['pointer'] or '(the whole document)'}: {failure['message']}")
        if verdict.get("attempt", 1) > 1:
            lines.append(f"  attempt  {verdict['attempt']}")
        if "document_bytes" in columns:
            lines.append(
                f"  document sealed, {columns.pop('document_bytes')} bytes; it opens with the key only"
            )
    width = max((len(name) for name in columns), default=0)
    lines += [f"  {name:<{width}}  {_text(value)}" for name, value in columns.items()]
    return "\n".join(lines)


def _text(value: Any) -> str:
    plain = _jsonable(value)
    return plain if isinstance(plain, str) else json.dumps(plain)


def _jsonable(value: Any) -> Any:
    """Times become ISO 8601 text with Z, money becomes text."""
    if isinstance(value, Mapping):
        return {name: _jsonable(item) for name, item in value.items()}
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        text = f"{value:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return value
