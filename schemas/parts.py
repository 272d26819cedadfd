"""Parts of JSON Schemas: what a comparison of two schemas asks of a subschema."""

from typing import Any

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

_UNSAFE_EQUAL = ("$ref", "$dynamicRef", "$recursiveRef", "unevaluatedProperties", "unevaluatedItems")
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
"""Keywords that change nothing beside a ``$ref``."""


def resolved(node: Any, root: Any) -> Any:
    """Follows references to places in the same document, as long as nothing stands beside them."""
    seen = 0
    while isinstance(node, dict) and _is_plain_reference(node) and seen < 100:
        target = root
        for part in [part for part in node["$ref"][1:].split("/") if part]:
            key = part.replace("~1", "/").replace("~0", "~")
            target = target.get(key) if isinstance(target, dict) else None
        if not isinstance(target, dict | bool):
            return node
        node, seen = target, seen + 1
    return node


def _is_plain_reference(node: dict[str, Any]) -> bool:
    beside = {keyword for keyword in node if not keyword.startswith("x-")} - _BESIDE
    return beside == {"$ref"} and (node["$ref"] == "#" or node["$ref"].startswith("#/"))


def conjuncts(a: dict[str, Any], root: Any) -> list[dict[str, Any]]:
    """Returns parts that every value of the schema satisfies, each with the types that the whole allows."""
    parts = [a]
    for member in a.get("allOf", []):
        member = resolved(member, root)
        if isinstance(member, dict) and "$ref" not in member:
            parts += conjuncts(member, root)
    types = sorted(set.intersection(*(types_of(part) for part in parts)))
    return (
        [part if "type" in part and len(parts) == 1 else {**part, "type": types} for part in parts]
        if types
        else [a]
    )


def types_of(schema: dict[str, Any]) -> set[str]:
    """Returns the types that a subschema allows; ``number`` includes ``integer``."""
    stated = schema.get("type")
    types = {stated} if isinstance(stated, str) else set(TYPES if stated is None else stated)
    return types | {"integer"} if "number" in types else types


def allows(types: set[str], name: str) -> bool:
    """Whether values of a type are all among these types."""
    return name in types or (name == "integer" and "number" in types)


def speaks(types: set[str], kind: str) -> bool:
    """Whether a keyword about values of this kind matters where these types are allowed."""
    return kind in types or (kind == "number" and "integer" in types)


def same(one: Any, other: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, but never true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def alike(a: dict[str, Any], b: dict[str, Any], words: tuple[str, ...]) -> bool:
    """Whether two schemas have these keywords in common, with a meaning that lies in them alone."""
    mine, theirs = ({word: node[word] for word in words if word in node} for node in (a, b))
    return same(mine, theirs) and is_self_contained(mine)


def has_bases(document: Any) -> bool:
    """Whether a ``$ref`` and an ``$id`` below the top both occur, so that ``#/…`` need not mean the top."""
    found: set[str] = set()

    def walk(node: Any, words: tuple[str, ...]) -> None:
        if isinstance(node, dict):
            found.update(word for word in words if isinstance(node.get(word), str))
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        for child in children:
            walk(child, ("$ref", "$id", "id"))

    walk(document, ("$ref",))
    return "$ref" in found and len(found) > 1


def is_self_contained(node: Any) -> bool:
    """Whether the meaning of a subschema lies in itself: no references, nothing that depends on its surroundings."""
    if isinstance(node, dict):
        return not any(word in node for word in _UNSAFE_EQUAL) and all(map(is_self_contained, node.values()))
    return not isinstance(node, list) or all(map(is_self_contained, node))
