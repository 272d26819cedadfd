import pickle
from typing import Any
from uuid import UUID

import pytest

from headrace.connectors.map_fields import FieldMapping, compile_mapping
from headrace.schemas.errors import ConfigError
from headrace.schemas.json_text import parse_exact

BASE: dict[str, Any] = {
    "metadata.event_id": "id",
    "metadata.timestamp": "at",
    "user.id": "who",
    "payload.event_type": {"value": "sale"},
}


def one(rule: Any, value: bytes) -> Any:
    """What the rule makes of the field ``x``."""
    mapping = compile_mapping({**BASE, "payload.properties.y": rule})
    out = mapping(parse_exact(b'{"x":' + value + b"}"))
    return out["payload"].get("properties", {}).get("y")


def test_document_is_mapped_and_nothing_is_dropped() -> None:
    mapping = compile_mapping(
        {
            **BASE,
            "metadata.source": {"value": "till"},
            "context.location.country": {"from": "shop.land", "map": {"Germany": "DE"}},
            "payload.properties.price": {"from": "total", "cast": "decimal"},
            "payload.custom_data.note": "shop.name",
            "user.attributes": "tags",
        }
    )
    document = {
        "id": "e1",
        "at": "2024-01-01T00:00:00Z",
        "who": "u1",
        "total": 12.5,
        "shop": {"land": "Germany", "name": "north", "floor": {"level": 2, "none": None}, "empty": {}},
        "note": "mine",
        "tags": {"a": 1},
        "null": None,
    }
    before = dict(document)
    assert mapping(document) == {
        "metadata": {
            "version": "1.0.0",
            "source": "till",
            "event_id": "e1",
            "timestamp": "2024-01-01T00:00:00Z",
        },
        "user": {"id": "u1", "attributes": {"a": 1}},
        "context": {"location": {"country": "DE"}},
        "payload": {
            "event_type": "sale",
            "properties": {"price": "12.5"},
            "custom_data": {
                "note": "north",
                "shop": {"floor": {"level": 2, "none": None}, "empty": {}},
                "unmapped_note": "mine",
                "null": None,
            },
        },
    }
    assert document == before


def test_absent_sources_leave_their_targets_out() -> None:
    mapping = compile_mapping(
        {**BASE, "metadata.version": "v", "user.session_id": {"from": "s", "default": "none"}}
    )
    assert mapping({"id": None}) == {
        "metadata": {"source": "mapped"},
        "user": {"session_id": "none"},
        "payload": {"event_type": "sale"},
    }


def test_keys_with_dots_are_found_first() -> None:
    mapping = compile_mapping({**BASE, "user.id": "a.b"})
    assert mapping({"a.b": "flat", "a": {"b": "deep"}}) == {
        "metadata": {"version": "1.0.0", "source": "mapped"},
        "user": {"id": "flat"},
        "payload": {"event_type": "sale", "custom_data": {"a": {"b": "deep"}}},
    }
    assert mapping({"a": {"b": "deep"}})["user"] == {"id": "deep"}
    assert "custom_data" not in mapping({"a": {"b": "deep"}})["payload"]
    assert mapping({"a": 5})["payload"]["custom_data"] == {"a": 5}


def test_a_source_and_a_part_of_it() -> None:
    mapping = compile_mapping({**BASE, "user.attributes": "a", "user.session_id": "a.b.c"})
    out = mapping({"a": {"b": {"c": "s"}}})
    assert out["user"] == {"attributes": {"b": {"c": "s"}}, "session_id": "s"}
    assert "custom_data" not in out["payload"]


@pytest.mark.parametrize(
    ("cast", "value", "result"),
    [
        ("string", b"1.50", "1.5"),
        ("string", b"123456789012345678901", "123456789012345678901"),
        ("string", b"true", "true"),
        ("string", b"[1]", [1]),
        ("integer", b'" 42 "', 42),
        ("integer", b"42.0", 42),
        ("integer", b'"4.5"', "4.5"),
        ("integer", b'"1e30"', "1e30"),
        ("integer", b"true", True),
        ("decimal", b"0.1", "0.1"),
        ("decimal", b"1.234567890123456789", "1.234567890123456789"),
        ("decimal", b'"+1e3"', "1000"),
        ("decimal", b'"1,5"', "1,5"),
        ("decimal", b'"NaN"', "NaN"),
        ("decimal", b'"1e999"', "1e999"),
        ("boolean", b'"Yes"', True),
        ("boolean", b"0", False),
        ("boolean", b'"perhaps"', "perhaps"),
        ("lower", b'"ABC"', "abc"),
        ("upper", b'"\xc3\xa4"', "Ä"),
        ("upper", b"{}", {}),
    ],
)
def test_casts(cast: str, value: bytes, result: Any) -> None:
    got = one({"from": "x", "cast": cast}, value)
    assert got == result
    assert type(got) is type(result)


@pytest.mark.parametrize(
    ("rule", "value", "result"),
    [
        ({}, b'"2024-01-01T01:00:00+01:00"', "2024-01-01T00:00:00Z"),
        ({}, b'"2024-01-01 05:00:00.5"', "2024-01-01T05:00:00.500000Z"),
        ({}, b'"soon"', "soon"),
        ({}, b'"0001-01-01T00:00:00+05:00"', "0001-01-01T00:00:00+05:00"),
        ({"timezone": "Europe/Berlin"}, b'"2024-07-01T00:00:00"', "2024-06-30T22:00:00Z"),
        ({"timezone": "Europe/Berlin"}, b'"2024-10-27T02:30:00"', "2024-10-27T00:30:00Z"),
        ({"format": "%d.%m.%Y %H:%M"}, b'"31.12.2023 23:59"', "2023-12-31T23:59:00Z"),
        ({"format": "%d.%m.%Y"}, b'"2023-12-31"', "2023-12-31"),
        ({"format": "unix"}, b"1700000000.25", "2023-11-14T22:13:20.250000Z"),
        ({"format": "unix_ms"}, b'"1700000000123"', "2023-11-14T22:13:20.123000Z"),
        ({"format": "unix"}, b"99999999999999", 99999999999999),
        ({"format": "unix"}, b"-0.5", "1969-12-31T23:59:59.500000Z"),
    ],
)
def test_timestamps(rule: dict[str, str], value: bytes, result: Any) -> None:
    assert one({"from": "x", "cast": "timestamp", **rule}, value) == result


def test_map_replaces_by_text_before_the_cast() -> None:
    rule = {"from": "x", "map": {1: "10", "true": 7, "b": [1]}, "cast": "integer", "default": 3}
    assert [one(rule, v) for v in (b"1", b"true", b'"b"', b'"5"', b"null")] == [10, 7, [1], 5, 3]


def test_generated_ids_are_uuids_of_the_content() -> None:
    mapping = compile_mapping({**BASE, "metadata.event_id": {"generate": "content"}})
    ids = [UUID(mapping({"x": 1}, content)["metadata"]["event_id"]) for content in (b"a", b"b", b"a")]
    assert ids[0] == ids[2] != ids[1]
    assert {(i.version, i.variant) for i in ids} == {(8, "specified in RFC 4122")}
    assert mapping({"x": 1}) == mapping({"x": 1}, b'{"x":1}')


def test_a_mapping_pickles() -> None:
    mapping = compile_mapping({**BASE, "payload.properties.y": {"from": "x", "cast": "integer"}})
    copy = pickle.loads(pickle.dumps(mapping))
    assert isinstance(copy, FieldMapping)
    assert copy({"x": "5", "z": 1}) == mapping({"x": "5", "z": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata.event_idd": "x"}, r"no metadata\.event_idd; did you mean 'metadata\.event_id'\?"),
        ({"usr.session_id": "x"}, r"the envelope has no usr; known: metadata, user, context, payload"),
        ({"context.location.city": "x"}, r"no context\.location\.city; .*context\.location\.country"),
        ({"user.session_id.x": "x"}, r"no user\.session_id\.x; known: nothing below it"),
        (
            {"context.location": "x"},
            r"context\.location is an object; map its fields \(context\.location\.country",
        ),
        ({"payload.custom_data": "x"}, r"takes the unmapped fields; map to payload\.custom_data\.NAME"),
        (
            {"payload.properties": "a", "payload.properties.b": "x"},
            r"payload\.properties holds payload\.properties\.b",
        ),
        ({"user..id": "x"}, "'user..id' has an empty part"),
        ({"user.id": 5}, r"user\.id: expected a source path or a table with from, cast"),
        ({"user.id": {"fron": "x"}}, r"user\.id: unknown setting 'fron'; did you mean 'from'\?"),
        ({"user.id": {"from": "x", "value": 1}}, "exactly one of 'from', 'value' and 'generate'"),
        ({"user.id": {"value": 1, "cast": "string"}}, "need 'from'"),
        ({"user.id": {"from": ""}}, "'from' is ''; expected a path"),
        ({"user.id": {"generate": "content"}}, r"only for metadata\.event_id"),
        ({"user.id": {"from": "x", "cast": "int"}}, r"unknown cast 'int'; did you mean"),
        ({"user.id": {"from": "x", "format": "%Y"}}, "'format' needs 'cast: timestamp'"),
        ({"user.id": {"from": "x", "cast": "timestamp", "format": 5}}, "'format' is 5"),
        (
            {"user.id": {"from": "x", "cast": "timestamp", "timezone": "Mars/Base"}},
            "unknown time zone 'Mars/Base'",
        ),
        ({"user.id": {"from": "x", "map": ["a"]}}, "'map' is .*; expected a table"),
        ({"user.id": {"value": object()}}, "is no JSON value"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compile_mapping({**BASE, **change})


def test_required_targets() -> None:
    without_id = {k: v for k, v in BASE.items() if k != "metadata.event_id"}
    with pytest.raises(
        ConfigError, match=r"metadata\.event_id is missing; map it .* or to \{generate: content\}"
    ):
        compile_mapping(without_id)
    with pytest.raises(ConfigError, match=r"metadata\.timestamp, payload\.event_type missing"):
        compile_mapping({"metadata.event_id": "id", "user.id": "who"})
    with pytest.raises(ConfigError, match="expected a table of target: source"):
        compile_mapping({})
