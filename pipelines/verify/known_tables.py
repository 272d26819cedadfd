"""What is known of the tables that headrace writes: which rows count, and what makes two of them the same."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import duckdb

from headrace.connectors.stream_output import FILE as STREAM_FILE
from headrace.pipelines.verify.compare_tables import Terms
from headrace.pipelines.verify.stored_tables import StoredTable, columns_of, quoted
from headrace.schemas.errors import ConfigError
from headrace.transforms.ready_windows import METRICS

PLACE = ("origin", "origin_position", "ingest_time")
"""Columns that say where and when a record was read, which is not what two outputs are compared for."""
FIRING = ("pane_index", "timing", "is_final", "fired_at", "window_shard", "retraction")
"""Columns of a stream's window tables that a batch does not have."""
WINDOW = ("window_start", "window_end")
SECRET = ("document",)
WITHOUT_ID = ("event_time", "event_type", "user_id", "session_id")
"""What makes examples of differing events without an id of their own; they are compared as multisets anyway."""
_COUNTED = {"quarantine": ("stage", "reason", "schema"), "late": WINDOW}
NIGHTLY = {
    "user_sessions": ("date", "user_id", "session_start"),
    "user_daily_metrics": ("date", "user_id"),
    "cube_geo": ("date", "country", "region"),
    "cohorts": ("date", "cohort"),
    "product_daily": ("date", "product_id", "currency"),
    "funnel_daily": ("date", "funnel", "step"),
    "user_first_seen": ("user_id",),
}
"""What identifies a row of a warehouse's tables."""


@dataclass(frozen=True)
class Task:
    """One comparison to make: two views and what makes their rows the same."""

    name: str
    a: str
    b: str
    terms: Terms
    notes: tuple[str, ...] = ()


def tasks_of(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    tables: tuple[StoredTable, StoredTable],
    types: tuple[dict[str, str], dict[str, str]],
    terms: Terms,
) -> Iterator[Task]:
    """Yields what there is to compare of one pair of tables.

    A column that is to be ignored is no part of a key that is known here, and nothing is counted by it.
    """
    a, b = f"a/{name}", f"b/{name}"
    both = {column: type_ for column, type_ in types[0].items() if column in types[1]}
    keyed = bool(terms.key) and set(terms.key) <= both.keys()
    kind = _kind(name, both)

    def wanted(columns: Collection[str]) -> tuple[str, ...]:
        return tuple(c for c in columns if c in both and c not in terms.ignore)

    known = replace(terms, ignore={*terms.ignore, *PLACE}, hidden={*terms.hidden, *SECRET}, hide_text=False)
    if kind == "metrics":
        notes = []
        for side, view, table in (("A", a, tables[0]), ("B", b, tables[1])):
            _require_whole_windows(table)
            notes += [f"{side}: {note}" for note in counted_rows(connection, f"{view}/counted", view)]
        key = terms.key if keyed else wanted(groups_of(name.removeprefix("metrics/"), both))
        yield Task(
            name, f"{a}/counted", f"{b}/counted", replace(known, key=key, ignore=terms.ignore), tuple(notes)
        )
    elif kind in _COUNTED and not keyed:
        columns = wanted(_COUNTED[kind])
        number = "count(*)" if kind == "quarantine" else "sum(rows)::BIGINT"
        for view in (a, b):
            listed = ", ".join([*columns, f"{number} AS rows"])
            connection.execute(
                f"CREATE VIEW {quoted(f'{view}/counts')} AS SELECT {listed} FROM {quoted(view)} GROUP BY ALL"
            )
        counts = replace(terms, key=columns, hide_text=False)
        note = f"rows counted by {', '.join(columns)}" if columns else "rows counted"
        yield Task(name, f"{a}/counts", f"{b}/counts", counts, (note,))
    elif kind == "events" and not keyed:
        for part, which in (
            ("own", "NOT coalesce(id_generated, false)"),
            ("made", "coalesce(id_generated, false)"),
        ):
            for view in (a, b):
                connection.execute(
                    f"CREATE VIEW {quoted(f'{view}/{part}')} AS FROM {quoted(view)} WHERE {which}"
                )
        yield Task(name, f"{a}/own", f"{b}/own", replace(known, key=wanted(("event_id",))))
        if any(_any_row(connection, f"{view}/made") for view in (a, b)):
            made = replace(known, key=wanted(WITHOUT_ID), ignore={*known.ignore, "event_id"})
            yield Task(f"{name} without an id of their own", f"{a}/made", f"{b}/made", made)
    else:
        if kind is not None:
            terms = known
        elif name == "events" and not terms.key and "event_id" in both:
            terms = replace(terms, key=wanted(("event_id",)))
        elif not keyed and name in NIGHTLY and set(NIGHTLY[name]) <= both.keys():
            terms = replace(terms, key=wanted(NIGHTLY[name]), hide_text=False)
        if not set(terms.key) <= both.keys():
            lacking = next(column for column in terms.key if column not in both)
            raise ConfigError(
                f"table {name} does not have the key column {lacking!r} on both sides; compare it on its own, with "
                f"--table {name}"
            )
        yield Task(name, a, b, terms)


def counted_rows(connection: duckdb.DuckDBPyConnection, view: str, table: str) -> tuple[str, ...]:
    """Makes ``view`` of the rows of a window table that count, without the columns that only a stream has; returns notes.

    Of a stream's table these are the rows of the highest pane of each window and window shard, as :func:`latest_rows
    <headrace.transforms.window_rows.latest_rows>` says, or if it takes rows back (``retraction``) those that are not taken back. A
    batch's table is taken as it is.
    """
    types = columns_of(connection, table)
    if "pane_index" not in types:
        connection.execute(f"CREATE VIEW {quoted(view)} AS FROM {quoted(table)}")
        return ()
    columns = ", ".join(quoted(c) for c in types if c not in FIRING)
    if "retraction" in types:
        signs = "sum(CASE WHEN retraction THEN -1 ELSE 1 END)"
        rest = f"SELECT {columns}, {signs} AS _left FROM {quoted(table)} GROUP BY ALL HAVING {signs} > 0"
        sql = f"SELECT * EXCLUDE (_left, _copy) FROM (SELECT *, unnest(range(_left::BIGINT)) AS _copy FROM ({rest}))"
    else:
        highest = "max(pane_index) OVER (PARTITION BY window_start, window_shard)"
        sql = f"SELECT {columns} FROM {quoted(table)} QUALIFY pane_index = {highest}"
    connection.execute(f"CREATE VIEW {quoted(view)} AS {sql}")
    firings = (
        f"SELECT 1 FROM {quoted(table)} GROUP BY window_start, window_shard HAVING NOT bool_or(is_final)"
    )
    (unfinished,) = connection.execute(f"SELECT count(*) FROM ({firings})").fetchone() or (0,)
    return (f"{unfinished:,} windows and shards are not final",) if unfinished else ()


def groups_of(name: str, types: Mapping[str, str]) -> list[str]:
    """Returns the columns that identify a row of a window table: its window, and what it is grouped by.

    Of tables that are not ready-made these are taken to be the columns of text and truth values that follow the window.
    """
    windows = METRICS.get(name)
    if windows is not None and set(windows.by) <= types.keys():
        return [*WINDOW, *windows.by]
    found = list(WINDOW)
    for column, type_ in types.items():
        if column not in WINDOW:
            if type_ not in ("VARCHAR", "BOOLEAN"):
                break
            found.append(column)
    return found


def _kind(name: str, types: Collection[str]) -> str | None:
    """Returns as which of the tables that headrace writes one is known; None: it is another."""
    kind = name.partition("/")[0]
    marks = {
        "events": ("event_id", "id_generated"),
        "quarantine": ("stage", "reason"),
        "metrics": WINDOW,
        "late": (*WINDOW, "rows"),
    }
    return kind if kind in marks and set(marks[kind]) <= set(types) else None


def _require_whole_windows(table: StoredTable) -> None:
    """Refuses window tables of which no firing has all of a window."""
    file = table.root.parent.parent / STREAM_FILE
    jobs = json.loads(file.read_bytes()).get("jobs", []) if file.is_file() else []
    if any(job["configuration"].get("accumulation") == "discarding" for job in jobs):
        raise ConfigError(
            f"the windows of {table.root.parent.parent} were written with `accumulation: discarding`, so no row has "
            "a whole window; name the other tables with --table"
        )


def _any_row(connection: duckdb.DuckDBPyConnection, view: str) -> bool:
    return connection.execute(f"SELECT 1 FROM {quoted(view)} LIMIT 1").fetchone() is not None
