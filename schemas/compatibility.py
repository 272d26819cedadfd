"""Is one version of a schema compatible with another? A structural proof, never a guess.

Backward: every document that is valid under OLD is valid under NEW, so NEW can read what was written before. Forward: every
document that is valid under NEW is valid under OLD. Whatever the comparison can't decide is reported as well, so that "no
breaks" is a proof. It is stricter than a habit of many registries: a property added to an object that allows unnamed
properties is a break, because old documents may hold anything there; ``closed=True`` assumes that they don't.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.schemas.errors import ConfigError
from headrace.schemas.references import CheckedSchema, escape

MODES = ("backward", "forward", "full")
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

_LOWER = {
    "minLength": "string", "minItems": "array", "minProperties": "object", "minimum": "number",
    "exclusiveMinimum": "number",
}  # fmt: skip
_UPPER = {
    "maxLength": "string", "maxItems": "array", "maxProperties": "object", "maximum": "number",
    "exclusiveMaximum": "number",
}  # fmt: skip
_LITERAL = {"pattern": "string", "format": "string", "uniqueItems": "array"}
"""Keywords that only equality proves, with the type that they speak of."""
_OPAQUE: dict[str, str | None] = {
    "not": None, "oneOf": None, "dependentRequired": "object", "dependentSchemas": "object", "dependencies": "object",
    "patternProperties": "object", "propertyNames": "object", "unevaluatedProperties": "object",
    "contains": "array", "prefixItems": "array", "additionalItems": "array", "unevaluatedItems": "array",
    "$dynamicRef": None, "$recursiveRef": None,
}  # fmt: skip
"""Keywords that are compared as a whole: equal, or not proven."""
_UNSAFE_EQUAL = ("$ref", "$dynamicRef", "$recursiveRef", "unevaluatedProperties", "unevaluatedItems")


@dataclass(frozen=True)
class Break:
    """One reason why the schemas are not, or not provably, compatible.

    ``pointer`` leads into the schema that refuses: NEW for ``backward``, OLD for ``forward``. ``proven`` is False where the
    schemas differ in a way that can't be compared.
    """

    pointer: str
    direction: str
    message: str
    proven: bool = True


def check(
    old: Mapping[str, Any] | bool,
    new: Mapping[str, Any] | bool,
    mode: str = "backward",
    *,
    closed: bool = False,
) -> list[Break]:
    """Returns what breaks compatibility, ordered by direction and pointer; empty means proven compatible.

    Args:
        old: the version that exists.
        new: the version that shall follow it.
        mode: ``backward``, ``forward`` or ``full`` (both).
        closed: assume that documents hold only properties that the schema they were written for names.

    Raises:
        ConfigError: unknown mode, or a schema that can't be used.
    """
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r} is unknown; use one of {', '.join(MODES)}")
    before, after = CheckedSchema(old), CheckedSchema(new)
    breaks: list[Break] = []
    for direction, source, target in (("backward", before, after), ("forward", after, before)):
        if mode in (direction, "full"):
            proof = _Proof(source.document, target.document, direction, closed)
            found = list(proof.contained(source.document, target.document, ""))
            if source.dialect != target.dialect:
                found.append(
                    Break("/$schema", direction, "the drafts differ, and so may their keywords", False)
                )
            breaks += sorted(set(found), key=lambda item: (item.pointer, item.message))
    return breaks


class _Proof:
    """Proves that every value that ``source`` allows is allowed by ``target``; yields where it fails."""

    def __init__(self, source: Any, target: Any, direction: str, closed: bool) -> None:
        self.source = source
        self.target = target
        self.direction = direction
        self.closed = closed
        self.names = ("OLD", "NEW") if direction == "backward" else ("NEW", "OLD")
        self.assumed: set[tuple[int, int]] = set()
        """Pairs under proof: references may lead back to them (the proof is by induction over the document)."""

    def contained(self, a: Any, b: Any, where: str) -> Iterator[Break]:
        """Yields the breaks of one pair of subschemas."""
        a, b = _resolved(a, self.source), _resolved(b, self.target)
        if b is True or a is False or (id(a), id(b)) in self.assumed or (a == b and _is_self_contained(a)):
            return
        self.assumed.add((id(a), id(b)))
        if b is False:
            yield self._break(where, f"{self.names[1]} allows no value here")
            return
        a = {} if a is True else a
        if "$ref" in b or "$ref" in a:
            yield self._unproven(
                where, "a $ref into another file, or with other keywords beside it, can't be compared"
            )
            return
        parts = _conjuncts(a, self.source)
        for keyword in b:
            yield from self._keyword(keyword, parts, b, f"{where}/{escape(keyword)}")

    def _keyword(
        self, keyword: str, parts: list[dict[str, Any]], b: dict[str, Any], where: str
    ) -> Iterator[Break]:
        """Yields why no part of the source proves this keyword; the best part's reasons if there are several."""
        if keyword == "allOf":
            for index, member in enumerate(b["allOf"]):
                yield from self._joint(parts, member, f"{where}/{index}")
            return
        best: list[Break] | None = None
        for part in parts:
            found = list(self._single(keyword, part, b, where))
            if not found:
                return
            best = found if best is None or len(found) < len(best) else best
        indirect = any(
            word in part for part in parts for word in ("anyOf", "oneOf", "if", "not", "patternProperties")
        )
        for item in best or []:
            if indirect and item.proven:
                yield self._unproven(item.pointer, f"{item.message}, as far as can be compared")
            else:
                yield item

    def _joint(self, parts: list[dict[str, Any]], member: Any, where: str) -> Iterator[Break]:
        member = _resolved(member, self.target)
        if any(part == member and _is_self_contained(part) for part in parts):
            return
        if isinstance(member, bool) or "$ref" in member:
            yield from self.contained(parts[0], member, where)
            return
        for keyword in member:
            yield from self._keyword(keyword, parts, member, f"{where}/{escape(keyword)}")

    def _single(self, keyword: str, a: dict[str, Any], b: dict[str, Any], where: str) -> Iterator[Break]:
        value, (mine, theirs) = b[keyword], self.names
        types = _types(a)
        if keyword == "type":
            extra = [name for name in TYPES if name in types and not _allows(_types(b), name)]
            if extra:
                yield self._break(where, f"{mine} allows {' or '.join(extra)}, {theirs} does not")
        elif keyword in ("enum", "const"):
            yield from self._values(a, value if keyword == "enum" else [value], where)
        elif keyword in _LOWER or keyword in _UPPER:
            if _speaks(types, _LOWER.get(keyword) or _UPPER[keyword]):
                yield from self._bound(keyword, a, b, where)
        elif keyword in _LITERAL:
            if _speaks(types, _LITERAL[keyword]) and a.get(keyword) != value and value is not False:
                if keyword in a and keyword != "uniqueItems":
                    yield self._unproven(where, f"{mine} and {theirs} differ in their {keyword}")
                else:
                    yield self._break(where, f"{theirs} demands {keyword}, {mine} does not")
        elif keyword == "multipleOf":
            if _speaks(types, "number") and a.get(keyword) != value:
                whole = isinstance(value, int) and isinstance(a.get(keyword), int) and a[keyword] % value == 0
                if not whole and not (
                    value == 1 and types <= {"integer"} | set(TYPES) - {"number", "integer"}
                ):
                    yield self._break(where, f"{theirs} demands a multiple of {value}, {mine} does not")
        elif keyword == "required":
            if _speaks(types, "object"):
                for name in sorted(set(value) - set(a.get("required", []))):
                    yield self._break(where, f"{theirs} requires property {name!r}, {mine} does not")
        elif keyword in ("properties", "additionalProperties"):
            if _speaks(types, "object"):
                yield from self._objects(keyword, a, b, where)
        elif keyword == "items":
            if _speaks(types, "array"):
                yield from self._items(a, b, where)
        elif keyword == "anyOf":
            yield from self._any_of(a, value, where)
        elif keyword in ("if", "then", "else"):
            if keyword == "if" and any(a.get(word) != b.get(word) for word in ("if", "then", "else")):
                yield self._unproven(where, "the condition differs and can't be compared")
            elif keyword == "if" and not _is_self_contained(
                {word: a.get(word) for word in ("if", "then", "else")}
            ):
                yield self._unproven(where, "a condition with references can't be compared")
        elif keyword in _OPAQUE:
            kind = _OPAQUE[keyword]
            relevant = kind is None or _speaks(types, kind)
            if relevant and (a.get(keyword) != value or not _is_self_contained({keyword: value})):
                yield self._unproven(
                    where, f"{keyword} differs, or depends on other parts, and can't be compared"
                )

    def _values(self, a: dict[str, Any], allowed: list[Any], where: str) -> Iterator[Break]:
        if "enum" in a or "const" in a:
            own = a.get("enum", [a.get("const")])
            missing = [
                value
                for value in own
                if _in(value, _types_of(a)) and not any(_same(value, v) for v in allowed)
            ]
            if missing:
                yield self._break(
                    where, f"{self.names[0]} allows {len(missing)} value(s) that {self.names[1]} does not"
                )
        else:
            yield self._break(where, f"{self.names[1]} allows only listed values, {self.names[0]} others too")

    def _bound(self, keyword: str, a: dict[str, Any], b: dict[str, Any], where: str) -> Iterator[Break]:
        limit = b[keyword]
        if isinstance(limit, bool) or any(isinstance(a.get(word), bool) for word in _NUMERIC):  # draft 4
            if {word: a.get(word) for word in _NUMERIC} != {word: b.get(word) for word in _NUMERIC} and limit:
                yield self._unproven(
                    where, f"the bounds of {self.names[0]} and {self.names[1]} can't be compared"
                )
            return
        lower = keyword in _LOWER
        inclusive = keyword.replace("exclusiveM", "m")
        exclusive = "exclusiveM" + keyword[1:] if keyword in ("minimum", "maximum") else keyword
        own = []  # (limit, whether the limit itself is allowed)
        if inclusive in a:
            own.append((a[inclusive], True))
        if exclusive != inclusive and exclusive in a:
            own.append((a[exclusive], False))
        if keyword in ("minLength", "minItems", "minProperties"):
            own.append((0, True))
        strict = keyword.startswith("exclusive")
        for mine, touches in own:
            beyond = mine > limit if lower else mine < limit
            if beyond or (mine == limit and not (strict and touches)):
                return
        yield self._break(where, f"{self.names[1]} has {keyword} {limit}, {self.names[0]} allows more")

    def _objects(self, keyword: str, a: dict[str, Any], b: dict[str, Any], where: str) -> Iterator[Break]:
        mine, theirs = a.get("properties", {}), b.get("properties", {})
        rest = a.get("additionalProperties", True)
        if (a.get("patternProperties") or b.get("patternProperties")) and a.get(keyword) != b[keyword]:
            yield self._unproven(where, "can't be compared beside patternProperties")
            return
        if keyword == "properties":
            for name, child in theirs.items():
                if name in mine:
                    yield from self.contained(mine[name], child, f"{where}/{escape(name)}")
                elif not self.closed:
                    yield from self._unnamed(rest, child, f"{where}/{escape(name)}")
            return
        for name, child in mine.items():
            if name not in theirs and child is not False:
                if b[keyword] is False:
                    yield self._break(
                        where, f"{self.names[0]} has property {name!r}, {self.names[1]} forbids it"
                    )
                else:
                    yield from self.contained(child, b[keyword], where)
        if not self.closed:
            yield from self._unnamed(rest, b[keyword], where)

    def _unnamed(self, rest: Any, child: Any, where: str) -> Iterator[Break]:
        if rest is True or rest == {}:
            if child is not True and list(self.contained(True, child, where)):
                yield self._break(
                    where,
                    f"{self.names[0]} allows any value under names that it does not list, {self.names[1]} does not "
                    "allow all of them here",
                )
        else:
            yield from self.contained(rest, child, where)

    def _items(self, a: dict[str, Any], b: dict[str, Any], where: str) -> Iterator[Break]:
        mine, theirs = a.get("items", True), b["items"]
        if isinstance(mine, list) or isinstance(theirs, list) or "prefixItems" in a or "prefixItems" in b:
            words = ("items", "prefixItems", "additionalItems")
            same = all(a.get(word) == b.get(word) for word in words)
            if not same or not _is_self_contained({word: a.get(word) for word in words}):
                yield self._unproven(where, "items by position can't be compared")
            return
        yield from self.contained(mine, theirs, where)

    def _any_of(self, a: dict[str, Any], options: list[Any], where: str) -> Iterator[Break]:
        branches = a.get("anyOf", [a])
        for branch in branches:
            if not any(self._holds(branch, option) for option in options):
                yield self._unproven(
                    where, f"no single alternative of {self.names[1]} covers what {self.names[0]} allows"
                )
                return

    def _holds(self, a: Any, b: Any) -> bool:
        saved = set(self.assumed)
        holds = next(self.contained(a, b, ""), None) is None
        if not holds:
            self.assumed = saved
        return holds

    def _break(self, where: str, message: str) -> Break:
        return Break(where, self.direction, message)

    def _unproven(self, where: str, message: str) -> Break:
        return Break(where, self.direction, f"can't prove: {message}", False)


_NUMERIC = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def _resolved(node: Any, root: Any) -> Any:
    """Follows references to places in the same document, as long as nothing stands beside them."""
    seen = 0
    while (
        isinstance(node, dict)
        and set(node) - _BESIDE == {"$ref"}
        and node["$ref"].startswith("#")
        and seen < 100
    ):
        target = root
        for part in [part for part in node["$ref"][1:].split("/") if part]:
            key = part.replace("~1", "/").replace("~0", "~")
            target = target.get(key) if isinstance(target, dict) else None
        if not isinstance(target, dict | bool):
            return node
        node, seen = target, seen + 1
    return node


_BESIDE = frozenset(
    (
        "$schema",
        "$id",
        "$defs",
        "definitions",
        "title",
        "description",
        "default",
        "examples",
        "$comment",
        "deprecated",
    )
)


def _conjuncts(a: dict[str, Any], root: Any) -> list[dict[str, Any]]:
    """Returns parts that every value of the schema satisfies, each with the types that the whole allows."""
    parts = [a]
    for member in a.get("allOf", []):
        member = _resolved(member, root)
        if isinstance(member, dict) and "$ref" not in member:
            parts += _conjuncts(member, root)
    types = sorted(set.intersection(*(_types(part) for part in parts)))
    return (
        [part if "type" in part and len(parts) == 1 else {**part, "type": types} for part in parts]
        if types
        else [a]
    )


def _types(schema: dict[str, Any]) -> set[str]:
    stated = schema.get("type")
    types = {stated} if isinstance(stated, str) else set(TYPES if stated is None else stated)
    return types | {"integer"} if "number" in types else types


def _types_of(schema: dict[str, Any]) -> set[str] | None:
    return _types(schema) if "type" in schema else None


def _in(value: Any, types: set[str] | None) -> bool:
    if types is None or value is None or isinstance(value, bool | list | dict | str):
        kinds = {type(None): "null", bool: "boolean", str: "string", list: "array", dict: "object"}
        return types is None or kinds[type(value)] in types
    return bool(types & {"integer", "number"})


def _allows(types: set[str], name: str) -> bool:
    return name in types or (name == "integer" and "number" in types)


def _speaks(types: set[str], kind: str) -> bool:
    return kind in types or (kind == "number" and "integer" in types)


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, but never true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


def _is_self_contained(node: Any) -> bool:
    """Whether the meaning of a subschema lies in itself: no references, nothing that depends on its surroundings."""
    if isinstance(node, dict):
        return not any(word in node for word in _UNSAFE_EQUAL) and all(map(_is_self_contained, node.values()))
    return not isinstance(node, list) or all(map(_is_self_contained, node))
