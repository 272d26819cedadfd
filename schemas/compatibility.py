"""Is one version of a schema compatible with another? A structural proof, never a guess.

Backward: every document that is valid under OLD is valid under NEW, so NEW can read what was written before. Forward: every
document that is valid under NEW is valid under OLD. Whatever the comparison can't decide is reported as well, so that "no
breaks" is a proof. It is stricter than a habit of many registries: a property added to an object that allows unnamed
properties is a break, because old documents may hold anything there; ``closed=True`` assumes that they don't.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.schemas.errors import ConfigError
from headrace.schemas.parts import (
    TYPES,
    alike,
    allows,
    conjuncts,
    has_bases,
    is_self_contained,
    resolved,
    same,
    speaks,
    types_of,
)
from headrace.schemas.references import CheckedSchema, escape
from headrace.schemas.validator import RowValidator

MODES = ("backward", "forward", "full")

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
    "contains": "array", "minContains": "array", "maxContains": "array",
    "prefixItems": "array", "additionalItems": "array", "unevaluatedItems": "array",
    "$dynamicRef": None, "$recursiveRef": None,
}  # fmt: skip
"""Keywords that are compared as a whole: equal, or not proven."""


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
    old: Mapping[str, Any] | bool | CheckedSchema,
    new: Mapping[str, Any] | bool | CheckedSchema,
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
    before = old if isinstance(old, CheckedSchema) else CheckedSchema(old)
    after = new if isinstance(new, CheckedSchema) else CheckedSchema(new)
    breaks: list[Break] = []
    if same(before.document, after.document) and before.resources == after.resources:
        return breaks
    for direction, source, target in (("backward", before, after), ("forward", after, before)):
        if mode in (direction, "full"):
            proof = _Proof(source, target, direction, closed)
            found = list(proof.contained(source.document, target.document, ""))
            if source.dialect != target.dialect:
                found.append(
                    proof.unproven("/$schema", "the drafts differ, and so may the meaning of keywords")
                )
            if has_bases(source.document) or has_bases(target.document):
                found.append(
                    proof.unproven("", "a $ref beside an $id inside of the schema can't be followed")
                )
            breaks += sorted(set(found), key=lambda item: (item.pointer, item.message))
    return breaks


class _Proof:
    """Proves that every value that ``source`` allows is allowed by ``target``; yields where it fails."""

    def __init__(self, source: CheckedSchema, target: CheckedSchema, direction: str, closed: bool) -> None:
        self.source = source.document
        self.target = target.document
        self.dialects = source.dialect, target.dialect
        self.direction = direction
        self.closed = closed
        self.names = ("OLD", "NEW") if direction == "backward" else ("NEW", "OLD")
        self.assumed: dict[tuple[int, int], tuple[Any, Any]] = {}
        """Pairs under proof, to which references may lead back: the proof is by induction over the document."""

    def contained(self, a: Any, b: Any, where: str) -> Iterator[Break]:
        """Yields the breaks of one pair of subschemas."""
        a, b = resolved(a, self.source), resolved(b, self.target)
        if b is True or a is False or (id(a), id(b)) in self.assumed or (same(a, b) and is_self_contained(a)):
            return
        self.assumed[(id(a), id(b))] = (a, b)
        if b is False:
            yield self._break(where, f"{self.names[1]} allows no value here")
            return
        a = {} if a is True else a
        if "$ref" in b or "$ref" in a:
            yield self.unproven(
                where, "a $ref into another file, or with other keywords beside it, can't be compared"
            )
            return
        if ("enum" in a or "const" in a) and is_self_contained(a) and is_self_contained(b):
            yield from self._listed_values(a, b, where)
            return
        parts = conjuncts(a, self.source)
        for keyword in b:
            yield from self._keyword(keyword, parts, b, f"{where}/{escape(keyword)}")

    def _listed_values(self, a: dict[str, Any], b: dict[str, Any], where: str) -> Iterator[Break]:
        """Where only listed values are allowed, tries them one by one."""
        mine = RowValidator({**a, "$schema": self.dialects[0]})
        theirs = RowValidator({**b, "$schema": self.dialects[1]})
        refused = [v for v in a.get("enum", [a.get("const")]) if mine.is_valid(v) and not theirs.is_valid(v)]
        if refused:
            shown = ", ".join(json.dumps(value)[:100] for value in refused[:5])
            yield self._break(where, f"{self.names[0]} allows {shown}, {self.names[1]} does not")

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
            found = self._tried(self._single(keyword, part, b, where))
            if not found:
                return
            best = found if best is None or len(found) < len(best) else best
        indirect = any(
            word in part for part in parts for word in ("anyOf", "oneOf", "if", "not", "patternProperties")
        )
        for item in best or []:
            if indirect and item.proven:
                yield self.unproven(item.pointer, f"{item.message}, as far as can be compared")
            else:
                yield item

    def _joint(self, parts: list[dict[str, Any]], member: Any, where: str) -> Iterator[Break]:
        member = resolved(member, self.target)
        if isinstance(member, bool) or "$ref" in member:
            yield from self.contained(parts[0], member, where)
            return
        for keyword in member:
            yield from self._keyword(keyword, parts, member, f"{where}/{escape(keyword)}")

    def _single(self, keyword: str, a: dict[str, Any], b: dict[str, Any], where: str) -> Iterator[Break]:
        value, (mine, theirs) = b[keyword], self.names
        types = types_of(a)
        if keyword == "type":
            extra = [name for name in TYPES if name in types and not allows(types_of(b), name)]
            if extra:
                yield self._break(where, f"{mine} allows {' or '.join(extra)}, {theirs} does not")
        elif keyword in ("enum", "const"):
            yield from self._values(a, value if keyword == "enum" else [value], where)
        elif keyword in _LOWER or keyword in _UPPER:
            if speaks(types, _LOWER.get(keyword) or _UPPER[keyword]):
                yield from self._bound(keyword, a, b, where)
        elif keyword in _LITERAL:
            if speaks(types, _LITERAL[keyword]) and value is not False and a.get(keyword) != value:
                if keyword in a and keyword != "uniqueItems":
                    yield self.unproven(where, f"{mine} and {theirs} differ in their {keyword}")
                else:
                    yield self._break(where, f"{theirs} demands {keyword}, {mine} does not")
        elif keyword == "multipleOf":
            if speaks(types, "number") and a.get(keyword) != value:
                whole = isinstance(value, int) and isinstance(a.get(keyword), int) and a[keyword] % value == 0
                if not whole and not (
                    value == 1 and types <= {"integer"} | set(TYPES) - {"number", "integer"}
                ):
                    yield self._break(where, f"{theirs} demands a multiple of {value}, {mine} does not")
        elif keyword == "required":
            if speaks(types, "object"):
                for name in sorted(set(value) - set(a.get("required", []))):
                    yield self._break(where, f"{theirs} requires property {name!r}, {mine} does not")
        elif keyword in ("properties", "additionalProperties"):
            if speaks(types, "object"):
                yield from self._objects(keyword, a, b, where)
        elif keyword == "items":
            if speaks(types, "array"):
                yield from self._items(a, b, where)
        elif keyword == "anyOf":
            yield from self._any_of(a, value, where)
        elif keyword in ("if", "then", "else"):
            if keyword == "if" and not alike(a, b, ("if", "then", "else")):
                yield self.unproven(where, "the condition differs and can't be compared")
        elif keyword in _OPAQUE:
            kind = _OPAQUE[keyword]
            relevant = kind is None or speaks(types, kind)
            words = ("contains", "minContains", "maxContains") if "ontains" in keyword else (keyword,)
            if relevant and not alike(a, b, words):
                yield self.unproven(
                    where, f"{keyword} differs, or depends on other parts, and can't be compared"
                )

    def _values(self, a: dict[str, Any], allowed: list[Any], where: str) -> Iterator[Break]:
        if "enum" not in a and "const" not in a:
            yield self._break(where, f"{self.names[1]} allows only listed values, {self.names[0]} others too")
        elif not all(
            any(same(value, other) for other in allowed) for value in a.get("enum", [a.get("const")])
        ):
            yield self.unproven(where, f"{self.names[0]} lists values that {self.names[1]} does not")

    def _bound(self, keyword: str, a: dict[str, Any], b: dict[str, Any], where: str) -> Iterator[Break]:
        limit = b[keyword]
        if isinstance(limit, bool) or any(isinstance(a.get(word), bool) for word in _NUMERIC):  # draft 4
            if not alike(a, b, _NUMERIC):
                yield self.unproven(
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
        if "patternProperties" in a or "patternProperties" in b:
            if not alike(a, b, ("properties", "patternProperties", "additionalProperties")):
                yield self.unproven(where, "can't be compared beside patternProperties")
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
            if self._tried(self.contained(True, child, where)):
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
            if not alike(a, b, words):
                yield self.unproven(where, "items by position can't be compared")
            return
        yield from self.contained(mine, theirs, where)

    def _any_of(self, a: dict[str, Any], options: list[Any], where: str) -> Iterator[Break]:
        branches = a.get("anyOf", [a])
        for branch in branches:
            if all(self._tried(self.contained(branch, option, "")) for option in options):
                yield self.unproven(
                    where, f"no single alternative of {self.names[1]} covers what {self.names[0]} allows"
                )
                return

    def _tried(self, attempt: Iterator[Break]) -> list[Break]:
        """Returns the breaks of an attempt; what a failed attempt assumed is forgotten."""
        saved = dict(self.assumed)
        found = list(attempt)
        if found:
            self.assumed = saved
        return found

    def _break(self, where: str, message: str) -> Break:
        return Break(where, self.direction, message)

    def unproven(self, where: str, message: str) -> Break:
        return Break(where, self.direction, f"can't prove: {message}", False)


_NUMERIC = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
