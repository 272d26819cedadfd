"""Fills the country from the address, while the address is still whole."""

import os
from collections import Counter

import pyarrow as pa

from headrace.transforms.base import Kernel, Outcome, StageTransform
from headrace.transforms.batches import replace
from headrace.transforms.countries import Countries, check_database
from headrace.transforms.rejects import no_rejects


class EnrichCountry(StageTransform):
    """Fills ``country`` where it is null from ``ip_address``; meant to run before :class:`MaskPii` truncates the address.

    Row order, row count and all other columns are unchanged, and so is a country that the event states. Stateless; bounded or
    unbounded; any windowing; a replay with the same database gives the same output. ``.rejected`` is always empty.

    Input: ``ip_address`` (IPv4 or IPv6 text) and ``country``, as strings or dictionaries; both may be missing.
    Output: the same columns; ``country`` (ISO 3166-1 alpha-2) is appended if it was missing. Null where the address has no country:
    counted as ``country_unknown``, never an error.

    Args:
        database: an MMDB file with ``country.iso_code``; ``None`` means the registries' assignment (package ``iptocc``).

    Raises:
        ConfigError: the database can't be read.

    Example:
        >>> kernel = EnrichCountry().kernel()
        >>> kernel.setup()
        >>> batch = pa.RecordBatch.from_pydict({"ip_address": ["8.8.8.8", "10.0.0.1", None]})
        >>> kernel(batch).accepted.column("country").to_pylist(), kernel.counts["country_unknown"]
        (['US', None, None], 1)
    """

    def __init__(self, database: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        self._database = check_database(database)

    def kernel(self) -> Kernel:
        return CountryKernel(self._database)


class CountryKernel:
    """The kernel of :class:`EnrichCountry`; ``database`` as checked there."""

    name = "enrich_country"

    def __init__(self, database: str | None = None) -> None:
        self._countries = Countries(database)
        self.counts: Counter[str] = Counter()

    def setup(self) -> None:
        """Opens the database.

        Raises:
            ConfigError: it can't be read.
        """
        self._countries.setup()

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        country, unknown = self._countries.fill(batch)
        if unknown:
            self.counts["country_unknown"] += unknown
        return Outcome(replace(batch, {"country": country}), no_rejects())
