"""Comparing what a batch and a disturbed stream made of the same records."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from headrace.pipelines.verify.compare_tables import Terms, compare_tables
from headrace.pipelines.verify.comparison import TableComparison
from headrace.pipelines.verify.deliver import file_name
from headrace.pipelines.verify.disturb import Disturbance
from headrace.pipelines.verify.known_tables import SECRET, WINDOW, counted_rows
from headrace.pipelines.verify.parity_facts import PAST_READER
from headrace.pipelines.verify.stored_tables import columns_of
from headrace.transforms.window_definitions import Windows

MOST_CONFLICTS = 20
Counts = dict[str, dict[str, int]]


@dataclass(frozen=True)
class ParityTables:
    """What was compared and what was counted."""

    tables: list[TableComparison]
    rejected: dict[str, tuple[int, int]]
    """``stage.reason`` to rows of the batch and of the stream, without the plan's copies."""
    conflicts: int
    """Ids that came with different content. Their rows are not compared: which of them wins depends on the order."""
    one_sided_conflicts: int
    """Of these, ids that are in conflict on one side only: a difference, as the plan lets the batch's winner come first."""
    examples_of_conflicts: list[dict[str, Any]]
    """Of some of these: the id, and the record that each side accepted, if it did."""
    firings: Counts
    """Window table to timing to firings of windows in the stream."""
    late: dict[str, int]
    """Window table to rows that came too late. The plan makes none."""
    unfinished: dict[str, int]
    """Window table to windows without a final firing."""
    missing: list[str]
    """Tables that a side lacks; a window table that is missing has no rows."""

    @property
    def equal(self) -> bool:
        return (
            bool(self.tables)
            and not (self.late or self.unfinished or self.one_sided_conflicts)
            and all(table.equal for table in self.tables)
        )


def compare_parity(
    connection: duckdb.DuckDBPyConnection,
    plan: Disturbance,
    format: str,
    metrics: Mapping[str, Windows],
    *,
    examples: int,
    names: tuple[set[str], set[str]],
) -> ParityTables:
    """Compares the views ``batch/NAME`` and ``stream/NAME``; the table ``records`` says where each record was in the input.

    - The lake: by id; an event without an id of its own by the record that it was made of, which the plan knows. Every column but
      where and when the record was read, and such ids.
    - The quarantine: the same columns and the verdict, by id where ids decide, else by record; without the plan's copies.
    - The window tables: final rows, by window and groups, every measure.

    Args:
        format: as which the records were sent.
        metrics: the window tables of the definition.
        examples: most of each kind.
        names: the tables that the batch and the stream have.
    """
    missing = [
        f"{name} in the {side}"
        for side, have in zip(("batch", "stream"), names, strict=True)
        for name in ("events", "quarantine", *(f"metrics/{metric}" for metric in metrics))
        if name not in have
    ]
    if any(not name.startswith("metrics/") for name in missing):
        return ParityTables([], {}, 0, 0, [], {}, {}, {}, missing)
    _register_sent(connection, plan, format)
    _make_views(connection)
    terms = Terms(key=("event",), hidden=SECRET, examples=examples)
    tables = [
        compare_tables(connection, f"batch/{name}/row", f"stream/{name}/row", name=name, terms=terms)
        for name in ("events", "quarantine")
    ]
    firings, late, unfinished = {}, {}, {}
    for name, windows in metrics.items():
        table = f"metrics/{name}"
        if not any(table in have for have in names):
            continue
        for side, other, have in (("batch", "stream", names[0]), ("stream", "batch", names[1])):
            if table not in have:
                connection.execute(f'CREATE VIEW "{side}/{table}" AS FROM "{other}/{table}" WHERE false')
        for side in ("batch", "stream"):
            counted_rows(connection, f"{side}/{table}/counted", f"{side}/{table}")
        key = [*WINDOW, *windows.by]
        tables.append(
            compare_tables(
                connection,
                f"batch/{table}/counted",
                f"stream/{table}/counted",
                name=table,
                terms=Terms(key=key, examples=examples),
            )
        )
        firings[name], unfinished[name] = _firings(connection, table)
        if f"late/{name}" in names[1]:
            late[name] = _number(
                connection, f'SELECT coalesce(sum(rows), 0)::BIGINT FROM "stream/late/{name}"'
            )
    ids, one_sided = (
        _number(connection, f"SELECT count(*) FROM conflicts WHERE {which}")
        for which in ("TRUE", "sides = 1")
    )
    return ParityTables(
        tables,
        _rejected(connection),
        ids,
        one_sided,
        _conflicts(connection),
        firings,
        {name: rows for name, rows in late.items() if rows},
        {name: windows for name, windows in unfinished.items() if windows},
        missing,
    )


def _register_sent(connection: duckdb.DuckDBPyConnection, plan: Disturbance, format: str) -> None:
    """Makes a table ``sent`` (file, line, record, copy) of the plan."""
    files, lines = plan.places()
    last = plan.deliveries[-1].file if plan.deliveries else -1
    names = pa.array([file_name(number, format) for number in range(last + 1)], pa.string())
    table = pa.table(
        {
            "file": pa.DictionaryArray.from_arrays(pa.array(files, pa.int32()), names),
            "line": pa.array(lines, pa.int64()),
            "record": pa.array(plan.record, pa.int64()),
            "copy": pa.array(plan.copy, pa.int32()),
        }
    )
    connection.register("sent", table)


def _make_views(connection: duckdb.DuckDBPyConnection) -> None:
    """Makes ``SIDE/events/row`` and ``SIDE/quarantine/row``: what is compared, with ``event``, which identifies a row.

    Of the batch's quarantine only rows of records that could be read: the others could not be sent.
    """
    connection.execute(
        """
        CREATE TEMP TABLE conflicts AS
        SELECT event_id, count(DISTINCT side) AS sides FROM (
            SELECT event_id, 'batch' AS side, reason FROM "batch/quarantine"
            UNION ALL SELECT event_id, 'stream', reason FROM "stream/quarantine"
        )
        WHERE reason = 'duplicate_conflict' GROUP BY event_id
        """
    )
    in_batch = "JOIN records r ON r.origin = t.origin AND r.position = t.origin_position"
    in_stream = "LEFT JOIN sent s ON s.file = t.origin AND s.line = t.origin_position LEFT JOIN records r ON r.number = s.record"
    made = "coalesce(id_generated, false)"
    decided = f"stage IN {PAST_READER}"
    for view, join, dated, by_id, chosen in (
        ("batch/events", f"LEFT {in_batch}", "", "TRUE", "TRUE"),
        ("stream/events", in_stream, "", "TRUE", "TRUE"),
        ("batch/quarantine", in_batch, ", ingest_date", decided, "TRUE"),
        ("stream/quarantine", in_stream, ", ingest_date", decided, "coalesce(s.copy, 0) = 0"),
    ):
        connection.execute(
            f"""
            CREATE VIEW "{view}/row" AS
            SELECT CASE WHEN {by_id} AND NOT {made} THEN event_id ELSE r.origin || ':' || r.position END AS event,
                   CASE WHEN {made} THEN NULL ELSE event_id END AS event_id,
                   t.* EXCLUDE (event_id, origin, origin_position, ingest_time{dated})
            FROM "{view}" t {join}
            WHERE {chosen} AND NOT ({by_id} AND coalesce(t.event_id IN (SELECT event_id FROM conflicts), false))
            """
        )


def _firings(connection: duckdb.DuckDBPyConnection, table: str) -> tuple[dict[str, int], int]:
    """Returns how often windows fired by timing, and how many windows did not for the last time."""
    if "pane_index" not in columns_of(connection, f"stream/{table}"):
        return {}, 0
    rows = connection.execute(
        f"""
        SELECT timing, count(*) FROM (SELECT DISTINCT window_start, window_shard, pane_index, timing FROM "stream/{table}")
        GROUP BY timing ORDER BY timing
        """
    ).fetchall()
    open_windows = _number(
        connection,
        f"""
        SELECT count(*) FROM
        (SELECT 1 FROM "stream/{table}" GROUP BY window_start, window_shard HAVING NOT bool_or(is_final))
        """,
    )
    return dict(rows), open_windows


def _rejected(connection: duckdb.DuckDBPyConnection) -> dict[str, tuple[int, int]]:
    rows = connection.execute(
        """
        SELECT stage || '.' || reason, sum(a)::BIGINT, sum(b)::BIGINT FROM (
            SELECT stage, reason, 1 AS a, 0 AS b FROM "batch/quarantine/row"
            UNION ALL SELECT stage, reason, 0, 1 FROM "stream/quarantine/row"
        ) GROUP BY ALL ORDER BY 1
        """
    ).fetchall()
    return {name: (a, b) for name, a, b in rows}


def _conflicts(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    rows = connection.execute(
        f"""
        SELECT c.event_id, any_value(a.origin || ':' || a.origin_position), any_value(r.origin || ':' || r.position)
        FROM conflicts c
        LEFT JOIN "batch/events" a ON a.event_id = c.event_id
        LEFT JOIN "stream/events" b ON b.event_id = c.event_id
        LEFT JOIN sent s ON s.file = b.origin AND s.line = b.origin_position
        LEFT JOIN records r ON r.number = s.record
        GROUP BY c.event_id, c.sides ORDER BY c.sides, c.event_id LIMIT {MOST_CONFLICTS}
        """
    ).fetchall()
    return [{"event_id": i, "batch": batch, "stream": stream} for i, batch, stream in rows]


def _number(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    row = connection.execute(sql).fetchone()
    assert row is not None
    return int(row[0])
