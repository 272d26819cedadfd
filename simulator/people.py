"""Users and what they do: who visits, from where, with what, and which step follows which."""

from bisect import bisect
from itertools import accumulate
from random import Random
from typing import TypeVar

from headrace.simulator import catalogue
from headrace.simulator.catalogue import Country, Device, Product

T = TypeVar("T")

HOME, LISTING, SEARCH, PRODUCT, CLICK, CART, CHECKOUT, PURCHASE, REFUND, SIGNUP, DECLINED, TRANSFER, END = (
    range(13)
)

_AFTER_SALE = {
    REFUND: (END,),
    SIGNUP: (LISTING, PRODUCT, END),
    DECLINED: (CHECKOUT, CHECKOUT, END),
    TRANSFER: (END,),
}
_JOURNEYS: dict[str, dict[int, tuple[int, ...]]] = {
    "browser": {
        HOME: (LISTING,) * 4 + (PRODUCT,) * 3 + (CLICK, CLICK, SEARCH, END),
        LISTING: (PRODUCT,) * 5 + (LISTING, LISTING, CLICK, END),
        SEARCH: (PRODUCT, PRODUCT, LISTING, END),
        PRODUCT: (LISTING,) * 4 + (PRODUCT,) * 4 + (CLICK,) * 3 + (CART, END, END, SIGNUP),
        CLICK: (PRODUCT, PRODUCT, LISTING, HOME, END),
        CART: (LISTING, PRODUCT, CHECKOUT, END, END),
        CHECKOUT: (PURCHASE, END),
        PURCHASE: (END,) * 15 + (REFUND,),
        **_AFTER_SALE,
    },
    "searcher": {
        HOME: (SEARCH,),
        LISTING: (SEARCH, PRODUCT),
        SEARCH: (SEARCH,) * 3 + (PRODUCT,) * 5 + (LISTING, END),
        PRODUCT: (SEARCH,) * 4 + (PRODUCT, CLICK, CART, END),
        CLICK: (SEARCH, PRODUCT, END),
        CART: (CHECKOUT, SEARCH, END),
        CHECKOUT: (PURCHASE, PURCHASE, END),
        PURCHASE: (END,) * 15 + (REFUND,),
        **_AFTER_SALE,
    },
    "buyer": {
        HOME: (SEARCH, LISTING, PRODUCT),
        LISTING: (PRODUCT,),
        SEARCH: (PRODUCT, PRODUCT, PRODUCT, SEARCH),
        PRODUCT: (CART,) * 4 + (PRODUCT, PRODUCT, CLICK, SEARCH, LISTING),
        CLICK: (PRODUCT, CART),
        CART: (CHECKOUT,) * 4 + (PRODUCT, PRODUCT, END),
        CHECKOUT: (PURCHASE,) * 4 + (END,),
        PURCHASE: (END,) * 14 + (PRODUCT, HOME, REFUND, REFUND),
        **_AFTER_SALE,
    },
    "bot": dict.fromkeys((HOME, LISTING, SEARCH, PRODUCT), (LISTING,) * 12 + (PRODUCT,) * 20 + (HOME, END)),
    "fraudster": {
        HOME: (PRODUCT,),
        LISTING: (PRODUCT,),
        SEARCH: (PRODUCT,),
        PRODUCT: (CART,),
        CLICK: (PRODUCT,),
        CART: (PURCHASE,),
        CHECKOUT: (PURCHASE,),
        PURCHASE: (PURCHASE, PURCHASE, PRODUCT, PRODUCT, END),
        **_AFTER_SALE,
    },
    "account": {TRANSFER: (TRANSFER, END, END)},
}
_STARTS = {
    "browser": (HOME, HOME, LISTING, PRODUCT),
    "searcher": (SEARCH, SEARCH, SEARCH, HOME),
    "buyer": (HOME, SEARCH, PRODUCT, LISTING),
    "bot": (LISTING, PRODUCT),
    "fraudster": (PRODUCT,),
    "account": (TRANSFER,),
}
_MIDWAY = (LISTING, SEARCH, PRODUCT, PRODUCT, CLICK, CART, CHECKOUT)
_KINDS = ("browser",) * 46 + ("searcher",) * 25 + ("buyer",) * 20 + ("bot",) * 7 + ("fraudster",) * 2
_SALE_KINDS = ("browser",) * 32 + ("searcher",) * 22 + ("buyer",) * 38 + ("bot",) * 6 + ("fraudster",) * 2

_GAPS = {
    "human": (5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 21, 24, 28, 33, 38, 45, 53, 62, 75, 90, 110, 140, 180, 260),
    "bot": (1, 1, 1, 2, 2, 3),
    "fraudster": (1, 2, 2, 3, 5),
}
"""Seconds between two events of a session, equally likely; up to a fifth more is added."""

FAMILY_WEIGHTS = {
    "envelope": 26,
    "clickstream": 30,
    "behaviour": 18,
    "commerce": 14,
    "interaction": 8,
    "financial": 4,
    "weblog": 1,
}
"""Which family a session's producer writes, for 100 sessions; a purchase may add a financial transaction."""
_VISIBLE = {
    "commerce": frozenset({PRODUCT, CART, PURCHASE, REFUND, DECLINED}),
    "interaction": frozenset({HOME, LISTING, SEARCH, PRODUCT, CLICK, CART, SIGNUP}),
}
"""Steps that a family has events for; all, if not named here. The others pass unseen."""
_ALL_STEPS = frozenset(range(END))
_NOT_CRAWLED = {"commerce", "financial"}
_MASK64 = (1 << 64) - 1


class Session:
    """One visit. ``step`` is what happens next; the rest is what its events tell."""

    __slots__ = (
        "agent",
        "country",
        "currency",
        "device",
        "family",
        "gaps",
        "head",
        "ip",
        "journey",
        "kind",
        "landing",
        "location",
        "order",
        "pool",
        "product",
        "quantity",
        "query",
        "session_id",
        "step",
        "tail",
        "total",
        "url",
        "user_id",
        "visible",
    )

    agent: str
    country: Country
    currency: str
    device: Device
    family: str
    gaps: tuple[int, ...]
    head: str
    """JSON that a family's writer builds once for the session."""
    ip: str
    journey: dict[int, tuple[int, ...]]
    kind: str
    landing: str
    location: tuple[str, str]
    order: str
    pool: list["Session"] | None
    """The few sessions behind an anomaly that this one belongs to; None for all others."""
    product: Product
    quantity: int
    query: str
    """Search text as a JSON string."""
    session_id: str
    step: int
    tail: str
    total: int
    """Cents of the last purchase."""
    url: str
    user_id: str
    visible: frozenset[int]


class Population:
    """Draws sessions of users that come back: a user keeps id, country, address and device.

    Nothing is stored for a user, all of it follows from their number, so memory does not grow with their count.

    Args:
        rng: the one source of chance.
        seed: sets who the users are.
        users: how many there are; low numbers come more often.
        families: the event families that sessions are spread over.
    """

    def __init__(self, rng: Random, seed: int, users: int, families: tuple[str, ...]) -> None:
        self._random = rng.random
        self._bits = rng.getrandbits
        self._salt = _mix(seed & _MASK64)
        self._users = users
        self._families = _spread({f: FAMILY_WEIGHTS[f] for f in families})
        shops = {f: FAMILY_WEIGHTS[f] for f in families if f not in _NOT_CRAWLED}
        self._crawled = _spread(shops) if shops else self._families
        self._countries = _spread({country: country.weight for country in catalogue.COUNTRIES})
        self._products = tuple(catalogue.PRODUCTS[number] for number in popularity(len(catalogue.PRODUCTS)))

    def visit(self, family: str = "", *, sale: bool = False, midway: bool = False) -> Session:
        """Returns a new session, of ``family`` if one is named.

        ``midway`` starts in the middle, as of a session that began before the simulation did.
        """
        random = self._random
        kinds = _SALE_KINDS if sale else _KINDS
        kind = kinds[int(random() * len(kinds))]
        if not family:
            families = self._crawled if kind == "bot" else self._families
            family = families[int(random() * len(families))]
        if family == "financial":
            kind = "account"
        user = int(random() * random() * self._users) if kind != "bot" else int(random() * 500) - 1000
        session = self._session(kind, family, user)
        if midway and kind in ("browser", "searcher", "buyer"):
            step = _MIDWAY[int(random() * len(_MIDWAY))]
            if step in session.visible:
                session.step = step
        return session

    def crawler(self) -> Session:
        """Returns a session of one of the few machines behind a bot flood."""
        family = self._crawled[int(self._random() * len(self._crawled))]
        return self._session("bot", family, -1 - int(self._random() * 8))

    def thief(self) -> Session:
        """Returns a session of one of the few addresses behind a burst of fraud; each has many user ids."""
        family = self._families[int(self._random() * len(self._families))]
        session = self._session("fraudster", family, -2000 - int(self._random() * 6))
        session.user_id = f"{_mix(self._bits(48)):016x}"
        if family == "financial":
            session.kind, session.journey, session.step = "account", _JOURNEYS["account"], TRANSFER
        return session

    def payment(self, purchase: Session) -> Session:
        """Returns the session whose only event is the payment of a purchase."""
        session = Session()
        for name in (
            "agent",
            "country",
            "currency",
            "device",
            "ip",
            "location",
            "order",
            "product",
            "total",
            "user_id",
        ):
            setattr(session, name, getattr(purchase, name))
        session.kind, session.family, session.journey = "payment", "financial", {TRANSFER: (END,)}
        session.gaps, session.visible, session.step = (1,), frozenset({TRANSFER}), TRANSFER
        session.session_id = session.url = session.landing = session.head = session.tail = session.query = ""
        session.quantity, session.pool = 1, None
        return session

    def advance(self, session: Session) -> int:
        """Moves the session to its next step; returns the milliseconds until then, or 0 if the session ends."""
        step, journey, visible, random = session.step, session.journey, session.visible, self._random
        while True:
            options = journey[step]
            step = options[int(random() * len(options))]
            if step == END:
                return 0
            if step in visible:
                break
        session.step = step
        gaps = session.gaps
        draw = random() * len(gaps)
        place = int(draw)
        return int(gaps[place] * (1000 + (draw - place) * 200))

    def product(self) -> Product:
        """Returns a product, popular ones more often."""
        return self._products[int(self._random() * 4096)]

    def _session(self, kind: str, family: str, user: int) -> Session:
        """Builds a session; users below zero are machines."""
        session = Session()
        chance = _mix((user & _MASK64) ^ self._salt)
        country = self._countries[chance % len(self._countries)]
        agents = catalogue.BOTS if kind == "bot" else catalogue.DEVICES
        session.kind, session.family, session.country = kind, family, country
        session.user_id = f"{_mix(chance ^ 1):016x}"
        session.session_id = f"s-{self._bits(48):012x}"
        session.device = agents[(chance >> 8) % len(agents)]
        session.agent = session.device.user_agent
        session.location = country.places[(chance >> 16) % len(country.places)]
        session.ip = _address(country, chance >> 20)
        session.currency = country.currency if kind != "fraudster" else "USD"
        session.journey = _JOURNEYS[kind]
        session.gaps = _GAPS.get(kind, _GAPS["human"])
        session.visible = _VISIBLE.get(family, _ALL_STEPS)
        session.product = self.product()
        session.quantity = 1
        session.total = 0
        session.pool = None
        session.order = session.tail = session.head = session.query = ""
        session.url = session.landing = ""
        draw = self._random()
        if kind != "bot" and draw < 0.7:
            session.url = catalogue.REFERRERS[int(draw / 0.7 * len(catalogue.REFERRERS))]
            if self._random() < 0.3:
                session.landing = catalogue.CAMPAIGNS[int(self._random() * len(catalogue.CAMPAIGNS))]
        starts = _STARTS[kind]
        session.step = starts[int(self._random() * len(starts))]
        if session.step not in session.visible:
            session.step = PRODUCT
        return session


def popularity(count: int) -> tuple[int, ...]:
    """Returns a table of 4,096 item numbers in which item k stands about in proportion to 1 / (k + 1) (Zipf's law)."""
    weights = list(accumulate(1_000_000 // (rank + 1) for rank in range(count)))
    return tuple(bisect(weights, weights[-1] * place // 4096) for place in range(4096))


def _spread(weights: dict[T, int]) -> tuple[T, ...]:
    return tuple(item for item, weight in weights.items() for _ in range(weight))


def _mix(value: int) -> int:
    """SplitMix64's finaliser: spreads the bits of a number over 64 bits, one to one. Source: Steele, Lea, Flood (2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def _address(country: Country, chance: int) -> str:
    """Returns the address that 44 random bits stand for; about 12 % are IPv6, 2 % are documentation addresses."""
    share, rest = chance & 0xFF, chance >> 8
    documentation = share >= 250
    v6 = catalogue.DOCUMENTATION_V6 if documentation else country.v6
    if v6 and (share < 32 or share >= 254):
        return f"{v6}:{rest & 0xFFFF:x}:{(rest >> 16 & 0xFFFF):x}::{(rest >> 24 & 0xFFFF) | 1:x}"
    prefixes = catalogue.DOCUMENTATION_V4 if documentation else country.v4
    prefix = prefixes[(rest >> 24) % len(prefixes)]
    octets = [str(rest >> shift & 0xFF) for shift in (0, 8, 16)[: 3 - prefix.count(".")]]
    return ".".join([prefix, *octets])
