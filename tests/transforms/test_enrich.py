"""Enrich: every derived column against a plain loop, failures counted, layout of the output."""

import decimal
import pickle
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import CODE, ENRICHED_SCHEMA, EVENT_SCHEMA, MONEY
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import conform
from headrace.transforms.enrich import CATEGORIES, Enrich, EnrichKernel, categories
from headrace.transforms.profiles import ProfileTable

CURL = "curl/8.5.0"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:27.0) Gecko/20100101 Firefox/27.0"


@pytest.fixture(scope="module")
def kernel() -> EnrichKernel:
    made = Enrich().kernel()
    made.setup()
    assert isinstance(made, EnrichKernel)
    return made


def enrich(kernel: EnrichKernel, rows: int, **columns: object) -> pa.RecordBatch:
    kernel.counts.clear()
    batch = conform(
        {
            n: c if isinstance(c, pa.Array) else pa.array(c, EVENT_SCHEMA.field(n).type)
            for n, c in columns.items()
        },
        EVENT_SCHEMA,
        rows,
    )
    before = batch.to_pydict()
    accepted, rejected = kernel(batch)
    assert batch.to_pydict() == before
    assert rejected.num_rows == 0
    assert accepted.num_rows == rows
    return accepted


def test_layout_and_what_the_event_states_is_kept(kernel: EnrichKernel) -> None:
    accepted = enrich(
        kernel,
        4,
        device_type=["tv", None, None, None],
        user_agent=[FIREFOX, FIREFOX, CURL, None],
        country=["DE", None, None, None],
        ip_address=["8.8.8.8", "8.8.8.0", "nobody", None],
        event_type=["page_view", "search", "unheard_of", None],
    )
    assert accepted.schema.equals(ENRICHED_SCHEMA)
    got = accepted.to_pydict()
    assert got["device_type"] == ["tv", "desktop", None, None]
    assert got["browser"] == ["Firefox", "Firefox", "curl", None]
    assert got["os"] == ["Linux", "Linux", None, None]
    assert got["is_bot"] == [False, False, True, None]
    assert got["country"] == ["DE", "US", None, None]
    assert got["event_category"] == ["browse", "discovery", "other", None]
    assert got["revenue"] == [None] * 4
    assert kernel.counts == {"country_unknown": 1}


def test_any_batch_is_accepted(kernel: EnrichKernel) -> None:
    bare = pa.RecordBatch.from_pydict({"note": [1, 2, 3], "event_type": ["click", "click", "nonsense"]})
    accepted = kernel(bare).accepted
    assert accepted.schema.names == [*ENRICHED_SCHEMA.names, "note"]
    assert accepted.column("event_category").to_pylist() == ["engagement", "engagement", "other"]
    assert kernel(bare.slice(1, 1)).accepted.to_pydict() == accepted.slice(1, 1).to_pydict()
    assert kernel(bare.slice(3)).accepted.num_rows == 0
    nulls = pa.RecordBatch.from_arrays([pa.nulls(2) for _ in EVENT_SCHEMA], names=EVENT_SCHEMA.names)
    assert kernel(nulls).accepted.schema.equals(ENRICHED_SCHEMA)
    assert kernel(nulls).accepted.to_pydict() == conform({}, ENRICHED_SCHEMA, 2).to_pydict()
    strings = pa.RecordBatch.from_pydict({"user_agent": [CURL, None], "event_type": ["login", "tick"]})
    whole = kernel(strings).accepted.to_pydict()
    assert whole["event_category"] == ["account", "finance"]
    assert whole["browser"] == ["curl", None]


def test_unknown_user_agents_are_counted_by_row(kernel: EnrichKernel) -> None:
    enrich(kernel, 3, user_agent=["nonsense", "nonsense", FIREFOX])
    assert kernel.counts == {"user_agent_unknown": 2}


def test_without_country(tmp_path: Path) -> None:
    made = Enrich(country=False).kernel()
    made.setup()
    assert isinstance(made, EnrichKernel)
    assert enrich(made, 1, ip_address=["8.8.8.8"]).column("country").to_pylist() == [None]
    with pytest.raises(ConfigError, match="country is False"):
        Enrich(country=False, country_database=tmp_path / "x.mmdb")


def test_each_type_has_one_category() -> None:
    types = [t for group in CATEGORIES.values() for t in group]
    assert len(types) == len(set(types))
    assert categories(pa.array(types)).to_pylist() == [c for c, group in CATEGORIES.items() for _ in group]


MONEYS = st.none() | st.decimals(-(10**28), 10**28, places=9) | st.decimals(-100, 100, places=2)
ROWS = st.tuples(
    st.sampled_from(["purchase", "refund", "click", None]),
    MONEYS,
    MONEYS,
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9),
    st.sampled_from(["commerce:1.0.0", "financial:1.0.0", None]),
)


def oracle(
    kind: str | None, amount: Decimal | None, price: Decimal | None, quantity: int | None, schema: str | None
) -> tuple[Decimal | None, bool]:
    """Revenue in units of 10^-9 with Python's integers, and whether it does not fit."""
    if kind not in ("purchase", "refund") or (schema or "").startswith("financial:"):
        return None, False
    if amount is not None:
        nanos = int(amount.scaleb(9))
    elif price is not None:
        nanos = int(price.scaleb(9)) * (1 if quantity is None else quantity)
    else:
        return None, False
    if abs(nanos) >= 10**38:
        return None, True
    return Decimal(-abs(nanos) if kind == "refund" else nanos).scaleb(-9), False


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(ROWS, max_size=12))
def test_revenue_is_exact(kernel: EnrichKernel, rows: list[tuple]) -> None:  # type: ignore[type-arg]
    with decimal.localcontext() as context:
        context.prec = 60
        expected = [oracle(*row) for row in rows]
        kind, amount, price, quantity, schema = zip(*rows, strict=True) if rows else ([],) * 5
        got = enrich(
            kernel,
            len(rows),
            event_type=list(kind),
            amount=pa.array(amount, MONEY),
            price=pa.array(price, MONEY),
            quantity=list(quantity),
            schema=list(schema),
        )
        assert got.column("revenue").to_pylist() == [revenue for revenue, _ in expected]
        assert kernel.counts["revenue_overflow"] == sum(overflow for _, overflow in expected)


def test_profiles_follow_the_other_columns(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("user_id,since,tier\na,2026-01-01,gold\na,2026-02-01,lead\n")
    table = ProfileTable(tmp_path / "p.csv", valid_from_column="since")
    made = pickle.loads(pickle.dumps(Enrich(country=False, profiles=table))).kernel()
    made.setup()
    times = [datetime(2026, m, 5, tzinfo=UTC) for m in (1, 2)]
    got = enrich(
        made,
        5,
        user_id=["a", "a", "b", None, "a"],
        event_time=[*times, times[0], times[0], datetime(2025, 1, 1, tzinfo=UTC)],
    )
    assert got.schema.equals(ENRICHED_SCHEMA.append(pa.field("profile_tier", CODE)))
    assert got.column("profile_tier").to_pylist() == ["gold", "lead", None, None, None]
    assert made.counts == {"profile_missing": 2}
