"""Windows as mergeable partial tables, against plain Python."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from headrace.schemas.columns import ENRICHED_SCHEMA, MONEY, TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import replace
from headrace.transforms.coders import RecordBatchCoder
from headrace.transforms.grouping import Rows
from headrace.transforms.ready_windows import METRICS
from headrace.transforms.window_definitions import (
    Count,
    Distinct,
    Max,
    Mean,
    Min,
    Quantiles,
    Ratio,
    Sum,
    Top,
    Windows,
)
from headrace.transforms.window_partials import finish, merge, partial

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
BIG = Decimal("9" * 29 + ".999999999")
EXACT = Context(prec=80)


def events(rows: list[dict]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=ENRICHED_SCHEMA)


def aggregate(batches: list[pa.RecordBatch], windows: Windows) -> pa.Table:
    return finish(merge([partial(b, windows) for b in batches], windows), windows)


def holds(row: dict, where) -> bool:
    return all(
        row.get(name) is not None if values == ("*",) else row.get(name) in values for name, values in where
    )


def starts(time: datetime, windows: Windows) -> list[datetime]:
    every = windows.every or windows.size
    start = EPOCH + (time - EPOCH) // every * every
    found = []
    while start + windows.size > time:
        found.append(start)
        start -= every
    return found


def measured(measure, members: list[dict], name: str) -> dict:
    """The measure in plain Python, by its definition."""
    chosen = [m for m in members if holds(m, measure.where)]
    if isinstance(measure, Count):
        return {name: len(chosen)}
    values = [m[measure.column] for m in chosen if m.get(measure.column) is not None]
    if isinstance(measure, Distinct):
        return {name: len(set(values)), f"{name}_error": 0.0}
    if isinstance(measure, Min | Max):
        return {name: (min if isinstance(measure, Min) else max)(values, default=None)}
    if isinstance(measure, Quantiles):
        values.sort()
        ranks = [-(-len(values) * round(q * 100) // 100) for q in measure.q]
        told = [values[rank - 1] if values else None for rank in ranks]
        return {f"{name}_p{round(q * 100)}": v for q, v in zip(measure.q, told, strict=True)}
    total = None
    for value in values:
        total = EXACT.add(total or Decimal(0), Decimal(value))
    if isinstance(measure, Mean) and total is not None:
        total = EXACT.divide(total, len(values)).quantize(Decimal("1e-9"), ROUND_HALF_EVEN, EXACT)
    return {name: total}


def oracle(rows: list[dict], windows: Windows) -> list[dict]:
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for row in rows:
        if holds(row, windows.where):
            for start in starts(row["event_time"], windows):
                groups[(start, *(row.get(n) for n in windows.by))].append(row)
    found = []
    for (start, *by), members in groups.items():
        result = {"window_start": start, "window_end": start + windows.size}
        result |= dict(zip(windows.by, by, strict=True))
        for name, measure in windows.measures.items():
            if isinstance(measure, Ratio):
                over, under = result[measure.numerator], result[measure.denominator]
                result[name] = float(over) / float(under) if under else None
            else:
                result |= measured(measure, members, name)
        found.append(result)

    def key(names):
        names = tuple(names)
        return lambda r: [(r[n] is None, r[n]) for n in names]

    if windows.top is None:
        return sorted(found, key=key(("window_start", *windows.by)))
    top, kept = windows.top, []
    apart = ("window_start", *top.within)
    found.sort(key=key(n for n in windows.by if n not in top.within))
    found.sort(key=lambda r: (r[top.measure] is None, -(r[top.measure] or 0)))
    found.sort(key=key(apart))
    ranks: dict[tuple, int] = defaultdict(int)
    for row in found:
        group = tuple(row[n] for n in apart)
        ranks[group] += 1
        if ranks[group] <= top.k:
            kept.append(row | {"rank": ranks[group]})
    return kept


def require_equal(table: pa.Table, expected: list[dict], windows: Windows) -> None:
    """Equal in all columns; a quantile may be 0.4 % off."""
    near = {c for n, m in windows.measures.items() if isinstance(m, Quantiles) for c in windows.names_of(n)}
    found = table.to_pylist()
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert {n: v for n, v in one.items() if n not in near} == {
            n: v for n, v in other.items() if n not in near
        }
        for name in near:
            if other[name] is None:
                assert one[name] is None
            else:
                assert one[name] == pytest.approx(float(other[name]), rel=0.004, abs=0)


ROW = st.fixed_dictionaries(
    {"event_time": st.integers(-200, 200).map(lambda s: EPOCH + timedelta(seconds=s, microseconds=-1))},
    optional={
        "event_type": st.sampled_from(["", "click", "purchase"]),
        "currency": st.sampled_from(["EUR", "USD"]),
        "user_id": st.sampled_from(["", "u", "v", "w" * 32]),
        "revenue": st.decimals(-(10**20), 10**20, places=9),
        "quantity": st.integers(-(2**63), 2**63 - 1),
        "event_category": st.sampled_from(["browse", "conversion"]),
        "product_id": st.sampled_from(["p", "q"]),
        "country": st.sampled_from(["DE", "AT"]),
    },
)
MEASURES = {
    "n": Count(),
    "clicks": Count({"event_type": "click"}),
    "users": Distinct("user_id"),
    "types": Distinct("event_type"),
    "buyers": Distinct("user_id", {"event_type": "purchase"}),
    "money": Sum("revenue"),
    "paid": Sum("revenue", {"event_type": ["purchase", None]}),
    "units": Sum("quantity"),
    "mean": Mean("revenue"),
    "mean_units": Mean("quantity", {"currency": "EUR"}),
    "least": Min("revenue"),
    "most": Max("quantity", {"event_type": "click"}),
    "first": Min("event_time"),
    "spread": Quantiles("revenue", (0.05, 0.5, 0.99)),
    "rate": Ratio("buyers", "users"),
}
EVERYTHING = Windows(timedelta(seconds=7), ("currency", "event_type"), MEASURES)
SECOND = timedelta(seconds=1)
DEFINITIONS = [
    EVERYTHING,
    Windows(12 * SECOND, ("currency",), MEASURES, every=4 * SECOND),
    Windows(10 * SECOND, (), MEASURES, where={"event_type": "*"}, every=4 * SECOND),
    Windows(MINUTE, ("currency", "event_type"), MEASURES, top=Top(2, "money", ("currency",))),
    Windows(MINUTE, ("user_id",), MEASURES, every=20 * SECOND, top=Top(1, "n")),
    *METRICS.values(),
    Windows(by=(), measures={"n": Count()}),
]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(ROW, max_size=30),
    st.integers(1, 9),
    st.sampled_from(DEFINITIONS),
    st.randoms(use_true_random=False),
)
def test_any_cut_order_and_merge_shape_equals_plain_python(rows, size, windows, shuffle):
    expected = oracle(rows, windows)
    whole = aggregate([events(rows)], windows)
    require_equal(whole, expected, windows)
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
        "unique_users_error": pa.float64(),
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
    monkeypatch.setattr("headrace.transforms.measures.mix64", lambda values, seed: np.zeros_like(values))
    monkeypatch.setattr(
        "headrace.transforms.grouping.xxh3_128_digest",
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
        ({"measures": {"n": "count"}}, r"measures\['n'\]='count': must be one of Count"),
        ({"by": ("n",), "measures": {"n": Count()}}, r"\['n'\] would be columns twice"),
        ({"measures": {"pane": Count()}}, r"\['pane'\] would be columns twice"),
        ({"measures": {"u": Distinct("a"), "u_error": Count()}}, r"\['u_error'\] would be columns twice"),
        ({"measures": {"u": Distinct("a", exact=3)}}, "exact=3 must be a whole number of 16"),
        ({"measures": {"q": Quantiles("a", (50,))}}, "must be numbers between 0 and 1"),
        ({"measures": {"r": Ratio("n", "m"), "n": Count()}}, "'m' is no count, distinct"),
        ({"measures": {"n": Count("click")}}, r"measures\['n'\].where is 'click'"),
        ({"where": "revenue"}, "where is 'revenue'; write columns"),
        ({"every": timedelta(minutes=2)}, "every=.* is longer than size"),
        ({"every": timedelta(milliseconds=7)}, "windows of 60000 panes of 0.001 s; at most 1440"),
        ({"top": Top(0, "events")}, "k=0 must be a whole number"),
        ({"top": Top(3, "money")}, "top: 'money' is no count"),
        ({"top": Top(3, "events", ("event_type",))}, "must be some of by=.*, not all"),
    ],
)
def test_bad_definitions_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Windows(**arguments)


@pytest.mark.parametrize("cuts", [1, 7])
def test_an_estimate_beyond_the_exact_size_is_near_and_does_not_depend_on_the_cut(cuts):
    exact, users = 1024, 20_000
    windows = Windows(by=("event_type",), measures={"users": Distinct("user_id", exact=exact)})
    names = np.array([f"{i:08x}" for i in range(users)])
    shuffled = np.random.default_rng(3).permutation(np.r_[names, names[: users // 2]])
    some = [{"event_time": EPOCH, "event_type": "few", "user_id": n} for n in names[:exact]]
    rows = [{"event_time": EPOCH, "event_type": "many", "user_id": n} for n in shuffled] + some
    size = -(-len(rows) // cuts)
    parts = [partial(events(rows[i : i + size]), windows) for i in range(0, len(rows), size)]
    merged = merge(parts, windows)
    few, many = finish(merged, windows).to_pylist()
    assert (few["users"], few["users_error"]) == (exact, 0.0)
    hashes = sorted(int.from_bytes(xxh3_128_digest(n.encode())[:8], "little") for n in names)
    assert many["users"] == round(exact * 2**64 / (hashes[exact] + 1))
    assert many["users_error"] == pytest.approx(1.96 / 1023**0.5)
    assert abs(many["users"] - users) / users < many["users_error"]
    assert merged.nbytes < 2 * (exact + 1) * 16 + 300


def test_estimates_keep_their_error_bound():
    windows = Windows(by=("product_id",), measures={"users": Distinct("user_id", exact=64)})
    rows = [
        {"event_time": EPOCH, "product_id": f"{g}", "user_id": f"{g}/{i}"}
        for g in range(200)
        for i in range(700)
    ]
    found = aggregate([events(rows)], windows)
    off = np.abs(found["users"].to_numpy() / 700 - 1)
    within = (off < found["users_error"].to_numpy()).mean()
    assert 0.9 < within < 1.0  # 95 of 100 are to be.


def test_quantiles_of_negative_zero_tiny_and_huge_values():
    values = [Decimal("-1e28"), Decimal("-0.000000001"), Decimal(0), Decimal("0.000000001"), Decimal("1e28")]
    rows = [{"event_time": EPOCH, "revenue": v} for v in values]
    windows = Windows(by=(), measures={"v": Quantiles("revenue", (0.2, 0.4, 0.6, 0.8, 0.999))})
    (found,) = aggregate([events(rows)], windows).to_pylist()
    told = [found[n] for n in ("v_p20", "v_p40", "v_p60", "v_p80", "v_p99_9")]
    assert told == pytest.approx([float(v) for v in values], rel=0.004, abs=0)


def test_several_definitions_share_what_is_computed_of_a_batch():
    rows = [{"event_time": EPOCH + i * SECOND, "user_id": f"{i % 7}"} for i in range(100)]
    batch = events(rows)
    shared = Rows(batch)
    for windows in METRICS.values():
        assert partial(shared, windows).equals(partial(batch, windows))
