"""Compiles a family's JSON Schema to a typed decoder: documents to columns, proven valid or left to the row validator.

The decoder may only accept what it can prove valid. msgspec proves types, required fields and the absence of unknown fields while
it parses; vectorised checks prove enum, pattern, format and bounds on the columns. A schema with a keyword that neither can prove
compiles to nothing: all of its documents go to the row validator.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columnar_checks import prove_decimals, prove_strings, prove_uuids
from headrace.schemas.columns import DECODED_SCHEMA, TIME
from headrace.schemas.json_text import MAX_DEPTH, canonical
from headrace.schemas.registry import Field, Schema
from headrace.schemas.rfc3339 import parse_column

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
class Leaf:
    """A named value of the schema and the way in which it is read and proven."""

    field: Field
    kind: str
    """string, uuid, time, integer, money or json."""


@dataclass(frozen=True)
class Place:
    """An object of the schema as a struct type."""

    struct: Any
    leaves: dict[int, int]
    """Position of a member in the struct → number of its leaf."""
    places: dict[int, "Place"]
    """Position of a member in the struct → the object that it is."""

    def unzip(self, structs: Sequence[Any], values: list[Any]) -> list[tuple[Any, ...]]:
        """Puts the values of every leaf into ``values``, by its number; returns the members' own columns."""
        columns = list(zip(*map(msgspec.structs.astuple, structs), strict=True))
        for position, number in self.leaves.items():
            values[number] = columns[position]
        for position, place in self.places.items():
            place.unzip(columns[position], values)
        return columns


class TypedDecoder:
    """Decodes documents of one schema. Not picklable and not shared between threads: build one per process.

    Args:
        schema: a family's schema; see ``headrace.schemas.compile_decoder``.
    """

    def __init__(
        self, schema: Schema, leaves: Sequence[Leaf], place: Place, conditions: Sequence["Condition"]
    ) -> None:
        self.schema = schema
        self._leaves = leaves
        self._place = place
        self._conditions = conditions
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(place.struct).decode
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
                parts.append(self._arrays(events))
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

    def _arrays(self, events: Sequence[Any]) -> list[Any]:
        """One slice's structs to arrays, so that they can be freed while still in the cache."""
        values: list[Any] = [None] * len(self._leaves)
        top = self._place.unzip(events, values)
        arrays: list[Any] = []
        for leaf, column in zip(self._leaves, values, strict=True):
            if leaf.kind == "integer":
                arrays.append(pa.array(column, pa.int64()))
            elif leaf.kind == "money":
                nullable = "null" in types_of(leaf.field.schema)
                tokens = [None if v is None else bytes(v) for v in column]
                arrays.append([None if t == b"null" else t for t in tokens] if nullable else tokens)
            elif leaf.kind == "json":
                arrays.append(self._json(column, leaf.field))
            else:
                arrays.append(pa.array(column, pa.string()))
        return arrays + [condition.present(top[condition.member]) for condition in self._conditions]

    def _check(self, leaf: Leaf, array: Any) -> tuple[pa.Array, np.ndarray | None]:
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
        coded = pa.types.is_dictionary(column_type(leaf.field.column))
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
        memo, good = self._canonical, np.ones(len(column), bool)
        texts: list[str | None] = []
        types = types_of(field.schema)
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


class Condition(NamedTuple):
    """``if column == constant then required``: a member that must be there when another one has a value."""

    column: str
    constant: str
    member: int
    """Position of the member in the document's struct."""
    absent: Any
    """What the decoder puts in place of the absent member; None if null and absent are not told apart."""

    def present(self, values: Sequence[Any]) -> np.ndarray:
        """True where the member is there."""
        return np.fromiter((value is not self.absent for value in values), bool, len(values))

    def holds(self, columns: Mapping[str, pa.Array], present: np.ndarray) -> np.ndarray:
        values = columns[self.column]
        wanted = pc.equal(values.cast(pa.string()), self.constant).fill_null(False)
        return present | ~wanted.to_numpy(zero_copy_only=False)


def types_of(node: Mapping[str, Any]) -> set[str]:
    """Returns the types that a schema allows; empty: any."""
    types = node.get("type", [])
    return {types} if isinstance(types, str) else set(types)


def column_type(column: str) -> pa.DataType:
    """Returns the Arrow type of a column, or text for a member of a JSON column."""
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
