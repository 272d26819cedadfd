"""Rules: what matches is rejected with its name, what can't be a rule is refused."""

import pickle
import re
from datetime import UTC, datetime
from decimal import Decimal

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import CODE, ENRICHED_SCHEMA, MONEY, QUARANTINE_SCHEMA
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import conform
from headrace.transforms.filter_events import BUSINESS_RULES, FilterEvents, FilterKernel
from headrace.transforms.filter_rules import connect


def build(rules: dict[str, str], **options: object) -> FilterKernel:
    made = FilterEvents(rules, **options).kernel()  # type: ignore[arg-type]
    made.setup()
    assert isinstance(made, FilterKernel)
    return made


def events(rows: int, **columns: pa.Array) -> pa.RecordBatch:
    return conform(columns, ENRICHED_SCHEMA, rows)


def test_first_matching_rule_is_the_reason_and_order_is_kept() -> None:
    kernel = build(
        {"robot": "is_bot", "dull": "event_type = 'page_view' AND country IS NULL", "never": "1 = 2"}
    )
    batch = events(
        6,
        is_bot=pa.array([True, False, None, True, False, None]),
        event_type=pa.array(["click", "page_view", "page_view", "page_view", "page_view", None]),
        country=pa.array([None, None, None, None, "DE", None]),
        page_url=pa.array([f"/{i}" for i in range(6)]),
    )
    accepted, rejected = kernel(batch)
    assert accepted.equals(batch.take(pa.array([4, 5])))
    assert rejected.schema.equals(QUARANTINE_SCHEMA)
    assert rejected.column("reason").to_pylist() == ["robot", "dull", "dull", "robot"]
    assert rejected.column("stage").to_pylist() == ["filter"] * 4
    assert rejected.column("page_url").to_pylist() == ["/0", "/1", "/2", "/3"]
    assert kernel.counts == {}


def test_business_rule() -> None:
    kernel = build(dict(BUSINESS_RULES), stage="rules")
    assert kernel.name == "rules"
    batch = events(
        5,
        event_type=pa.array(["purchase", "purchase", "purchase", "click", None]),
        price=pa.array([Decimal("0.000000001"), Decimal(0), None, Decimal(0), Decimal(-1)], MONEY),
    )
    accepted, rejected = kernel(batch)
    assert accepted.num_rows == 4
    assert rejected.select(["stage", "reason", "price"]).to_pylist() == [
        {"stage": "rules", "reason": "purchase_price_not_positive", "price": Decimal("0E-9")}
    ]


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        ("amount = 0.1", ["0.1", "0.100000001", "0.099999999"]),
        (
            "amount > 9007199254740992.5",
            ["9007199254740992.500000001", "9007199254740992.5", "9007199254740993"],
        ),
        (
            "amount >= 12345678901234567890.123456789",
            ["12345678901234567890.123456789", "12345678901234567890.123456788"],
        ),
        ("price * quantity > 0.3", ["0.3", "0.1", "0.100000001"]),
        ("amount IN (0.1, 5)", ["0.1", "5", "5.000000001"]),
        ("amount BETWEEN -1 AND 1", ["-1", "1", "1.000000001"]),
    ],
)
def test_money_compares_exactly(rule: str, values: list[str]) -> None:
    money = [Decimal(v) for v in values]
    array = pa.array(money, MONEY)
    batch = events(len(money), amount=array, price=array, quantity=pa.array([3] * len(money)))
    python = re.sub(r"(?<![\w.])(-?\d+(?:\.\d+)?)", r"Decimal('\1')", rule)
    python = python.replace("price * quantity", "amount * 3").replace(" = ", " == ").replace(" IN ", " in ")
    python = re.sub(r"amount BETWEEN (\S+) AND (\S+)", r"\1 <= amount <= \2", python)
    expected = [not eval(python, {"amount": m, "Decimal": Decimal}) for m in money]
    assert build({"r": rule})(batch).accepted.column("amount").to_pylist() == [
        m for m, keep in zip(money, expected, strict=True) if keep
    ]
    assert len(set(expected)) == 2


def test_times_are_utc_whatever_the_machine_thinks() -> None:
    times = pa.array([datetime(2026, 1, 1, 23, 30, tzinfo=UTC), datetime(2026, 1, 2, 0, 30, tzinfo=UTC)])
    kernel = build({"late": "hour(event_time) = 23 AND event_time::DATE = DATE '2026-01-01'"})
    assert kernel(events(2, event_time=times)).rejected.num_rows == 1


def test_any_batch_is_accepted() -> None:
    kernel = build({"r": "event_type = 'click' AND quantity IS NULL"})
    for type_ in (pa.string(), CODE, pa.dictionary(pa.int8(), pa.large_string())):
        codes = pa.array(["click", None, "x", "click"]).dictionary_encode()
        array = codes.dictionary_decode().cast(type_) if not pa.types.is_dictionary(type_) else pa.DictionaryArray.from_arrays(
            codes.indices.cast(type_.index_type), codes.dictionary.cast(type_.value_type)
        )  # fmt: skip
        batch = pa.RecordBatch.from_arrays([array, pa.array(range(4))], names=["event_type", "other"])
        accepted, rejected = kernel(batch)
        assert accepted.to_pydict() == {"event_type": [None, "x"], "other": [1, 2]}
        assert accepted.schema.equals(batch.schema)
        assert rejected.num_rows == 2
        assert kernel(batch.slice(2, 2)).accepted.to_pydict() == {"event_type": ["x"], "other": [2]}
        assert kernel(batch.slice(4)).accepted.num_rows == 0
    assert kernel(pa.RecordBatch.from_pydict({"other": [1]})).accepted.num_rows == 1
    assert kernel(pa.RecordBatch.from_pydict({"event_type": pa.nulls(2)})).accepted.num_rows == 2
    assert build({"all": "true"})(batch).rejected.num_rows == 4
    assert build({})(batch).accepted.equals(batch)


KINDS = st.sampled_from(["a", "b", None])


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(KINDS, st.none() | st.integers(-2, 2)), max_size=30))
def test_rules_against_a_loop(rows: list[tuple[str | None, int | None]]) -> None:
    batch = events(
        len(rows),
        event_type=pa.array([k for k, _ in rows], pa.string()),
        quantity=pa.array([q for _, q in rows], pa.int64()),
        origin_position=pa.array(range(len(rows)), pa.int64()),
    )
    accepted, rejected = SHARED(batch)
    expected = [
        "first"
        if k == "a" and q is not None and q > 0
        else "second"
        if q is not None and abs(q) == 2
        else None
        for k, q in rows
    ]
    assert accepted.column("origin_position").to_pylist() == [i for i, r in enumerate(expected) if r is None]
    assert rejected.column("reason").to_pylist() == [r for r in expected if r is not None]
    assert rejected.column("origin_position").to_pylist() == [
        i for i, r in enumerate(expected) if r is not None
    ]


SHARED = build({"first": "event_type = 'a' AND quantity > 0", "second": "abs(quantity) = 2"})


def test_a_rule_that_fails_on_a_value_does_not_match_and_is_counted() -> None:
    kernel = build(
        {"big": "CAST(query AS INTEGER) > 5 AND CAST(query AS INTEGER) < 99", "two": "quantity = 2"}
    )
    batch = events(4, query=pa.array(["9", "x", None, "oops"]), quantity=pa.array([2, 2, 2, 1]))
    accepted, rejected = kernel(batch)
    assert rejected.column("reason").to_pylist() == ["big", "two", "two"]
    assert accepted.column("query").to_pylist() == ["oops"]
    assert kernel.counts == {"rule_errors": 2}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("event_typ = 'x'", "names column 'event_typ', which events don't have; did you mean 'event_type'?"),
        ("current_date = event_date", "names column 'current_date'"),
        ("events.price > 1", "names column 'events.price'"),
        ("price", "is of type DECIMAL(38,9); a rule needs BOOLEAN"),
        ("NULL", "a rule needs BOOLEAN"),
        ("price >", "is no SQL expression: syntax error"),
        ("", "is no SQL expression"),
        ("true) FROM x WHERE (1=1", "is no SQL expression: syntax error"),
        ("1=1; DROP TABLE x", "is no SQL expression"),
        ("true AS x", "is more than one SQL expression"),
        ("true, false", "is more than one SQL expression"),
        ("true FROM x", "is more than one SQL expression"),
        ("true ORDER BY 1", "is more than one SQL expression"),
        ("*", "is more than one SQL expression"),
        ("price > (SELECT 1)", "has a subquery"),
        ("EXISTS (SELECT 1)", "has a subquery"),
        ("$1 = 2", "has a parameter"),
        ("COLUMNS('.*') IS NULL", "has a star"),
        ("sum(price) > 1", "WHERE clause cannot contain aggregates"),
        ("row_number() OVER () > 1", "WHERE clause cannot contain window functions"),
        ("unnest([true])", "UNNEST not supported here"),
        ("random() > 0.5", "calls random(), whose result differs from run to run"),
        ("now() > event_time", "calls now()"),
        ("ago(INTERVAL 1 DAY) < event_time", "calls ago()"),
        ("age(event_time) > INTERVAL 1 DAY", "calls age()"),
        ("current_setting('threads') = '1'", "calls current_setting()"),
        ("sleep_ms(1) IS NULL", "calls sleep_ms()"),
        ("read_text('/etc/hostname') IS NULL", "is no predicate: Binder Error"),
        ("nope(1)", "Scalar Function with name nope does not exist"),
        ("price > 1e-3", "has the number 1e-3, which would compare money as floating point"),
        ("event_type > 5 + [1]", "is no predicate"),
    ],
)
def test_what_is_no_rule(rule: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        FilterEvents({"fine": "is_bot", "wrong": rule})
    assert "'wrong'" in str(error.value)
    assert message in str(error.value)
    assert "LINE 1" not in str(error.value)


def test_names_and_types_of_rules() -> None:
    with pytest.raises(ConfigError, match="rule name 'No good' is no reason code"):
        FilterEvents({"No good": "is_bot"})
    with pytest.raises(ConfigError, match="rule 'x' is a bool; give a SQL expression"):
        FilterEvents({"x": True})  # type: ignore[dict-item]


def test_rules_may_name_profile_columns_and_end_in_a_comment() -> None:
    schema = ENRICHED_SCHEMA.append(pa.field("profile_tier", CODE))
    kernel = build({"gold": "PROFILE_TIER = 'gold' -- our best"}, schema=schema)
    batch = pa.RecordBatch.from_pydict({"profile_tier": ["gold", "lead"]})
    assert kernel(batch).accepted.to_pydict() == {"profile_tier": ["lead"]}


def test_the_transform_pickles() -> None:
    copy = pickle.loads(pickle.dumps(FilterEvents({"robot": "is_bot"}, stage="mine"))).kernel()
    copy.setup()
    assert copy(pa.RecordBatch.from_pydict({"is_bot": [True]})).rejected.column("stage").to_pylist() == [
        "mine"
    ]


def test_nothing_outside_is_reachable() -> None:
    connection = connect()
    for query in (
        "SELECT * FROM read_text('/etc/hostname')",
        "SET threads = 2",
        "INSTALL httpfs",
        "ATTACH '/tmp/x.db'",
    ):
        with pytest.raises(duckdb.Error):
            connection.execute(query)
