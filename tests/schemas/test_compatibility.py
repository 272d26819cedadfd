"""Compatibility: known breaks, proofs, and soundness against jsonschema."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from headrace.schemas.compatibility import Break, check
from headrace.schemas.errors import ConfigError
from headrace.schemas.references import CheckedSchema
from headrace.schemas.registry import Registry
from headrace.schemas.validator import RowValidator

FAMILIES = Registry.default().names()
DRAFT4 = "http://json-schema.org/draft-04/schema#"
SHUT: dict[str, Any] = {"additionalProperties": False}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_compatible_with_itself(name: str) -> None:
    document = Registry.default().get(name).document
    assert check(document, document, "full") == []
    changed = {**document, "description": "other words"}
    assert check(document, changed, "full") == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"type": "integer"}, {"type": "number"}),
        ({"type": "integer"}, {}),
        ({"type": "string"}, {"type": ["string", "null"]}),
        ({"required": ["a", "b"]}, {"required": ["a"]}),
        ({"type": "string"}, {"required": ["a"]}),
        ({"enum": ["a"]}, {"enum": ["a", "b"]}),
        ({"const": "a"}, {"enum": ["a", "b"]}),
        ({"enum": ["ab", 5]}, {"minLength": 2, "pattern": "^a"}),
        ({"minimum": 5}, {"minimum": 3}),
        ({"exclusiveMinimum": 3}, {"minimum": 3}),
        ({"minimum": 4}, {"exclusiveMinimum": 3}),
        ({"maxLength": 3}, {"maxLength": 4}),
        ({}, {"minLength": 0, "uniqueItems": False}),
        ({"multipleOf": 10}, {"multipleOf": 5}),
        ({"type": "integer"}, {"multipleOf": 1}),
        ({"properties": {"a": {"type": "string"}}, **SHUT}, {"properties": {"a": {}, "b": {"type": "null"}}, **SHUT}),
        ({"properties": {"a": {}}}, {}),
        ({"additionalProperties": {"type": "null"}}, {"properties": {"a": {"type": ["null", "string"]}}}),
        ({"items": {"type": "integer"}}, {"items": {"type": "number"}}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}}, {"type": "number"}),
        ({"properties": {"n": {"$ref": "#"}}, **SHUT}, {"properties": {"n": {"$ref": "#"}, "m": {}}, **SHUT}),
        ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, {"type": "number", "minimum": 2}),
        ({"type": "integer", "minimum": 3}, {"allOf": [{"type": "number"}, {"minimum": 2}]}),
        ({"type": "integer"}, {"anyOf": [{"type": "string"}, {"type": "number"}]}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"anyOf": [{"type": "number"}, {"type": "null"}]}),
        ({"if": {"const": 1}, "then": {"type": "null"}, "minimum": 2}, {"if": {"const": 1}, "then": {"type": "null"}}),
        ({"not": {"type": "null"}, "minimum": 1}, {"not": {"type": "null"}}),
        (False, {"type": "null"}),
        ({"type": "null"}, True),
        ({"contains": {"type": "null"}, "minContains": 2, "maxItems": 3}, {"contains": {"type": "null"}, "minContains": 2}),
        ({"unevaluatedProperties": False}, {"unevaluatedProperties": False}),
    ],
)  # fmt: skip
def test_proven_compatible(old: Any, new: Any) -> None:
    assert check(old, new) == []


@pytest.mark.parametrize(
    ("old", "new", "pointer", "message"),
    [
        ({"type": ["string", "null"]}, {"type": "string"}, "/type", "OLD allows null, NEW does not"),
        ({"type": "number"}, {"type": "integer"}, "/type", "OLD allows number, NEW does not"),
        ({}, {"required": ["a"]}, "/required", "NEW requires property 'a', OLD does not"),
        ({"enum": ["a", "b"]}, {"enum": ["a"]}, "", 'OLD allows "b", NEW does not'),
        ({}, {"enum": ["a"]}, "/enum", "NEW allows only listed values, OLD others too"),
        ({"minimum": 3}, {"minimum": 5}, "/minimum", "NEW has minimum 5, OLD allows more"),
        ({"minimum": 3}, {"exclusiveMinimum": 3}, "/exclusiveMinimum", "NEW has exclusiveMinimum 3, OLD allows more"),
        ({}, {"maxItems": 5}, "/maxItems", "NEW has maxItems 5, OLD allows more"),
        ({}, {"pattern": "^a"}, "/pattern", "NEW demands pattern, OLD does not"),
        ({}, {"format": "uuid"}, "/format", "NEW demands format, OLD does not"),
        ({}, {"uniqueItems": True}, "/uniqueItems", "NEW demands uniqueItems, OLD does not"),
        ({"multipleOf": 5}, {"multipleOf": 10}, "/multipleOf", "NEW demands a multiple of 10, OLD does not"),
        ({"properties": {"a": {}}}, {"properties": {"a": {}}, **SHUT}, "/additionalProperties",
         "OLD allows any value under names that it does not list, NEW does not allow all of them here"),
        ({"properties": {"a": {}}, **SHUT}, {**SHUT, "properties": {}}, "/additionalProperties",
         "OLD has property 'a', NEW forbids it"),
        ({"properties": {"a": {"items": {"type": "number"}}}}, {"properties": {"a": {"items": {"type": "string"}}}},
         "/properties/a/items/type", "OLD allows integer or number, NEW does not"),
        ({"properties": {"a/b": {"type": "null"}}}, {"properties": {"a/b": False}}, "/properties/a~1b",
         "NEW allows no value here"),
    ],
)  # fmt: skip
def test_breaks_say_where_and_why(old: Any, new: Any, pointer: str, message: str) -> None:
    assert check(old, new) == [Break(pointer, "backward", message)]
    (forward,) = check(new, old, "forward")
    swapped = message.replace("OLD", "\0").replace("NEW", "OLD").replace("\0", "NEW")
    assert forward == Break(pointer, "forward", swapped)
    assert {item.direction for item in check(old, new, "full")} <= {"backward", "forward"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"pattern": "^aa"}, {"pattern": "^a"}),
        ({"not": {"type": "null"}}, {"not": {"const": None}}),
        ({"oneOf": [{"type": "null"}]}, {"oneOf": [{"type": "null"}, {"type": "string"}]}),
        ({"patternProperties": {"^a": {}}}, {"patternProperties": {"^b": {}}}),
        ({**SHUT, "patternProperties": {"^a": {}}}, SHUT),
        ({"prefixItems": [{}]}, {"prefixItems": [{}, {"type": "null"}]}),
        ({"contains": {}, "minContains": 0}, {"contains": {}}),
        ({"contains": {}, "minContains": 1}, {"contains": {}, "minContains": 2}),
        ({"if": {"const": 1}, "then": {"type": "null"}}, {"if": {"const": 1}, "then": {"type": "string"}}),
        ({"$schema": DRAFT4, "type": "integer"}, {"type": "integer"}),
        ({"$schema": DRAFT4, "minimum": 1}, {"$schema": DRAFT4, "minimum": 1, "exclusiveMinimum": True}),
        ({"anyOf": [{"type": "string"}]}, {"type": "string"}),
        ({"type": "string"}, {"anyOf": [{"minLength": 1}, {"maxLength": 0}]}),
        ({"$ref": "#/$defs/a", "minimum": 1, "$defs": {"a": {}}}, {"$ref": "#/$defs/a", "$defs": {"a": {"minimum": 1}}}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$id": "x"}}}, {"minimum": 1}),
    ],
)  # fmt: skip
def test_what_can_not_be_compared_is_reported(old: Any, new: Any) -> None:
    found = check(old, new)
    assert any(not item.proven and item.message.startswith("can't prove") for item in found)


def test_closed_lets_a_property_be_added() -> None:
    old, new = {"properties": {"a": {}}}, {"properties": {"a": {}, "b": {"type": "string"}}}
    assert [item.pointer for item in check(old, new)] == ["/properties/b"]
    assert check(old, new, "full", closed=True) == []


def test_files_are_not_followed_unless_identical(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    document = {"properties": {"a": {"$ref": "other.json"}}}
    old, new = (CheckedSchema(item, folder=tmp_path) for item in (document, {**document, "minimum": 1}))
    assert check(old, old) == []
    assert any("into another file" in item.message for item in check(old, new))


def test_wrong_use() -> None:
    with pytest.raises(ConfigError, match="mode 'sideways' is unknown"):
        check({}, {}, "sideways")
    with pytest.raises(ConfigError, match="unusable schema at /type"):
        check({}, {"type": "no"})


TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"]
LEAF = st.one_of(
    st.sampled_from(
        [
            True, {}, {"enum": ["a", 1, None]}, {"const": "a"}, {"const": True}, {"const": 1}, {"minimum": 0}, {"minimum": 1},
            {"exclusiveMinimum": 0}, {"exclusiveMaximum": 2}, {"maximum": 2.5}, {"minLength": 1}, {"maxLength": 1},
            {"pattern": "^a"}, {"pattern": "a"}, {"uniqueItems": True}, {"multipleOf": 2}, {"multipleOf": 4},
            {"minItems": 1}, {"maxItems": 1}, {"required": ["a"]}, {"required": ["a", "b"]}, {"minProperties": 1},
            {"patternProperties": {"^a": {"type": "string"}}}, {"$ref": "#"}, {"$ref": "#/$defs/d"},
        ]
    ),
    st.builds(lambda types: {"type": types}, st.lists(st.sampled_from(TYPES), min_size=1, max_size=3, unique=True)),
)  # fmt: skip


def _merged(parts: list[Any]) -> Any:
    return {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}


def _grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    several = st.lists(inner, min_size=1, max_size=2)
    return st.one_of(
        inner,
        st.builds(lambda value: {"properties": value}, names),
        st.builds(
            lambda value, rest: {"properties": value, "additionalProperties": rest},
            names,
            st.booleans() | inner,
        ),
        st.builds(lambda value: {"items": value}, inner),
        st.builds(lambda word, value: {word: value}, st.sampled_from(["allOf", "anyOf", "oneOf"]), several),
        st.builds(lambda one, two: {"if": one, "then": two}, inner, inner),
        st.builds(lambda value: {"not": value}, inner),
        st.builds(lambda value: {"contains": value}, inner),
        st.builds(_merged, st.lists(inner, min_size=2, max_size=3)),
    )


SCHEMAS = st.builds(
    lambda part, shared: {**part, "$defs": {"d": shared}},
    _grown(_grown(LEAF)).map(lambda s: _merged([s])),
    LEAF,
)
LEAVES = [None, True, False, 0, 1, 1.0, 1.5, 2, 3, 4, -1, 10, "", "a", "b", "ab", "ba"]
FLAT = [*LEAVES, *([leaf] for leaf in LEAVES), *([1, leaf] for leaf in LEAVES), [], {}, ["a", "a", 4]]
VALUES = [
    *FLAT,
    *({name: value} for name in "abc" for value in FLAT),
    *({"a": one, "b": two} for one in LEAVES for two in LEAVES[::3]),
    *([{"a": leaf}] for leaf in LEAVES),
    *({"a": {"a": leaf, "b": {}}} for leaf in LEAVES),
]


@settings(
    max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(SCHEMAS, SCHEMAS, st.booleans())
def test_no_break_means_that_no_document_breaks(old: Any, other: Any, merge: bool) -> None:
    new = {**old, **other} if merge else other
    try:
        breaks = check(old, new)
    except ConfigError:  # its references form a loop
        assume(False)
    if breaks:
        return
    before, after = RowValidator(old), RowValidator(new)
    for value in VALUES:
        assert not before.is_valid(value) or after.is_valid(value), json.dumps([old, new, value])
