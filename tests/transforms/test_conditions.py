from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from headrace.schemas.columns import MONEY, TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms.conditions import columns_of, conditions, matches


def rows(given, column, values, type_=None):
    batch = pa.RecordBatch.from_arrays([pa.array(values, type_)], names=[column])
    return matches(batch, conditions(given, "where")).tolist()


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("page_view", [True, False, False, False]),
        (["page_view", "click"], [True, True, False, False]),
        ([None, "click"], [False, True, False, True]),
        ("*", [True, True, True, False]),
        ("*e*", [True, False, True, False]),
        (["p\\*", "*k"], [False, True, False, False]),
        (["page_view", "*"], [True, True, True, False]),
    ],
)
@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_text_is_matched_by_value_by_wildcard_or_as_null(wanted, found, type_):
    values = pa.array(["page_view", "click", "se.arch\n", None])
    array = values.dictionary_encode() if pa.types.is_dictionary(type_) else values.cast(type_)
    batch = pa.RecordBatch.from_arrays([array], names=["event_type"])
    assert matches(batch, conditions({"event_type": wanted}, "where")).tolist() == found


def test_a_literal_asterisk_can_be_asked_for():
    assert rows({"t": "a\\**"}, "t", ["a*", "a*b", "ab"]) == [True, True, False]


def test_dots_are_no_wildcards():
    assert rows({"t": "a.b"}, "t", ["a.b", "axb"]) == [True, False]


def test_booleans_and_numbers():
    assert rows({"is_bot": [False, None]}, "is_bot", [True, False, None]) == [False, True, True]
    assert rows({"http_status": [404, 500]}, "http_status", [200, 404, None], pa.int32()) == [
        False,
        True,
        False,
    ]
    assert rows({"http_status": "*"}, "http_status", [200, None], pa.int32()) == [True, False]


def test_any_value_of_a_type_that_has_no_listed_values():
    assert rows({"revenue": "*"}, "revenue", [Decimal(1), None], MONEY) == [True, False]
    assert rows({"at": "*"}, "at", [None, datetime.now(UTC)], TIME) == [False, True]


def test_a_column_of_nulls_matches_null_only():
    assert rows({"t": [None]}, "t", [None, None]) == [True, True]
    assert rows({"t": "*"}, "t", [None]) == [False]


def test_all_conditions_must_hold():
    batch = pa.RecordBatch.from_pydict({"a": ["x", "x", "y"], "b": [1, 2, 1]})
    wanted = conditions({"a": "x", "b": 1}, "where")
    assert matches(batch, wanted).tolist() == [True, False, False]
    assert columns_of(wanted, conditions({"b": 2, "c": 1}, "where")) == ["a", "b", "c"]
    assert matches(batch, ()).all()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("event_type", "where is 'event_type'"),
        ({"t": []}, "where.t is empty"),
        ({"t": [1.5]}, "where.t: 1.5 is no text"),
        ({"nothing": "x"}, "no such column"),
        ({"t": 1}, "never has the value 1"),
        ({"n": "x"}, "never has the value 'x'"),
        ({"n": True}, "never has the value True"),
        ({"m": 1}, "only text, booleans and whole numbers"),
    ],
)
def test_wrong_conditions_are_refused(given, told):
    batch = pa.RecordBatch.from_pydict({"t": ["x"], "n": [1], "m": pa.array([Decimal(1)], MONEY)})
    with pytest.raises(ConfigError, match=told):
        matches(batch, conditions(given, "where"))
