"""A few rejected rows that are safe to show, chosen so that they differ."""

import json
from pathlib import Path
from typing import Any

from headrace.connectors.read_quarantine import all_of, open_quarantine
from headrace.pipelines.quarantine.database import fetch, open_database
from headrace.pipelines.quarantine.documents import Unsealer
from headrace.pipelines.quarantine.groups import INDEX, NAMED
from headrace.pipelines.quarantine.summary import shown_columns
from headrace.pipelines.quarantine.values import plain_value
from headrace.transforms.pii_patterns import PatternScanner

_TEXTS = ("pointer", "message", "errors")
"""Hold names of properties, and a name can be an e-mail address."""


def sample(
    out: Path,
    limit: int,
    *,
    where: str | None = None,
    since: str | None = None,
    until: str | None = None,
    unsealer: Unsealer | None = None,
    clear: bool = False,
) -> list[dict[str, Any]]:
    """Returns up to ``limit`` of the selected rows: first one of each reason, then of each other place in the documents, then more.

    Equal quarantines give equal rows. Of a row there are the columns that are neither sensitive nor null, the size of the sealed
    document as ``document_bytes``, and with an unsealer its text as ``document``.

    Args:
        unsealer: opens the documents.
        clear: show them as they are; else PII is masked as in the lake.

    Raises:
        ConfigError: no output, a wrong expression or time, or another key.
        UntrustedRunError: a committed file is missing or damaged.
    """
    selection = all_of(where, since, until)
    names = shown_columns()
    with open_database(open_quarantine(out), selection) as db:
        place = f"{INDEX.format('pointer')} AS place, CASE WHEN reason IN {NAMED} THEN message END AS named"
        # Ranked by narrow columns; documents are read of the chosen rows only.
        db.execute(
            "CREATE TABLE chosen_rows AS SELECT file, row, nth, kind, stage, reason FROM (SELECT *, "
            "dense_rank() OVER (PARTITION BY stage, reason ORDER BY schema, place, named) AS kind FROM (SELECT file, row, stage, "
            "reason, schema, place, named, row_number() OVER (PARTITION BY stage, reason, schema, place, named "
            f"ORDER BY ingest_time, origin, origin_position, file, row) AS nth FROM (SELECT *, {place} FROM picked))) "
            f"ORDER BY nth, kind, stage, reason, file, row LIMIT {limit}"
        )
        columns = ", ".join(f'p."{name}"' for name in names)
        rows = fetch(
            db,
            f"SELECT {columns}, p.document FROM picked AS p JOIN chosen_rows AS c USING (file, row) "
            "ORDER BY c.nth, c.kind, c.stage, c.reason, p.file, p.row",
        )
    scanner = PatternScanner()
    scanner.setup()
    found = []
    for row in rows:
        shown = {name: value for name, value in zip(names, row[:-1], strict=True) if value is not None}
        if not clear:
            texts = [name for name in _TEXTS if name in shown]
            shown |= zip(texts, scanner.scrub_values([shown[name] for name in texts]), strict=True)
        if (sealed := row[-1]) is not None:
            shown["document_bytes"] = len(sealed)
            if unsealer is not None:
                shown["document"] = (
                    unsealer.clear(sealed) if clear else unsealer.masked(sealed, shown.get("schema"))
                )
        found.append(shown)
    return found


def as_dicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows as plain JSON values; ``errors`` as a list."""
    found = [{name: plain_value(value) for name, value in row.items()} for row in rows]
    for row in found:
        if "errors" in row:
            row["errors"] = json.loads(row["errors"])
    return found
