"""Country of an address: the registry's assignment, or the user's own MMDB file."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import iptocc
import maxminddb
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columns import CODE
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import column, plain
from headrace.transforms.distinct import DistinctCache, distinct, of_type

_CACHED_ADDRESSES = 65_536
_NOT_COUNTRIES = frozenset({"EU", "AP", "ZZ", "XX"})
"""Codes in registry files that stand for no one country: ISO 3166-1 reserves or leaves them free."""


def check_database(path: str | os.PathLike[str] | None) -> str | None:
    """Returns the path of a readable MMDB file as text; null stays null.

    Raises:
        ConfigError: there is no such file, or it is no MMDB.
    """
    if path is None:
        return None
    name = str(Path(path).expanduser().absolute())
    try:
        with maxminddb.open_database(name) as reader:
            reader.metadata()
    except OSError as error:
        raise ConfigError(
            f"country database {name} can't be read: {error.strerror}; give the path of an MMDB file, "
            "or none for the registries' assignment"
        ) from error
    except maxminddb.InvalidDatabaseError as error:
        raise ConfigError(
            f"country database {name} is no MMDB file ({error}); download it again, or give none for the registries' assignment"
        ) from error
    return name


class Countries:
    """Looks up ISO 3166-1 alpha-2 codes; per distinct address, with bounded memory.

    Without a database the code is the country that a regional internet registry assigned the address's block to (package
    ``iptocc``, no network access), which is not always where it is used. With one it is its ``country``, else its
    ``registered_country``. What is no address, is private or is not listed has no country.

    Args:
        database: path of an MMDB file, as :func:`check_database` returns it.
    """

    def __init__(self, database: str | None = None) -> None:
        self._database = database

    def setup(self) -> None:
        """Opens the database.

        Raises:
            ConfigError: it can't be read.
        """
        if self._database is None:
            function: Callable[[list[str]], list[str]] = _registry
        else:
            check_database(self._database)
            reader = maxminddb.open_database(self._database)

            def function(addresses: list[str]) -> list[str]:
                return [_from_database(reader, address) for address in addresses]

        self._codes: DistinctCache[str] = DistinctCache(function, _CACHED_ADDRESSES)

    def lookup(self, addresses: pa.Array) -> pa.Array:
        """Returns the country of each address as a string; null where there is none."""
        codes = distinct(addresses)
        found = pa.array(self._codes(codes.dictionary.to_pylist()), pa.string())
        return pc.if_else(pc.equal(found, ""), pa.scalar(None, pa.string()), found).take(codes.indices)

    def fill(self, batch: pa.RecordBatch) -> tuple[pa.Array, int]:
        """Returns ``country`` filled from ``ip_address`` where it is null, and how many of these lookups failed."""
        stated, addresses = column(batch, "country"), column(batch, "ip_address")
        type_ = CODE if pa.types.is_null(stated.type) else stated.type
        wanted = pc.and_(pc.is_null(stated), pc.is_valid(addresses))
        if not wanted.true_count:
            return of_type(stated, type_), 0
        found = self.lookup(addresses.filter(wanted))
        filled = pc.replace_with_mask(plain(stated).cast(pa.string()), wanted, found)
        return of_type(filled, type_), found.null_count


def _registry(addresses: list[str]) -> list[str]:
    return [c if c and c not in _NOT_COUNTRIES else "" for c in iptocc.country_code(addresses)]


def _from_database(reader: Any, address: str) -> str:
    try:
        record = reader.get(address)
    except ValueError:
        return ""
    if not isinstance(record, dict):
        return ""
    for member in ("country", "registered_country"):
        code = (record.get(member) or {}).get("iso_code")
        if code:
            return str(code)
    return ""
