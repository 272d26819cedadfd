"""Windows as mergeable partial tables, against plain Python."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import ENRICHED_SCHEMA, MONEY, TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import replace
from headrace.transforms.coders import RecordBatchCoder
from headrace.transforms.window_definitions import METRICS, Count, Distinct, Sum, Windows
from headrace.transforms.window_partials import finish, merge, partial

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
BIG = Decimal("9" * 29 + ".999999999")
EXACT = Context(prec=80)


def events(rows: list[dict]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=ENRICHED_SCHEMA)


def aggregate(batches: list[pa.RecordBatch], windows: Windows) -> pa.Table:
    return finish(merge([partial(b, windows) for b in batches], windows), windows)


def oracle(rows: list[dict], windows: Windows) -> list[dict]:
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for row in rows:
        if windows.where is None or row.get(windows.where) is not None:
            start = EPOCH + (row["event_time"] - EPOCH) // windows.size * windows.size
            groups[(start, *(row.get(n) for n in windows.by))].append(row)
    found = []
    for (start, *by), members in groups.items():
        result = {"window_start": start, "window_end": start + windows.size}
        result |= dict(zip(windows.by, by, strict=True))
        for name, measure in windows.measures.items():
            if isinstance(measure, Count):
                result[name] = len(members)
                continue
            values = [m[measure.column] for m in members if m.get(measure.column) is not None]
            if isinstance(measure, Distinct):
                result[name] = len(set(values))
            else:
                result[name] = None
                for value in values:
                    result[name] = EXACT.add(result[name] or Decimal(0), Decimal(value))
        found.append(result)
    return sorted(found, key=lambda r: [(r[n] is None, r[n]) for n in ("window_start", *windows.by)])


ROW = st.fixed_dictionaries(
    {"event_time": st.integers(-200, 200).map(lambda s: EPOCH + timedelta(seconds=s, microseconds=-1))},
    optional={
        "event_type": st.sampled_from(["", "click", "purchase"]),
        "currency": st.sampled_from(["EUR", "USD"]),
        "user_id": st.sampled_from(["", "u", "v", "w" * 32]),
        "revenue": st.decimals(-(10**20), 10**20, places=9),
        "quantity": st.integers(-(2**63), 2**63 - 1),
    },
)
EVERYTHING = Windows(
    timedelta(seconds=7),
    ("currency", "event_type"),
    {
        "n": Count(),
        "users": Distinct("user_id"),
        "types": Distinct("event_type"),
        "money": Sum("revenue"),
        "units": Sum("quantity"),
    },
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(ROW, max_size=30),
    st.integers(1, 9),
    st.sampled_from([EVERYTHING, *METRICS.values(), Windows(by=(), measures={"n": Count()})]),
    st.randoms(use_true_random=False),
)
def test_any_cut_order_and_merge_shape_equals_plain_python(rows, size, windows, shuffle):
    expected = oracle(rows, windows)
    whole = aggregate([events(rows)], windows)
    assert whole.to_pylist() == expected
    shuffle.shuffle(rows)
    parts = [partial(events(rows[i : i + size]), windows) for i in range(0, len(rows) + 1, size)]
    while len(parts) > 1:
        taken = [
            parts.pop(shuffle.randrange(len(parts))) for _ in range(min(len(parts), shuffle.randint(2, 4)))
        ]
        parts.append(merge(taken, windows))
    assert finish(parts[0], windows).equals(whole)


def test_encodings_slices_and_repeated_dictionary_values_are_the_same_groups():
    rows = [{"event_time": EPOCH, "event_type": t, "user_id": t} for t in ("a", None, "b", "a", None)]
    batch, windows = events(rows), METRICS["events_per_minute"]
    codes = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3, None], pa.int32()), ["a", None, "b", "a"])
    expected = aggregate([batch], windows)
    assert expected["events"].to_pylist() == [2, 1, 2]
    assert expected["unique_users"].to_pylist() == [1, 1, 0]
    for variant in (
        replace(batch, {"event_type": codes, "user_id": codes}),
        replace(batch, {"event_type": batch["event_type"].dictionary_decode()}),
        events([rows[0], *rows]).slice(1),
    ):
        assert aggregate([variant], windows).equals(expected)
        assert aggregate([variant.slice(0, 2), variant.slice(2)], windows).equals(expected)


def test_types_of_the_result():
    table = aggregate([events([])], METRICS["revenue_per_minute"])
    assert table.num_rows == 0
    fields = {f.name: f.type for f in table.schema}
    assert fields == {
        "window_start": TIME,
        "window_end": TIME,
        "event_type": ENRICHED_SCHEMA.field("event_type").type,
        "currency": ENRICHED_SCHEMA.field("currency").type,
        "events": pa.int64(),
        "unique_users": pa.int64(),
        "revenue": MONEY,
    }
    rows = [{"event_time": EPOCH, "revenue": Decimal(1), "event_type": "purchase"}]
    assert aggregate([events(rows)], METRICS["revenue_per_minute"]).schema == table.schema


def test_windows_before_1970_start_at_the_floor():
    before = EPOCH - timedelta(microseconds=1)
    table = aggregate([events([{"event_time": before}, {"event_time": EPOCH}])], METRICS["events_per_minute"])
    assert table["window_start"].to_pylist() == [EPOCH - MINUTE, EPOCH]
    assert table["window_end"].to_pylist() == [EPOCH, EPOCH + MINUTE]


def test_sums_to_the_last_of_38_digits_and_not_beyond():
    windows = Windows(by=(), measures={"sum": Sum("revenue")})
    rows = [{"event_time": EPOCH, "revenue": v} for v in (BIG, BIG.copy_negate(), BIG)]
    assert aggregate([events(rows)], windows)["sum"].to_pylist() == [BIG]
    tiny = {"event_time": EPOCH, "revenue": Decimal("0.000000001")}
    for batches in (
        [events([rows[0], tiny])],
        [events([rows[0]]), events([tiny])],
        [events([rows[0]] * 200)],
    ):
        with pytest.raises(OverflowError, match="measure 'sum': a sum has more than 38 digits"):
            aggregate(batches, windows)


def test_a_partial_stays_small_and_crosses_a_shuffle():
    rows = [{"event_time": EPOCH, "event_type": "t", "user_id": f"{i % 1000:032x}"} for i in range(5000)]
    windows = METRICS["events_per_minute"]
    part = partial(events(rows), windows)
    assert part.num_rows == 1
    assert part.nbytes < 1000 * 16 + 200
    merged = merge([part, partial(events(rows[:700]), windows)], windows)
    assert merged.nbytes == part.nbytes
    coder = RecordBatchCoder()
    again = coder.decode(coder.encode(merged.slice(0, 1)))
    assert finish(again, windows).to_pylist() == finish(merged, windows).to_pylist()
    assert finish(merged, windows)["unique_users"].to_pylist() == [1000]


def test_hashes_that_collide_in_64_bits_stay_distinct(monkeypatch):
    monkeypatch.setattr(
        "headrace.transforms.window_partials.mix64", lambda values, seed: np.zeros_like(values)
    )
    monkeypatch.setattr(
        "headrace.transforms.window_partials.xxh3_128_digest",
        lambda text: bytes(8) + len(text).to_bytes(4, "big") + text[:4].ljust(4),
    )
    windows = Windows(by=("event_type",), measures={"users": Distinct("user_id")})
    rows = [{"event_time": EPOCH, "event_type": t, "user_id": u} for t in "ab" for u in ("x", "xx", "y")]
    table = aggregate([events(rows), events(rows[:4]), events(rows[3:])], windows)
    assert table["users"].to_pylist() == [3, 3]


def test_many_groups_are_told_apart_without_overflow():
    names = tuple(f"c{i}" for i in range(8))
    values = {n: pa.array([f"{j}" for j in range(300)]) for n in names}
    batch = pa.RecordBatch.from_pydict({"event_time": pa.array([EPOCH] * 300, TIME), **values})
    table = aggregate([batch, batch], Windows(by=names, measures={"n": Count()}))
    assert table.num_rows == 300
    assert set(table["n"].to_pylist()) == {2}


def test_integer_and_boolean_groups_and_columns_all_null_in_one_batch():
    windows = Windows(
        by=("http_status", "is_bot", "tier"), measures={"n": Count(), "tiers": Distinct("tier")}
    )
    rows = [
        {"event_time": EPOCH, "http_status": s, "is_bot": b}
        for s, b in ((200, True), (404, None), (None, False))
    ]
    one = replace(events(rows), {"tier": pa.array(["x", None, None])})
    none = replace(events(rows), {"tier": pa.nulls(3)})
    found = aggregate([one, none], windows).to_pylist()
    assert [(r["http_status"], r["is_bot"], r["tier"], r["n"], r["tiers"]) for r in found] == [
        (200, True, "x", 1, 1),
        (200, True, None, 1, 0),
        (404, None, None, 2, 0),
        (None, False, None, 2, 0),
    ]


def test_a_missing_column_is_refused_and_says_what_adds_it():
    batch = events([{"event_time": EPOCH}]).select(["event_time", "event_type", "user_id"])
    with pytest.raises(ConfigError, match=r"windows over \['revenue'\].*Enrich adds revenue"):
        partial(batch, Windows())


def test_floats_are_not_summed():
    batch = replace(events([{"event_time": EPOCH}]), {"revenue": pa.array([1.5])})
    with pytest.raises(ConfigError, match=r"Sum\('revenue'\): the column is double"):
        partial(batch, Windows())


def test_a_row_without_time_is_refused():
    with pytest.raises(ValueError, match="no event_time"):
        partial(events([{}]), Windows())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": timedelta(0)}, "size=.*above zero"),
        ({"size": timedelta(microseconds=1500)}, "must be whole milliseconds"),
        ({"size": 60}, "size=60: must be a timedelta"),
        ({"by": "event_type"}, r"by='event_type': must be a tuple.*\('event_type',\)"),
        ({"measures": {}}, "measures={}: name at least one"),
        ({"measures": {"n": "count"}}, r"measures\['n'\]='count': must be Count\(\)"),
        ({"by": ("n",), "measures": {"n": Count()}}, r"\['n'\] would be columns twice"),
        ({"measures": {"pane": Count()}}, r"\['pane'\] would be columns twice"),
    ],
)
def test_bad_definitions_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Windows(**arguments)
