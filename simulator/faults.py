"""Injected faults: what each one does to an event, and which verdict it has to get.

The classes are those of the pipeline in the order in which it decides: malformed and unknown_schema (decode), invalid
(validate), stale and future, duplicate and conflict (dedupe); everything else is accepted.
"""

from random import Random
from typing import Any, NamedTuple

import orjson

from headrace.simulator import catalogue

CLASSES = ("accepted", "malformed", "unknown_schema", "invalid", "stale", "future", "duplicate", "conflict")


class Fault(NamedTuple):
    """A kind of fault: its verdict and how many of 1,000 faulty lines have it."""

    kind: str
    verdict: str
    weight: int


FAULTS = (
    Fault("truncated", "malformed", 40),
    Fault("not_a_number", "malformed", 15),
    Fault("invalid_utf8", "malformed", 20),
    Fault("bad_escape", "malformed", 15),
    Fault("byte_order_mark", "malformed", 10),
    Fault("unknown_version", "unknown_schema", 15),
    Fault("unknown_family", "unknown_schema", 10),
    Fault("violation", "invalid", 150),
    Fault("stale", "stale", 100),
    Fault("future", "future", 40),
    Fault("duplicate", "duplicate", 165),
    Fault("conflict", "conflict", 25),
    Fault("repeat", "accepted", 30),
    Fault("copy_of_rejected", "", 15),
    Fault("pii_email", "accepted", 150),
    Fault("pii_card", "accepted", 50),
    Fault("unknown_field", "accepted", 150),
)
"""``repeat`` is an exact copy of a line without an event id: a new event. ``copy_of_rejected`` copies a line that was rejected
before dedupe, and gets its verdict. ``violation`` is reported as one of its kinds, see ``VIOLATIONS``."""

VERDICTS = {fault.kind: fault.verdict for fault in FAULTS}
_IDS = {"envelope", "behaviour", "commerce", "interaction", "financial"}
_JSON = {*_IDS, "clickstream"}
FAMILIES: dict[str, set[str]] = {
    "truncated": {*_JSON, "weblog"},
    "not_a_number": _JSON,
    "invalid_utf8": _JSON,
    "bad_escape": _JSON,
    "byte_order_mark": _JSON,
    "unknown_version": {"envelope"},
    "unknown_family": _JSON,
    "violation": {*_JSON, "weblog"},
    "stale": {*_JSON, "weblog"},
    "future": {*_JSON, "weblog"},
    "duplicate": _IDS,
    "conflict": _IDS,
    "repeat": {"clickstream", "financial", "weblog"},
    "copy_of_rejected": {*_JSON, "weblog"},
    "pii_email": {*_JSON, "weblog"} - {"commerce"},
    "pii_card": {*_JSON, "weblog"} - {"commerce"},
    "unknown_field": _JSON,
}
"""The families in which each fault occurs."""

_ABSENT = object()
_BAD_TIMES = (
    "2026-13-45T99:00:00Z",
    "2026-02-30T12:00:00Z",
    "2026-01-05 12:00:00",
    "05/Jan/2026:12:00",
    "yesterday",
    "",
)
_BAD_IDS = (
    "not-a-uuid",
    "12345",
    "0f8fad5bd9cb469fa16570867728950e",
    "0f8fad5b-d9cb-469f-a165-7086772895",
    "",
)
_Violation = tuple[str, str, tuple[Any, ...]]


def _missing(*paths: str) -> tuple[_Violation, ...]:
    return tuple(("missing_field", path, (_ABSENT,)) for path in paths)


def _common(id_path: str, time_path: str, user_path: str) -> tuple[_Violation, ...]:
    violations: tuple[_Violation, ...] = (
        *_missing(time_path),
        ("bad_timestamp", time_path, _BAD_TIMES),
        ("wrong_type", time_path, (1767614400, None)),
        ("wrong_type", user_path, (12345, ["a"], {"id": "a"})),
    )
    return violations + ((("bad_uuid", id_path, _BAD_IDS),) if id_path else ())


VIOLATIONS: dict[str, tuple[_Violation, ...]] = {
    "envelope": (
        *_common("metadata/event_id", "metadata/timestamp", "user/id"),
        *_missing("metadata/event_id", "metadata/source", "user/id", "user", "payload/event_type"),
        ("wrong_type", "payload/properties", ([], "none", 7)),
        ("bad_value", "context/location/country", ("Germany", "de")),
        ("extra_field", "context/location/city", ("Berlin",)),
        ("negative_price", "payload/properties/price", (-19.9, "-5.00")),
    ),
    "clickstream": (
        *_common("", "timestamp", "user_id"),
        *_missing("session_id", "event_type", "device_type"),
        ("wrong_type", "quantity", ("two", 1.5)),
        ("bad_enum", "event_type", ("hover", "PAGE_VIEW")),
        ("bad_enum", "device_type", ("smartwatch",)),
        ("negative_price", "price", (-19.9, "-5.00")),
    ),
    "behaviour": (
        *_common("event_id", "timestamp", "user_id"),
        *_missing("user_id", "event_type"),
        ("wrong_type", "properties", ([], "none")),
        ("bad_enum", "event_type", ("scroll", "Click")),
        ("bad_enum", "context/platform", ("symbian",)),
        ("negative_price", "properties/price", (-19.9, "-5.00")),
    ),
    "commerce": (
        *_common("event_id", "timestamp", "user_id"),
        *_missing("user_id", "event_type", "properties/product_id"),
        ("wrong_type", "properties/quantity", ("two", 1.5)),
        ("bad_enum", "event_type", ("wishlist", "buy")),
        ("negative_price", "properties/price", (-19.9, "-5.00")),
    ),
    "interaction": (
        *_common("event_id", "timestamp", "user_id"),
        *_missing("user_id"),
        ("wrong_type", "page_url", (404,)),
        ("bad_value", "event_type", ("",)),
    ),
    "financial": (
        *_common("event_id", "timestamp", "account_id"),
        *_missing("account_id", "amount", "currency"),
        ("wrong_type", "amount", (True, {"value": "1.00"})),
        ("bad_value", "amount", ("1,50", "1e3", "12.3456789012")),
        ("bad_enum", "record_type", ("quote",)),
        ("negative_price", "price", ("-1.50",)),
    ),
}
"""For each family: kind, where, and the values to put there. None of them changes which family the event is recognised as."""

_PII_PLACES = {
    "envelope": (
        "url:payload/properties/page_url",
        "text:payload/properties/query",
        "json:payload/custom_data",
    ),
    "clickstream": ("url:page_url", "text:query", "json:custom_properties"),
    "behaviour": ("url:properties/page_url", "text:properties/query"),
    "interaction": ("url:page_url",),
    "financial": ("text:description",),
}
_UNKNOWN: tuple[tuple[str, Any], ...] = (
    ("ab_bucket", "B"),
    ("client", {"battery": 0.53, "net": "4g", "tags": [1, None]}),
    ("debug", True),
    ("schema_hint", None),
)


def spoil(kind: str, family: str, line: str, rng: Random) -> tuple[str, str]:
    """Applies a fault that changes a sound event's text; returns its kind (of a violation: which) and the text."""
    draw = rng.random()
    if kind == "violation":
        return violate(family, line, draw)
    if kind == "unknown_version":
        return kind, unknown_version(line)
    if kind == "unknown_field":
        return kind, add_unknown_field(line, draw)
    if kind in ("pii_email", "pii_card"):
        return kind, add_pii(family, line, personal(kind, rng), draw)
    return kind, break_line(kind, line, draw)


def personal(kind: str, rng: Random) -> str:
    """Returns a value of the fault's kind: an e-mail address or a card number."""
    return email(rng) if kind == "pii_email" else card(rng)


def break_line(kind: str, line: str, draw: float) -> str:
    """Returns the line so that no parser may take it; bytes that are not UTF-8 stand as surrogate escapes.

    Args:
        draw: chance in [0, 1): which variant.
    """
    if kind == "truncated":
        return line[: 1 + int(draw * (len(line) - 1))]
    if kind == "not_a_number":
        return f'{{"score":{("NaN", "Infinity", "-Infinity")[int(draw * 3)]},{line[1:]}'
    if kind == "byte_order_mark":
        return line.replace(",", ",\ufeff", 1)
    inside = line.index('":"') + 3
    if kind == "invalid_utf8":
        wrong = ("\udcff\udcfe", "Caf\udce9", "\udce2\udc82", "\udcc0\udcaf", "\udced\udca0\udc80")[
            int(draw * 5)
        ]
    else:
        wrong = ("\\q", "\\x41", "\\u12G4", "\\'")[int(draw * 4)]
    return line[:inside] + wrong + line[inside:]


def violate(family: str, line: str, draw: float) -> tuple[str, str]:
    """Returns the kind of violation and the event with it."""
    choices = VIOLATIONS[family]
    place = draw * len(choices)
    kind, path, values = choices[int(place)]
    event = orjson.loads(line)
    value = values[int(place % 1 * len(values))]
    at, name = _parent(event, path)
    if value is _ABSENT:
        at.pop(name, None)
    else:
        at[name] = value
    return kind, orjson.dumps(event).decode()


def unknown_version(line: str) -> str:
    """Returns an envelope that states a major version which is not registered."""
    return line.replace('"version":"1.0.0"', '"version":"9.0.0"', 1)


def unknown_family(ms: int, number: int) -> str:
    """Returns a document that no family claims."""
    return f'{{"kind":"heartbeat","at":{ms},"sequence":{number}}}'


def add_unknown_field(line: str, draw: float) -> str:
    """Returns the event with a field that its schema does not name."""
    name, value = _UNKNOWN[int(draw * len(_UNKNOWN))]
    return f'{line[:-1]},"{name}":{orjson.dumps(value).decode()}}}'


def add_pii(family: str, line: str, value: str, draw: float) -> str:
    """Puts an e-mail or card number into the event's URL, text or custom data."""
    places = _PII_PLACES[family]
    place = draw * len(places)
    form, _, path = places[int(place)].partition(":")
    event = orjson.loads(line)
    at, name = _parent(event, path)
    if form != "url" and value.isdigit() and place % 1 < 0.5:
        value = " ".join(value[i : i + 4] for i in range(0, 16, 4))
    if form == "url":
        url = at.get(name) or catalogue.HOST + "/"
        coded = value.replace("@", "%40" if place % 1 < 0.5 else "@")
        at[name] = f"{url}{'&' if '?' in url else '?'}contact={coded}"
    elif form == "text":
        at[name] = f"receipt for {value} please"
    else:
        at[name] = {"form": {"contact": value, "note": f"call or write to {value}"}}
    return orjson.dumps(event).decode()


def email(rng: Random) -> str:
    """Returns an address in a domain of RFC 2606."""
    first, last, domain = (
        table[int(rng.random() * len(table))]
        for table in (catalogue.FIRST_NAMES, catalogue.LAST_NAMES, catalogue.MAIL_DOMAINS)
    )
    return f"{first}.{last}{int(rng.random() * 100)}@{domain}"


def card(rng: Random) -> str:
    """Returns 16 digits of a test issuer with a valid check digit (Luhn, ISO/IEC 7812-1)."""
    prefix = catalogue.CARD_PREFIXES[int(rng.random() * len(catalogue.CARD_PREFIXES))]
    digits = f"{prefix}{int(rng.random() * 10**9):09d}"
    total = 0
    for place, digit in enumerate(reversed(digits)):
        double = int(digit) * (2 - place % 2)
        total += double - 9 if double > 9 else double
    return f"{digits}{-total % 10}"


def _parent(event: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    *parents, name = path.split("/")
    for parent in parents:
        event = event.setdefault(parent, {})
    return event, name
