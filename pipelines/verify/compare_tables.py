"""Comparing two tables row by row, column by column."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from tempfile import gettempdir
from typing import Any

import duckdb

from headrace.pipelines.verify.column_types import Common, common_type
from headrace.pipelines.verify.comparison import ColumnDifference, Row, TableComparison
from headrace.pipelines.verify.stored_tables import columns_of, quoted
from headrace.pipelines.verify.tolerance import Tolerance
from headrace.runners.suggest import suggest
from headrace.schemas.errors import ConfigError

EXAMPLES = 5
_SHOWN_CHARACTERS = 120
_A, _B = "_side_a", "_side_b"
_LEFT, _ALIGNED = "_left", "_aligned"


@dataclass(frozen=True)
class Terms:
    """What makes two rows the same."""

    key: Sequence[str] = ()
    """Columns that both tables have; none: whole rows."""
    ignore: Collection[str] = ()
    """Columns that are not compared."""
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict)
    """Of columns with numbers; of others that a table does not have they mean nothing."""
    hidden: Collection[str] = ()
    """Columns whose values are not shown in examples; only how long they are."""
    hide_text: bool = False
    """The same for all columns of text but the key."""
    examples: int = EXAMPLES
    """Most of each kind."""


def compare_tables(
    connection: duckdb.DuckDBPyConnection,
    a: str,
    b: str,
    *,
    name: str,
    terms: Terms,
    notes: Sequence[str] = (),
) -> TableComparison:
    """Compares two tables or views of a database.

    Equal rows cancel each other out; the rest is paired by key and compared cell by cell, where a key is repeated in the order of
    the columns. So the rows of one key are compared as a multiset. Without key nothing is paired. Null equals null, also in keys,
    and NaN equals NaN; see :func:`common_type <headrace.pipelines.verify.column_types.common_type>` for types. The result does
    not depend on the order of rows.

    Args:
        connection: from :func:`open_database <headrace.pipelines.verify.stored_tables.open_database>`, whose memory is bounded.
        a, b: names of the tables.
        name: of the pair, for the report.
        notes: kept in the result.

    Raises:
        ConfigError: a key column is missing or has other types, a tolerance is for no number or there is no key; values that can't
            be brought to one type; or the temporary folder is full.
    """
    try:
        return _Pair(connection, a, b, name, terms).compare(list(notes))
    except (duckdb.ConversionException, duckdb.OutOfRangeException) as error:
        raise ConfigError(
            f"table {name}: values can't be brought to one type: {str(error).splitlines()[0]}; ignore the column, or write it with "
            "the same type on both sides"
        ) from error
    except duckdb.OutOfMemoryException as error:
        raise ConfigError(
            f"table {name}: the comparison does not fit into {gettempdir()}: {str(error).splitlines()[0]}; set TMPDIR "
            "to a folder on a larger disk"
        ) from error
    finally:
        for view in (_ALIGNED, _A, _B):
            connection.execute(f"DROP VIEW IF EXISTS {view}")
        connection.execute(f"DROP TABLE IF EXISTS {_LEFT}")


class _Pair:
    """Both sides as views ``_side_a`` and ``_side_b`` with columns k0, k1, … (key) and c0, c1, … (compared)."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, a: str, b: str, name: str, terms: Terms
    ) -> None:
        self._db, self._name, self._terms = connection, name, terms
        key = self._key = list(terms.key)
        types_a, types_b = columns_of(connection, a), columns_of(connection, b)
        missing = [column for column in key if column not in types_a or column not in types_b]
        if missing:
            side, have = ("A", types_a) if missing[0] not in types_a else ("B", types_b)
            raise ConfigError(
                f"table {name}: {side} has no column {missing[0]!r} for the key; {suggest(missing[0], have)}"
            )
        self.ignored = sorted((set(terms.ignore) - set(key)) & {*types_a, *types_b})
        counted = [column for column in types_a if column not in self.ignored]
        self.only_a = [column for column in counted if column not in types_b]
        self.only_b = [c for c in types_b if c not in types_a and c not in self.ignored]
        self._common: dict[str, Common] = {}
        self.other_types: dict[str, tuple[str, str]] = {}
        for column in counted:
            if column in types_b:
                common = common_type(types_a[column], types_b[column])
                if common is not None:
                    self._common[column] = common
                elif column in key:
                    raise ConfigError(
                        f"table {name}: key column {column!r} is {types_a[column]} in A and {types_b[column]} in B, "
                        "so no rows would ever meet; choose another key"
                    )
                else:
                    self.other_types[column] = types_a[column], types_b[column]
        self._compared = [column for column in self._common if column not in key]
        self._tolerances = {c: t for c, t in terms.tolerances.items() if c in self._common}
        self._check_tolerances()
        for view, table, types in ((_A, a, types_a), (_B, b, types_b)):
            chosen = [
                f"{common.cast(quoted(column), types[column])} AS {place}"
                for place, column in self._places()
                for common in [self._common[column]]
            ]
            connection.execute(
                f"CREATE TEMP VIEW {view} AS SELECT {', '.join([*chosen, 'true AS here'])} FROM {quoted(table)}"
            )

    def compare(self, notes: list[str]) -> TableComparison:
        rows_a, rows_b = (self._one(f"SELECT count(*) FROM {side}")[0] for side in (_A, _B))
        repeated_a, repeated_b = (self._repeated(side) for side in (_A, _B)) if self._key else (0, 0)
        left_a, left_b = self._cancel()
        found = _nothing(len(self._compared))
        if left_a or left_b:
            aligned = self._paired(numbered=bool(repeated_a or repeated_b)) if self._key else self._unpaired()
            self._db.execute(f"CREATE TEMP VIEW {_ALIGNED} AS {aligned}")
            found = self._summary()
        return TableComparison(
            name=self._name,
            key=self._key,
            rows_a=rows_a,
            rows_b=rows_b,
            rows_compared=rows_a - left_a + found["both"],
            rows_differing=found["differing"],
            only_in_a=found["only_a"],
            only_in_b=found["only_b"],
            repeated_keys_a=repeated_a,
            repeated_keys_b=repeated_b,
            columns=self._differences(found),
            columns_only_in_a=self.only_a,
            columns_only_in_b=self.only_b,
            other_types=self.other_types,
            ignored=self.ignored,
            examples_only_in_a=self._rows(found["examples_a"]),
            examples_only_in_b=self._rows(found["examples_b"]),
            notes=notes,
        )

    def _check_tolerances(self) -> None:
        for column in self._tolerances:
            if column in self._key:
                raise ConfigError(
                    f"table {self._name}: {column!r} is part of the key, which has no tolerance; take it out of one"
                )
            if not self._common[column].numeric:
                raise ConfigError(
                    f"table {self._name}: column {column!r} is {self._common[column].sql}; only numbers have a tolerance"
                )
            if not self._key:
                raise ConfigError(
                    f"table {self._name}: for a tolerance ({column!r}) it must be known which rows belong together; "
                    "name the columns that identify a row with --key"
                )

    def _places(self) -> list[tuple[str, str]]:
        """Returns the columns of the views with what they stand for."""
        keys = [(f"k{i}", column) for i, column in enumerate(self._key)]
        return keys + [(f"c{i}", column) for i, column in enumerate(self._compared)]

    def _repeated(self, side: str) -> int:
        """Returns how many keys stand in more than one row."""
        keys = ", ".join(f"k{i}" for i in range(len(self._key)))
        return int(
            self._one(f"SELECT count(*) FROM (SELECT 1 FROM {side} GROUP BY {keys} HAVING count(*) > 1)")[0]
        )

    def _cancel(self) -> tuple[int, int]:
        """Lets equal rows cancel each other out and keeps the rest; returns how many rows are left of each side."""
        named = ", ".join(place for place, _ in self._places()) or "here"
        both = " UNION ALL ".join(
            f"SELECT {named}, {na} AS na, {1 - na} AS nb FROM {side}" for side, na in ((_A, 1), (_B, 0))
        )
        self._db.execute(
            f"CREATE TEMP TABLE {_LEFT} AS SELECT {named}, sum(na)::BIGINT AS na, sum(nb)::BIGINT AS nb FROM ({both}) "
            f"GROUP BY {named} HAVING sum(na) <> sum(nb)"
        )
        over = ", ".join(f"coalesce(sum(greatest({more}, 0)), 0)::BIGINT" for more in ("na - nb", "nb - na"))
        left_a, left_b = self._one(f"SELECT {over} FROM {_LEFT}")
        return left_a, left_b

    def _paired(self, *, numbered: bool) -> str:
        """Returns SQL that pairs what is left by key.

        Args:
            numbered: keys are repeated; the rows of each are paired in the order of their columns.
        """
        number = ""
        if numbered:
            keys = ", ".join(f"k{i}" for i in range(len(self._key)))
            ordered = ", ".join(place for place, _ in self._places())
            number = f", row_number() OVER (PARTITION BY {keys} ORDER BY {ordered}) AS number"
        sides = [
            f"(SELECT *, true AS here{number} FROM (SELECT *, unnest(range({more})) AS copy FROM {_LEFT} WHERE {more} > 0))"
            for more in ("na - nb", "nb - na")
        ]
        same = " AND ".join(f"a.k{i} IS NOT DISTINCT FROM b.k{i}" for i in range(len(self._key)))
        same += " AND a.number = b.number" if numbered else ""
        keys = ", ".join(
            f"CASE WHEN a.here THEN a.k{i} ELSE b.k{i} END AS k{i}" for i in range(len(self._key))
        )
        cells = "".join(f"{side}.c{i} AS {side}c{i}, " for side in "ab" for i in range(len(self._compared)))
        here = "coalesce(a.here, false) AS in_a, coalesce(b.here, false) AS in_b"
        return f"SELECT {keys}, {cells}{here} FROM {sides[0]} a FULL OUTER JOIN {sides[1]} b ON {same}"

    def _unpaired(self) -> str:
        """Returns SQL for what is left where there is no key: each row for itself."""
        places = [f"c{i}" for i in range(len(self._compared))]
        sides = []
        for mine, more in ((0, "na - nb"), (1, "nb - na")):
            cells = [f"{p if side == mine else 'NULL'} AS {'ab'[side]}{p}" for side in (0, 1) for p in places]
            here = f"{mine == 0} AS in_a, {mine == 1} AS in_b"
            sides.append(
                f"SELECT {', '.join([*cells, here])} FROM (SELECT *, unnest(range({more})) AS copy FROM {_LEFT} WHERE {more} > 0)"
            )
        return " UNION ALL ".join(sides)

    def _summary(self) -> dict[str, Any]:
        """Counts and exemplifies everything in one pass over the aligned rows."""
        tests, wanted = [], []
        for i, column in enumerate(self._compared):
            common = self._common[column]
            a, b = f"ac{i}", f"bc{i}"
            unlike = f"in_a AND in_b AND {a} IS DISTINCT FROM {b}"
            tolerance = self._tolerances.get(column)
            near = "false" if tolerance is None else tolerance.sql(a, b, common)
            tests += [f"({unlike} AND NOT {near}) AS d{i}", f"({unlike} AND {near}) AS w{i}"]
            absolute, relative = _distances(a, b, common)
            pair = f"{{'key': {self._shown_key()}, 'a': {self._shown(a, column)}, 'b': {self._shown(b, column)}}}"
            wanted += [
                f"count(*) FILTER (d{i}) AS cells{i}",
                f"count(*) FILTER (w{i}) AS within{i}",
                f"max({absolute}) FILTER (d{i} AND isfinite({absolute})) AS absolute{i}",
                f"max({relative}) FILTER (d{i} AND isfinite({relative})) AS relative{i}",
                f"{self._first(pair, f'd{i}')} AS examples{i}",
            ]
        any_differs = " OR ".join(f"d{i}" for i in range(len(self._compared))) or "false"
        sides = [
            f"{self._first(self._shown_row(side), f'NOT in_{other}')} AS examples_{side}"
            for side, other in (("a", "b"), ("b", "a"))
        ]
        wanted += [
            "count(*) FILTER (in_a AND in_b) AS both",
            "count(*) FILTER (NOT in_b) AS only_a",
            "count(*) FILTER (NOT in_a) AS only_b",
            f"count(*) FILTER ({any_differs}) AS differing",
            *sides,
        ]
        tested = f"SELECT {', '.join(['*', *tests])} FROM {_ALIGNED}"
        result = self._db.execute(f"SELECT {', '.join(wanted)} FROM ({tested})")
        row = result.fetchone()
        assert row is not None
        return dict(zip((d[0] for d in result.description or ()), row, strict=True))

    def _first(self, value: str, where: str) -> str:
        """Returns SQL for the values of the rows that come first by key, or by all cells where there is none."""
        places = [f"k{i}" for i in range(len(self._key))]
        places = places or [f"{side}c{i}" for i in range(len(self._compared)) for side in "ab"] or ["in_a"]
        most = self._terms.examples
        first = f"min_by({value}, row({', '.join(places)}), {max(most, 1)}) FILTER ({where})"
        return f"({first})[:{most}]"

    def _shown_key(self) -> str:
        return f"[{', '.join(f'CAST(k{i} AS VARCHAR)' for i in range(len(self._key)))}]::VARCHAR[]"

    def _shown_row(self, side: str) -> str:
        """Returns SQL for what is shown of a row that only one side has: its key, else its cells."""
        if self._key:
            return self._shown_key()
        cells = (self._shown(f"{side}c{i}", column) for i, column in enumerate(self._compared))
        return f"[{', '.join(cells)}]::VARCHAR[]"

    def _shown(self, cell: str, column: str) -> str:
        """Returns SQL for a cell as text."""
        family = self._common[column].family
        if family == "bytes":
            return f"'(' || octet_length({cell}) || ' bytes)'"
        if column in self._terms.hidden or (self._terms.hide_text and family in ("text", "other")):
            return f"'(' || length(CAST({cell} AS VARCHAR)) || ' characters, not shown)'"
        return f"left(CAST({cell} AS VARCHAR), {_SHOWN_CHARACTERS})"

    def _differences(self, found: Mapping[str, Any]) -> dict[str, ColumnDifference]:
        differences = {}
        for i, column in enumerate(self._compared):
            if found[f"cells{i}"] or found[f"within{i}"]:
                examples = [
                    {"key": dict(zip(self._key, each["key"], strict=True)), "a": each["a"], "b": each["b"]}
                    for each in found[f"examples{i}"] or ()
                ]
                numbers = found[f"absolute{i}"], found[f"relative{i}"]
                differences[column] = ColumnDifference(
                    found[f"cells{i}"], found[f"within{i}"], *numbers, examples
                )
        return differences

    def _rows(self, found: Sequence[Sequence[str | None]] | None) -> list[Row]:
        names = self._key or self._compared
        return [dict(zip(names, cells, strict=True)) for cells in found or ()]

    def _one(self, sql: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] | None = self._db.execute(sql).fetchone()
        assert row is not None
        return row


def _nothing(columns: int) -> dict[str, Any]:
    """Returns what the summary of no rows is."""
    each = {f"{what}{i}": 0 for what in ("cells", "within") for i in range(columns)}
    return {
        **dict.fromkeys(("both", "only_a", "only_b", "differing"), 0),
        "examples_a": [],
        "examples_b": [],
        **each,
    }


def _distances(a: str, b: str, common: Common) -> tuple[str, str]:
    """Returns SQL for how far two cells are apart, absolutely and relatively; null where that means nothing."""
    if common.family == "time":
        return f"(abs(epoch_us({a}) - epoch_us({b})) / 1e6)", "CAST(NULL AS DOUBLE)"
    if not common.numeric:
        return "CAST(NULL AS DOUBLE)", "CAST(NULL AS DOUBLE)"
    x, y = f"CAST({a} AS DOUBLE)", f"CAST({b} AS DOUBLE)"
    distance = f"abs({x} - {y})"
    return distance, f"({distance} / nullif(greatest(abs({x}), abs({y})), 0))"
