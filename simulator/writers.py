"""One event as the text of its family: a JSON document for each, made to be valid against ``schemas/families``."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from random import Random
from urllib.parse import quote_plus

from headrace.simulator import catalogue
from headrace.simulator.catalogue import HOST, PRODUCTS
from headrace.simulator.people import (
    CART,
    CHECKOUT,
    CLICK,
    DECLINED,
    HOME,
    LISTING,
    PRODUCT,
    PURCHASE,
    REFUND,
    SEARCH,
    SIGNUP,
    Population,
    Session,
)

Writer = Callable[[Session, int, str], str]
"""Session, event time in milliseconds since 1970, event id → the event's text; families without an id ignore it."""

ENVELOPE_TYPES = {
    HOME: "page_view",
    LISTING: "page_view",
    SEARCH: "search",
    PRODUCT: "product_view",
    CLICK: "click",
    CART: "add_to_cart",
    CHECKOUT: "checkout_start",
    PURCHASE: "purchase",
    REFUND: "refund",
    SIGNUP: "signup",
    DECLINED: "payment_failed",
}
CLICKSTREAM_TYPES = {
    **dict.fromkeys((HOME, LISTING, PRODUCT, CHECKOUT, REFUND), "page_view"),
    **dict.fromkeys((CLICK, CART, SIGNUP, DECLINED), "click"),
    SEARCH: "search",
    PURCHASE: "purchase",
}
BEHAVIOUR_TYPES = {
    **dict.fromkeys((HOME, LISTING, SEARCH, PRODUCT, CHECKOUT, REFUND), "page_view"),
    **dict.fromkeys((CLICK, CART, DECLINED), "click"),
    PURCHASE: "purchase",
    SIGNUP: "signup",
}
COMMERCE_TYPES = {
    PRODUCT: "product_view",
    CART: "add_to_cart",
    PURCHASE: "purchase",
    REFUND: "refund",
    DECLINED: "add_to_cart",
}
_INTERACTIONS = ("scroll", "click", "video_play", "share", "form_submit")
_ACTIONS = {CLICK: "open_gallery", CART: "add_to_cart", SIGNUP: "sign_up", DECLINED: "payment_failed"}
_TIERS = ("none", "bronze", "silver", "gold")
_SOURCES = {"web": "web-sdk", "ios": "ios-app", "android": "android-app"}
_BARE = frozenset({HOME, CLICK, CHECKOUT, SIGNUP, DECLINED})
"""Steps that are about a page alone."""
_QUERIES = tuple((json.dumps(q, ensure_ascii=False), quote_plus(q)) for q in catalogue.QUERIES)
_PRODUCT_PATHS = tuple(f"/p/{product.id}/{product.slug}" for product in PRODUCTS)
_PATHS = {
    HOME: "/",
    CHECKOUT: "/checkout",
    SIGNUP: "/signup",
    DECLINED: "/checkout?error=payment",
    CART: "/cart",
}


class Seconds(dict[int, str]):
    """``2026-01-05T12:00:00`` for seconds since 1970; remembers the last few thousand."""

    def __missing__(self, second: int) -> str:
        if len(self) > 5000:
            self.clear()
        self[second] = text = self.text(datetime.fromtimestamp(second, UTC))
        return text

    def text(self, time: datetime) -> str:
        return time.replace(tzinfo=None).isoformat()


class Writers:
    """Writes events; ``event_type`` and ``cents`` tell what the last one was and, for purchases and refunds, its total."""

    def __init__(self, rng: Random, population: Population) -> None:
        self._random = rng.random
        self._bits = rng.getrandbits
        self._population = population
        self._second = Seconds()
        self._offers: dict[str, tuple[list[str], list[int]]] = {}
        self._ticks = [cents for _, cents in catalogue.SYMBOLS]
        self.event_type = ""
        self.cents = 0
        self.of: dict[str, Writer] = {
            "envelope": self.envelope,
            "clickstream": self.clickstream,
            "behaviour": self.behaviour,
            "commerce": self.commerce,
            "interaction": self.interaction,
            "financial": self.financial,
        }

    def envelope(self, session: Session, ms: int, event_id: str) -> str:
        head = session.head or self._envelope_head(session)
        self.event_type = kind = ENVELOPE_TYPES[session.step]
        draw = self._random()
        custom = ""
        if draw < 0.3:
            custom = ',"custom_data":' + catalogue.CUSTOM_DATA[int(draw / 0.3 * len(catalogue.CUSTOM_DATA))]
        return (
            f'{{"metadata":{{"event_id":"{event_id}","timestamp":"{self._second[ms // 1000]}.{ms % 1000:03d}Z",{head}'
            f'"payload":{{"event_type":"{kind}","properties":{{{self._shop(session)}}}{custom}}}}}'
        )

    def behaviour(self, session: Session, ms: int, event_id: str) -> str:
        head, tail = session.head, session.tail
        if not head:
            device, (region, city) = session.device, session.location
            session.head = head = (
                f'"user_id":"{session.user_id}","session_id":"{session.session_id}","event_type":"'
            )
            session.tail = tail = (
                f',"user_agent":{_text(session.agent)},"device_type":"{device.device_type}","location":{{"country":'
                f'"{session.country.code}","region":"{region}","city":{_text(city)}}}}},"context":{{"app_version":'
                f'"{device.app}","platform":"{device.platform}","screen_resolution":"{device.screen}",'
                f'"ip_address":"{session.ip}"}}}}'
            )
        self.event_type = kind = BEHAVIOUR_TYPES[session.step]
        return (
            f'{{"event_id":"{event_id}",{head}{kind}","timestamp":"{self._second[ms // 1000]}.{ms % 1000:03d}Z",'
            f'"properties":{{{self._shop(session)}{tail}'
        )

    def clickstream(self, session: Session, ms: int, event_id: str) -> str:
        head, tail, step = session.head, session.tail, session.step
        if not head:
            session.head = head = (
                f'{{"user_id":"{session.user_id}","session_id":"{session.session_id}","event_type":"'
            )
            session.tail = tail = (
                f'"device_type":"{session.device.device_type}","user_agent":{_text(session.agent)},'
                f'"ip_address":"{session.ip}"'
            )
        self.event_type = kind = CLICKSTREAM_TYPES[step]
        shop = self._shop(session, flat=True)
        custom = ""
        if step in _ACTIONS:
            custom = f',"custom_properties":{{"action":"{_ACTIONS[step]}"}}'
        elif step == PURCHASE:
            custom = f',"custom_properties":{{"order_id":"{session.order}","items":{session.quantity}}}'
        return f'{head}{kind}","timestamp":"{self._second[ms // 1000]}.{ms % 1000:03d}+00:00",{shop},{tail}{custom}}}'

    def commerce(self, session: Session, ms: int, event_id: str) -> str:
        step = session.step
        self.visit(session)
        self.event_type = kind = COMMERCE_TYPES[step]
        offers, _ = self.offers(session.currency)
        discount = transaction = ""
        if step in (PURCHASE, REFUND):
            code = self._order(session)
            discount = f',"discount_code":"{code}"' if code else ""
            transaction = (
                f',"transaction":{{"order_id":"{session.order}","total_amount":{_money(session.total)},'
                f'"payment_method":"{self._method()}"}}'
            )
        return (
            f'{{"event_id":"{event_id}","user_id":"{session.user_id}","event_type":"{kind}",'
            f'"timestamp":"{self._second[ms // 1000]}Z","properties":{{{offers[session.product.number]},'
            f'"quantity":{session.quantity},"currency":"{session.currency}"{discount}}}{transaction}}}'
        )

    def interaction(self, session: Session, ms: int, event_id: str) -> str:
        if not session.tail:
            session.tail = f'"user_agent":{_text(session.agent)},"session_id":"{session.session_id}"}}'
        url, _ = self.visit(session)
        kind = (
            "page_view" if session.step != CLICK else _INTERACTIONS[int(self._random() * len(_INTERACTIONS))]
        )
        self.event_type = kind
        return (
            f'{{"event_id":"{event_id}","user_id":"{session.user_id}","timestamp":"{self._second[ms // 1000]}.'
            f'{ms % 1000:03d}{ms * 7 % 1000:03d}Z","event_type":"{kind}","page_url":"{url}",{session.tail}'
        )

    def financial(self, session: Session, ms: int, event_id: str) -> str:
        """A transaction: the payment of a purchase, else a booking on an account. ``event_id`` may be empty."""
        self.event_type = "transaction"
        random, cents = self._random, session.total
        purpose, method, reference = "order", self._method(), session.order
        counterparty = catalogue.COUNTERPARTIES[0]
        if not reference:
            purpose = catalogue.PURPOSES[int(random() * len(catalogue.PURPOSES))]
            counterparty = catalogue.COUNTERPARTIES[int(random() * len(catalogue.COUNTERPARTIES))]
            cents = int(random() * random() * 300_000) + 100
            cents = cents if purpose in ("salary", "refund") else -cents
            method, reference = "bank_transfer", f"ref-{self._bits(40):010x}"
        known = f'"event_id":"{event_id}",' if event_id else ""
        return (
            f'{{"record_type":"transaction",{known}"timestamp":"{self._second[ms // 1000 + 3600]}.{ms % 1000:03d}+01:00",'
            f'"source":"core-banking","account_id":"acct-{session.user_id[:12]}","amount":"{_money(cents)}","currency":'
            f'"{session.currency}","counterparty":"{counterparty}","payment_method":"{method}","category":"{purpose}",'
            f'"ip_address":"{session.ip}","reference":"{reference}","description":"{purpose} {reference}"}}'
        )

    def tick(self, ms: int) -> str:
        """A market tick; it carries no id. Prices walk at random and stay between half and twice their first."""
        self.event_type = "tick"
        chance = self._bits(32)
        number = chance % len(catalogue.SYMBOLS)
        symbol, first = catalogue.SYMBOLS[number]
        price = self._ticks[number] + (chance >> 8 & 15) - 7
        self._ticks[number] = price = min(max(price, first // 2), first * 2)
        return (
            f'{{"record_type":"tick","timestamp":"{self._second[ms // 1000]}.{ms % 1000:03d}{chance >> 12 & 511:03d}Z",'
            f'"source":"market-feed","symbol":"{symbol}","price":"{_money(price)}","size":"{(chance >> 21) + 1}",'
            f'"bid":"{_money(price - 1)}","ask":"{_money(price + 2)}","currency":"EUR",'
            f'"venue":"{catalogue.VENUES[chance >> 30]}"}}'
        )

    def offers(self, currency: str) -> tuple[list[str], list[int]]:
        """Returns each product's JSON and its price in cents of the currency; stable over the whole run."""
        known = self._offers.get(currency)
        if known is None:
            rate = next(c.rate for c in catalogue.COUNTRIES if c.currency == currency)
            cents = [product.cents * rate // 100 for product in PRODUCTS]
            texts = [
                f'"product_id":"{p.id}","category":"{p.category}","price":{_money(price)}'
                for p, price in zip(PRODUCTS, cents, strict=True)
            ]
            known = self._offers[currency] = texts, cents
        return known

    def _envelope_head(self, session: Session) -> str:
        device, (region, _), number = session.device, session.location, int(session.user_id[:4], 16)
        session.head = head = (
            f'"version":"1.0.0","source":"{_SOURCES[device.platform]}"}},"user":{{"id":"{session.user_id}","session_id":'
            f'"{session.session_id}","attributes":{{"tier":"{_TIERS[number & 3]}","newsletter":'
            f'{"true" if number & 4 else "false"},"signup_year":{2016 + number % 10}}}}},"context":{{"device_type":'
            f'"{device.device_type}","os_version":"{device.os_version}","app_version":"{device.app}","platform":'
            f'"{device.platform}","screen_resolution":"{device.screen}","user_agent":{_text(session.agent)},'
            f'"ip_address":"{session.ip}","location":{{"country":"{session.country.code}","region":"{region}"}}}},'
        )
        return head

    def _shop(self, session: Session, *, flat: bool = False) -> str:
        """Takes the session's step; returns page, referrer and what the step is about, as members of a JSON object.

        ``flat`` leaves out what clickstream has no field for: the order and its total.
        """
        url, referrer = self.visit(session)
        pages = (
            f'"page_url":"{url}","referrer":"{referrer}"'
            if referrer
            else f'"page_url":"{url}","referrer":null'
        )
        step = session.step
        if step in _BARE:
            return pages
        if step == LISTING:
            return f'{pages},"category":"{session.product.category}"'
        if step == SEARCH:
            return f'{pages},"query":{session.query}'
        currency = session.currency
        offer = f'{pages},{self.offers(currency)[0][session.product.number]},"currency":"{currency}"'
        if step == PRODUCT:
            return offer
        if step == CART:
            return f'{offer},"quantity":{session.quantity}'
        code = self._order(session, discounts=not flat)
        if flat:
            return f'{offer},"quantity":{session.quantity}'
        discount = f',"discount_code":"{code}"' if code else ""
        return (
            f'{offer},"quantity":{session.quantity},"amount":{_money(session.total)},"order_id":"{session.order}"'
            f'{discount},"payment_method":"{self._method()}"'
        )

    def visit(self, session: Session) -> tuple[str, str]:
        """Moves the session to the page of its step; returns its address and where it came from."""
        step, referrer = session.step, session.url
        if step == PRODUCT:
            session.product = product = self._population.product()
            if session.kind == "fraudster":
                session.product = product = max(product, self._population.product(), key=lambda p: p.cents)
            path = _PRODUCT_PATHS[product.number]
        elif step == LISTING:
            session.product = self._population.product()
            path = f"/c/{session.product.category}?page={int(self._random() * 5) + 1}"
        elif step == SEARCH:
            session.query, coded = _QUERIES[int(self._random() * len(_QUERIES))]
            path = f"/search?q={coded}"
        elif step == PURCHASE:
            session.order = f"ord-{self._bits(40):010x}"
            path = f"/checkout/thanks?order={session.order}"
        elif step == REFUND:
            path = f"/account/returns?order={session.order}"
        elif step == CLICK and referrer.startswith(HOST):
            return referrer, referrer
        else:
            if step == CART:
                session.quantity = (1, 1, 1, 1, 2, 2, 3)[int(self._random() * 7)]
            path = _PATHS.get(step, "/")
        if session.landing:
            path = f"{path}{'&' if '?' in path else '?'}{session.landing}"
            session.landing = ""
        session.url = url = HOST + path
        return url, referrer

    def _order(self, session: Session, *, discounts: bool = True) -> str:
        """Sets the total of a purchase and returns its discount code; a refund gives back the total before it."""
        if session.step == REFUND:
            self.cents = -session.total
            return ""
        if session.kind == "fraudster":
            session.quantity = 2 + int(self._random() * 7)
        _, prices = self.offers(session.currency)
        session.total = prices[session.product.number] * session.quantity
        code = ""
        draw = self._random()
        if discounts and draw < 0.2:
            code, left = catalogue.DISCOUNTS[int(draw / 0.2 * len(catalogue.DISCOUNTS))]
            session.total = session.total * left // 100
        self.cents = session.total
        return code

    def _method(self) -> str:
        return catalogue.PAYMENT_METHODS[int(self._random() * len(catalogue.PAYMENT_METHODS))]


def _money(cents: int) -> str:
    sign, cents = ("-", -cents) if cents < 0 else ("", cents)
    return f"{sign}{cents // 100}.{cents % 100:02d}"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
