"""Checks SQL predicates: what a rule may say, and which columns it reads."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import conform

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


class CompiledRule(NamedTuple):
    """A predicate that :func:`compile_rules` found sound; pickles."""

    name: str
    expression: str
    columns: tuple[pa.Field, ...]
    """What it reads."""


def connect() -> duckdb.DuckDBPyConnection:
    """Opens a database in memory: one thread, UTC, rows in order, and no way out to files, network or extensions."""
    connection = duckdb.connect(
        ":memory:",
        config={
            "threads": 1,
            "enable_external_access": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,
            "preserve_insertion_order": True,
        },
    )
    connection.execute("SET TimeZone = 'UTC'")
    # it moves a cast that occurs twice out of TRY, where its failure would end the query
    connection.execute("SET disabled_optimizers = 'common_subexpressions'")
    connection.execute("SET lock_configuration = true")
    return connection


def compile_rules(rules: Mapping[str, str], schema: pa.Schema) -> list[CompiledRule]:
    """Checks each rule against the schema.

    Raises:
        ConfigError: as :class:`FilterEvents` says.
    """
    connection = connect()
    connection.register("events", pa.Table.from_batches([conform({}, schema, 0)]))
    unstable = _unstable_functions()
    return [_compiled(connection, name, expression, schema, unstable) for name, expression in rules.items()]


def _compiled(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    expression: str,
    schema: pa.Schema,
    unstable: frozenset[str],
) -> CompiledRule:
    if not isinstance(name, str) or not _NAME.match(name):
        raise ConfigError(
            f"rule name {name!r} is no reason code; use lower-case letters, digits and underscores"
        )
    if not isinstance(expression, str):
        raise ConfigError(f"rule {name!r} is a {type(expression).__name__}; give a SQL expression as text")
    tree = _parse(connection, name, expression)
    names = _columns(name, tree, schema)
    _check_functions(name, tree, unstable)
    if any(pa.types.is_decimal(schema.field(n).type) for n in names):
        _check_numbers(name, tree)
    try:
        connection.execute(f"SELECT 1 FROM events WHERE (\n{expression}\n)")
        result = connection.execute(f"SELECT (\n{expression}\n) FROM events")
    except duckdb.Error as error:
        raise ConfigError(f"rule {name!r} is no predicate: {_message(error)}") from None
    type_ = str(result.description[0][1]) if result.description else "nothing"
    if type_ not in ("BOOLEAN", "bool"):
        raise ConfigError(f"rule {name!r} is of type {type_}; a rule needs BOOLEAN, such as a comparison")
    return CompiledRule(name, expression, tuple(schema.field(n) for n in names))


def _parse(connection: duckdb.DuckDBPyConnection, name: str, expression: str) -> dict[str, Any]:
    """Returns the syntax tree of one expression, and nothing but an expression."""
    bare = _statements(connection, "SELECT 1")[0]["node"]
    try:
        statements = _statements(connection, f"SELECT\n{expression}\n")
    except ValueError as error:
        raise ConfigError(f"rule {name!r} is no SQL expression: {error}") from None
    node = statements[0]["node"] if len(statements) == 1 else {}
    rest = {k: v for k, v in node.items() if k not in ("select_list", "from_table")}
    same = {k: v for k, v in bare.items() if k not in ("select_list", "from_table")}
    selected = node.get("select_list", [])
    if (
        rest != same
        or node["from_table"]["type"] != "EMPTY"
        or len(selected) != 1
        or selected[0].get("alias")
        or selected[0].get("class") == "STAR"
    ):
        raise ConfigError(
            f"rule {name!r} is more than one SQL expression; give only what would follow WHERE, such as price <= 0"
        )
    tree: dict[str, Any] = selected[0]
    for part in _nodes(tree):
        kind = part.get("class")
        if kind in ("SUBQUERY", "STAR", "PARAMETER", "LAMBDA"):
            raise ConfigError(
                f"rule {name!r} has a {str(kind).lower()}; a rule may only use the row's own columns"
            )
    return tree


def _statements(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    row = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
    parsed: dict[str, Any] = json.loads(row[0]) if row else {"error": True, "error_message": "nothing parsed"}
    if parsed["error"]:
        raise ValueError(parsed["error_message"])
    return list(parsed["statements"])


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _columns(name: str, tree: dict[str, Any], schema: pa.Schema) -> list[str]:
    known = {n.lower(): n for n in schema.names}
    found: dict[str, None] = {}
    for node in _nodes(tree):
        if node.get("class") != "COLUMN_REF":
            continue
        parts = node["column_names"]
        text = ".".join(parts)
        if len(parts) != 1 or parts[0].lower() not in known:
            near = difflib.get_close_matches(text.lower(), known, n=1)
            hint = f"did you mean {known[near[0]]!r}?" if near else f"columns are {', '.join(schema.names)}"
            raise ConfigError(f"rule {name!r} names column {text!r}, which events don't have; {hint}")
        found[known[parts[0].lower()]] = None
    return list(found)


def _check_numbers(name: str, tree: dict[str, Any]) -> None:
    for node in _nodes(tree):
        literal = node.get("literal") if node.get("class") == "CONSTANT" else None
        if literal and literal.get("kind") == "NUMERIC" and "e" in literal["text"].lower():
            raise ConfigError(
                f"rule {name!r} has the number {literal['text']}, which would compare money as floating point; "
                "write it out, like 0.001"
            )


def _check_functions(name: str, tree: dict[str, Any], unstable: frozenset[str]) -> None:
    for node in _nodes(tree):
        function = str(node.get("function_name", "")).lower()
        one_sided_age = function == "age" and len(node.get("arguments", ())) == 1
        if function in unstable or one_sided_age:
            raise ConfigError(
                f"rule {name!r} calls {function}(), whose result differs from run to run; compare with ingest_time or a constant"
            )


@cache
def _unstable_functions() -> frozenset[str]:
    """Returns functions that DuckDB does not call consistent, and macros that use one or a query."""
    rows = (
        connect()
        .execute(
            "SELECT lower(function_name), stability, macro_definition FROM duckdb_functions() "
            "WHERE function_type IN ('scalar', 'macro')"
        )
        .fetchall()
    )
    unstable = {function for function, stability, _ in rows if stability not in (None, "CONSISTENT")}
    unstable |= {"current_timestamp", "current_time", "localtime", "localtimestamp", "select"}
    macros = [
        (function, {w.lower() for w in _IDENTIFIER.findall(definition)})
        for function, _, definition in rows
        if definition
    ]
    while found := {function for function, words in macros if words & unstable} - unstable:
        unstable |= found
    return frozenset(unstable)


def _message(error: duckdb.Error) -> str:
    """Returns DuckDB's message without the query's text."""
    return str(error).split("\n\nLINE")[0].replace("\n", " ").strip()
