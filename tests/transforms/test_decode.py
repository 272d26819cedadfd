"""Decode and Validate on what is not an event of a known family."""

import json

import orjson
import pyarrow as pa
import pytest

from headrace.schemas.columns import DECODED_SCHEMA, QUARANTINE_SCHEMA, RAW_SCHEMA
from headrace.schemas.errors import ConfigError
from headrace.schemas.registry import Registry
from headrace.transforms.batches import conform, plain
from headrace.transforms.decode import Decode, DecodeKernel
from headrace.transforms.families import FamilyGuess, certain
from headrace.transforms.keys import Key
from headrace.transforms.rejects import UNMASKED
from headrace.transforms.validate import ValidateKernel

from .documents import ID, VALID, raw_batch


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return Key(tmp_path_factory.mktemp("key") / "key", create=True)


@pytest.fixture
def decode(key):
    kernel = DecodeKernel(key)
    kernel.setup()
    return kernel


def line(family, **changes):
    return orjson.dumps({**VALID[family], **changes}).replace(ID.encode(), ID.format(7).encode())


BAD = [
    (b"", "malformed_json", "column 1"),
    (b'{"a": 1', "malformed_json", "column 8"),
    (b'{"user_id": NaN}', "malformed_json", "column 13"),
    (b'{"user_id": "\xff"}', "invalid_utf8", "byte 13"),
    (b'{"user_id": "a\x00b"}', "malformed_json", "NUL"),
    (b"\xef\xbb\xbf{}", "malformed_json", "byte order mark"),
    (b"[1, 2]", "unknown_schema", "not a JSON object"),
    (b'{"colour": "red"}', "unknown_schema", "match none of the families behaviour, clickstream"),
    (
        line("envelope", metadata={**VALID["envelope"]["metadata"], "version": "9.0.0"}),
        "unknown_schema",
        "known: 1.0.0",
    ),
    (
        line("clickstream", custom_properties={"a": 1}).replace(
            b'{"a":1}', b'{"a":' * 1000 + b"1" + b"}" * 1000
        ),
        "nesting_too_deep",
        "250",
    ),
]


@pytest.mark.parametrize(("record", "reason", "said"), BAD)
def test_reasons_say_what_and_where_and_the_record_is_sealed(decode, key, record, reason, said):
    out = decode(raw_batch([line("commerce"), record, line("interaction")]))
    assert out.accepted.column("origin_position").to_pylist() == [1, 3]
    (row,) = out.rejected.to_pylist()
    assert (row["stage"], row["reason"], row["origin"], row["origin_position"]) == (
        "decode",
        reason,
        "in.jsonl",
        2,
    )
    assert said in row["message"]
    assert json.loads(row["errors"])[0]["message"] == row["message"]
    assert key.unseal(row["document"]) == record
    assert all(row[name] is None for name in UNMASKED)


def test_one_bad_record_does_not_touch_the_others(decode):
    good = [line(family) for family in VALID] * 3
    records = [record for pair in zip(good, [bad for bad, _, _ in BAD] * 2, strict=False) for record in pair]
    out = decode(raw_batch(records))
    assert out.accepted.num_rows == len(good)
    assert out.rejected.num_rows == len(records) - len(good)
    alone = decode(raw_batch(good)).accepted
    for name in ("event_time", "user_id", "schema", "price", "properties"):
        assert plain(out.accepted.column(name)).to_pylist() == plain(alone.column(name)).to_pylist()


def test_faults_of_the_source_keep_their_reason(decode, key):
    batch = raw_batch([b"cut", line("commerce"), b""])
    faults = pa.array(["line_too_long", None, "truncated_input"])
    columns = {n: batch.column(n) for n in batch.schema.names} | {"fault": faults}
    out = decode(conform(columns, RAW_SCHEMA, 3))
    assert out.accepted.num_rows == 1
    rows = out.rejected.to_pylist()
    assert [(r["reason"], r["origin_position"]) for r in rows] == [
        ("line_too_long", 1),
        ("truncated_input", 3),
    ]
    assert "fetch it again" in rows[1]["message"]
    assert [key.unseal(r["document"]) for r in rows] == [b"cut", b""]


def test_empty_and_all_bad_batches_keep_their_schemas(decode):
    for records in ([], [b"x"]):
        out = decode(raw_batch(records))
        assert out.accepted.schema == DECODED_SCHEMA and out.accepted.num_rows == 0
        assert out.rejected.schema == QUARANTINE_SCHEMA and out.rejected.num_rows == len(records)


def test_a_stated_version_of_the_same_major_takes_the_highest_known(decode):
    for version in ("1.0.0", "1.7.3"):
        record = line("envelope", metadata={**VALID["envelope"]["metadata"], "version": version})
        (row,) = decode(raw_batch([record])).accepted.to_pylist()
        assert (row["schema"], row["schema_version"], row["_pending"]) == ("envelope:1.0.0", version, False)


def test_a_pinned_schema_takes_every_document_as_that(key):
    kernel = DecodeKernel(key, schema="interaction")
    kernel.setup()
    validate = ValidateKernel(key)
    validate.setup()
    decoded = kernel(raw_batch([line("interaction"), line("commerce"), b"[]"]))
    assert plain(decoded.accepted.column("schema")).to_pylist() == ["interaction:1.0.0"] * 3
    judged = validate(decoded.accepted)
    assert judged.accepted.column("origin_position").to_pylist() == [
        1,
        2,
    ]  # Unknown fields are allowed, and kept.
    assert json.loads(judged.accepted.to_pylist()[1]["extra"]).keys() == {"/properties", "/transaction"}
    assert plain(judged.rejected.column("reason")).to_pylist() == ["type"]


def test_events_without_an_id_get_one_from_origin_and_content(decode):
    record = line("clickstream")
    ids = [
        decode(raw_batch([record], origin=origin)).accepted.column("event_id")[0].as_py()
        for origin in ("a", "a", "b")
    ]
    assert ids[0] == ids[1] != ids[2]
    assert all(i[14] == "8" and i[19] in "89ab" for i in ids)
    out = decode(raw_batch([record, line("commerce")])).accepted
    assert out.column("id_generated").to_pylist() == [True, False]


def test_wrong_arguments_name_the_fix(key):
    with pytest.raises(ConfigError, match="format='xml' is not one of json, weblog"):
        Decode(format="xml", key=key)
    with pytest.raises(ConfigError, match="clickstream"):
        Decode("clickstrem", key=key)


def test_guessing_learns_what_a_producer_sends(decode):
    """Keys in another order, and a prefix that two families share: guessed again, never wrong."""
    turned = orjson.dumps(dict(reversed(json.loads(line("behaviour")).items())))
    records = [line("behaviour"), line("commerce"), turned, line("interaction"), line("clickstream")] * 2
    for _ in range(3):
        out = decode(raw_batch(records)).accepted
        names = [s.split(":")[0] for s in plain(out.column("schema")).to_pylist()]
        assert names == ["behaviour", "commerce", "behaviour", "interaction", "clickstream"] * 2
        pending = [n for n, p in zip(names, out.column("_pending").to_pylist(), strict=True) if p]
        assert set(pending) == {"behaviour"}  # Its time has one digit of a fraction.


def test_a_family_that_another_could_claim_is_never_guessed():
    registry = Registry.default()
    ranked = [
        registry.get(n)
        for n in ("envelope", "financial", "behaviour", "commerce", "interaction", "clickstream")
    ]
    assert all(certain(schema, ranked[:i]) for i, schema in enumerate(ranked))
    assert not certain(registry.get("commerce"), [registry.get("interaction")])
    assert FamilyGuess([registry.get("weblog")]).first([b"{}"], __import__("numpy").arange(1)) == {}
