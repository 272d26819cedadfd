"""Compiling a family's JSON Schema to the parts of a :class:`~headrace.schemas.typed_decoder.TypedDecoder`.

Only keywords that types and columnar checks can prove are compiled. A schema with any other compiles to nothing: all of its
documents go to the row validator.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import pyarrow as pa

from headrace.schemas.columnar_checks import pattern_is_plain
from headrace.schemas.columns import JSON_COLUMNS
from headrace.schemas.registry import Field, Schema
from headrace.schemas.typed_decoder import Condition, Leaf, Place, TypedDecoder, column_type, types_of

_NOTES = {"title", "description", "$schema", "$id", "$comment", "examples", "default"}
_LEAF = {"type", "enum", "const", "pattern", "minLength", "maxLength", "minimum", "maximum", "format"}
_OBJECT = {"type", "properties", "required", "additionalProperties", "allOf"}


def compile_decoder(schema: Schema) -> TypedDecoder | None:
    """Returns the decoder of a schema, or None if it holds a keyword that can't be proven in columns."""
    document = schema.document
    fields = {field.path: field for field in schema.fields}
    leaves: list[Leaf] = []
    try:
        place, _ = _place(document, (), fields, leaves)
        conditions = [
            c for rule in document.get("allOf", ()) for c in _conditions(rule, document, place.struct)
        ]
    except _NotCompilableError:
        return None
    return TypedDecoder(schema, leaves, place, conditions)


class _NotCompilableError(Exception):
    pass


def _place(
    node: Mapping[str, Any],
    path: tuple[str, ...],
    fields: Mapping[tuple[str, ...], Field],
    leaves: list[Leaf],
) -> tuple[Place, Any]:
    """Returns the place of an object schema, and the struct that stands for it where the object is absent."""
    _only(node, _OBJECT if not path else _OBJECT - {"allOf"})
    if node.get("type") != "object" or not isinstance(node.get("additionalProperties", True), bool):
        raise _NotCompilableError
    required = node.get("required", ())
    if set(required) - set(node["properties"]):
        raise _NotCompilableError
    members: list[Any] = []
    absent: dict[str, Any] = {}
    numbers: dict[str, int] = {}
    places: dict[str, Place] = {}
    for name, child in node["properties"].items():
        attribute = _attribute(name)
        if "properties" in child:
            places[attribute], default = _place(child, (*path, name), fields, leaves)
            type_ = places[attribute].struct
        else:
            leaf = _leaf(child, fields.get((*path, name)))
            numbers[attribute] = len(leaves)
            leaves.append(leaf)
            nullable = leaf.kind == "json" or "null" in types_of(child)
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
    order = {attribute: position for position, (attribute, *_) in enumerate(members)}
    place = Place(
        struct,
        {order[attribute]: number for attribute, number in numbers.items()},
        {order[attribute]: inner for attribute, inner in places.items()},
    )
    return place, struct(**absent)


def _leaf(node: Mapping[str, Any], field: Field | None) -> Leaf:
    if field is None:
        raise _NotCompilableError
    _only(node, _LEAF)
    types = types_of(node)
    if field.column in JSON_COLUMNS:
        if types not in ({"object"}, {"object", "null"}, set()) or node.keys() & (_LEAF - {"type"}):
            raise _NotCompilableError
        return Leaf(field, "json")
    if node.get("x-decimal"):
        if not types <= {"number", "string", "null"} or "number" not in types:
            raise _NotCompilableError
        if node.keys() & {"enum", "const", "format", "minLength", "maxLength"}:
            raise _NotCompilableError
        return Leaf(field, "money")
    if types <= {"integer", "null"}:
        if node.keys() & {"enum", "const"}:
            raise _NotCompilableError
        return Leaf(field, "integer")
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
    return Leaf(field, kind)


def _conditions(rule: Mapping[str, Any], document: Mapping[str, Any], struct: Any) -> list[Condition]:
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
    fields = struct.__struct_fields__
    defaults = dict(zip(reversed(fields), reversed(struct.__struct_defaults__), strict=False))
    # Where null is allowed, null and absent may look alike to the decoder: then the row validator decides.
    return [
        Condition(
            column, constant, fields.index(_attribute(member)), defaults.get(_attribute(member), _NEVER)
        )
        for member in members
    ]


def _integer(leaf: Leaf) -> Any:
    """int within what the column holds; larger ones are for the row validator to name."""
    type_ = column_type(leaf.field.column)
    limit = 2 ** ((type_.bit_width if pa.types.is_integer(type_) else 64) - 1)
    return Annotated[int, msgspec.Meta(ge=-limit, le=limit - 1)]


_NEVER = object()


def _only(node: Mapping[str, Any], allowed: set[str]) -> None:
    for keyword in node:
        if keyword not in allowed and keyword not in _NOTES and not keyword.startswith("x-"):
            raise _NotCompilableError


def _attribute(name: str) -> str:
    return "f_" + name.encode().hex() if not name.isidentifier() else "f_" + name
