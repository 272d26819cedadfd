"""Compiles a family's JSON Schema to a typed decoder: documents to columns, proven valid or left to the row validator.

The decoder may only accept what it can prove valid. msgspec proves types, required fields and the absence of unknown fields while
it parses; vectorised checks prove enum, pattern, format and bounds on the columns. A schema with a keyword that neither can prove
compiles to nothing: all of its documents go to the row validator.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columnar_checks import pattern_is_plain, prove_decimals, prove_strings, prove_uuids
from headrace.schemas.columns import DECODED_SCHEMA, JSON_COLUMNS, TIME
from headrace.schemas.json_text import MAX_DEPTH, canonical
from headrace.schemas.registry import Field, Schema
from headrace.schemas.rfc3339 import parse_column

_NOTES = {"title", "description", "$schema", "$id", "$comment", "examples", "default"}
_LEAF = {"type", "enum", "const", "pattern", "minLength", "maxLength", "minimum", "maximum", "format"}
_OBJECT = {"type", "properties", "required", "additionalProperties", "allOf"}
_HUGE_EXPONENT = re.compile(rb"[0-9][eE][+-]?[0-9]{3}")
_SLICE = 512
"""Documents decoded before their columns are built: what stays in the processor's cache."""


class Decoded(NamedTuple):
    """Columns of the documents that were decoded, and which of them are proven valid."""

    columns: dict[str, pa.Array]
    rows: np.ndarray
    """int64; positions in the input of the rows in ``columns``, ascending."""
    proven: np.ndarray
    """bool, one for each of ``rows``."""


@dataclass(frozen=True)
class _Leaf:
    field: Field
    kind: str
    """string, uuid, time, integer, money or json."""


class TypedDecoder:
    """Decodes documents of one schema. Not picklable and not shared between threads: build one per process.

    Args:
        schema: a family's schema; see :func:`compile_decoder`.
    """

    def __init__(
        self, schema: Schema, leaves: Sequence[_Leaf], struct: type, conditions: Sequence["_Condition"]
    ):
        self.schema = schema
        self._leaves = leaves
        self._conditions = conditions
        self._decode = msgspec.json.Decoder(struct).decode
        paths = [leaf.field.path for leaf in leaves] + [c.path for c in conditions]
        self._paths = paths
        getter = operator.attrgetter(*(".".join(map(_attribute, path)) for path in paths))
        self._values: Callable[[Any], tuple[Any, ...]] = getter if len(paths) > 1 else lambda e: (getter(e),)
        self._canonical: dict[bytes, str | None] = {}

    def __call__(self, documents: Sequence[bytes]) -> Decoded:
        """Decodes the documents that it can; those missing from ``rows`` are for the row validator.

        The documents must be valid UTF-8: msgspec does not check inside of values that it keeps as they are.
        """
        failed: list[int] = []
        parts = []
        for start in range(0, len(documents), _SLICE):
            events: list[Any] = []
            todo = map(self._decode, documents[start : start + _SLICE])
            row = start
            while True:
                try:
                    before = len(events)
                    events.extend(todo)
                    break
                except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
                    row += len(events) - before  # What was decoded before the failure stays in the list.
                    failed.append(row)
                    row += 1
            if events:
                parts.append(self._arrays(list(zip(*map(self._values, events), strict=True))))
        if not parts:
            return Decoded({}, np.zeros(0, np.int64), np.zeros(0, bool))
        arrays = [_joined(chunks) for chunks in zip(*parts, strict=True)]
        decoded = np.ones(len(documents), bool)
        decoded[failed] = False
        rows = np.flatnonzero(decoded)
        proven = np.ones(len(rows), bool)
        columns: dict[str, pa.Array] = {}
        members: dict[str, dict[str, list[bytes | None]]] = {}
        for leaf, array in zip(self._leaves, arrays, strict=False):
            column, name = leaf.field.column, leaf.field.column.partition("/")[2]
            value, good = self._check(leaf, array)
            if good is not None:
                proven &= good
            if name:
                members.setdefault(column.partition("/")[0], {})[name] = _tokens(value, array)
            else:
                columns[column] = value
        for condition, present in zip(self._conditions, arrays[len(self._leaves) :], strict=True):
            proven &= condition.holds(columns, present)
        for column, values in members.items():
            columns[column] = _objects(values)
        return Decoded(columns, rows, proven)

    def _arrays(self, values: list[tuple[Any, ...]]) -> list[Any]:
        """One slice's Python values to arrays, so that they can be freed while still in the cache."""
        arrays: list[Any] = []
        for leaf, column in zip(self._leaves, values, strict=False):
            if leaf.kind == "integer":
                arrays.append(pa.array(column, pa.int64()))
            elif leaf.kind == "money":
                nullable = "null" in _types(leaf.field.schema)
                tokens = [None if v is None else bytes(v) for v in column]
                arrays.append([None if t == b"null" else t for t in tokens] if nullable else tokens)
            elif leaf.kind == "json":
                arrays.append(self._json(column, leaf.field))
            else:
                arrays.append(pa.array(column, pa.string()))
        for condition, column in zip(self._conditions, values[len(self._leaves) :], strict=True):
            arrays.append(np.fromiter((v is not condition.absent for v in column), bool, len(column)))
        return arrays

    def _check(self, leaf: _Leaf, array: Any) -> tuple[pa.Array, np.ndarray | None]:
        rules = leaf.field.schema
        if leaf.kind == "money":
            good, value = prove_decimals(array, rules)
            return value, good
        if leaf.kind == "json":
            return array.values, array.proven
        if leaf.kind == "integer":
            return array, _within(array, rules)
        if leaf.kind == "time":
            good, micros = parse_column(array)
            if array.null_count:
                good |= array.is_null().to_numpy(zero_copy_only=False)
            return pa.array(micros, pa.int64(), mask=array.is_null().to_numpy(zero_copy_only=False)).cast(
                TIME
            ), good
        if leaf.kind == "uuid":
            return array, prove_uuids(array)
        coded = pa.types.is_dictionary(_type_of(leaf.field.column))
        if coded:
            array = array.dictionary_encode()
        if not rules.keys() & {"enum", "const", "pattern", "minLength", "maxLength"}:
            return array, None
        if not coded:
            return array, prove_strings(array, rules)
        good = prove_strings(array.dictionary, rules)
        if good.all():
            return array, None
        codes = array.indices.fill_null(0).to_numpy()
        return array, good[codes] | array.is_null().to_numpy(zero_copy_only=False)

    def _json(self, column: tuple[Any, ...], field: Field) -> "_JsonColumn":
        memo, texts, good = self._canonical, [], np.ones(len(column), bool)
        types = _types(field.schema)
        for row, raw in enumerate(column):
            if raw is None:
                texts.append(None)
                continue
            text = bytes(raw)
            written = memo.get(text, "")
            if not written:
                written = _canonical_or_none(text, types)
                if len(text) < 256:
                    if len(memo) > 20_000:
                        memo.clear()
                    memo[text] = written
            texts.append(None if written == "null" else written)
            if written is None:
                good[row] = False
        return _JsonColumn(pa.array(texts, pa.string()), good)


class _JsonColumn(NamedTuple):
    values: pa.Array
    proven: np.ndarray


class _Condition(NamedTuple):
    """``if column == constant then required``: a member that must be there when another one has a value."""

    column: str
    constant: str
    path: tuple[str, ...]
    absent: Any
    """What the decoder puts in place of the absent member; None if null and absent are not told apart."""

    def holds(self, columns: Mapping[str, pa.Array], present: np.ndarray) -> np.ndarray:
        values = columns[self.column]
        wanted = pc.equal(values.cast(pa.string()), self.constant).fill_null(False)
        return present | ~wanted.to_numpy(zero_copy_only=False)


def compile_decoder(schema: Schema) -> TypedDecoder | None:
    """Returns the decoder of a schema, or None if it holds a keyword that can't be proven in columns."""
    document = schema.document
    fields = {field.path: field for field in schema.fields}
    leaves: list[_Leaf] = []
    try:
        struct, _ = _struct(document, (), fields, leaves)
        conditions = [c for rule in document.get("allOf", ()) for c in _conditions(rule, document, struct)]
    except _NotCompilableError:
        return None
    return TypedDecoder(schema, leaves, struct, conditions)


class _NotCompilableError(Exception):
    pass


def _struct(
    node: Mapping[str, Any],
    path: tuple[str, ...],
    fields: Mapping[tuple[str, ...], Field],
    leaves: list[_Leaf],
) -> tuple[type, Any]:
    """Returns the struct type of an object schema, and its stand-in where the object is absent."""
    _only(node, _OBJECT if not path else _OBJECT - {"allOf"})
    if node.get("type") != "object" or not isinstance(node.get("additionalProperties", True), bool):
        raise _NotCompilableError
    required = node.get("required", ())
    if set(required) - set(node["properties"]):
        raise _NotCompilableError
    members: list[Any] = []
    absent: dict[str, Any] = {}
    for name, child in node["properties"].items():
        attribute = _attribute(name)
        if "properties" in child:
            type_, default = _struct(child, (*path, name), fields, leaves)
        else:
            leaf = _leaf(child, fields.get((*path, name)))
            leaves.append(leaf)
            nullable = leaf.kind == "json" or "null" in _types(child)
            base: Any = {"integer": _integer(leaf), "money": msgspec.Raw, "json": msgspec.Raw}.get(
                leaf.kind, str
            )
            # A null that the schema forbids must not look like an absent field: str and int refuse it, Raw keeps it.
            type_ = base | None if nullable and base is not msgspec.Raw else base
            default = None
        absent[attribute] = default
        members.append((attribute, type_) if name in required else (attribute, type_, default))
    members.sort(key=lambda member: len(member) == 3)
    struct = msgspec.defstruct(
        "_".join(("Document", *path)),
        members,
        gc=False,
        frozen=True,
        forbid_unknown_fields=True,
        rename={_attribute(n): n for n in node["properties"]},
    )
    return struct, struct(**absent)


def _leaf(node: Mapping[str, Any], field: Field | None) -> _Leaf:
    if field is None:
        raise _NotCompilableError
    _only(node, _LEAF)
    types = _types(node)
    if field.column in JSON_COLUMNS:
        if types not in ({"object"}, {"object", "null"}, set()) or node.keys() & (_LEAF - {"type"}):
            raise _NotCompilableError
        return _Leaf(field, "json")
    if node.get("x-decimal"):
        if not types <= {"number", "string", "null"} or "number" not in types:
            raise _NotCompilableError
        if node.keys() & {"enum", "const", "format", "minLength", "maxLength"}:
            raise _NotCompilableError
        return _Leaf(field, "money")
    if types <= {"integer", "null"}:
        if node.keys() & {"enum", "const"}:
            raise _NotCompilableError
        return _Leaf(field, "integer")
    if not types <= {"string", "null"} or "string" not in types:
        raise _NotCompilableError
    if "pattern" in node and not pattern_is_plain(node["pattern"]):
        raise _NotCompilableError
    if not isinstance(node.get("const", ""), str) or (
        "enum" in node and "null" in types and None not in node["enum"]
    ):
        raise _NotCompilableError
    kinds = {None: "string", "uuid": "uuid", "date-time": "time"}
    if node.get("format") not in kinds:
        raise _NotCompilableError
    kind = kinds[node.get("format")]
    if kind != "string" and node.keys() & {"enum", "const", "pattern", "minLength", "maxLength"}:
        raise _NotCompilableError
    return _Leaf(field, kind)


def _conditions(rule: Mapping[str, Any], document: Mapping[str, Any], struct: type) -> list[_Condition]:
    """Compiles ``{"if": {"properties": {K: {"const": V}}, "required": [K]}, "then": {"required": [M, …]}}``."""
    try:
        ((key, test),) = rule["if"]["properties"].items()
        constant, members = test["const"], rule["then"]["required"]
        plain = set(rule) == {"if", "then"} and set(rule["if"]) == {"properties", "required"}
        plain = (
            plain
            and set(rule["then"]) == {"required"}
            and rule["if"]["required"] == [key]
            and set(test) == {"const"}
        )
        column = document["properties"][key]["x-column"]
    except (KeyError, ValueError, TypeError):
        raise _NotCompilableError from None
    if not plain or not isinstance(constant, str) or set(members) - set(document["properties"]):
        raise _NotCompilableError
    defaults = dict(
        zip(reversed(struct.__struct_fields__), reversed(struct.__struct_defaults__), strict=False)
    )  # type: ignore[attr-defined]
    # Where null is allowed, null and absent may look alike to the decoder: then the row validator decides.
    return [
        _Condition(column, constant, (member,), defaults.get(_attribute(member), _NEVER))
        for member in members
    ]


def _integer(leaf: _Leaf) -> Any:
    """int within what the column holds; larger ones are for the row validator to name."""
    type_ = _type_of(leaf.field.column)
    limit = 2 ** ((type_.bit_width if pa.types.is_integer(type_) else 64) - 1)
    return Annotated[int, msgspec.Meta(ge=-limit, le=limit - 1)]


_NEVER = object()


def _only(node: Mapping[str, Any], allowed: set[str]) -> None:
    for keyword in node:
        if keyword not in allowed and keyword not in _NOTES and not keyword.startswith("x-"):
            raise _NotCompilableError


def _types(node: Mapping[str, Any]) -> set[str]:
    types = node.get("type", [])
    return {types} if isinstance(types, str) else set(types)


def _attribute(name: str) -> str:
    return "f_" + name.encode().hex() if not name.isidentifier() else "f_" + name


def _type_of(column: str) -> pa.DataType:
    return pa.string() if "/" in column else DECODED_SCHEMA.field(column).type


def _within(array: pa.Array, rules: Mapping[str, Any]) -> np.ndarray | None:
    proven = None
    for keyword, compare in (("minimum", pc.greater_equal), ("maximum", pc.less_equal)):
        if keyword in rules:
            good = compare(array, rules[keyword]).fill_null(True).to_numpy(zero_copy_only=False)
            proven = good if proven is None else proven & good
    return proven


def _canonical_or_none(text: bytes, types: set[str]) -> str | None:
    """Canonical text, or None where the row validator must decide (another type, too deep, a number out of range)."""
    if types and text[:1] != b"{" and not (text == b"null" and "null" in types):
        return None
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH // 2 or _HUGE_EXPONENT.search(text):
        return None
    try:
        return canonical(text)
    except (ValueError, RecursionError, TypeError):
        return None


def _joined(chunks: tuple[Any, ...]) -> Any:
    first = chunks[0]
    if isinstance(first, list):
        return [value for chunk in chunks for value in chunk]
    if isinstance(first, np.ndarray):
        return np.concatenate(chunks)
    if isinstance(first, _JsonColumn):
        return _JsonColumn(
            pa.concat_arrays([c.values for c in chunks]), np.concatenate([c.proven for c in chunks])
        )
    return pa.concat_arrays(chunks)


def _tokens(value: Any, array: Any) -> list[bytes | None]:
    """JSON text of each value of a member that lives inside a JSON column."""
    if isinstance(array, list):
        return [None if token == b"null" else token for token in array]
    return [None if v is None else msgspec.json.encode(v) for v in value.to_pylist()]


def _objects(members: Mapping[str, list[bytes | None]]) -> pa.Array:
    """Assembles JSON objects from the texts of their members; null where no member has a value."""
    names = sorted(members)
    prefixes = [msgspec.json.encode(name) + b":" for name in names]
    texts: list[str | None] = []
    for values in zip(*(members[name] for name in names), strict=True):
        if not any(values):
            texts.append(None)
            continue
        joined = b",".join(p + v for p, v in zip(prefixes, values, strict=True) if v is not None)
        texts.append(canonical(b"{" + joined + b"}"))
    return pa.array(texts, pa.string())
