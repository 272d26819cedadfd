"""The job one event at a time, in plain Python: what the dict-per-element Beam peer calls in its stages.

Written as its author would for production: one pass over each document, caches for whatever repeats (user agents, addresses,
user tokens), regular expressions only where a cheap look says that they may match. Two variants of the libraries:

- ``json``: the standard library's json and jsonschema (with rfc3339-validator for date-times);
- ``orjson``: orjson and jsonschema-rs.

Until the shuffle a row holds only plain types (times as microseconds, money as decimal text) and no nulls: Beam's coder pickles
each ``Decimal`` and ``datetime`` on its own. Money written as a JSON number passes through the shortest text of its float,
which is exact up to 15 digits. Of leap seconds the date-time check of ``json`` knows nothing: it rejects them.
"""

import hashlib
import ipaddress
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

import iptocc
import jsonschema
import jsonschema_rs
import orjson
import ua_parser
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from headrace.schemas.columns import JSON_COLUMNS
from headrace.schemas.registry import Registry, Schema

Row = dict[str, Any]

KEY = hashlib.sha512(b"benchmarks").digest()
"""The peers' key: a benchmark masks simulated people."""
DAY = 86_400_000_000
LEEWAY = 300_000_000
VARIANTS = ("json", "orjson")
MONEY = ("price", "amount")
KEEP = ("event_id", "event_time", "event_type", "user_id")
"""Columns of a masked row that the quarantine shows."""
CATEGORIES = {
    kind: category
    for category, kinds in {
        "browse": "page_view product_view screen_view request",
        "discovery": "search filter sort recommendation_view",
        "engagement": "click add_to_cart remove_from_cart add_to_wishlist share review scroll video_play",
        "conversion": "purchase checkout subscribe",
        "reversal": "refund return cancel chargeback",
        "account": "signup login logout account_update password_reset",
        "finance": "transaction tick",
    }.items()
    for kind in kinds.split()
}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = datetime.resolution
_SUSPECT = re.compile(r"@|%40|(?:\d[ -]?){12}\d")
_EMAIL = re.compile(r"[A-Za-z0-9._+-]+(?:@|%40)[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}")
_CARD = re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)")
_VERSION = re.compile(r"(?:0|[1-9][0-9]{0,8})(?:\.(?:0|[1-9][0-9]{0,8})){2}")
_BOT = re.compile(r"bot|crawl|spider|slurp|curl|wget|python-requests|headless", re.IGNORECASE)


class Reject(Exception):
    """The verdict that an event goes to the quarantine."""

    def __init__(self, stage: str, reason: str, failures: list[tuple[str, str]] | None = None) -> None:
        super().__init__(stage, reason)
        self.stage, self.reason, self.failures = stage, reason, failures or []


Failures = Callable[[Any], list[tuple[str, str]]]
"""A validator of one schema: returns all failures of a document as (keyword, pointer)."""


class Rowwise:
    """The steps of the job for one event; the order of the methods is the order of the stages.

    Args:
        variant: ``json`` or ``orjson``.
        now: the reference time in microseconds since the epoch.
    """

    def __init__(self, variant: str, now: int) -> None:
        self._now = now
        self._registry = Registry.default()
        self._loads: Callable[[str], Any] = _json_loads if variant == "json" else orjson.loads
        self._dumps = _json_dumps if variant == "json" else _dumps
        make = _jsonschema if variant == "json" else _jsonschema_rs
        self._families = {
            schema.key: (make(schema.document), _tree(schema), schema.identity)
            for schema in map(self._registry.get, self._registry.names())
        }
        self._sensitive = {
            column.partition("/")[2]: kind
            for column, kind in self._registry.sensitive().items()
            if column.startswith("properties/")
        }

    def decode(self, raw: bytes) -> Row:
        """Parses one line; raises Reject if it is not one JSON object."""
        try:
            document = self._loads(raw.decode())
        except (ValueError, RecursionError):
            raise Reject("decode", "malformed") from None
        if not isinstance(document, dict):
            raise Reject("decode", "unknown_schema")
        return document

    def validate(self, document: Row) -> tuple[str, Row]:
        """Finds the family and checks the event against its schema."""
        name = self._registry.detect(document)
        if name is None:
            raise Reject("decode", "unknown_schema")
        schema = self._registry.get(name)
        if name == "envelope" and isinstance(document["metadata"], dict):
            stated = document["metadata"].get("version")
            if isinstance(stated, str) and _VERSION.fullmatch(stated):
                resolved = self._registry.resolve(name, stated)
                if resolved is None:
                    raise Reject("decode", "unknown_schema")
                schema = resolved
        failures = self._families[schema.key][0](document)
        if failures:
            raise Reject("validate", "invalid", failures)
        return schema.key, document

    def to_row(self, raw: bytes, key: str, document: Row) -> Row:
        """Maps the event onto the canonical columns; what the schema does not name goes to JSON columns."""
        _, tree, identity = self._families[key]
        row: Row = {}
        extra: Row = {}
        _map(document, tree, row, extra, "")
        if extra:
            row["extra"] = extra
        for column in MONEY:
            if column in row:
                row[column] = _money(row[column], column)
        if "quantity" in row:
            row["quantity"] = int(row["quantity"])
        row["schema"] = key
        row["event_time"] = _micros(row["event_time"])
        row["ingest_time"] = self._now
        generated = identity == "generated" or "event_id" not in row
        row["id_generated"] = generated
        row["event_id"] = (
            hashlib.blake2b(raw, digest_size=16).hexdigest() if generated else row["event_id"].lower()
        )
        return row

    def check_time(self, row: Row) -> Row:
        """Rejects events of more than 24 h before, or 5 min after, the reference time."""
        if row["event_time"] < self._now - DAY:
            raise Reject("stale", "stale")
        if row["event_time"] > self._now + LEEWAY:
            raise Reject("stale", "future")
        return row

    def locate(self, row: Row) -> Row:
        """Fills the country from the address where the event states none."""
        if "country" not in row and "ip_address" in row:
            country = _country(row["ip_address"])
            if country is not None:
                return {**row, "country": country}
        return row

    def mask(self, row: Row) -> Row:
        """Replaces identifiers with keyed tokens, truncates addresses, masks e-mails and cards; JSON becomes text."""
        row = dict(row)
        if "user_id" in row:
            row["user_id"] = _token(row["user_id"])
        if "ip_address" in row:
            row["ip_address"] = _truncated(row["ip_address"])
        for column in ("page_url", "referrer", "query"):
            if column in row:
                row[column] = _scrub(row[column])
        for column in JSON_COLUMNS:
            if column in row:
                row[column] = self._json_text(column, row[column])
        return row

    def seal(self, raw: bytes) -> bytes:
        """Encrypts a raw document for the quarantine."""
        return _cipher().encrypt(raw or b"\x00", [b""])

    def first_of(self, rows: list[Row]) -> Iterator[tuple[Row, str | None]]:
        """Tells the events of one id apart: (row, None) is accepted, (row, reason) is rejected.

        Events without an id of their own are grouped by content: each occurrence is an event and gets an id.
        """
        first = rows[0]
        if first["id_generated"]:
            for n, row in enumerate(rows):
                yield {**row, "event_id": _uuid8(row["event_id"], n)}, None
            return
        yield first, None
        for row in rows[1:]:
            yield row, "duplicate" if row == first else "duplicate_conflict"

    def enrich(self, row: Row) -> Row:
        """Adds browser, operating system, bot flag, device, category, revenue and date."""
        row = dict(row)
        if "user_agent" in row:
            row["browser"], row["os"], row["is_bot"], device = _agent(row["user_agent"])
            row.setdefault("device_type", device)
        kind = row["event_type"]
        row["event_category"] = CATEGORIES.get(kind, "other")
        row["event_date"] = row["event_time"] // DAY
        for column in MONEY:
            if column in row:
                row[column] = Decimal(row[column])
        if kind in ("purchase", "refund"):
            revenue = row.get("amount")
            if revenue is None and "price" in row:
                revenue = row["price"] * row.get("quantity", 1)
            if revenue is not None:
                row["revenue"] = -abs(revenue) if kind == "refund" else revenue
        return row

    def check_rule(self, row: Row) -> Row:
        """Rejects purchases whose price is not above zero."""
        if row["event_type"] == "purchase" and "price" in row and not row["price"] > 0:
            raise Reject("filter", "filtered")
        return row

    def _json_text(self, column: str, value: Any) -> str:
        if column == "properties":
            for key, kind in self._sensitive.items():
                if kind == "token" and value.get(key) is not None:
                    value = {**value, key: _token(value[key])}
        text = self._dumps(value)
        return self._dumps(_scrub_tree(value)) if _SUSPECT.search(text) else text


def micros_of(time: datetime) -> int:
    """Returns microseconds since the epoch."""
    return (time - _EPOCH) // _MICROSECOND


def _json_loads(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _json_dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _dumps(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _jsonschema(document: Any) -> Failures:
    kind = jsonschema.validators.validator_for(document)
    validator = kind(document, format_checker=kind.FORMAT_CHECKER)
    return lambda value: [(str(e.validator), _pointer(e.absolute_path)) for e in validator.iter_errors(value)]


def _jsonschema_rs(document: Any) -> Failures:
    validator = jsonschema_rs.validator_for(document, validate_formats=True)

    def failures(value: Any) -> list[tuple[str, str]]:
        if validator.is_valid(value):
            return []
        return [(e.kind.name, _pointer(e.instance_path)) for e in validator.iter_errors(value)]

    return failures


def _pointer(parts: Any) -> str:
    return "".join(f"/{part}" for part in parts)


def _tree(schema: Schema) -> Row:
    """Returns nested dicts, property → column or subtree; key None holds the column that unnamed properties go to."""

    def build(node: Any) -> Row:
        tree: Row = {None: node.get("x-rest")}  # type: ignore[dict-item]
        for name, child in node.get("properties", {}).items():
            tree[name] = child["x-column"] if "x-column" in child else build(child)
        return tree

    return build(schema.document)


def _map(value: Row, tree: Row, row: Row, extra: Row, at: str) -> None:
    for key, child in value.items():
        target = tree.get(key)
        if isinstance(target, str):
            if child is not None or target == "custom_data":
                column, _, inner = target.partition("/")
                if inner:
                    row.setdefault(column, {})[inner] = child
                else:
                    row[column] = child
        elif target is not None:
            _map(child, target, row, extra, f"{at}/{key}")
        elif tree[None] is not None:  # type: ignore[index]
            row.setdefault(tree[None], {})[key] = child  # type: ignore[index]
        else:
            extra[f"{at}/{key}"] = child


def _money(value: Any, column: str) -> str:
    """Returns canonical decimal text; raises Reject for what a decimal(38, 9) does not hold."""
    number = Decimal(value if isinstance(value, str) else repr(value)).normalize()
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -9 or number.adjusted() > 28:
        raise Reject("validate", "invalid", [("x-decimal", f"/{column}")])
    return f"{number:f}"


def _micros(text: str) -> int:
    """Parses a date-time that the schema found valid; a leap second is the next one."""
    try:
        return micros_of(datetime.fromisoformat(text))
    except ValueError:
        plain = re.sub(r":60(?=[.Z+-])", ":59", text.upper())
        return micros_of(datetime.fromisoformat(plain)) + (1_000_000 if plain != text.upper() else 0)


@lru_cache(maxsize=100_000)
def _country(address: str) -> str | None:
    country: str | None = iptocc.country_code(address)
    return country


@lru_cache(maxsize=100_000)
def _token(value: str) -> str:
    return hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16, key=KEY).hexdigest()


@lru_cache(maxsize=100_000)
def _truncated(address: str) -> str | None:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return None
    bits = 24 if ip.version == 4 else 48
    return str(ipaddress.ip_network((ip, bits), strict=False).network_address)


@lru_cache(maxsize=20_000)
def _agent(text: str) -> tuple[str | None, str | None, bool, str]:
    found = ua_parser.parse(text)
    browser = found.user_agent.family if found.user_agent else None
    system = found.os.family if found.os else None
    device = found.device.family if found.device else ""
    bot = device == "Spider" or _BOT.search(text) is not None
    if device == "iPad" or "Tablet" in text:
        return browser, system, bot, "tablet"
    return browser, system, bot, "mobile" if "Mobi" in text else "desktop"


@lru_cache(maxsize=1)
def _cipher() -> AESSIV:
    return AESSIV(KEY)


def _uuid8(digest: str, occurrence: int) -> str:
    if occurrence:
        digest = hashlib.blake2b(f"{digest} {occurrence}".encode(), digest_size=16).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-8{digest[13:16]}-b{digest[17:20]}-{digest[20:]}"


def _scrub(text: str) -> str:
    if not _SUSPECT.search(text):
        return text
    return _CARD.sub(_card, _EMAIL.sub(lambda match: _token(match[0]), text))


def _card(match: re.Match[str]) -> str:
    digits = [int(c) for c in match[0] if c.isdigit()]
    total = sum(digits[-1::-2]) + sum(sum(divmod(2 * d, 10)) for d in digits[-2::-2])
    return match[0] if total % 10 else "[card]"


def _scrub_tree(value: Any) -> Any:
    if isinstance(value, str):
        return _scrub(value)
    if isinstance(value, dict):
        return {key: _scrub_tree(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_scrub_tree(child) for child in value]
    return value
