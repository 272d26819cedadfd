"""Events whose fate is known by construction: the oracle of the peers' tests."""

import json
import random
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.2 Mobile/15E148 Safari/604.1"
)
ROBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
EMAIL = "someone@corp.example"
CARD = "4111 1111 1111 1111"


class Fates:
    """Lines, and what must become of them."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self.lines: list[bytes] = []
        self.accepted = 0
        self.rejected: Counter[str] = Counter()
        self.revenue: dict[str, Decimal] = {}

    def add(self, event: Any, fate: str = "accepted", revenue: tuple[str, str] | None = None) -> None:
        """Adds an event, or a raw line."""
        self.lines.append(event if isinstance(event, bytes) else json.dumps(event).encode())
        if fate == "accepted":
            self.accepted += 1
        else:
            self.rejected[fate] += 1
        if revenue:
            currency, amount = revenue
            self.revenue[currency] = self.revenue.get(currency, Decimal(0)) + Decimal(amount)

    def id(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def time(self, **ago: float) -> str:
        return (NOW - timedelta(**(ago or {"seconds": self._random.randrange(600)}))).isoformat()

    def envelope(self, **metadata: Any) -> dict[str, Any]:
        return {
            "metadata": {"event_id": self.id(), "timestamp": self.time(), "version": "1.0.0", "source": "web"}
            | metadata,
            "user": {"id": "u1", "session_id": "s1", "attributes": {"mail": EMAIL}},
            "context": {"ip_address": "8.8.8.8", "user_agent": PHONE, "location": {"country": "DE"}},
            "payload": {
                "event_type": "search",
                "properties": {
                    "page_url": f"https://shop.example/?mail={EMAIL}",
                    "query": f"pay {CARD}",
                    "shade": "red",
                },
            },
        }

    def clickstream(self) -> dict[str, Any]:
        return {
            "user_id": "u2",
            "session_id": "s2",
            "event_type": "page_view",
            "timestamp": self.time(),
            "page_url": f"https://shop.example/p/{len(self.lines)}",
            "device_type": "mobile",
            "user_agent": ROBOT,
            "ip_address": "8.8.8.8",
        }

    def commerce(self, kind: str, price: Any, quantity: int, **transaction: Any) -> dict[str, Any]:
        return {
            "event_id": self.id(),
            "user_id": "u3",
            "event_type": kind,
            "timestamp": self.time(),
            "properties": {"product_id": "P1", "price": price, "quantity": quantity, "currency": "EUR"},
            "transaction": {"order_id": "o1", **transaction},
        }

    def interaction(self) -> dict[str, Any]:
        return {"event_id": self.id(), "user_id": "u4", "timestamp": self.time(), "event_type": "login"}

    def behaviour(self) -> dict[str, Any]:
        return {**self.interaction(), "session_id": "s5", "event_type": "signup", "properties": {}}

    def financial(self) -> dict[str, Any]:
        return {
            "record_type": "tick",
            "timestamp": self.time(),
            "symbol": "ACME",
            "price": "10.125",
            "bid": "10.1",
        }


def mixed() -> Fates:
    """Returns about fifty events with every fate."""
    f = Fates()
    for _ in range(6):
        f.add(f.envelope())
        f.add(f.clickstream())
        f.add(f.interaction())
        f.add(f.behaviour())
        f.add(f.financial())
    f.add(f.commerce("purchase", "19.99", 2, total_amount="39.98"), revenue=("EUR", "39.98"))
    f.add(f.commerce("purchase", 0.1, 3), revenue=("EUR", "0.3"))
    f.add(f.commerce("refund", "5.00", 1, total_amount="5.00"), revenue=("EUR", "-5"))
    f.add(f.commerce("product_view", 7, 1))
    f.add(f.commerce("purchase", "0", 1), "filtered")
    same = f.clickstream()
    f.add(same)
    f.add(same)
    first = f.interaction()
    f.add(first)
    f.add(first, "duplicate")
    f.add({**first, "event_type": "logout"}, "conflict")
    f.add(f.envelope(timestamp=f.time(hours=25)), "stale")
    f.add(f.envelope(timestamp=f.time(minutes=-6)), "future")
    f.add(f.envelope(timestamp="2026-02-30T00:00:00Z"), "invalid")
    f.add(f.envelope(event_id="7"), "invalid")
    f.add(f.commerce("purchase", -1, 1), "invalid")
    f.add({**f.commerce("purchase", "1", 1), "transaction": None}, "invalid")
    f.add({**f.financial(), "price": None, "symbol": 7}, "invalid")
    f.add({**f.interaction(), "user_id": 7}, "invalid")
    wide = f.envelope()
    wide["context"]["location"]["city"] = "Berlin"
    f.add(wide, "invalid")
    f.add(f.envelope(version="2.0.0"), "unknown_schema")
    f.add({"what": "ever"}, "unknown_schema")
    f.add(b'{"event_id": "', "malformed")
    f.add(b"\xff\xfe{}", "malformed")
    return f
