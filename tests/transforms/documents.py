"""Documents of every family for tests: valid ones, and mutations of them."""

import copy
from datetime import UTC, datetime

import pyarrow as pa
from hypothesis import strategies as st

from headrace.schemas.columns import CODE, RAW_SCHEMA, TIME
from headrace.transforms.batches import conform, constant

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
ID = "3f2b8c1e-9d4a-4e6b-8a7c-{:012x}"
VALID = {
    "envelope": {
        "metadata": {
            "event_id": ID,
            "timestamp": "2026-01-05T10:00:00.250Z",
            "version": "1.0.0",
            "source": "web",
        },
        "user": {"id": "u1", "session_id": "s1", "attributes": {"plan": "pro", "email": "bob@example.com"}},
        "context": {
            "device_type": "mobile",
            "os_version": "17.2",
            "user_agent": "Mozilla/5.0",
            "ip_address": "203.0.113.7",
            "location": {"country": "DE", "region": "BE"},
        },
        "payload": {
            "event_type": "purchase",
            "properties": {
                "page_url": "https://shop.example.com/p/1",
                "price": 19.9,
                "currency": "EUR",
                "quantity": 2,
            },
            "custom_data": {"b": [1, 2.50], "a": None},
        },
    },
    "clickstream": {
        "user_id": "u2",
        "session_id": "s2",
        "event_type": "click",
        "timestamp": "2026-01-05T10:00:01Z",
        "page_url": "https://shop.example.com/",
        "product_id": None,
        "category": "shoes",
        "device_type": "desktop",
        "user_agent": "curl/8",
        "ip_address": "2001:db8::1",
        "referrer": "https://example.com/?q=1",
        "custom_properties": {"z": 1, "a": "x"},
    },
    "behaviour": {
        "event_id": ID,
        "user_id": "u3",
        "session_id": "s3",
        "event_type": "signup",
        "timestamp": "2026-01-05T11:00:02.5+01:00",
        "properties": {"page_url": "/x", "location": {"country": "FR", "region": "IDF", "city": "Paris"}},
        "context": {"app_version": "3.1", "platform": "ios", "screen_resolution": "1x1"},
    },
    "commerce": {
        "event_id": ID,
        "user_id": "u4",
        "event_type": "purchase",
        "timestamp": "2026-01-05T10:00:03Z",
        "properties": {
            "product_id": "p1",
            "category": "c",
            "price": "12.50",
            "quantity": 1,
            "currency": "USD",
        },
        "transaction": {"order_id": "o1", "total_amount": 12.5, "payment_method": "card"},
    },
    "interaction": {
        "event_id": ID,
        "user_id": "u5",
        "timestamp": "2026-01-05T10:00:04Z",
        "event_type": "scroll",
        "page_url": "/y",
        "user_agent": "Mozilla/5.0",
        "session_id": "s5",
    },
    "financial": {
        "record_type": "transaction",
        "timestamp": "2026-01-05T10:00:05Z",
        "account_id": "a1",
        "amount": "-12.345678901",
        "currency": "EUR",
        "counterparty": "a2",
        "description": "rent",
        "size": 3,
    },
}
_FAMILIES = sorted(VALID)
_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([1.0, 0.1, -0.0, 1e300, 2**53 + 1, 2**64, -(2**63) - 1, 12345678901234567.891, 1e-12]),
    st.sampled_from(
        [
            "",
            "x",
            "EUR",
            "eur",
            "DE\n",
            "1.0.0",
            "1.7.3",
            "2.0.0",
            "01.0.0",
            "12.50",
            "1e3",
            "-1",
            "NaN",
            " 1",
            "purchase",
            "refund",
            "tick",
            "2026-01-05T10:00:00Z",
            "2024-02-29T10:00:00.123456789Z",
            "2016-12-31T23:59:60Z",
            "2026-02-30T10:00:00Z",
            "3F2B8C1E-9D4A-4E6B-8A7C-000000000001",
            "3f2b8c1e9d4a4e6b8a7c000000000001",
            "Straße \U0001f600",
        ]
    ),
    st.text(max_size=4),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(
        st.sampled_from(["a", "page_url", "x/y", "order_id"]),
        st.integers() | st.floats(allow_nan=False, allow_infinity=False),
        max_size=2,
    ),
)


@st.composite
def documents(draw, families=tuple(_FAMILIES)):
    """A document of a family with up to three changes: a field dropped, replaced, added or renamed, at any depth."""
    family = draw(st.sampled_from(families))
    document = copy.deepcopy(VALID[family])
    number = draw(st.integers(0, 2**40))
    for place in (document, document.get("metadata", {})):
        if place.get("event_id") == ID:
            place["event_id"] = ID.format(number)
    for _ in range(draw(st.integers(0, 3))):
        place = document
        while True:
            inner = [v for v in place.values() if isinstance(v, dict)]
            if not inner or draw(st.booleans()):
                break
            place = draw(st.sampled_from(inner))
        name = draw(st.sampled_from([*sorted(place), "unknown", "x/~y"]))
        if draw(st.integers(0, 3)) == 0:
            place.pop(name, None)
        else:
            place[name] = draw(_ODD)
    return document


def raw_batch(records, *, origin="in.jsonl"):
    """``RAW_SCHEMA`` rows of these bytes."""
    rows = len(records)
    columns = {
        "raw": pa.array(records, pa.binary()),
        "origin": constant(origin, rows, CODE),
        "origin_position": pa.array(range(1, rows + 1), pa.int64()),
        "ingest_time": constant(NOW, rows, TIME),
    }
    return conform(columns, RAW_SCHEMA, rows)
