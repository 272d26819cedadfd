"""RowValidator against jsonschema, with the draft's own format checker, as the judge."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.schemas.errors import ConfigError
from headrace.schemas.reasons import from_reference
from headrace.schemas.registry import Registry
from headrace.schemas.validator import RowValidator

DRAFTS = {
    "http://json-schema.org/draft-04/schema#": jsonschema.Draft4Validator,
    "http://json-schema.org/draft-06/schema#": jsonschema.Draft6Validator,
    "http://json-schema.org/draft-07/schema#": jsonschema.Draft7Validator,
    "https://json-schema.org/draft/2019-09/schema": jsonschema.Draft201909Validator,
    "https://json-schema.org/draft/2020-12/schema": jsonschema.Draft202012Validator,
}
LATEST = "https://json-schema.org/draft/2020-12/schema"
FAMILIES = [Registry.default().get(name) for name in Registry.default().names()]
UUID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
QUICK = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)

NUMBERS = [0, 1, -1, 1.0, 1.5, 0.1, 0.3, 2**53, 2**53 + 1, 2**64, 2**70, -(2**70), 1e300, 5e-324, -0.0]
TEXTS = [
    "", "a", "ab", "USD", "USD\n", "\n", "usd", "٣", "é", "\U0001f600", "\ud800", "null", "a\u2028b", "12.50", "12.50\n",
    UUID, UUID.upper(), UUID + "\n", "{" + UUID + "}", "urn:uuid:" + UUID, UUID.replace("-", ""),
    "2024-02-29T00:00:00Z", "2023-02-29T00:00:00Z", "2024-01-02t03:04:05z", "2016-12-31T23:59:60Z",
    "2024-01-02T03:04:05.123456789+05:30", "2024-01-02T24:00:00Z", "2024-01-02 03:04:05Z", "2024-01-02T03:04:05",
    "0000-01-01T00:00:00Z", "2024-01-02T03:04:05Z\n", "2024-01-31", "2024-13-01", "03:04:05Z", "a@b", "@",
    "1.2.3.4", "01.2.3.4", "::1", "fe80::1%eth0", "http://x/y", "not a uri", "example.com", "(", "P1D", "/a~2",
]  # fmt: skip
NAMES = ["a", "b", "a/b~", "", "007"]
LEAVES = st.sampled_from([None, True, False, *NUMBERS, *TEXTS])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
    ),
    max_leaves=6,
)
TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"]
FORMATS = [
    "uuid", "date-time", "date", "time", "email", "idn-email", "ipv4", "ipv6", "uri", "uri-reference", "hostname", "regex",
    "json-pointer", "duration", "iri", "no-such-format",
]  # fmt: skip
PATTERNS = [
    "^[A-Z]{3}$",
    r"^\d+$",
    r"\w",
    "^.$",
    "a|b",
    r"^(0|[1-9][0-9]{0,27})(\.[0-9]{1,9})?$",
    "(?i)usd",
    r"\bab\b",
]


def keywords(schemas: st.SearchStrategy[Any], draft: int) -> st.SearchStrategy[dict[str, Any]]:
    """Returns a strategy of schemas made of the draft's keywords; subschemas come from ``schemas``."""
    named = st.dictionaries(st.sampled_from(NAMES), schemas, max_size=2)
    several = st.lists(schemas, min_size=1, max_size=2)
    counts = st.integers(0, 3)
    bounds = st.sampled_from([0, 1, -1, 1.5, 0.1, 2**53, 2**64, 1e300])
    known: dict[str, st.SearchStrategy[Any]] = {
        "type": st.sampled_from(TYPES)
        | st.lists(st.sampled_from(TYPES), min_size=1, max_size=3, unique=True),
        "enum": st.lists(VALUES, min_size=1, max_size=3),
        "properties": named,
        "required": st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True),
        "additionalProperties": st.booleans() | schemas,
        "patternProperties": st.dictionaries(st.sampled_from(["^a$", "[bc]"]), schemas, max_size=2),
        "pattern": st.sampled_from(PATTERNS),
        "format": st.sampled_from(FORMATS),
        "items": schemas,
        "uniqueItems": st.booleans(),
        "multipleOf": st.sampled_from([1, 2, 0.1, 0.01, 1.5]),
        "allOf": several,
        "anyOf": several,
        "oneOf": several,
        "not": schemas,
        "minimum": bounds,
        "maximum": bounds,
    }
    known |= {f"{end}{what}": counts for end in ("min", "max") for what in ("Length", "Items", "Properties")}
    if draft == 4:
        known["items"] = schemas | several
        known["additionalItems"] = st.booleans() | schemas
    else:
        known |= {"const": VALUES, "contains": schemas, "propertyNames": schemas, "exclusiveMinimum": bounds}
        known["items"] = schemas | st.booleans() | (several if draft < 2020 else st.nothing())
    if draft >= 7:
        known |= {"if": schemas, "then": schemas, "else": schemas}
    if draft >= 2019:
        known |= {
            "dependentRequired": st.just({"a": ["b"]}),
            "dependentSchemas": named,
            "unevaluatedProperties": st.booleans(),
            "minContains": counts,
            "maxContains": counts,
        }
    if draft == 2020:
        known["prefixItems"] = several
    return st.lists(st.sampled_from(sorted(known)), max_size=4, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: known[name] for name in names})
    )


def schemas_of(draft: int) -> st.SearchStrategy[dict[str, Any]]:
    leaf = keywords(st.just({}) if draft == 4 else st.sampled_from([{}, True, False]), draft)
    return keywords(leaf, draft)


def judge(uri: str, schema: Any) -> Any:
    return DRAFTS[uri](schema, format_checker=DRAFTS[uri].FORMAT_CHECKER)


def assert_same(validator: RowValidator, reference: Any, document: Any) -> None:
    """Asserts verdict and failures; where the reference crashes the document must be invalid."""
    try:
        expected = from_reference(reference.iter_errors(document))
    except (ArithmeticError, ValueError, TypeError, RecursionError):
        assert validator.is_valid(document) is False
        assert validator.failures(document)[0]["code"] in ("uncheckable", "nesting")
        return
    assert validator.is_valid(document) is (not expected)
    assert validator.failures(document) == expected


@pytest.mark.parametrize("uri", DRAFTS)
def test_verdicts_and_failures_equal_jsonschema(uri: str) -> None:
    draft = dict(zip(DRAFTS, (4, 6, 7, 2019, 2020), strict=True))[uri]
    fast = 0

    @QUICK
    @given(schemas_of(draft), st.lists(VALUES, min_size=1, max_size=6))
    def check(schema: dict[str, Any], documents: list[Any]) -> None:
        nonlocal fast
        schema = {"$schema": uri, **schema}
        try:
            validator = RowValidator(schema)
        except ConfigError:
            with pytest.raises(jsonschema.SchemaError):
                DRAFTS[uri].check_schema(schema)
            return
        fast += validator.is_fast
        for document in documents:
            assert_same(validator, judge(uri, schema), document)

    check()
    assert fast > 5


FAST_LEAVES = [
    {"type": "integer"}, {"type": "number"}, {"type": ["string", "null"]}, {"minimum": 0}, {"maximum": 1.5},
    {"minimum": 2**53}, {"minLength": 1}, {"maxLength": 2}, {"enum": ["a", None, True]}, {"items": {"type": "string"}},
    {"minItems": 1}, {"maxProperties": 1}, {"required": ["a"]}, {"properties": {"a": {}}, "additionalProperties": False},
    {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
    {"not": {"format": "uuid"}}, {"anyOf": [{"type": "string"}, {"minimum": 5}]}, {"oneOf": [{"minimum": 0}, {"maximum": 0}]},
    *({"pattern": pattern} for pattern in PATTERNS), *({"format": name} for name in FORMATS),
]  # fmt: skip


@pytest.mark.parametrize("uri", DRAFTS)
def test_every_translatable_keyword_agrees_on_every_hard_value(uri: str) -> None:
    leaves = [None, True, False, *NUMBERS, float("inf"), float("-inf"), float("nan"), *TEXTS]
    documents = (
        leaves + [[leaf] for leaf in leaves] + [{"a": leaf} for leaf in leaves] + [{"\ud800": 1}, [], {}]
    )
    for leaf in FAST_LEAVES:
        schema = {"$schema": uri, **leaf}
        validator, reference = RowValidator(schema), judge(uri, schema)
        assert validator.is_fast, leaf
        for document in documents:
            assert_same(validator, reference, document)


def sample(schema: Any) -> Any:
    """Returns a valid value with every named property present."""
    if "properties" in schema:
        return {name: sample(child) for name, child in schema["properties"].items()}
    if "enum" in schema:
        return schema["enum"][0]
    known = {"date-time": "2024-01-31T10:00:00.5Z", "uuid": UUID}
    if schema.get("format") in known:
        return known[schema["format"]]
    if schema.get("x-decimal"):
        return "12.50"
    by_column = {"country": "DE", "currency": "EUR", "schema_version": "1.0.0", "http_status": 200}
    if schema.get("x-column") in by_column:
        return by_column[schema["x-column"]]
    types = schema.get("type", "object")
    first = types if isinstance(types, str) else types[0]
    return {"string": "text", "integer": 3, "object": {"any": [1, {"deep": None}]}}[first]


def places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    if isinstance(value, dict):
        for name, child in value.items():
            found += places(child, (*path, name))
    return found


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.key)
def test_mutated_family_documents_are_judged_as_by_jsonschema(family: Any) -> None:
    valid = sample(family.document)
    validator, reference = RowValidator(family.document), judge(LATEST, family.document)
    assert validator.is_fast
    assert validator.failures(valid) == []
    spots = [path for path in places(valid) if path]

    @QUICK
    @given(st.lists(st.tuples(st.sampled_from(spots), st.none() | VALUES), min_size=1, max_size=3))
    def check(changes: list[tuple[tuple[str, ...], Any]]) -> None:
        document = copy.deepcopy(valid)
        for path, value in changes:
            parent: Any = document
            for part in path[:-1]:
                parent = parent.get(part) if isinstance(parent, dict) else None
            if isinstance(parent, dict):
                if value is None:
                    parent.pop(path[-1], None)
                else:
                    parent[path[-1]] = value
        assert_same(validator, reference, document)

    check()


@pytest.mark.parametrize(
    ("schema", "document", "expected"),
    [
        ({"type": "string"}, 5, ("type", "", "expected string, found number")),
        ({"properties": {"a/b~": {"type": ["null", "integer"]}}}, {"a/b~": "x"},
         ("type", "/a~1b~0", "expected integer or null, found string")),
        ({"required": ["id"]}, {}, ("required", "", 'property "id" is missing')),
        ({"additionalProperties": False}, {"b": 1, "a": 2},
         ("additional_properties", "", 'unexpected properties: "a", "b"')),
        ({"enum": ["x", None]}, "secret", ("enum", "", 'expected one of "x", null')),
        ({"const": "x"}, "secret", ("const", "", 'expected "x"')),
        ({"minimum": 3}, 2, ("minimum", "", "expected a number of at least 3")),
        ({"items": {"maxLength": 1}}, ["a", "secret"], ("max_length", "/1", "expected at most 1 characters")),
        ({"format": "uuid"}, "secret", ("format", "", "is not a valid uuid")),
        ({"pattern": "^a$"}, "secret", ("pattern", "", "does not match the pattern ^a$")),
        ({"anyOf": [{"type": "null"}]}, "secret",
         ("any_of", "", "matches none of the alternatives (anyOf)")),
        ({"not": {}}, "secret", ("not", "", "matches what the schema forbids (not)")),
        ({"uniqueItems": True}, ["secret", "secret"],
         ("unique_items", "", "expected items that differ from each other")),
        ({"properties": {"a": False}}, {"a": "secret"}, ("false_schema", "", "holds a value where the schema allows none")),
        ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, ("dependent_required", "", 'property "b" is missing')),
        ({"propertyNames": {"maxLength": 1}}, {"ab": 1},
         ("max_length", "", "a property's name: expected at most 1 characters")),
        ({"contains": {"type": "null"}}, ["secret"],
         ("contains", "", "no item is as the schema's 'contains' describes")),
        ({"unevaluatedProperties": False}, {"a": 1},
         ("unevaluated_properties", "", "has properties that no part of the schema allows")),
    ],
)  # fmt: skip
def test_failure_says_code_pointer_and_message(
    schema: Any, document: Any, expected: tuple[str, str, str]
) -> None:
    code, pointer, message = expected
    assert RowValidator(schema).failures(document) == [{"code": code, "pointer": pointer, "message": message}]


def test_all_failures_at_once_ordered_by_pointer() -> None:
    schema = Registry.default().get("commerce").document
    document = {"event_id": "x", "event_type": "purchase", "timestamp": 5, "properties": {"price": -1}}
    found = [(item["pointer"], item["code"]) for item in RowValidator(schema).failures(document)]
    assert found == [
        ("", "required"),
        ("", "required"),
        ("/event_id", "format"),
        ("/properties", "required"),
        ("/properties/price", "minimum"),
        ("/timestamp", "type"),
    ]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.key)
def test_messages_hold_no_value_of_the_document(family: Any) -> None:
    secret, document, validator = "f7c3e9a1b2d4", sample(family.document), RowValidator(family.document)
    spots = [path for path in places(document) if path]
    for path in spots:
        changed = copy.deepcopy(document)
        parent = changed
        for part in path[:-1]:
            parent = parent[part]
        parent[path[-1]] = [secret]
        failures = validator.failures(changed)
        assert failures or path[-1] in ("custom_data", "any", "deep")
        assert secret not in json.dumps(failures)


def test_many_names_are_cut() -> None:
    failures = RowValidator({"additionalProperties": False}).failures({f"n{i:02}": i for i in range(30)})
    assert failures[0]["message"].endswith('"n09" and 20 more')
    long = RowValidator({"additionalProperties": False}).failures({"n" * 500: 1})
    assert len(long[0]["message"]) < 150


def test_lone_surrogates_never_reach_a_message() -> None:
    validator = RowValidator({"additionalProperties": False, "properties": {"a": {"type": "integer"}}})
    failures = validator.failures({"a": "\ud800", "\udfff": 1})
    json.dumps(failures, ensure_ascii=False).encode()
    assert [item["code"] for item in failures] == ["additional_properties", "type"]
    inner = RowValidator({"additionalProperties": {"type": "null"}}).failures({"\udfff": 1})
    assert inner[0]["pointer"] == "/\\udfff"


@pytest.mark.parametrize("depth", [60, 70, 400, 5000, 100_000])
def test_deep_nesting_gives_a_verdict(depth: int) -> None:
    document: Any = 1
    for _ in range(depth):
        document = [document]
    recursive = RowValidator({"type": ["array", "integer"], "items": {"$ref": "#"}})
    assert recursive.is_fast
    if depth < 100:
        assert recursive.failures(document) == []
    elif depth >= 5000:
        assert recursive.failures(document) == [
            {"code": "nesting", "pointer": "", "message": "nested too deeply to be checked"}
        ]
    assert RowValidator({"type": "array"}).failures(document) == []
    while isinstance(document, list):  # taken apart step by step: freeing it at once would recurse
        document = document.pop()


def test_number_beyond_floats_is_uncheckable_by_multiple_of() -> None:
    validator = RowValidator({"multipleOf": 0.5})
    assert validator.failures(10**400)[0]["code"] == "uncheckable"
    assert validator.is_valid(10**400) is False


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, "unusable schema at /type"),
        ({"properties": {"a": {"minimum": "x"}}}, "unusable schema at /properties/a/minimum"),
        ({"pattern": "["}, "unusable schema at /pattern"),
        ({"patternProperties": {"(": {}}}, "unusable schema at /patternProperties"),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "patternProperties": {"(": {}}}, "at /patternProperties"),
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, r"at /\$schema: .*draft-03.* is not supported; use one of"),
        ({"$ref": "#"}, "loop"),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"not": {"$ref": "#/$defs/a"}}}}, "loop"),
        ({"$ref": "#/$defs/none"}, "at /\\$ref: #/\\$defs/none can't be resolved"),
        ({"$ref": "https://example.com/a.json"}, "never to the network"),
        ({"$ref": "other.json"}, "can't be resolved"),
        ({"$ref": "#/x", "x": [1]}, "is not a schema"),
        ({"$ref": "#/x", "x": {"type": 5}}, "/\\$ref -> #/x/type"),
        ({"minimum": float("nan")}, "unusable schema"),
    ],
)  # fmt: skip
def test_unusable_schema_is_refused_with_its_place(schema: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RowValidator(schema)


@pytest.mark.parametrize("depth", [300, 100_000])
def test_schema_nested_too_deeply_is_refused(depth: int) -> None:
    schema: Any = {}
    for _ in range(depth):
        schema = {"items": schema}
    with pytest.raises(ConfigError, match="nested too deeply"):
        RowValidator(schema)
    while "items" in schema:
        schema = schema.pop("items")


def test_refs_into_the_folder_and_pickling_without_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "item.json").write_text('{"properties": {"n": {"$ref": "sub/count.json#/$defs/count"}}}')
    (tmp_path / "sub" / "count.json").write_text('{"$defs": {"count": {"type": "integer", "minimum": 1}}}')
    (tmp_path / "named.json").write_text('{"$id": "https://example.com/names/name", "type": "string"}')
    (tmp_path / "broken.json").write_text("{")
    schema = {
        "$id": "https://example.com/schemas/order.json",
        "properties": {"item": {"$ref": "item.json"}, "name": {"$ref": "https://example.com/names/name"}},
    }
    validator = RowValidator(schema, folder=tmp_path)
    document = {"item": {"n": 0}, "name": 5}
    expected = [("/item/n", "minimum"), ("/name", "type")]
    assert [(item["pointer"], item["code"]) for item in validator.failures(document)] == expected
    packed = pickle.dumps(validator)
    for path in sorted(tmp_path.rglob("*.json")):
        path.unlink()
    assert pickle.loads(packed).failures(document) == validator.failures(document)
    assert pickle.loads(pickle.dumps(RowValidator(True))).is_valid({}) is True


def test_refs_out_of_the_folder_or_to_a_bad_file_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "schemas"
    folder.mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (folder / "bad.json").write_text('{"type": "strin"}')
    (folder / "text.json").write_text("nope")
    for reference in (
        "../secret.json",
        (tmp_path / "secret.json").as_uri(),
        "%2e%2e/secret.json",
        "//host/a.json",
    ):
        with pytest.raises(ConfigError, match="can't be resolved"):
            RowValidator({"$ref": reference}, folder=folder)
    with pytest.raises(ConfigError, match=r"bad\.json/type"):
        RowValidator({"$ref": "bad.json"}, folder=folder)
    with pytest.raises(ConfigError, match="is not JSON: line 1, column 1"):
        RowValidator({"$ref": "text.json"}, folder=folder)
    RowValidator({"$ref": (folder / "ok.json").as_uri()}, folder=_with(folder, "ok.json", "{}"))


def _with(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder


def test_meta_schemas_are_known_without_the_network() -> None:
    for uri in DRAFTS:
        assert RowValidator({"$schema": uri, "$ref": uri}).is_valid({"type": "string"})
        assert not RowValidator({"$schema": uri, "$ref": uri}).is_valid({"type": 5})
