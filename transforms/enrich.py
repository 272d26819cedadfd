"""Adds what can be derived from an event and its user: device, category, revenue, country, profile."""

import os
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columns import ENRICHED_SCHEMA, MONEY
from headrace.schemas.errors import ConfigError
from headrace.transforms.base import Kernel, Outcome, StageTransform
from headrace.transforms.batches import as_type, column, encoded, plain
from headrace.transforms.countries import Countries, check_database
from headrace.transforms.distinct import distinct
from headrace.transforms.profiles import ProfileTable
from headrace.transforms.rejects import no_rejects
from headrace.transforms.user_agents import UserAgents

CATEGORIES: dict[str, tuple[str, ...]] = {
    "browse": ("page_view", "product_view", "screen_view", "request"),
    "discovery": ("search", "filter", "sort", "recommendation_view"),
    "engagement": ("click", "add_to_cart", "remove_from_cart", "add_to_wishlist", "share", "review", "scroll", "video_play"),
    "conversion": ("purchase", "checkout", "subscribe"),
    "reversal": ("refund", "return", "cancel", "chargeback"),
    "account": ("signup", "login", "logout", "account_update", "password_reset"),
    "finance": ("transaction", "tick"),
}  # fmt: skip
"""event_category → event types; any other type is "other", no type has no category."""

_CATEGORY = {type_: category for category, types in CATEGORIES.items() for type_ in types}
_WIDE = pa.decimal256(76, 9)
_LIMIT = pa.scalar(10**29, pa.decimal256(38, 0))
"""Money has 29 digits before the point."""


class Enrich(StageTransform):
    """Derives browser, device, bot flag, category, revenue, country and profile; a failed lookup is null, never an error.

    Row order, row count and what the event itself states are unchanged. Stateless; bounded or unbounded; any windowing; a replay
    with the same database and profile file gives the same output. ``.rejected`` is always empty.

    Input: columns of ``EVENT_SCHEMA``, strings plain or dictionary-encoded; one that is missing counts as null.
    Output: all columns of ``ENRICHED_SCHEMA``, in its order and types, then the batch's other columns, then the profile's.

    - ``browser``, ``os``, ``is_bot`` from ``user_agent``; ``device_type`` where it is null. See :class:`UserAgents`.
    - ``event_category`` from ``event_type``, see :data:`CATEGORIES`.
    - ``revenue``, decimal128(38, 9) in ``currency``: of a purchase ``amount``, else ``price`` × ``quantity`` (one if null),
      exact; of a refund the same, negative; else null. Financial families (``schema`` ``financial:…``) have no revenue.
    - ``country`` where it is null from ``ip_address``, if ``country``; from a truncated address it is the /24's or /48's.
    - profile columns, joined as of ``event_time``, see :class:`ProfileTable`.

    Counted, by rows: ``country_unknown``, ``user_agent_unknown``, ``revenue_overflow`` (beyond 38 digits: null) and
    ``profile_missing``.

    Args:
        country: whether to look up the country.
        country_database: MMDB file; ``None`` means the registries' assignment.
        profiles: the dimension to join.

    Raises:
        ConfigError: the database can't be read, or is given with ``country=False``.

    Example:
        >>> kernel = Enrich().kernel()
        >>> kernel.setup()
        >>> from decimal import Decimal
        >>> batch = pa.RecordBatch.from_pydict(
        ...     {"event_type": ["purchase"], "price": pa.array([Decimal("9.99")], MONEY), "quantity": [3]}
        ... )
        >>> row = kernel(batch).accepted.to_pylist()[0]
        >>> row["event_category"], str(row["revenue"])
        ('conversion', '29.970000000')
    """

    def __init__(
        self,
        *,
        country: bool = True,
        country_database: str | os.PathLike[str] | None = None,
        profiles: ProfileTable | None = None,
    ) -> None:
        super().__init__()
        if country_database is not None and not country:
            raise ConfigError(
                f"country_database is {os.fspath(country_database)!r} but country is False; set country=True or drop it"
            )
        self._country = country
        self._database = check_database(country_database)
        self._profiles = profiles

    def kernel(self) -> Kernel:
        return EnrichKernel(country=self._country, database=self._database, profiles=self._profiles)


class EnrichKernel:
    """The kernel of :class:`Enrich`; arguments as checked there."""

    name = "enrich"

    def __init__(
        self, *, country: bool = True, database: str | None = None, profiles: ProfileTable | None = None
    ) -> None:
        self._countries = Countries(database) if country else None
        self._profiles = profiles
        self._agents = UserAgents()
        self.counts: Counter[str] = Counter()

    def setup(self) -> None:
        """Opens the database, compiles the user-agent patterns and loads the profiles.

        Raises:
            ConfigError: the database or the profiles can't be read.
        """
        self._agents.setup()
        if self._countries:
            self._countries.setup()
        if self._profiles:
            self._profiles.setup()

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        columns = {f.name: as_type(column(batch, f.name), f.type) for f in ENRICHED_SCHEMA}
        derived, unknown = self._agents.columns(columns["user_agent"])
        self._count("user_agent_unknown", unknown)
        derived["device_type"] = _coalesced(columns["device_type"], derived["device_type"])
        columns |= derived
        if self._countries:
            columns["country"], unknown = self._countries.fill(batch)
            self._count("country_unknown", unknown)
        columns["event_category"] = categories(columns["event_type"])
        columns["revenue"], overflow = revenues(columns)
        self._count("revenue_overflow", overflow)
        columns |= {n: batch.column(n) for n in batch.schema.names if n not in columns}
        if self._profiles:
            found, missing = self._profiles.join(columns["user_id"], columns["event_time"])
            self._count("profile_missing", missing)
            columns |= found
        arrays = [
            as_type(array, ENRICHED_SCHEMA.field(name).type) if name in ENRICHED_SCHEMA.names else array
            for name, array in columns.items()
        ]
        return Outcome(pa.RecordBatch.from_arrays(arrays, names=list(columns)), no_rejects())

    def _count(self, name: str, rows: int) -> None:
        if rows:
            self.counts[name] += rows


def categories(event_types: pa.Array) -> pa.Array:
    """Returns the category of each event type; null for null."""
    codes = distinct(event_types)
    names = [None if t is None else _CATEGORY.get(t, "other") for t in codes.dictionary.to_pylist()]
    values = pa.array(names, pa.string()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(values.indices.take(codes.indices), values.dictionary)


def revenues(columns: dict[str, pa.Array]) -> tuple[pa.Array, int]:
    """Returns the revenue of each row, and in how many rows it does not fit decimal128(38, 9).

    Args:
        columns: ``event_type``, ``schema``, ``amount``, ``price`` and ``quantity`` in their types of ``EVENT_SCHEMA``.
    """
    kinds = {name: _is(columns["event_type"], lambda t, n=name: t == n) for name in ("purchase", "refund")}
    financial = _is(columns["schema"], lambda s: s.startswith("financial:"))
    earning = pc.and_(pc.or_(kinds["purchase"], kinds["refund"]), pc.invert(financial))
    nothing = pa.nulls(len(earning), MONEY)
    if not earning.true_count:
        return nothing, 0
    amount = columns["amount"].filter(earning)
    priced = pc.and_(pc.is_null(amount), pc.is_valid(columns["price"].filter(earning)))
    overflow = 0
    if priced.true_count:
        totals, overflow = _products(
            columns["price"].filter(earning).filter(priced),
            columns["quantity"].filter(earning).filter(priced),
        )
        amount = pc.replace_with_mask(amount, priced, totals)
    refund = kinds["refund"].filter(earning)
    amount = pc.if_else(refund, pc.negate(pc.abs(amount)), amount)
    return pc.replace_with_mask(nothing, earning, amount), overflow


def _products(prices: pa.Array, quantities: pa.Array) -> tuple[pa.Array, int]:
    """Multiplies exactly: 38 by 19 digits fit decimal256; what exceeds decimal128(38, 9) is null, and counted."""
    units = pc.fill_null(quantities, 1).cast(pa.decimal256(19, 0))
    products = pc.multiply(prices.cast(pa.decimal256(38, 9)), units).cast(_WIDE)
    fits = pc.less(pc.abs(products), _LIMIT)
    kept = pc.if_else(fits, products, pa.scalar(None, _WIDE))
    return kept.cast(MONEY), pc.invert(fits).true_count


def _is(array: pa.Array, test) -> pa.Array:  # type: ignore[no-untyped-def]
    """Applies a test to each distinct string; null is false."""
    codes = distinct(array)
    flags = pa.array([v is not None and bool(test(v)) for v in codes.dictionary.to_pylist()], pa.bool_())
    return pc.fill_null(flags.take(codes.indices), False)


def _coalesced(stated: pa.Array, derived: pa.Array) -> pa.Array:
    if not stated.null_count:
        return stated
    if stated.null_count == len(stated):
        return derived
    return encoded(pc.coalesce(plain(stated), plain(derived)))
