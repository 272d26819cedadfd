"""The row-wise edges: FromDicts, FromRows, ToDicts, ToRows."""

import dataclasses
import enum
import json
import math
import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
import pytest
from apache_beam.coders import RowCoder
from apache_beam.transforms.window import FixedWindows, GlobalWindows, SlidingWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import ENRICHED_SCHEMA, EVENT_SCHEMA, RAW_SCHEMA
from headrace.schemas.errors import ConfigError, InputError
from headrace.transforms.batches import replace
from headrace.transforms.from_dicts import BATCH_ROWS, FromDicts, encode_document
from headrace.transforms.from_rows import FromRows, row_fields
from headrace.transforms.to_dicts import ToDicts
from headrace.transforms.to_rows import ToRows

from .collect import Batches, collect

NOW = datetime(2024, 5, 1, tzinfo=UTC)


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Place:
    at: Timestamp
    height: float


class Point(NamedTuple):
    x: int
    y: Decimal | None


class Seconds(beam.DoFn):
    """Stamps (seconds, element)."""

    def process(self, pair):
        yield TimestampedValue(pair[1], pair[0])


def decoded(value: object) -> object:
    document, fault = encode_document(value)
    assert fault is None
    return orjson.loads(document)


def test_values_keep_what_they_say():
    value = {
        "price": Decimal("12345678901234567890.123456789"),
        "exponent": Decimal("1E+3"),
        "at": datetime(2024, 5, 1, 12, 0, 0, 1, tzinfo=UTC),
        "offset": datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=2))),
        "beam": Timestamp(1.5),
        "day": date(2024, 5, 1),
        "id": uuid.UUID(int=1),
        "colour": Colour.RED,
        "numpy": np.float32(0.5),
        "point": Point(1, Decimal("2.50")),
        "row": beam.Row(a=1),
        "place": Place(Timestamp(0), 2.5),
        "float": 0.1,
        "none": None,
        "text": "é\u0000\U0001f600",
    }
    assert decoded(value) == {
        "price": "12345678901234567890.123456789",
        "exponent": "1000",
        "at": "2024-05-01T12:00:00.000001Z",
        "offset": "2024-05-01T12:00:00+02:00",
        "beam": "1970-01-01T00:00:01.500000Z",
        "day": "2024-05-01",
        "id": "00000000-0000-0000-0000-000000000001",
        "colour": "red",
        "numpy": 0.5,
        "point": {"x": 1, "y": "2.50"},
        "row": {"a": 1},
        "place": {"at": "1970-01-01T00:00:00Z", "height": 2.5},
        "float": 0.1,
        "none": None,
        "text": "é\u0000\U0001f600",
    }


def test_a_datetime_without_zone_gets_none():
    assert decoded({"at": datetime(2024, 5, 1)}) == {"at": "2024-05-01T00:00:00"}


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        -math.inf,
        np.float32("nan"),
        np.array([1.0, math.nan]),
        [{"a": math.inf}],
        (math.nan,),
        Place(Timestamp(0), math.nan),
        beam.Row(x=math.nan),
    ],
)
def test_what_json_has_no_number_for_does_not_become_null(value):
    document, fault = encode_document({"a": value, "n": None, "d": NOW})
    assert fault is None
    assert b"NaN" in document or b"Infinity" in document
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(document)
    assert json.loads(document)["d"] == "2024-05-01T00:00:00Z"


def test_integers_beyond_64_bits_are_written_in_full():
    document, fault = encode_document({"n": 2**200, "d": Decimal("1.10"), "p": Point(1, None)})
    assert (json.loads(document), fault) == ({"n": 2**200, "d": "1.10", "p": {"x": 1, "y": None}}, None)


def test_lone_surrogates_are_escaped():
    document, fault = encode_document({"s": "\ud800"})
    assert (document, fault) == (b'{"s":"\\ud800"}', None)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


CIRCULAR: dict = {}
CIRCULAR["self"] = CIRCULAR


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": {1, 2}}, "{'a': {1, 2}}"),
        ({"a": b"\xff"}, "{'a': b'\\xff'}"),
        ({1: "a", "1": "b"}, "{1: 'a', '1': 'b'}"),
        ({"a": math.nan, "b": {1: 2}}, "{'a': nan, 'b': {1: 2}}"),
        ({"a": object}, "{'a': <class 'object'>}"),
        (CIRCULAR, "{'self': {...}}"),
        (nested(100_000), "<list nested too deep to be written>"),
    ],
)
def test_what_cannot_be_written_is_marked_and_kept(value, text):
    assert encode_document(value) == (text.encode(), "unserialisable")


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=12,
    )
)
def test_json_values_come_back_equal(value):
    assert decoded(value) == value


def from_pairs(transform: beam.PTransform, pairs: list, window: object = None) -> list:
    def build(pipeline):
        elements = pipeline | beam.Create(pairs, reshuffle=False) | beam.ParDo(Seconds())
        elements = elements | beam.WindowInto(window) if window else elements
        return {"batches": elements | transform}

    return collect(build)["batches"]


def test_from_dicts_batches_by_window_with_the_smallest_timestamp():
    start = int(NOW.timestamp())
    pairs = [(start + second, {"n": second}) for second in (70, 10, 5, 130, 61)]
    found = from_pairs(FromDicts("shop"), pairs, FixedWindows(60))
    assert all(e.value.schema == RAW_SCHEMA for e in found)
    assert {e.micros // 1_000_000 - start for e in found} == {5, 61, 130}
    rows = [r for e in found for r in e.value.to_pylist()]
    assert sorted(orjson.loads(r["raw"])["n"] for r in rows) == [5, 10, 61, 70, 130]
    for r in rows:
        assert r["ingest_time"] == NOW + timedelta(seconds=orjson.loads(r["raw"])["n"])
        assert (r["origin"], r["origin_position"], r["fault"]) == ("shop", None, None)
    for e in found:
        assert e.window.start <= e.micros / 1e6 < e.window.end


def test_from_dicts_cuts_large_bundles():
    found = from_pairs(FromDicts(), [(5, {"n": n}) for n in range(BATCH_ROWS + 1)])
    assert sum(e.value.num_rows for e in found) == BATCH_ROWS + 1
    assert max(e.value.num_rows for e in found) <= BATCH_ROWS


def test_from_dicts_in_sliding_windows_has_each_row_in_each_window():
    found = from_pairs(FromDicts(), [(30, {"n": 1})], SlidingWindows(60, 30))
    assert sorted(e.window.start for e in found) == [0, 30]


def test_ingest_time_is_given_or_the_elements_own():
    found = from_pairs(FromDicts(ingest_time=NOW), [(5, {"a": {1}})])
    (row,) = found[0].value.to_pylist()
    assert (row["ingest_time"], row["fault"], row["raw"]) == (NOW, "unserialisable", b"{'a': {1}}")


@pytest.mark.parametrize("edge", [FromDicts, FromRows])
def test_elements_without_timestamp_need_an_ingest_time(edge):
    with (
        pytest.raises(
            Exception, match=rf"{edge.__name__}: an element has no timestamp.*ingest_time="
        ) as caught,
        beam.Pipeline(runner="FnApiRunner") as pipeline,
    ):
        pipeline | beam.Create([beam.Row(a=1)]) | edge()
    assert InputError.__name__ in repr(caught.value) or isinstance(caught.value, InputError)


@pytest.mark.parametrize("edge", [FromDicts, FromRows])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": ""}, r"\(source=''\): must be a name"),
        ({"source": None}, r"\(source=None\): must be a name"),
        ({"ingest_time": datetime(2024, 5, 1)}, "must be a datetime with a time zone"),
        ({"ingest_time": "2024-05-01"}, "must be a datetime with a time zone"),
    ],
)
def test_bad_arguments_are_refused(edge, arguments, message):
    with pytest.raises(ConfigError, match=edge.__name__ + message if message[0] == "\\" else message):
        edge(**arguments)


def test_from_rows_leaves_out_what_is_none():
    value = beam.Row(a=1, b=None, c=[Point(1, None), beam.Row(z=None)], d=Point(2, Decimal("3.0")))
    assert row_fields(value) == {"a": 1, "c": [{"x": 1}, {}], "d": {"x": 2, "y": Decimal("3.0")}}
    found = from_pairs(FromRows(), [(5, value), (6, Point(7, None))])
    raws = sorted(r["raw"] for e in found for r in e.value.to_pylist())
    assert raws == [b'{"a":1,"c":[{"x":1},{}],"d":{"x":2,"y":"3.0"}}', b'{"x":7}']
    assert {r["origin"] for e in found for r in e.value.to_pylist()} == {"rows"}


EVENT = {
    "event_id": "e",
    "event_time": NOW + timedelta(minutes=7, microseconds=123456),
    "event_date": date(2024, 5, 1),
    "id_generated": False,
    "price": Decimal("0.100000000"),
    "quantity": 3,
    "http_status": 200,
    "category": "books",
    "properties": '{"a":1}',
}
BEFORE = NOW - timedelta(days=20_000)


def test_to_dicts_gives_each_row_its_own_time_and_window():
    rows = [
        EVENT,
        {"event_id": "f", "event_time": NOW},
        {"event_id": "g"},
        {"event_id": "h", "event_time": BEFORE},
    ]
    batch = pa.RecordBatch.from_pylist(rows, schema=ENRICHED_SCHEMA)

    def build(pipeline):
        batches = pipeline | Batches([(batch, NOW.timestamp() + 1)]) | beam.WindowInto(FixedWindows(60))
        return {"dicts": batches | ToDicts()}

    found = {e.value["event_id"]: e for e in collect(build)["dicts"]}
    start = int(NOW.timestamp()) * 1_000_000
    assert {k: e.micros - start for k, e in found.items()} == {
        "e": 7 * 60_000_000 + 123456,
        "f": 0,
        "g": 1_000_000,
        "h": -20_000 * 86_400_000_000,
    }
    assert all(e.window.start <= e.micros / 1e6 < e.window.end for e in found.values())
    value = found["e"].value
    assert list(value) == ENRICHED_SCHEMA.names
    assert {k: value[k] for k in EVENT} == EVENT
    assert isinstance(value["price"], Decimal)
    assert all(value[k] is None for k in value if k not in EVENT)


def test_to_dicts_of_batches_without_event_time():
    def build(pipeline):
        return {"dicts": pipeline | Batches([(pa.RecordBatch.from_pydict({"n": [1, 2]}), 5)]) | ToDicts()}

    assert [(e.value, e.micros) for e in collect(build)["dicts"]] == [
        ({"n": 1}, 5_000_000),
        ({"n": 2}, 5_000_000),
    ]


def test_to_rows_has_a_beam_schema_and_survives_a_shuffle():
    batch = pa.RecordBatch.from_pylist([EVENT, {"event_id": "g", "event_time": BEFORE}], schema=EVENT_SCHEMA)

    def build(pipeline):
        rows = pipeline | Batches([(batch, NOW.timestamp())]) | ToRows()
        assert isinstance(beam.coders.registry.get_coder(rows.element_type), RowCoder)
        return {"rows": rows | beam.Reshuffle()}

    found = {e.value.event_id: e.value for e in collect(build)["rows"]}
    row = found["e"]
    assert (row.price, row.quantity, row.http_status, row.category) == (Decimal("0.1"), 3, 200, "books")
    assert row.event_time == Timestamp(micros=int(NOW.timestamp()) * 1_000_000 + 7 * 60_000_000 + 123456)
    assert (row.event_date, row.id_generated, row.user_id) == (date(2024, 5, 1), False, None)
    assert found["g"].event_time.to_utc_datetime() == BEFORE.replace(tzinfo=None)
    assert found["g"].price is None


def test_to_rows_of_chosen_columns_and_further_types():
    batch = replace(pa.RecordBatch.from_pylist([EVENT], schema=EVENT_SCHEMA), {"tier": pa.array(["gold"])})
    small = batch.select(["event_id", "event_time"])
    stage = ToRows(
        ["event_id", "tier", "revenue", "score"], types={"tier": pa.string(), "score": pa.float64()}
    )

    def build(pipeline):
        return {"rows": pipeline | Batches([batch, small]) | stage}

    rows = [e.value for e in collect(build)["rows"]]
    assert [r.as_dict() for r in rows] == [
        {"event_id": "e", "tier": "gold", "revenue": None, "score": None},
        {"event_id": "e", "tier": None, "revenue": None, "score": None},
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": []}, "name at least one column"),
        (
            {"columns": ["tier"]},
            r"the type of \['tier'\] is not known; give it, e.g. types=\{'tier': pa.string\(\)\}",
        ),
        ({"columns": ["l"], "types": {"l": pa.list_(pa.int64())}}, "column 'l' is list<.*no counterpart"),
    ],
)
def test_to_rows_refuses_what_it_does_not_know(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ToRows(**arguments)


def test_there_and_back():
    """Dicts in, dicts out; nothing is lost on the way through the raw records."""
    values = [{"event": n, "price": Decimal("1.50")} for n in range(100)]

    def build(pipeline):
        batches = pipeline | beam.Create(values) | FromDicts(ingest_time=NOW)
        return {"dicts": batches | beam.WindowInto(GlobalWindows()) | ToDicts()}

    back = [orjson.loads(e.value["raw"]) for e in collect(build)["dicts"]]
    assert sorted(b["event"] for b in back) == list(range(100))
    assert {b["price"] for b in back} == {"1.50"}
