"""Attribution against fractions in plain Python and DuckDB's ASOF join; money is conserved to the last unit."""

import doctest
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from fractions import Fraction

import apache_beam as beam
import duckdb
import pyarrow as pa
import pytest
from apache_beam.transforms.window import FixedWindows
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import CODE, ENRICHED_SCHEMA, MONEY
from headrace.schemas.errors import ConfigError
from headrace.transforms import attribute as module
from headrace.transforms.attribute import CREDITS, MODELS, Attribute, Attribution, attribute
from headrace.transforms.batches import plain, replace

from .collect import Batches, collect

START = datetime(2024, 5, 1, tzinfo=UTC)
SECOND, MICRO = timedelta(seconds=1), timedelta(microseconds=1)
UNIT = Decimal("0.000000001")
BIG = Decimal("9" * 29 + ".999999999")
EXACT = Context(prec=80)
COLUMNS = ("event_id", "event_time", "user_id", "event_type", "order_id", "currency", "revenue")
SCHEMA = pa.schema([*(ENRICHED_SCHEMA.field(n) for n in COLUMNS), pa.field("channel", CODE)])


def events(rows: list[dict]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def touch(second: float, channel: str | None = "email", user: str | None = "u", **more: object) -> dict:
    time = START + timedelta(seconds=second)
    return {"user_id": user, "event_time": time, "channel": channel, "event_id": f"t{second}", **more}


def buy(second: float, revenue: str | Decimal = "10", user: str | None = "u", **more: object) -> dict:
    row = touch(second, None, user, revenue=Decimal(revenue), order_id=f"o{second}", currency="EUR")
    return row | {"event_id": f"z{second}", **more}


def units(money: Decimal) -> int:
    return int(EXACT.scaleb(money, 9))


def credited(rows: list[dict], **arguments: object) -> list[tuple]:
    found = attribute(events(rows), Attribution(**arguments)).to_pylist()
    return [(r["touch_id"], r["channel"], r["weight"], r["revenue"]) for r in found]


def ideal(model: str, ages: list[timedelta], half_life: timedelta) -> list[Fraction]:
    """The weights of one conversion, from the oldest touch to the newest, as the docstrings say."""
    n = len(ages)
    if model == "position" and n > 2:
        return [Fraction(2, 5), *[Fraction(1, 5 * (n - 2))] * (n - 2), Fraction(2, 5)]
    if model != "time_decay":
        return [Fraction(1)] * n
    weights = []
    for age in ages:
        halves, rest = divmod(age - ages[-1], half_life)
        with localcontext() as context:
            context.prec = 60
            power = Decimal(2) ** (33 - Decimal(rest // MICRO) / Decimal(half_life // MICRO))
            weights.append(Fraction(int(power.to_integral_value(ROUND_HALF_EVEN)) >> halves))
    return weights


def oracle(rows: list[dict], definition: Attribution) -> list[dict]:
    key = lambda r: (r["event_time"], r["event_id"])  # noqa: E731
    found = []
    for bought in sorted((r for r in rows if r.get("revenue") is not None), key=key):
        own = [
            r
            for r in sorted(rows, key=key)
            if r["user_id"] == bought["user_id"] is not None
            and r["channel"] not in (None, "direct")
            and key(r) <= key(bought)
            and bought["event_time"] - r["event_time"] <= definition.lookback
        ]
        if definition.model == "last":
            own = own[-1:]
        elif definition.model == "first":
            own = own[:1]
        own = own[-definition.max_touches :]
        credit = {n: bought[n] for n in ("event_id", "event_time", "order_id", "currency")}
        if not own:
            nothing = {"touch_id": None, "touch_time": None, "channel": "direct", "weight": 1.0}
            found.append(credit | nothing | {"revenue": bought["revenue"]})
            continue
        weights = ideal(
            definition.model, [bought["event_time"] - r["event_time"] for r in own], definition.half_life
        )
        whole = units(bought["revenue"])
        shares = [abs(whole) * w / sum(weights) for w in weights]
        parts = [int(s) for s in shares]
        by_rest = sorted(range(len(own)), key=lambda i: (parts[i] - shares[i], i))
        for i in by_rest[: abs(whole) - sum(parts)]:
            parts[i] += 1
        for touched, weight, part in zip(own, weights, parts, strict=True):
            sign = -1 if whole < 0 else 1
            names = ("event_id", "event_time", "channel")
            values = dict(
                zip(("touch_id", "touch_time", "channel"), (touched[n] for n in names), strict=True)
            )
            money = EXACT.scaleb(Decimal(sign * part), -9)
            found.append(credit | values | {"weight": float(weight / sum(weights)), "revenue": money})
    return found


EVENT = st.tuples(
    st.sampled_from(["u", "u", "v", None]),
    st.integers(0, 20_000_000) | st.integers(0, 20).map(lambda s: s * 1_000_000),
    st.sampled_from([None, "email", "paid_search", "direct"]),
    st.none()
    | st.sampled_from([Decimal(0), UNIT, -UNIT, Decimal("100"), BIG.copy_negate(), BIG])
    | st.decimals(-1000, 1000, places=9),
    st.integers(0, 999),
)


def rows_of(drawn: list[tuple]) -> list[dict]:
    names = ("user_id", "event_time", "channel", "revenue", "event_id", "order_id", "currency")
    rows = [
        (u, START + timedelta(microseconds=t), c, m, f"{i:03}", f"o{i}", "EUR") for u, t, c, m, i in drawn
    ]
    return [dict(zip(names, row, strict=True)) for row in rows]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(EVENT, max_size=14, unique_by=lambda e: e[4]),
    st.sampled_from(MODELS),
    st.sampled_from([10, 3, 0.7, 0.01]),
    st.sampled_from([1, 2, 3, 1000]),
    st.randoms(use_true_random=False),
)
def test_credits_are_those_of_plain_python_in_any_order(drawn, model, half_life, most, shuffle):
    rows = rows_of(drawn)
    definition = Attribution(model, 10 * SECOND, timedelta(seconds=half_life), max_touches=most)
    table = attribute(events(rows), definition)
    assert table.to_pylist() == oracle(rows, definition)
    shuffle.shuffle(rows)
    assert attribute(events(rows), definition).equals(table)


@settings(max_examples=20, deadline=None)
@given(st.lists(EVENT, max_size=40, unique_by=lambda e: e[1]))
def test_the_last_touch_is_that_of_duckdbs_asof_join(drawn):
    rows = [r | {"event_id": f"{i}"} for i, r in enumerate(rows_of(drawn))]
    batch = events(rows)
    duckdb.register("e", pa.table([plain(c) for c in batch.columns], names=batch.schema.names))
    expected = duckdb.sql(
        """select c.event_id,
              if(c.event_time - t.event_time <= interval 10 seconds, t.channel, 'direct') channel, c.revenue
           from (from e where revenue is not null) c
           asof left join (from e where channel <> 'direct' and user_id is not null) t
           on c.user_id = t.user_id and c.event_time >= t.event_time order by c.event_time"""
    ).fetchall()
    found = attribute(batch, Attribution(lookback=10 * SECOND)).select(["event_id", "channel", "revenue"])
    assert [tuple(r.values()) for r in found.to_pylist()] == [(i, c or "direct", m) for i, c, m in expected]


def test_the_models_by_hand():
    rows = [touch(i, c) for i, c in enumerate("abcd")] + [buy(10, "100")]
    parts = {m: [(c, float(r)) for _, c, _, r in credited(rows, model=m)] for m in MODELS}
    assert parts["last"] == [("d", 100)]
    assert parts["first"] == [("a", 100)]
    assert parts["linear"] == [(c, 25) for c in "abcd"]
    assert parts["position"] == [("a", 40), ("b", 10), ("c", 10), ("d", 40)]
    halves = credited(rows, model="time_decay", half_life=SECOND)
    assert [w for *_, w, _ in halves] == [1 / 15, 2 / 15, 4 / 15, 8 / 15]
    assert halves[0][-1] == Decimal("6.666666667")
    assert [(c, float(r)) for _, c, _, r in credited([*rows[2:]], model="position")] == [("c", 50), ("d", 50)]
    assert [(c, float(r)) for _, c, _, r in credited(rows[3:], model="position")] == [("d", 100)]


def test_units_that_are_left_go_to_the_largest_remainders_and_else_to_the_earlier_touch():
    touches = [touch(i, c) for i, c in enumerate("abc")]
    for sign in (1, -1):
        parts = [r for *_, r in credited([*touches, buy(9, sign * 2 * UNIT)], model="linear")]
        assert parts == [sign * UNIT, sign * UNIT, 0]
        parts = [r for *_, r in credited([*touches, buy(9, sign * UNIT)], model="position")]
        assert parts == [sign * UNIT, 0, 0]
        parts = [
            r for *_, r in credited([*touches, buy(9, sign * UNIT)], model="time_decay", half_life=SECOND)
        ]
        assert parts == [0, 0, sign * UNIT]


@pytest.mark.parametrize("model", ["linear", "position", "time_decay"])
def test_the_largest_revenue_over_the_most_touches_is_conserved(model):
    rows = [touch(i / 1000) for i in range(10_050)]
    rows += [buy(11, BIG), buy(12, BIG.copy_negate()), buy(13, "-0.000000007"), buy(14, "0")]
    table = attribute(events(rows), Attribution(model, half_life=SECOND, max_touches=10_000))
    assert table.num_rows == 40_000
    total = defaultdict(int)
    for order, money in zip(table["order_id"].to_pylist(), table["revenue"].to_pylist(), strict=True):
        total[order] += units(money)
    assert total == {"o11": units(BIG), "o12": -units(BIG), "o13": -7, "o14": 0}
    assert min(table["touch_time"].to_pylist()) == START + timedelta(milliseconds=50)


def test_decay_is_the_textbooks_and_a_touch_34_half_lives_older_gets_nothing():
    rows = [touch(i * 0.37, "x") for i in range(40)] + [buy(20)]
    weights = [w for *_, w, _ in credited(rows, model="time_decay", half_life=3 * SECOND)]
    ideals = [2 ** (-(20 - i * 0.37) / 3) for i in range(40)]
    assert weights == pytest.approx([w / sum(ideals) for w in ideals], abs=1e-9)
    old = credited(
        [touch(0, "a"), touch(33, "b"), touch(34, "c"), buy(50)], model="time_decay", half_life=SECOND
    )
    assert [(c, w > 0) for _, c, w, _ in old] == [("a", False), ("b", True), ("c", True)]


def test_lookback_counts_to_its_last_microsecond():
    for more, channel in ((0, "email"), (1, "direct")):
        late = buy(0) | {"event_time": START + 30 * timedelta(days=1) + more * MICRO}
        assert [c for _, c, *_ in credited([touch(0), late])] == [channel]


def test_a_touch_is_not_after_its_conversion_in_the_order_of_time_and_id():
    assert [t for t, *_ in credited([touch(1, event_id="a"), buy(1, event_id="b")])] == ["a"]
    assert [t for t, *_ in credited([touch(1, event_id="c"), buy(1, event_id="b")])] == [None]
    assert credited([buy(1, channel="email")]) == [("z1", "email", 1.0, 10)]


def test_others_touches_rows_without_key_and_rows_without_channel_do_not_count():
    rows = [touch(0, user="v"), touch(1, user=None), touch(2, None), buy(3), buy(4, user=None)]
    assert [(t, c) for t, c, *_ in credited(rows, model="linear")] == [(None, "direct")] * 2


def test_a_channel_is_derived_where_the_batches_have_none():
    referrer = ["https://www.google.com/", None]
    rows = replace(
        events([touch(0), buy(5)]).drop_columns(["channel"]),
        {"page_url": pa.array(["https://shop.example/", None]), "referrer": pa.array(referrer)},
    )
    assert attribute(rows, Attribution())["channel"].to_pylist() == ["organic_search"]


def test_touches_can_be_conditions():
    rows = [touch(0, "a", event_type="ad_click"), touch(1, "b", event_type="page_view"), buy(2)]
    rows.append(touch(1.5, None, event_type="ad_click"))
    assert [c for _, c, *_ in credited(rows, touches={"event_type": "ad_click"})] == ["a"]
    assert [c for _, c, *_ in credited(rows, touches={"channel": ["x", "y"]})] == ["direct"]


def test_encodings_slices_and_integer_revenue_are_the_same_credits():
    rows = [touch(0, "a"), touch(1, "b"), buy(2), buy(3, "-10", user="w")]
    definition = Attribution("linear")
    batch = events(rows)
    expected = attribute(batch, definition)
    assert expected.schema.equals(CREDITS)
    plains = pa.RecordBatch.from_arrays([plain(c) for c in batch.columns], names=batch.schema.names)
    users = batch["user_id"].dictionary_encode()
    whole = pa.array([None, None, 10, -10])
    for variant in (
        plains,
        replace(batch, {"user_id": users, "revenue": whole}),
        events([rows[0], *rows]).slice(1),
    ):
        assert attribute(variant, definition).equals(expected)


def test_batches_without_conversions_or_touches():
    for rows in ([], [touch(0)]):
        table = attribute(events(rows), Attribution("time_decay"))
        assert table.num_rows == 0
        assert table.schema.equals(CREDITS)
    nulls = replace(events([buy(0)]), {"channel": pa.nulls(1), "order_id": pa.nulls(1)})
    assert attribute(nulls, Attribution("time_decay"))["channel"].to_pylist() == ["direct"]
    assert attribute(replace(events([touch(0)]), {"revenue": pa.nulls(1)}), Attribution()).num_rows == 0


def test_copies_of_a_row_do_not_depend_on_the_order():
    rows = [touch(0, c, event_id="t") for c in "ab"] + [buy(0, m, event_id="t") for m in ("1", "2")]
    rows += [dict(rows[3]), touch(0, "c") | {"event_id": None}]
    expected = attribute(events(rows), Attribution())
    for shift in range(len(rows)):
        assert attribute(events(rows[shift:] + rows[:shift]), Attribution()).equals(expected)


ROWS = [
    *(touch(i, "abc"[i % 3], f"u{i % 7}") for i in range(40)),
    *(buy(i + 0.5, f"{i}.99", f"u{i % 7}") for i in range(0, 40, 3)),
    buy(7.25, "-5", None),
]


def credits_of(elements: list) -> Counter:
    return Counter(tuple(r.items()) for e in elements for r in e.value.to_pylist())


@pytest.mark.parametrize(("shards", "windowfn"), [(1, None), (4, FixedWindows(20))], ids=["global", "fixed"])
def test_the_transform_is_the_kernel_however_batches_are_cut(shards, windowfn):
    lost = [touch(0, user=None), buy(1) | {"event_time": None}]
    rows = ROWS + lost
    batches = [(events(rows[i::3]), START.timestamp()) for i in range(3)] + [(events([]), START.timestamp())]

    def build(pipeline):
        read = pipeline | Batches(batches)
        if windowfn:
            read = read | beam.WindowInto(windowfn)
        return (read | Attribute("position", shards=shards))._asdict()

    found = collect(build)
    parts = [ROWS]
    if windowfn:
        middle = START + 20 * SECOND
        parts = [[r for r in ROWS if (r["event_time"] < middle) is first] for first in (True, False)]
    expected = Counter()
    for part in parts:
        table = attribute(events(part), Attribution("position"))
        expected += Counter(tuple(r.items()) for r in table.to_pylist())
    assert credits_of(found["accepted"]) == expected
    for element in found["accepted"]:
        assert element.micros / 1e6 == min(element.value["event_time"].to_pylist()).timestamp()
    total = sum(m * r["revenue"] for c, m in credits_of(found["accepted"]).items() for r in [dict(c)])
    assert total == sum(r["revenue"] for r in ROWS if "revenue" in r)
    reasons = [(r["stage"], r["reason"]) for e in found["rejected"] for r in e.value.to_pylist()]
    assert sorted(reasons) == [("attribute", "no_key"), ("attribute", "no_time")]


def test_what_travels_is_narrow():
    batch = events([touch(0, "a", event_type="click"), touch(1, None), buy(2)])
    rows = module._narrow(batch, Attribution(touches={"event_type": "view"}))
    assert rows.schema.names == [
        "user_id", "event_time", "event_id", "order_id", "currency", "revenue", "_channel",
    ]  # fmt: skip
    assert rows["event_id"].to_pylist() == ["z2"]


def test_input_that_gives_no_exact_result_is_refused():
    floats = replace(events([buy(0)]), {"revenue": pa.array([1.5])})
    with pytest.raises(ConfigError, match="revenue is double; it must be decimal or integer"):
        attribute(floats, Attribution())
    with pytest.raises(
        ConfigError, match=r"attribution over \['page_url', 'referrer'\]: the batches have no such"
    ):
        attribute(events([]).drop_columns(["channel"]), Attribution())
    with pytest.raises(ValueError, match="no event_time"):
        attribute(events([buy(0) | {"event_time": None}]), Attribution())
    assert events([])["revenue"].type == MONEY


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "data_driven"}, "model='data_driven': must be one of last, first"),
        ({"lookback": timedelta(0)}, "lookback=.*above zero"),
        ({"half_life": timedelta(days=40_000)}, "half_life=.*of at most 36500 days"),
        ({"touches": {}}, "touches={}: name at least one"),
        ({"touches": {"channel": []}}, "touches.channel is empty"),
        ({"by": "user_id"}, "by='user_id': must be a tuple"),
        ({"max_touches": 0}, "max_touches=0: must be a whole number from 1 to 10000"),
        ({"max_touches": True}, "max_touches=True"),
        ({"shards": 2000}, r"Attribute\(shards=2000\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Attribute(**arguments)


def test_documented_examples_run():
    assert doctest.testmod(module, raise_on_error=True).attempted == 1
