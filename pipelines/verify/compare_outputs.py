"""Comparing two outputs, lakes or warehouses, table by table."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from headrace.connectors.stream_ledger import TABLE as LEDGER
from headrace.connectors.stream_output import FILE as STREAM_FILE
from headrace.pipelines.verify.compare_tables import Terms, compare_tables
from headrace.pipelines.verify.comparison import TableComparison
from headrace.pipelines.verify.known_tables import tasks_of
from headrace.pipelines.verify.stored_tables import (
    StoredTable,
    columns_of,
    create_view,
    find_tables,
    open_database,
    quoted,
)
from headrace.runners.suggest import suggest
from headrace.schemas.errors import ConfigError

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class OutputComparison:
    """What two outputs have in common and what not."""

    a: str
    b: str
    tables: list[TableComparison]
    only_in_a: dict[str, int]
    """Tables that B lacks, with their rows; one without rows is no difference."""
    only_in_b: dict[str, int]
    not_compared: list[str] = field(default_factory=list)
    """Tables that are a run's books, and not its rows."""

    @property
    def equal(self) -> bool:
        alone = sum(self.only_in_a.values()) + sum(self.only_in_b.values())
        return not alone and all(table.equal for table in self.tables)

    def as_dict(self) -> dict[str, Any]:
        """Returns it as plain JSON values."""
        return {
            "equal": self.equal,
            "a": self.a,
            "b": self.b,
            "tables": [table.as_dict() for table in self.tables],
            "only_in_a": self.only_in_a,
            "only_in_b": self.only_in_b,
            "not_compared": self.not_compared,
        }


class _Matched(NamedTuple):
    """The tables of both sides by name."""

    pairs: dict[str, tuple[StoredTable, StoredTable]]
    only_a: dict[str, StoredTable]
    only_b: dict[str, StoredTable]
    books: list[str]


def compare_outputs(
    a: str | os.PathLike[str], b: str | os.PathLike[str], terms: Terms, *, only: Sequence[str] = ()
) -> OutputComparison:
    """Compares all tables below two folders, matched by their paths; or two tables.

    Tables that headrace writes are known:

    - ``events``: by ``event_id``; events without an id of their own as multisets of everything else.
    - ``metrics/NAME``: by window and groups; of a stream's table the rows that count.
    - ``quarantine``: rows by stage, reason and schema. ``late/NAME``: rows by window.
    - The tables of ``headrace run nightly``: by date and by what else identifies a row.

    Where and when a record was read is not compared. With ``terms.key`` a table that has these columns is compared by them.

    Args:
        terms: for tables that are not known; of known ones it adds to what is ignored.
        only: names of tables, if not all are to be compared.

    Raises:
        InputError: a folder or file is missing or damaged.
        ConfigError: there is nothing to compare; a table is compared with a folder of tables; a column that no table has, or a
            tolerance that makes no sense.
    """
    if both := set(terms.key) & set(terms.ignore):
        raise ConfigError(f"column {min(both)!r} is part of the key and is to be ignored; leave one out")
    pairs, only_a, only_b, books = _match(a, b, only)
    with open_database() as connection:
        tables = list(_compared(connection, pairs, terms))
        rows_a, rows_b = ({n: _rows(connection, t) for n, t in side.items()} for side in (only_a, only_b))
    return OutputComparison(str(a), str(b), tables, rows_a, rows_b, books)


def _match(a: PathLike, b: PathLike, only: Sequence[str]) -> _Matched:
    found_a, found_b = find_tables(a), find_tables(b)
    single = _is_table(found_a, a), _is_table(found_b, b)
    if single == (True, True):
        (first,), (second,) = found_a.values(), found_b.values()
        return _Matched({_known_name(first): (first, second)}, {}, {}, [])
    if any(single):
        table, folder, found = (a, b, found_b) if single[0] else (b, a, found_a)
        held = f"holds several ({', '.join(list(found)[:5])}); name one of them" if found else "holds none"
        raise ConfigError(f"{table} is one table, {folder} {held}")
    names = sorted({*found_a, *found_b})
    if not names:
        raise ConfigError(f"{a} and {b} hold no tables: no Delta table and no Parquet file lies below them")
    _require_known(only, names, "table", f"{a} and {b}")
    books = [LEDGER] if LEDGER in names and any((Path(x) / STREAM_FILE).is_file() for x in (a, b)) else []
    chosen = [name for name in names if name not in books and (not only or name in only)]
    if not chosen or set(books) & set(only):
        raise ConfigError(
            f"table {LEDGER} of a stream has its own books (one row a commit), which say nothing of its rows; leave it out"
        )
    return _Matched(
        {n: (found_a[n], found_b[n]) for n in chosen if n in found_a and n in found_b},
        {n: found_a[n] for n in chosen if n not in found_b},
        {n: found_b[n] for n in chosen if n not in found_a},
        books,
    )


def _compared(
    connection: duckdb.DuckDBPyConnection,
    pairs: Mapping[str, tuple[StoredTable, StoredTable]],
    terms: Terms,
) -> Iterator[TableComparison]:
    """Compares each pair, then checks that every column that was named is in one of them."""
    seen: dict[str, None] = {}
    views: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
    for name, (a, b) in pairs.items():
        types = create_view(connection, f"a/{name}", a), create_view(connection, f"b/{name}", b)
        for side, table, i in (("a", a, 0), ("b", b, 1)):
            if not table.files and table.delta_schema is None:
                connection.execute(f"DROP VIEW {quoted(f'{side}/{name}')}")
                create_view(connection, f"{side}/{name}", table, like=types[1 - i])
        views[name] = columns_of(connection, f"a/{name}"), columns_of(connection, f"b/{name}")
        seen |= dict.fromkeys((*views[name][0], *views[name][1]))
    _require_known([*terms.key, *terms.ignore, *terms.tolerances], seen, "column", "the tables")
    for name, (a, b) in pairs.items():
        for task in tasks_of(connection, name, (a, b), views[name], terms):
            yield compare_tables(
                connection, task.a, task.b, name=task.name, terms=task.terms, notes=task.notes
            )


def _known_name(table: StoredTable) -> str:
    folder = table.root.parent.name
    return f"{folder}/{table.name}" if folder in ("metrics", "late") else table.name


def _is_table(found: Mapping[str, StoredTable], root: PathLike) -> bool:
    return [table.root.absolute() for table in found.values()] == [Path(root).absolute()]


def _require_known(names: Sequence[str], known: Collection[str], what: str, where: str) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{where} have no {what} {name!r}; {suggest(name, known)}")


def _rows(connection: duckdb.DuckDBPyConnection, table: StoredTable) -> int:
    view = f"alone/{table.root}"
    create_view(connection, view, table)
    (rows,) = connection.execute(f"SELECT count(*) FROM {quoted(view)}").fetchone() or (0,)
    return int(rows)
