"""A dimension of users, joined as of event time."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from headrace.schemas.columns import ENRICHED_SCHEMA, TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import mask_of
from headrace.transforms.distinct import distinct, of_type
from headrace.transforms.keys import Key

Ints = npt.NDArray[np.int64]

_LOADED: dict[tuple[Any, ...], "_Index"] = {}
"""One index a file, settings and process, shared by the kernels of all threads."""
_HAS_OFFSET = r"(?:[Zz]|[+-][0-9]{2}(?::?[0-9]{2})?)\z"


class ProfileTable:
    """A Parquet or CSV file with one row a user, or one row for each time from which something else holds of a user.

    An event gets the row of its user with the latest ``valid_from_column`` <= ``event_time``; without that column the
    user's only row. A user without such a row gets nulls and is counted. Values keep their Arrow types, strings are
    dictionary-encoded. A pickle holds the path and the file's fingerprint, not the data: each process loads the file once and
    refuses another one.

    Args:
        path: ``*.parquet`` or ``*.pq``, else CSV with a header (types are inferred; the key is text, times are ISO 8601, UTC
            if they state no offset). Workers need it at the same path.
        key_column: the user's id, not null; text, or integers as text.
        valid_from_column: timestamp, date or ISO 8601 text; null means since ever.
        columns: what to join; all others if ``None``.
        prefix: of the joined columns' names.
        tokenize: the key that :class:`MaskPii` uses, if it runs before: the file holds raw ids, events hold tokens.

    Raises:
        ConfigError: the file can't be read, has no rows, lacks a column (names the nearest), has a null key or two rows for one key
            (and time); a joined column would take the name of an event column.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        key_column: str = "user_id",
        valid_from_column: str | None = None,
        columns: Sequence[str] | None = None,
        prefix: str = "profile_",
        tokenize: Key | None = None,
    ) -> None:
        self.path = str(Path(path).expanduser().absolute())
        self._key_column = key_column
        self._valid_from_column = valid_from_column
        self._columns = None if columns is None else tuple(columns)
        self._prefix = prefix
        self._tokenize = tokenize
        self.fingerprint = _fingerprint(self.path)
        self.schema = self._load().schema
        """Names and types of the joined columns."""

    def setup(self) -> None:
        """Loads the file, once a process.

        Raises:
            ConfigError: it can't be read, or is not the file that the table was made from.
        """
        if self._identity() not in _LOADED and (found := _fingerprint(self.path)) != self.fingerprint:
            raise ConfigError(
                f"profiles {self.path} on this worker is another file (fingerprint {found[:16]}) than the launcher's "
                f"({self.fingerprint[:16]}); copy the launcher's file there, or start again"
            )
        self._load()

    def join(self, user_ids: pa.Array, event_times: pa.Array) -> tuple[dict[str, pa.Array], int]:
        """Returns the profile columns of each row, and how many rows with a user have no profile.

        Args:
            user_ids: strings, plain or dictionary-encoded; tokens if ``tokenize`` is given.
            event_times: timestamps in microseconds.
        """
        index = self._load()
        rows = index.rows(user_ids, event_times)
        missing = int(np.count_nonzero((rows < 0) & mask_of(pc.is_valid(user_ids))))
        taken = pa.array(rows, mask=rows < 0)
        return {f.name: index.values[f.name].take(taken) for f in index.schema}, missing

    def _identity(self) -> tuple[Any, ...]:
        key = self._tokenize.fingerprint if self._tokenize else None
        return (
            self.path, self.fingerprint, self._key_column, self._valid_from_column, self._columns, self._prefix, key,
        )  # fmt: skip

    def _load(self) -> "_Index":
        identity = self._identity()
        if identity not in _LOADED:
            _LOADED[identity] = self._build()
        return _LOADED[identity]

    def _build(self) -> "_Index":
        table = _read(self.path, self._key_column, self._valid_from_column)
        wanted = {"key_column": (self._key_column,), "columns": self._columns or ()}
        if self._valid_from_column is not None:
            wanted["valid_from_column"] = (self._valid_from_column,)
        for argument, names in wanted.items():
            for name in names:
                if name not in table.column_names:
                    raise ConfigError(
                        f"profiles {self.path} has no column {name!r} ({argument}); it has {', '.join(table.column_names)}"
                    )
        if not table.num_rows:
            raise ConfigError(
                f"profiles {self.path} has no rows; give a file with at least one, or no profiles"
            )
        own = (self._key_column, self._valid_from_column)
        joined = self._columns or tuple(n for n in table.column_names if n not in own)
        values = {f"{self._prefix}{name}": _value(table[name]) for name in joined}
        if clash := sorted(set(values) & set(ENRICHED_SCHEMA.names)):
            raise ConfigError(
                f"prefix {self._prefix!r} makes profile column {clash[0]!r}, which events have already; use another prefix"
            )
        keys = _text(table[self._key_column], self._key_column, self.path)
        if self._tokenize is not None:
            keys = self._tokenize.tokens(keys)
        since = None
        if self._valid_from_column is not None:
            since = _times(table[self._valid_from_column], self._valid_from_column, self.path)
        index = _Index(keys, since, values)
        if index.duplicates:
            raise ConfigError(
                f"profiles {self.path} has {index.duplicates} rows whose {self._key_column!r}"
                + (f" and {self._valid_from_column!r}" if since is not None else "")
                + " another row has too; keep one of each"
                + ("" if since is not None else ", or name the column of times as valid_from_column")
            )
        return index


class _Index:
    """Finds rows by key and time: users by sorted 64-bit hashes (compared with the id itself, so never mistaken), times by rank."""

    def __init__(self, keys: pa.Array, since: Ints | None, values: dict[str, pa.Array]) -> None:
        codes = keys.dictionary_encode()
        self._seed, hashes = _unique_hashes(codes.dictionary.to_pylist())
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._ids = codes.dictionary.take(pa.array(order))
        position = np.empty(len(order), np.int64)
        position[order] = np.arange(len(order))
        users = position[codes.indices.to_numpy()]
        times = np.zeros(len(users), np.int64) if since is None else since
        self._times = np.unique(times)
        self._timeless = since is None
        self._span = len(self._times) + 1
        ranks = users * self._span + np.searchsorted(self._times, times) + 1
        by_rank = np.argsort(ranks, kind="stable")
        self._ranks = ranks[by_rank]
        self.duplicates = int(np.count_nonzero(self._ranks[1:] == self._ranks[:-1]))
        rows = pa.array(by_rank)
        self.values = {name: array.take(rows) for name, array in values.items()}
        self.schema = pa.schema([pa.field(name, array.type) for name, array in self.values.items()])

    def rows(self, user_ids: pa.Array, event_times: pa.Array) -> Ints:
        """Returns the row in ``values`` for each event; -1 if there is none."""
        codes = distinct(user_ids)
        users = np.append(self._users(codes.dictionary), np.int64(-1))[_codes(codes)]
        if self._timeless:
            rank = np.full(len(users), self._span - 1, np.int64)
        else:
            times = pc.fill_null(event_times.cast(TIME).cast(pa.int64()), np.iinfo(np.int64).min).to_numpy()
            rank = np.searchsorted(self._times, times, side="right")
            users = np.where(mask_of(pc.is_valid(event_times)), users, -1)
        found = np.searchsorted(self._ranks, users * self._span + rank, side="right") - 1
        own = (users >= 0) & (found >= 0) & (self._ranks[np.maximum(found, 0)] // self._span == users)
        return np.where(own, found, -1)

    def _users(self, ids: pa.Array) -> Ints:
        """Returns the position of each id among ``_ids``; -1 if it is not there."""
        hashes = np.array(
            [xxh3_64_intdigest((i or "").encode(), self._seed) for i in ids.to_pylist()], np.uint64
        )
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        same = mask_of(pc.equal(self._ids.take(pa.array(at)), ids))
        return np.where(same, at, -1)


def _codes(codes: pa.DictionaryArray) -> Ints:
    """Returns the codes as numpy; -1 for null."""
    indices: Ints = pc.fill_null(codes.indices, -1).to_numpy().astype(np.int64)
    return indices


def _unique_hashes(ids: list[str]) -> tuple[int, npt.NDArray[np.uint64]]:
    """Hashes with the first seed under which no two ids collide."""
    seed = 0
    while True:
        hashes = np.array([xxh3_64_intdigest(i.encode(), seed) for i in ids], np.uint64)
        if len(np.unique(hashes)) == len(hashes):
            return seed, hashes
        seed += 1


def _fingerprint(path: str) -> str:
    try:
        return xxh3_128_hexdigest(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(
            f"profiles {path} can't be read: {error.strerror}; give the path of a Parquet or CSV file"
        ) from error


def _read(path: str, key: str, since: str | None) -> pa.Table:
    try:
        if Path(path).suffix.lower() in (".parquet", ".pq"):
            return pq.read_table(path)
        types = {name: pa.string() for name in (key, since) if name is not None}
        return pyarrow.csv.read_csv(
            path,
            convert_options=pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True),
        )
    except pa.ArrowInvalid as error:
        kind = str(error).split(":")[0].split("\n")[0]
        raise ConfigError(
            f"profiles {path} can't be read as Parquet or CSV ({kind}); check the file and its ending"
        ) from None


def _text(column: pa.ChunkedArray, name: str, path: str) -> pa.Array:
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    type_ = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    if not (pa.types.is_integer(type_) or pa.types.is_string(type_) or pa.types.is_large_string(type_)):
        raise ConfigError(f"profiles {path}: column {name!r} is {type_}; a key is text or an integer")
    if array.null_count:
        raise ConfigError(
            f"profiles {path}: column {name!r} is null in {array.null_count} rows; each row needs a key"
        )
    return array.cast(pa.string())


def _times(column: pa.ChunkedArray, name: str, path: str) -> Ints:
    array = pa.concat_arrays(column.chunks)
    try:
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            offset = pc.match_substring_regex(array, rf"[T ][0-9:.]+{_HAS_OFFSET}")
            utc = pc.if_else(offset, array, None).cast(TIME)
            naive = pc.if_else(offset, None, array).cast(pa.timestamp("us")).cast(TIME)
            array = pc.coalesce(utc, naive)
        elif pa.types.is_date(array.type):
            array = array.cast(pa.timestamp("us"))
        elif not pa.types.is_timestamp(array.type):
            raise ConfigError(
                f"profiles {path}: column {name!r} is {array.type}; it needs timestamps or dates"
            )
        array = array.cast(pa.timestamp("us", array.type.tz), safe=False).cast(TIME)
    except pa.ArrowInvalid:
        raise ConfigError(
            f"profiles {path}: column {name!r} holds text that is no ISO 8601 time; write 2026-01-31T12:00:00Z or 2026-01-31"
        ) from None
    since: Ints = pc.fill_null(array.cast(pa.int64()), np.iinfo(np.int64).min).to_numpy()
    return since


def _value(column: pa.ChunkedArray) -> pa.Array:
    array = pa.concat_arrays(column.chunks)
    if pa.types.is_large_string(array.type):
        array = array.cast(pa.string())
    if pa.types.is_dictionary(array.type):
        return (
            of_type(array, pa.dictionary(pa.int32(), pa.string()))
            if pa.types.is_string(array.type.value_type)
            else array
        )
    return array.dictionary_encode() if pa.types.is_string(array.type) else array
