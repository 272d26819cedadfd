"""Tables of every family for tests: mostly of the right types and values, and odd ones of every Arrow type."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

ID = "3f2b8c1e-9d4a-4e6b-8a7c-{:012d}"
AT = datetime(2026, 1, 5, 10, 0, 0, 250_000, tzinfo=UTC)

TEXT = pa.string()
TIME = pa.timestamp("us", "UTC")
TYPES: dict[str, Any] = {
    "text": TEXT,
    "large": pa.large_string(),
    "coded": pa.dictionary(pa.int8(), TEXT),
    "binary": pa.binary(),
    "integer": pa.int64(),
    "small": pa.int32(),
    "unsigned": pa.uint64(),
    "double": pa.float64(),
    "single": pa.float32(),
    "flag": pa.bool_(),
    "money": pa.decimal128(12, 2),
    "fine": pa.decimal128(38, 18),
    "units": pa.decimal128(9, 0),
    "time": TIME,
    "naive": pa.timestamp("ms"),
    "nano": pa.timestamp("ns", "Europe/Berlin"),
    "second": pa.timestamp("s"),
    "day": pa.date32(),
    "span": pa.duration("us"),
    "map": pa.map_(TEXT, TEXT),
    "numbers": pa.map_(TEXT, pa.float64()),
    "list": pa.list_(pa.int64()),
    "struct": pa.struct([("b", TEXT), ("a", pa.decimal128(9, 2)), ("c", pa.struct([("t", TIME)]))]),
    "none": pa.null(),
}
_TEXTS = st.one_of(
    st.sampled_from(
        [
            "",
            "x",
            "EUR",
            "eur",
            "DE",
            "DE\n",
            "1.0.0",
            "1.4.0",
            "2.0.0",
            "12.50",
            "-3",
            "1e3",
            "purchase",
            "tick",
        ]
    ),
    st.sampled_from(
        ["2026-01-05T10:00:00Z", "2024-02-29T10:00:00.123456789+01:00", ID.format(7), ID.format(7).upper()]
    ),
    st.text(max_size=5),
)
_TIMES = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)) | st.sampled_from([AT.replace(tzinfo=None)])
_NEAR = st.datetimes(datetime(1680, 1, 1), datetime(2260, 1, 1))
_FLOATS = st.floats() | st.sampled_from([2.0, -0.0, 0.1, 19.99, 1e300, 2.0**53, 1e-7, 123456789012345680.0])
VALUES: dict[str, Any] = {
    "text": _TEXTS,
    "large": _TEXTS,
    "coded": st.sampled_from(["click", "purchase", "mobile", 'a"b', "web", "EUR"]),
    "binary": st.binary(max_size=4) | st.just(b"click"),
    "integer": st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3),
    "small": st.integers(-(2**31), 2**31 - 1) | st.integers(0, 3),
    "unsigned": st.integers(0, 2**64 - 1),
    "double": _FLOATS,
    "single": st.floats(width=32) | st.sampled_from([2.0, 0.5, 16777216.0, 33554434.0]),
    "flag": st.booleans(),
    "money": st.decimals(-(10**9), 10**9, places=2),
    "fine": st.decimals(-(10**9), 10**9, places=18) | st.just(Decimal("1.5")),
    "units": st.decimals(-(10**8), 10**8, places=0),
    "time": _TIMES,
    "naive": _TIMES.map(lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000)),
    "nano": _NEAR,
    "second": _TIMES.map(lambda t: t.replace(microsecond=0)),
    "day": st.dates(date(1, 1, 1)),
    "span": st.timedeltas(timedelta(-9999), timedelta(9999)),
    "map": st.dictionaries(st.sampled_from(["b", "a", 'q"', "ä"]), _TEXTS | st.none(), max_size=3).map(
        lambda d: list(d.items())
    ),
    "numbers": st.dictionaries(st.sampled_from(["b", "a"]), _FLOATS, max_size=2).map(
        lambda d: list(d.items())
    ),
    "list": st.lists(st.integers(-5, 5) | st.none(), max_size=3),
    "struct": st.fixed_dictionaries(
        {
            "b": _TEXTS | st.none(),
            "a": st.decimals(-(10**6), 10**6, places=2) | st.none(),
            "c": st.none() | st.fixed_dictionaries({"t": _NEAR | st.none()}),
        }
    ),
    "none": st.none(),
}
_MONEY = {
    "text": "12.50",
    "integer": 3,
    "double": 19.99,
    "single": 0.5,
    "money": Decimal("12.50"),
    "fine": Decimal("1.5"),
}
_WORD = {"text": "x1", "large": "x1", "coded": "web"}
_AT = {
    "time": AT,
    "text": "2026-01-05T10:00:00.250Z",
    "naive": AT.replace(tzinfo=None),
    "nano": AT,
    "coded": "2026-01-05T10:00:00Z",
}
_UUID = {"text": ID.format(1), "large": ID.format(2), "coded": ID.format(3)}
_COUNT = {"integer": 2, "small": 1, "double": 2.0, "unsigned": 4}
_REST = {
    "map": [("k", "v")],
    "struct": {"b": "x", "a": None, "c": None},
    "text": "x",
    "double": 0.5,
    "list": [1],
}


def _one(*words: str) -> dict[str, Any]:
    return {"text": words[0], "coded": words[-1]}


FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
    "envelope": {
        "metadata.event_id": _UUID,
        "metadata.timestamp": _AT,
        "metadata.version": _one("1.0.0", "1.3.0"),
        "metadata.source": _WORD,
        "user.id": _WORD,
        "user.attributes": {"map": [("plan", "pro")], "struct": {"b": "y", "a": None, "c": {"t": AT}}},
        "context.location.country": _one("DE"),
        "context.device_type": _WORD,
        "payload.event_type": _one("click", "purchase"),
        "payload.properties.price": _MONEY,
        "payload.properties.colour": _WORD,
        "payload.custom_data": _REST,
    },
    "clickstream": {
        "user_id": _WORD,
        "session_id": _WORD,
        "event_type": _one("click", "purchase"),
        "timestamp": _AT,
        "page_url": {"text": 'https://x/?q="1"'},
        "device_type": _one("mobile"),
        "price": _MONEY,
        "quantity": _COUNT,
        "custom_properties": {
            "map": [("z", "1"), ("a", "2")],
            "struct": {"b": "y", "a": Decimal("1.20"), "c": None},
        },
    },
    "behaviour": {
        "event_id": _UUID,
        "user_id": _WORD,
        "session_id": _WORD,
        "event_type": _one("signup", "click"),
        "timestamp": _AT,
        "properties.page_url": _WORD,
        "properties.location.country": _one("FR"),
        "properties.size": _REST,
        "context.platform": _one("ios", "web"),
    },
    "commerce": {
        "event_id": _UUID,
        "user_id": _WORD,
        "event_type": _one("purchase", "add_to_cart"),
        "timestamp": _AT,
        "properties.product_id": _WORD,
        "properties.quantity": _COUNT,
        "properties.price": _MONEY,
        "transaction.total_amount": _MONEY,
        "transaction.order_id": _WORD,
    },
    "interaction": {
        "event_id": _UUID,
        "user_id": _WORD,
        "timestamp": _AT,
        "event_type": _WORD,
        "page_url": _WORD,
        "extra~/field": _REST,
        "nested.deep.value": _REST,
    },
    "financial": {
        "record_type": _one("transaction", "tick"),
        "event_id": _UUID,
        "timestamp": _AT,
        "account_id": _WORD,
        "amount": _MONEY,
        "currency": _one("EUR"),
        "symbol": _WORD,
        "price": _MONEY,
        "bid": _MONEY,
        "venue": _WORD,
        "description": _WORD,
    },
}


def column(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(type_):
        return pa.array(values, type_.value_type).dictionary_encode().cast(type_)
    return pa.array(values, type_)


@st.composite
def tables(draw: st.DrawFn) -> pa.RecordBatch:
    """Columns of one family, or of two side by side; mostly of the right types and values, dotted or as structs."""
    wanted: dict[str, dict[str, Any]] = {}
    for family in draw(st.lists(st.sampled_from(sorted(FAMILIES)), min_size=1, max_size=2, unique=True)):
        wanted.update(FAMILIES[family])
    names = [n for n in wanted if not any(other.startswith(f"{n}.") for other in wanted)]
    names = [n for n in names if draw(st.integers(0, 15))]
    if draw(st.integers(0, 3)) == 0:
        names.append("unknown")
    rows = draw(st.integers(1, 6))
    columns: dict[str, pa.Array] = {}
    for name in names:
        sound = wanted.get(name, _REST)
        kind = draw(st.sampled_from(sorted(sound) if draw(st.integers(0, 9)) else sorted(TYPES)))
        good = sound.get(kind)
        one = st.just(good) if good is not None else VALUES[kind]
        cell = st.integers(0, 9).flatmap(
            lambda n, one=one, kind=kind: st.none() if n == 0 else VALUES[kind] if n == 1 else one
        )
        columns[name] = column(draw(st.lists(cell, min_size=rows, max_size=rows)), TYPES[kind])
    if draw(st.booleans()):
        columns = folded(columns, draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def folded(columns: dict[str, pa.Array], valid: Sequence[bool]) -> dict[str, pa.Array]:
    """Makes structs of dotted names; some of the outermost ones are null."""
    found: dict[str, Any] = {}
    for name, array in columns.items():
        head, dot, rest = name.partition(".")
        if dot:
            found.setdefault(head, {})[rest] = array
        else:
            found[name] = array
    for name, parts in found.items():
        if isinstance(parts, dict):
            inner = folded(parts, [True] * len(valid))
            mask = pa.array([not v for v in valid]) if not all(valid) else None
            found[name] = pa.StructArray.from_arrays(list(inner.values()), names=list(inner), mask=mask)
    return found
