"""Who is behind a reason: one producer, version, device or file with nearly all of its rows and few of the accepted events."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import duckdb

from headrace.pipelines.quarantine.database import DIMENSIONS, fetch
from headrace.pipelines.quarantine.groups import REASON, Group
from headrace.schemas.registry import Registry

LEAST_ROWS = 30
MOST_OF_ROWS = 0.95
FEW_OF_EVENTS = 0.25
"""At most so much of the accepted events of the same schemas: "far less"."""
KNOWN = 0.8
"""A column tells something only if so many of the rows have a value in it."""


@dataclass(frozen=True)
class Told:
    """``rows`` of the ``of`` rows with a value in ``column`` have this one, and ``accepted`` (a share) of the accepted events."""

    column: str
    value: str
    rows: int
    of: int
    accepted: float


def sentence(label: str, told: Sequence[Told]) -> str:
    """Says of a group who is behind it."""
    first = told[0]
    part = "100%" if first.rows == first.of else f"{min(first.rows / first.of, 0.999):.1%}"
    text = (
        f"{label}: {part} of the rows ({first.rows:,} of {first.of:,}) have {first.column} {first.value}, which "
        f"{_few(first)} the accepted events of their schemas"
    )
    also = [f"{each.column} {each.value}, which {_few(each)} them" for each in told[1:]]
    return text + "".join(f"; likewise {each}" for each in also) + "."


def _few(told: Told) -> str:
    return f"has {told.accepted:.1%} of" if told.accepted else "has none of"


def concentrations(
    db: duckdb.DuckDBPyConnection, groups: Sequence[Group]
) -> Iterator[tuple[Group, list[Told]]]:
    """Yields each group of which one value of some of :data:`DIMENSIONS` has at least :data:`MOST_OF_ROWS`.

    Expected is the value's share in the accepted events of the group's schemas, in the proportions in which the group has them;
    so a reason that only one schema can have is no finding, whoever sends that schema.
    """
    large = [group for group in groups if group.count >= LEAST_ROWS]
    if not large:
        return
    db.execute("CREATE OR REPLACE TABLE looked (gid INTEGER, stage VARCHAR, reason VARCHAR, wide BOOLEAN, schema VARCHAR, "
               "place VARCHAR, named VARCHAR)")  # fmt: skip
    db.executemany(
        "INSERT INTO looked VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (n, g.stage, g.reason, g.kind == REASON, g.schema, g.pointer, g.message)
            for n, g in enumerate(large)
        ],
    )
    same = " AND ".join(f"k.{name} IS NOT DISTINCT FROM l.{name}" for name in ("schema", "place", "named"))
    columns = ", ".join(f"k.{name}" for name in dict.fromkeys(["schema", *DIMENSIONS]))
    pair = "FROM keyed AS k JOIN looked AS l ON k.stage = l.stage AND k.reason = l.reason"
    db.execute(
        f"CREATE OR REPLACE VIEW members AS SELECT gid, {columns} {pair} WHERE wide "
        f"UNION ALL SELECT gid, {columns} {pair} AND {same} WHERE NOT wide"
    )
    found: dict[int, list[Told]] = {}
    for column in DIMENSIONS:
        for gid, told in _of_column(db, large, column):
            found.setdefault(gid, []).append(told)
    for gid, tolds in sorted(found.items()):
        yield large[gid], sorted(tolds, key=lambda t: (t.accepted, DIMENSIONS.index(t.column)))


def _of_column(
    db: duckdb.DuckDBPyConnection, groups: Sequence[Group], column: str
) -> Iterator[tuple[int, Told]]:
    leading = fetch(
        db,
        "SELECT gid, value, n, known, every FROM (SELECT gid, value, n, sum(n) FILTER (WHERE value IS NOT NULL) OVER w AS known, "
        f"sum(n) OVER w AS every FROM (SELECT gid, {column} AS value, count(*) AS n FROM members GROUP BY ALL) "
        "WINDOW w AS (PARTITION BY gid)) WHERE value IS NOT NULL "
        "QUALIFY row_number() OVER (PARTITION BY gid ORDER BY n DESC, value) = 1 ORDER BY gid",
    )
    found = [
        (gid, value, n, known)
        for gid, value, n, known, every in leading
        if n >= LEAST_ROWS and n >= MOST_OF_ROWS * known and known >= KNOWN * every
        and not _is_about(groups[gid], column)
    ]  # fmt: skip
    if not found:
        return
    values = sorted({value for _, value, _, _ in found})
    marks = ", ".join("?" * len(values))
    accepted = {
        (schema, value): n
        for schema, value, n in fetch(
            db,
            f"SELECT schema, {column}, count(*) FROM events WHERE {column} IN ({marks}) GROUP BY GROUPING SETS "
            f"((schema, {column}), ({column}))",
            values,
        )
    }
    totals = dict(
        fetch(
            db,
            f"SELECT schema, count(*) FROM events WHERE {column} IS NOT NULL GROUP BY GROUPING SETS ((schema), ())",
        )
    )
    mixtures: dict[int, dict[str | None, int]] = {}
    for gid, schema, n in fetch(db, f"SELECT gid, schema, count({column}) FROM members GROUP BY ALL"):
        mixtures.setdefault(gid, {})[schema] = n
    for gid, value, n, known in found:
        expected = 0.0
        for schema, weight in mixtures[gid].items():
            # Rows without a schema, or with one that the lake has nothing of, are held against all events.
            of = schema if totals.get(schema) else None
            expected += weight * accepted.get((of, value), 0) / max(totals.get(of, 0), 1)
        if expected / known <= FEW_OF_EVENTS and totals.get(None):
            yield gid, Told(column, value, n, int(known), expected / known)


def _is_about(group: Group, column: str) -> bool:
    """True if the failure itself is in this column: that all smartwatches are rejected as device_type is no second finding."""
    if column == "schema_version" and group.reason == "unknown_schema":
        return True
    if group.pointer is None or group.schema is None:
        return False
    registry = Registry.default()
    name = group.schema.partition(":")[0]
    field = registry.get(name).column(column) if name in registry.names() else None
    return field is not None and group.pointer == "/" + "/".join(field.path)
