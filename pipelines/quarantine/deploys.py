"""What was released when something began: versions that appear first at that time."""

from datetime import UTC, datetime, timedelta

import duckdb

from headrace.pipelines.quarantine.clock import Clock
from headrace.pipelines.quarantine.database import fetch, one

RELEASES = ("app_version", "schema_version")
_LEAST_EVENTS = 20
_MOST_OF = 0.8
_MOST_NAMED = 2


def first_seen_with(db: duckdb.DuckDBPyConnection, clock: Clock, where: str, first: datetime) -> str:
    """Returns the end of a sentence about versions that accepted or rejected events state first about when ``where`` begins.

    Where most of the rows state their version, one is named only if they are of it. Empty if there is none.
    """
    _require_table(db)
    micros = (first - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    width = clock.width // timedelta(microseconds=1)
    told = []
    for column in RELEASES:
        found = fetch(
            db,
            "SELECT value FROM releases WHERE col = ? AND first BETWEEN ? AND ? AND first >= ? AND events >= ? "
            f"ORDER BY events DESC, value LIMIT {_MOST_NAMED}",
            [column, micros - width, micros + width, clock.start + width, _LEAST_EVENTS],
        )
        for (value,) in found:
            rows, stated, of_it = one(
                db,
                f"SELECT count(*), count({column}), count(*) FILTER (WHERE {column} = ?) FROM picked WHERE ({where})",
                [value],
            )
            if of_it >= _MOST_OF * rows:
                many = "all" if of_it == rows else f"{of_it:,}"
                told.append(
                    f"{column} {value} appears first at the same time, and {many} of these rows are of it"
                )
            elif stated < (1 - _MOST_OF) * rows:
                told.append(
                    f"{column} {value} appears first at the same time (these rows were rejected before theirs was read; --unseal "
                    "reads it from the documents)"
                )
    return "".join(f"; {text}" for text in told)


def _require_table(db: duckdb.DuckDBPyConnection) -> None:
    parts = [
        f"SELECT '{column}' AS col, {column} AS value, happened FROM {view} WHERE {column} IS NOT NULL AND happened IS NOT NULL"
        for column in RELEASES
        for view in ("timed_events", "timed")
    ]
    db.execute(
        "CREATE TABLE IF NOT EXISTS releases AS SELECT col, value, min(happened) AS first, count(*) AS events FROM "
        f"({' UNION ALL '.join(parts)}) GROUP BY ALL"
    )
