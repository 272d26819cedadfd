"""Rejected rows in groups that may have one cause: by reason, by place in the document, by type that was found there."""

from dataclasses import dataclass, field
from datetime import timedelta

import duckdb
import numpy as np
import orjson

from headrace.connectors.read_quarantine import sql_text
from headrace.pipelines.quarantine.changes import Counts
from headrace.pipelines.quarantine.clock import Clock
from headrace.pipelines.quarantine.database import fetch
from headrace.schemas.failures import Failure
from headrace.transforms.pii_patterns import PatternScanner

Names = tuple[str | None, str | None, str | None, str | None, str | None]
"""Stage, reason, schema, pointer, and the message if it names the property at fault (or the types, for ``type``)."""

MOST = 200
"""Groups of each kind that are looked at: those with most rows."""
LEAST_ROWS = 20
REASON, PLACE, TYPE = "reason", "place", "type"

NAMED = "('required', 'dependent_required', 'dependencies', 'additional_properties')"
"""Reasons whose message names the property at fault; the pointer is that of the object around it."""
INDEX = "regexp_replace({}, '/[0-9]+', '/*', 'g')"


@dataclass(frozen=True)
class Group:
    """Rows of the view ``timed`` for which ``where`` is true."""

    kind: str
    """``reason``: a stage and reason; ``place``: these at one pointer of one schema; ``type``: a wrong type at a pointer."""
    stage: str
    reason: str
    schema: str | None
    """None for ``reason``, and where no schema is known."""
    pointer: str | None
    """Array indices as ``*``."""
    message: str | None
    count: int
    where: str
    short: str | None
    """Of ``type``: what selects rows of which it is the first failure."""
    rows: Counts = field(repr=False, compare=False)
    """By bin."""
    events: Counts = field(repr=False, compare=False)
    """Accepted and rejected of the schema, or of all if it has none, by bin."""

    @property
    def label(self) -> str:
        """Names it."""
        parts = [f"{self.stage}: {self.reason}"]
        if self.pointer:
            parts.append(f"at {self.pointer}")
        if self.message:
            parts.append(f"({self.message})")
        if self.schema:
            parts.append(f"in {self.schema}")
        return " ".join(parts)


def read_groups(db: duckdb.DuckDBPyConnection, clock: Clock | None) -> list[Group]:
    """Returns the groups with at least :data:`LEAST_ROWS` rows, most rows first within each kind.

    A group whose pointer or message may hold PII (the name of a property can) is left out; its reason is there. Makes the view
    ``keyed``: ``timed`` or ``picked`` with the columns ``place`` and ``named``.
    """
    source = "timed" if clock else "picked"
    when = "happened" if clock else "NULL"
    db.execute(
        f"CREATE VIEW keyed AS SELECT *, {INDEX.format('pointer')} AS place, "
        f"CASE WHEN reason IN {NAMED} THEN message END AS named FROM {source}"
    )
    db.execute(
        "CREATE VIEW mistyped AS SELECT schema, happened, stage, f.pointer AS place, f.message AS named FROM (SELECT schema, "
        f"{when} AS happened, stage, unnest(from_json({INDEX.format('errors')}, "
        '\'[{"code":"VARCHAR","pointer":"VARCHAR","message":"VARCHAR"}]\')) AS f '
        "FROM keyed WHERE contains(errors, '\"code\":\"type\"')) WHERE f.code = 'type'"
    )
    events = _events_by_bin(db, clock) if clock else {}
    asked = (
        (REASON, "keyed", "stage, reason", "NULL AS schema, NULL AS place, NULL AS named"),
        (PLACE, "keyed", "stage, reason, schema, place, named", ""),
        (TYPE, "mistyped", "stage, schema, place, named", "'type' AS reason"),
    )
    scanner = PatternScanner()
    scanner.setup()
    found = []
    for kind, view, keys, constant in asked:
        for names, count, series in _series(db, clock, view, keys, constant):
            stage, reason, schema, place, named = names
            texts = [text for text in (place, named) if text]
            if scanner.scrub_values(texts) == texts:
                among = events.get(schema, events.get(None, series))
                among = np.maximum(
                    series, among
                )  # A row with several failures of one kind counts several times.
                where = _where(kind, names)
                found.append(
                    Group(
                        kind,
                        str(stage),
                        str(reason),
                        schema,
                        place,
                        named,
                        count,
                        where,
                        _where(PLACE, names) if kind == TYPE else None,
                        series,
                        among,
                    )
                )
    return found


def _series(
    db: duckdb.DuckDBPyConnection, clock: Clock | None, view: str, keys: str, constant: str
) -> list[tuple[Names, int, Counts]]:
    """Returns the largest groups: keys, rows, and rows by bin."""
    more = f", {constant}" if constant else ""
    db.execute(
        f"CREATE OR REPLACE TABLE top AS SELECT row_number() OVER (ORDER BY n DESC, {keys}) AS gid, * FROM "
        f"(SELECT {keys}{more}, count(*) AS n FROM {view} GROUP BY {keys} HAVING count(*) >= {LEAST_ROWS}) "
        f"QUALIFY gid <= {MOST}"
    )
    names = fetch(db, "SELECT stage, reason, schema, place, named, n FROM top ORDER BY gid")
    series = [np.zeros(clock.bins if clock else 1, np.int64) for _ in names]
    if clock:
        same = " AND ".join(f"v.{key} IS NOT DISTINCT FROM top.{key}" for key in keys.split(", "))
        for gid, bin, rows in fetch(
            db,
            f"SELECT gid, {_bin(clock)} AS bin, count(*) FROM {view} AS v JOIN top ON {same} "
            "WHERE happened IS NOT NULL GROUP BY ALL",
        ):
            series[gid - 1][bin] = rows
    return [
        ((stage, reason, schema, place, named), n, of)
        for (stage, reason, schema, place, named, n), of in zip(names, series, strict=True)
    ]


def _events_by_bin(db: duckdb.DuckDBPyConnection, clock: Clock) -> dict[str | None, Counts]:
    """Returns accepted and rejected events by bin, of each schema and (None) of all."""
    found: dict[str | None, Counts] = {None: np.zeros(clock.bins, np.int64)}
    for schema, bin, count in fetch(
        db,
        f"SELECT schema, {_bin(clock)} AS bin, count(*) FROM (SELECT schema, happened FROM timed_events UNION ALL "
        "SELECT schema, happened FROM timed_stored) WHERE happened IS NOT NULL GROUP BY ALL",
    ):
        found[None][bin] += count
        if schema is not None:
            found.setdefault(schema, np.zeros(clock.bins, np.int64))[bin] += count
    return found


def _bin(clock: Clock) -> str:
    return f"(happened - {clock.start}) // {clock.width // timedelta(microseconds=1)}"


def _where(kind: str, names: Names) -> str:
    """Returns what selects the group's rows from the quarantine."""
    stage, reason, schema, place, named = names
    parts = [f"stage = {sql_text(str(stage))}"]
    if kind == TYPE:
        parts.append(_equal("schema", schema))
        failure = Failure("type", str(place), str(named))
        errors = INDEX.format("errors") if "*" in str(place) else "errors"
        parts.append(f"contains({errors}, {sql_text(orjson.dumps(failure).decode())})")
        return " AND ".join(parts)
    parts.append(f"reason = {sql_text(str(reason))}")
    if kind == PLACE:
        parts.append(_equal("schema", schema))
        pointer = INDEX.format("pointer") if place and "*" in place else "pointer"
        parts.append(_equal(pointer, place))
        if named is not None:
            parts.append(_equal("message", named))
    return " AND ".join(parts)


def _equal(column: str, value: str | None) -> str:
    return f"{column} IS NULL" if value is None else f"{column} = {sql_text(value)}"
