"""Helpers over batches, the Arrow coder and the building of rejects."""

import json

import apache_beam as beam
import pyarrow as pa
import pytest

from headrace.schemas.columns import CODE, DESCRIPTIONS, EVENT_SCHEMA, JSON_COLUMNS, MONEY, QUARANTINE_SCHEMA
from headrace.schemas.failures import Failure
from headrace.schemas.registry import Registry
from headrace.transforms import batches
from headrace.transforms.coders import RecordBatchCoder, register_coders
from headrace.transforms.rejects import UNMASKED, all_rejects, no_rejects, rejected

BATCH = pa.record_batch({"a": pa.array(["x", "y", None, "x"]), "b": pa.array([1, 2, 3, 4])})


def test_columns_convert_between_plain_and_dictionary():
    coded = batches.encoded(BATCH["a"])
    assert coded.type == CODE and batches.plain(coded).equals(BATCH["a"])
    wide = BATCH["a"].dictionary_encode().cast(pa.dictionary(pa.int64(), pa.string()))
    assert batches.encoded(wide).type == CODE
    assert batches.as_type(pa.nulls(2), CODE).to_pylist() == [None, None]
    assert batches.as_type(pa.array([1, 2]), pa.int64()).to_pylist() == [1, 2]
    assert batches.as_type(coded, pa.string()).equals(BATCH["a"])
    assert batches.as_type(BATCH["a"].cast(pa.large_string()), CODE).to_pylist() == ["x", "y", None, "x"]


def test_missing_columns_are_nulls_of_the_right_type():
    assert batches.column(BATCH, "b").to_pylist() == [1, 2, 3, 4]
    missing = batches.column(BATCH, "price")
    assert missing.type == MONEY and missing.null_count == 4


def test_constants_and_conform():
    assert batches.constant("v", 2, CODE).to_pylist() == ["v", "v"]
    assert batches.constant(None, 2, CODE).null_count == 2
    assert batches.constant(5, 2, pa.int64()).to_pylist() == [5, 5]
    made = batches.conform({"event_type": pa.array(["a", "b"])}, EVENT_SCHEMA, 2)
    assert made.schema == EVENT_SCHEMA and made["price"].null_count == 2
    with pytest.raises(KeyError, match="colour"):
        batches.conform({"colour": pa.array([1])}, EVENT_SCHEMA, 1)


def test_replace_drop_and_concat_leave_their_input_alone():
    changed = batches.replace(BATCH, {"b": pa.array([0, 0, 0, 0]), "c": pa.array([1, 1, 1, 1])})
    assert changed.schema.names == ["a", "b", "c"] and BATCH["b"].to_pylist() == [1, 2, 3, 4]
    assert batches.drop(changed, "c", "zz").schema.names == ["a", "b"]
    assert batches.drop(BATCH, "zz") is BATCH
    one = batches.replace(BATCH, {"a": batches.encoded(BATCH["a"])})
    two = batches.replace(one.slice(0, 1), {"a": pa.array(["z"]).dictionary_encode()})
    assert batches.concat([one, two])["a"].to_pylist() == ["x", "y", None, "x", "z"]
    assert batches.concat([one.slice(0, 0), two.slice(0, 0)]).num_rows == 0
    with_null = batches.replace(
        two, {"a": pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array([None], pa.string()))}
    )
    assert batches.concat([one, with_null])["a"].to_pylist() == ["x", "y", None, "x", None]


def test_functions_run_once_per_distinct_value():
    calls = []

    def upper(values):
        calls.append(len(values))
        return pa.compute.utf8_upper(values)

    assert batches.on_dictionary(BATCH["a"], upper).to_pylist() == ["X", "Y", None, "X"]
    assert batches.on_dictionary(BATCH["a"], upper, type_=CODE).type == CODE
    assert calls == [2, 2]


def test_the_coder_ships_a_slice_alone_and_is_chosen_by_beam():
    coder = RecordBatchCoder()
    big = pa.record_batch({"a": pa.array(["x" * 100] * 10_000)})
    data = coder.encode(big.slice(5, 3))
    assert len(data) < 2_000 and coder.decode(data).equals(big.slice(5, 3))
    coded = batches.replace(BATCH, {"a": batches.encoded(BATCH["a"])})
    assert coder.decode(coder.encode(coded)).equals(coded)
    register_coders()
    assert beam.coders.registry.get_coder(pa.RecordBatch) == coder
    assert coder.to_type_hint() is pa.RecordBatch and not coder.is_deterministic()
    assert hash(coder) == hash(RecordBatchCoder())


def test_rejects_hide_what_masking_has_not_seen():
    rows = batches.conform({"user_id": pa.array(["u"]), "event_type": pa.array(["click"])}, EVENT_SCHEMA, 1)
    hidden = rejected(rows, "time", "stale", message="too old").to_pylist()[0]
    assert hidden["user_id"] is None and hidden["event_type"] == "click"
    assert (hidden["stage"], hidden["reason"], hidden["message"], hidden["attempt"]) == (
        "time",
        "stale",
        "too old",
        1,
    )
    shown = rejected(
        rows, "dedupe", pa.array(["duplicate"]), message=pa.array(["again"]), masked=True
    ).to_pylist()[0]
    assert shown["user_id"] == "u" and shown["message"] == "again"
    failures = [
        [Failure("type", "/a", "expected string, found number"), Failure("enum", "/b", "not allowed")]
    ]
    row = rejected(rows, "validate", "type", failures=failures, documents=pa.array([b"s"])).to_pylist()[0]
    assert (
        row["pointer"] == "/a" and json.loads(row["errors"])[1]["code"] == "enum" and row["document"] == b"s"
    )


def test_no_rejects_and_joined_rejects_have_the_schema():
    assert no_rejects().schema == all_rejects([]).schema == QUARANTINE_SCHEMA
    rows = batches.conform({}, EVENT_SCHEMA, 2)
    assert all_rejects([rejected(rows, "a", "b"), rejected(rows, "c", "d")]).num_rows == 4


def test_every_sensitive_column_is_hidden_and_every_column_is_described():
    tagged = {column.partition("/")[0] for column in Registry.default().sensitive()}
    assert tagged | {*JSON_COLUMNS} <= {*UNMASKED}
    assert {*DESCRIPTIONS} == {*QUARANTINE_SCHEMA.names}
