"""The one-sided rule, end to end: Decode and Validate give jsonschema's verdicts, and the fast path the slow path's columns."""

import json
import os
from decimal import Decimal

import jsonschema
import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import JSON_COLUMNS, PENDING, VALID_SCHEMA
from headrace.schemas.compile_decoder import compile_decoder
from headrace.schemas.registry import Registry
from headrace.transforms.batches import plain, replace
from headrace.transforms.decode import DecodeKernel
from headrace.transforms.keys import Key
from headrace.transforms.validate import ValidateKernel

from .documents import ID, VALID, documents, raw_batch

EXAMPLES = int(os.environ.get("EXAMPLES", "60"))
"""More for a long run: ``EXAMPLES=5000 pytest tests/transforms/test_exact_verdicts.py``."""
REGISTRY = Registry.default()
BEYOND_SCHEMA = {"decimal_out_of_range", "integer_out_of_range", "time_out_of_range"}
"""Valid documents that a column can't hold: refused with their own reason, never rounded or cut."""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    key = Key(tmp_path_factory.mktemp("key") / "key", create=True)
    decode, validate = DecodeKernel(key), ValidateKernel(key)
    decode.setup()
    validate.setup()
    return decode, validate, key


def oracle(document):
    """jsonschema's verdict under the schema that the registry's rules pick; None if there is no schema."""
    name = REGISTRY.detect(document)
    if name is None:
        return None
    schema = REGISTRY.get(name)
    version = (
        document["metadata"].get("version")
        if name == "envelope" and isinstance(document["metadata"], dict)
        else None
    )
    if isinstance(version, str):
        resolved = REGISTRY.resolve(name, version)
        parts = version.split(".")
        if (
            resolved is None
            and len(parts) == 3
            and all(p.isascii() and p.isdigit() and len(p) <= 9 for p in parts)
        ):
            return None
        schema = resolved or schema
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return jsonschema.Draft202012Validator(schema.document, format_checker=checker).is_valid(document)


def run(kernels, lines):
    decode, validate, _ = kernels
    decoded = decode(raw_batch(lines))
    judged = validate(decoded.accepted)
    return decoded, judged


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(documents(), min_size=1, max_size=12))
def test_verdicts_are_those_of_jsonschema(kernels, events):
    lines = [orjson_or_json(event) for event in events]
    decoded, judged = run(kernels, lines)
    accepted = set(judged.accepted.column("origin_position").to_pylist())
    reasons = {
        r["origin_position"]: r["reason"]
        for out in (decoded, judged)
        for r in out.rejected.select(["origin_position", "reason"]).to_pylist()
    }
    assert len(accepted) + len(reasons) == len(lines)
    for position, line in enumerate(lines, 1):
        verdict = oracle(json.loads(line))
        if verdict is None:
            assert reasons[position] == "unknown_schema"
        elif verdict:
            assert position in accepted or reasons[position] in BEYOND_SCHEMA, (line, reasons[position])
        else:
            assert position in reasons, line
            assert reasons[position] != "unknown_schema"


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(documents(), min_size=1, max_size=12))
def test_fast_and_slow_path_give_the_same_columns(kernels, events):
    decode, validate, _ = kernels
    batch = raw_batch([orjson_or_json(event) for event in events])
    decoded = decode(batch)
    fast = validate(decoded.accepted)
    slow = validate(
        replace(decoded.accepted, {PENDING: pa.array([True] * decoded.accepted.num_rows, pa.bool_())})
    )
    assert fast.accepted.schema == slow.accepted.schema == VALID_SCHEMA
    for name in VALID_SCHEMA.names:
        assert (
            plain(fast.accepted.column(name)).to_pylist() == plain(slow.accepted.column(name)).to_pylist()
        ), name


@settings(max_examples=EXAMPLES, deadline=None)
@given(documents())
def test_nothing_of_an_accepted_event_is_dropped(kernels, event):
    """Every leaf of the document is found again in some column."""
    _, judged = run(kernels, [orjson_or_json(event)])
    if not judged.accepted.num_rows:
        return
    row = judged.accepted.drop_columns(["_raw"]).to_pylist()[0]
    held = set(
        leaves({k: json.loads(v) if k in JSON_COLUMNS and v is not None else v for k, v in row.items()})
    )
    elsewhere = [event.get("timestamp"), event.get("event_id"), *event.get("metadata", {}).values()]
    for leaf in leaves(event):
        if isinstance(leaf, str) and leaf not in elsewhere:
            assert leaf in held or Decimal(leaf) in held
        elif isinstance(leaf, int | float) and not isinstance(leaf, bool):
            assert leaf in held or Decimal(repr(leaf)).quantize(Decimal("1e-9")) in held


def test_valid_events_of_every_family_take_the_fast_path(kernels):
    decode, validate, _ = kernels
    lines = [
        orjson.dumps(event).replace(ID.encode(), ID.format(i).encode())
        for i, event in enumerate(VALID.values())
    ]
    decoded = decode(raw_batch(lines))
    left = [
        s
        for s, p in zip(
            plain(decoded.accepted["schema"]).to_pylist(), decoded.accepted[PENDING].to_pylist(), strict=True
        )
        if p
    ]
    assert left == ["behaviour:1.0.0"]  # one digit of a fraction: proven row by row
    assert validate(decoded.accepted).accepted.num_rows == len(lines)


@pytest.mark.parametrize("name", REGISTRY.names())
def test_every_packaged_schema_compiles(name):
    assert compile_decoder(REGISTRY.get(name)) is not None


def test_a_broken_proof_would_be_seen(kernels, monkeypatch):
    """A test of the test: the decoder believes every enum, and the comparison with jsonschema notices."""
    monkeypatch.setattr(
        "headrace.schemas.typed_decoder.prove_strings", lambda values, _: np.ones(len(values), bool)
    )
    event = {**VALID["clickstream"], "event_type": "teleport"}
    _, judged = run(kernels, [orjson.dumps(event)])
    assert judged.accepted.num_rows == 1 and oracle(event) is False


def leaves(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def orjson_or_json(event):
    try:
        return orjson.dumps(event)
    except TypeError:
        return json.dumps(event, ensure_ascii=False).encode()
