"""The registry: names, versions, detection, annotations, refusals."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from headrace.schemas.columns import EVENT_SCHEMA, JSON_COLUMNS
from headrace.schemas.errors import ConfigError, InputError
from headrace.schemas.registry import DETECT_ORDER, PII_KINDS, Registry

FAMILIES = ["behaviour", "clickstream", "commerce", "envelope", "financial", "interaction", "weblog"]


def write(folder: Path, name: str, version: str, **document: Any) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / f"{version}.json").write_text(json.dumps(document))


def test_packaged_families() -> None:
    registry = Registry.default()
    assert registry is Registry.default()
    assert registry.names() == FAMILIES
    assert set(DETECT_ORDER) == set(FAMILIES) - {"weblog"}
    for name in FAMILIES:
        schema = registry.get(name)
        assert schema.key == f"{name}:1.0.0"
        assert schema.fields and all(field.pii in (None, *PII_KINDS) for field in schema.fields)
        assert all(
            field.column in EVENT_SCHEMA.names or field.column.split("/")[0] in JSON_COLUMNS
            for field in schema.fields
        )
    identities = {name: registry.get(name).identity for name in FAMILIES}
    assert identities["clickstream"] == identities["weblog"] == "generated"
    assert identities["financial"] == "optional" and identities["commerce"] == "event_id"


def test_fields_know_path_column_pii_and_whether_required() -> None:
    schema = Registry.default().get("envelope:1.0.0")
    user = schema.column("user_id")
    assert user is not None
    assert (user.path, user.pii, user.required) == (("user", "id"), "token", True)
    price = schema.column("price")
    assert price is not None
    assert (price.path, price.required) == (("payload", "properties", "price"), False)
    assert price.schema["x-decimal"] is True
    country = schema.column("country")
    assert country is not None and country.required is False
    assert schema.column("order") is None
    bid = Registry.default().get("financial").column("properties/bid")
    assert bid is not None and bid.path == ("bid",)


@pytest.mark.parametrize(
    ("document", "family"),
    [
        ({"metadata": {}, "payload": {}, "event_id": 1, "event_type": 1}, "envelope"),
        ({"record_type": "tick", "event_id": 1, "event_type": 2}, "financial"),
        ({"event_id": 1, "session_id": 1, "properties": {}, "event_type": 1}, "behaviour"),
        ({"event_id": 1, "context": {}, "transaction": {}}, "behaviour"),
        ({"event_id": 1, "transaction": {}, "event_type": 1}, "commerce"),
        ({"event_id": 1, "event_type": 1, "user_id": 1, "page_url": ""}, "interaction"),
        ({"user_id": 1, "page_url": ""}, "clickstream"),
        ({"remote_host": "", "target": "", "status": 200}, None),
        ({}, None),
    ],
)
def test_detect_takes_the_first_family_that_claims_the_keys(
    document: dict[str, Any], family: str | None
) -> None:
    assert Registry.default().detect(document) == family


def test_versions_are_ordered_and_resolved(tmp_path: Path) -> None:
    for version in ("1.10.0", "1.2.0", "2.0.0", "1.9.9"):
        write(tmp_path, "order", version, **{"x-detect": [["order"]]})
    write(tmp_path, "an-other", "1.0.0", **{"x-detect": [["order"]]})
    (tmp_path / "readme.txt").write_text("not a family")
    registry = Registry.from_folder(tmp_path)
    assert registry.versions("order") == ["1.2.0", "1.9.9", "1.10.0", "2.0.0"]
    assert registry.get("order").version == "2.0.0"
    assert registry.get("order:1.9.9").version == "1.9.9"
    assert registry.detect({"order": 1}) == "an-other"

    def resolved(name: str, version: str | None) -> str | None:
        found = registry.resolve(name, version)
        return found.version if found else None

    assert resolved("order", "1.2.0") == "1.2.0"
    assert resolved("order", "1.99.0") == resolved("order", "1.0.0") == "1.10.0"
    assert resolved("order", None) == resolved("order", "2.5.0") == "2.0.0"
    assert (
        resolved("order", "3.0.0")
        is resolved("order", "v1")
        is resolved("order", "1.2")
        is resolved("none", None)
        is None
    )


def test_pickles_to_an_equal_registry() -> None:
    registry = Registry.default()
    copied = pickle.loads(pickle.dumps(registry))
    assert copied.sensitive() == registry.sensitive()
    for name in FAMILIES:
        assert copied.get(name) == registry.get(name)
        assert hash(copied.get(name)) == hash(registry.get(name))
        assert copied.get(name).fields == registry.get(name).fields
    assert copied.detect({"record_type": 1}) == "financial"


def test_sensitive_columns() -> None:
    assert Registry.default().sensitive() == {
        "user_id": "token",
        "page_url": "url",
        "referrer": "url",
        "query": "text",
        "ip_address": "ip",
        "attributes": "json",
        "properties": "json",
        "custom_data": "json",
        "properties/counterparty": "token",
        "properties/description": "text",
        "properties/ident": "token",
    }


def test_two_kinds_for_one_column_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a", "1.0.0", properties={"u": {"x-column": "query", "x-pii": "text"}})
    write(tmp_path, "b", "1.0.0", properties={"v": {"x-column": "query", "x-pii": "token"}})
    with pytest.raises(
        ConfigError, match=r"b:1\.0\.0: /v tags column 'query' with x-pii 'token', another .*'text'"
    ):
        Registry.from_folder(tmp_path).sensitive()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("comerce", "unknown schema 'comerce'; did you mean commerce"),
        ("zzz", "unknown schema 'zzz'; known: behaviour, clickstream"),
        ("commerce:9.0.0", r"schema 'commerce' has no version '9\.0\.0'; known: 1\.0\.0"),
        ("commerce:", "has no version ''"),
    ],
)
def test_unknown_references_name_the_nearest(reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Registry.default().get(reference)


def test_unknown_name_in_versions() -> None:
    with pytest.raises(ConfigError, match="did you mean weblog"):
        Registry.default().versions("weblogs")


@pytest.mark.parametrize(
    ("name", "version", "document", "message"),
    [
        ("a", "1.0", {}, "must be called MAJOR.MINOR.PATCH.json"),
        ("A b", "1.0.0", {}, "can't name a family"),
        ("a", "1.0.0", {"x-family": "b"}, "x-family is 'b', its place says 'a'"),
        ("a", "1.0.0", {"x-version": "1.0.1"}, "x-version is"),
        ("a", "1.0.0", {"x-detect": ["k"]}, "x-detect must be"),
        ("a", "1.0.0", {"x-detect": [[]]}, "x-detect must be"),
        ("a", "1.0.0", {"x-identity": "maybe"}, "x-identity must be one of event_id, generated, optional"),
        (
            "a",
            "1.0.0",
            {"properties": {"p": {"x-column": "prise"}}},
            "/p: x-column 'prise' .* did you mean 'price'",
        ),
        ("a", "1.0.0", {"properties": {"p": {"x-column": "price/x"}}}, "neither an event column nor a key"),
        ("a", "1.0.0", {"properties": {"p": {"x-column": "query", "x-pii": "name"}}}, "x-pii must be one of"),
        (
            "a",
            "1.0.0",
            {"properties": {n: {"x-column": "query"} for n in "pq"}},
            "/q: column 'query' is already",
        ),
        (
            "a",
            "1.0.0",
            {"allOf": [{"properties": {"p": {"x-column": "query"}}}]},
            "stands where no event value",
        ),
        (
            "a",
            "1.0.0",
            {"properties": {"p": {"items": {"x-column": "query"}}}},
            "stands where no event value",
        ),
    ],
)
def test_bad_documents_are_refused(
    tmp_path: Path, name: str, version: str, document: Any, message: str
) -> None:
    write(tmp_path, name, version, **document)
    with pytest.raises(ConfigError, match=message):
        Registry.from_folder(tmp_path)


def test_data_that_looks_like_an_annotation_is_left_alone(tmp_path: Path) -> None:
    value = {"x-column": "nothing"}
    write(
        tmp_path,
        "a",
        "1.0.0",
        properties={"p": {"const": value, "x-column": "query"}, "x-column": {"enum": [value]}},
    )
    assert [field.column for field in Registry.from_folder(tmp_path).get("a").fields] == ["query"]


def test_unreadable_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Registry.from_folder(tmp_path / "none")
    write(tmp_path, "a", "1.0.0")
    (tmp_path / "a" / "1.0.0.json").write_text("[")
    with pytest.raises(ConfigError, match="is not JSON"):
        Registry.from_folder(tmp_path)
    (tmp_path / "a" / "1.0.0.json").write_text("[]")
    with pytest.raises(ConfigError, match="must hold a JSON object"):
        Registry.from_folder(tmp_path)
    (tmp_path / "a" / "1.0.0.json").unlink()
    (tmp_path / "a" / "1.0.0.json").mkdir()
    with pytest.raises(InputError, match="can't be read"):
        Registry.from_folder(tmp_path)
    with pytest.raises(ConfigError, match="known: none"):
        Registry({}).get("a")
