"""A schema with anything that can't be proven in columns compiles to nothing, and all of its documents go to the row validator."""

import copy

import orjson
import pytest

from headrace.schemas.compile_decoder import compile_decoder
from headrace.schemas.registry import Registry, Schema

PLAIN = Registry.default().get("commerce").document


def schema(**changes):
    document = copy.deepcopy(PLAIN)
    for path, value in changes.items():
        place = document
        *parents, last = path.split("__")
        for name in parents:
            place = place[name]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return Schema("commerce", "1.0.0", document)


def test_the_plain_schema_compiles():
    assert compile_decoder(schema()) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"oneOf": [{}]},
        {"minProperties": 1},
        {"additionalProperties": {"type": "string"}},
        {"required": ["event_id", "elsewhere"]},
        {"type": ["object", "null"]},
        {"properties__event_id__format": "email"},
        {"properties__event_id__pattern": "^a$"},
        {"properties__event_type__pattern": r"^\d+$"},
        {"properties__event_type__const": 1},
        {"properties__event_type__not": {}},
        {"properties__user_id__x-column": None},
        {"properties__user_id__type": ["string", "number"]},
        {"properties__user_id__type": ["string", "null"], "properties__user_id__enum": ["a"]},
        {"properties__properties__properties__price__enum": [1]},
        {"properties__properties__properties__price__type": "string"},
        {"properties__properties__properties__quantity__const": 1},
        {"properties__properties__allOf": []},
        {
            "allOf": [
                {"if": {"properties": {"event_type": {"enum": ["a"]}}}, "then": {"required": ["transaction"]}}
            ]
        },
        {
            "allOf": [
                {
                    "if": {"properties": {"event_type": {"const": "a"}}, "required": ["event_type"]},
                    "then": {},
                    "else": {},
                }
            ]
        },
        {
            "allOf": [
                {
                    "if": {"properties": {"event_type": {"const": "a"}}, "required": ["event_type"]},
                    "then": {"required": ["nowhere"]},
                }
            ]
        },
    ],
)
def test_what_cannot_be_proven_is_not_compiled(changes):
    assert compile_decoder(schema(**changes)) is None


def test_maximum_and_lengths_are_proven():
    found = compile_decoder(
        schema(properties__user_id__maxLength=3, properties__properties__properties__quantity__maximum=5)
    )
    event = {
        "event_id": "3f2b8c1e-9d4a-4e6b-8a7c-000000000001",
        "event_type": "product_view",
        "timestamp": "2026-01-05T10:00:00Z",
    }
    documents = [
        orjson.dumps(event | {"user_id": user, "properties": {"product_id": "p", "quantity": quantity}})
        for user, quantity in (("abc", 5), ("abcd", 5), ("abc", 6), ("äöü", None))
    ]
    assert found(documents).proven.tolist() == [True, False, False, True]
    assert found([]).rows.tolist() == []
