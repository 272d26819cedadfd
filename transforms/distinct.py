"""Work per distinct value: dictionaries of a batch, and a bounded memory of results from batch to batch."""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

import pyarrow as pa

from headrace.transforms.batches import encoded, plain

T = TypeVar("T")
_MISSING = object()


def distinct(array: pa.Array) -> pa.DictionaryArray:
    """Returns the strings dictionary-encoded: codes int32, values string; plain, large and all-null arrays are accepted.

    A slice of a long dictionary is encoded anew, so that work per value never exceeds work per row.
    """
    if pa.types.is_dictionary(array.type) and len(array.dictionary) <= len(array):
        codes = encoded(array)
    else:
        codes = encoded(plain(array).cast(pa.string()))
    if pa.types.is_string(codes.dictionary.type):
        return codes
    return pa.DictionaryArray.from_arrays(codes.indices, codes.dictionary.cast(pa.string()))


def of_type(array: pa.Array, type_: pa.DataType) -> pa.Array:
    """Converts strings, plain or dictionary-encoded, to a string type: plain, large or a dictionary with any code type."""
    if array.type.equals(type_):
        return array
    if not pa.types.is_dictionary(type_):
        return plain(array).cast(type_)
    codes = encoded(array)
    return pa.DictionaryArray.from_arrays(
        codes.indices.cast(type_.index_type), codes.dictionary.cast(type_.value_type)
    )


class DistinctCache(Generic[T]):
    """Remembers the results of a pure function of one string; bounded, approximately least recently used.

    Two generations: results are written to the young one, and copied there from the old one when asked for again; when the
    young one is full it becomes the old one, and what was the old one is forgotten. Holds at most twice ``size`` results.

    Args:
        function: takes a list of strings it has no results for, and returns one result for each.
        size: results in one generation.
    """

    def __init__(self, function: Callable[[list[str]], Iterable[T]], size: int) -> None:
        self._function = function
        self._size = size
        self._young: dict[str, T] = {}
        self._old: dict[str, T] = {}

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())

    def __call__(self, values: Sequence[str | None]) -> list[T | None]:
        """Returns the result of each value, in order; null for null."""
        results = self._lookup(values)
        unknown = [v for v, r in zip(values, results, strict=True) if r is _MISSING and v is not None]
        if unknown:
            fresh = list(dict.fromkeys(unknown))
            known = dict(zip(fresh, self._function(fresh), strict=True))
            self._remember(known)
            results = [
                known[v] if r is _MISSING and v is not None else r
                for v, r in zip(values, results, strict=True)
            ]
        return [None if r is _MISSING else r for r in results]  # type: ignore[misc]

    def _lookup(self, values: Sequence[str | None]) -> list[object]:
        get = self._young.get
        results: list[object] = [get(v, _MISSING) for v in values]  # type: ignore[arg-type]
        if self._old:
            aged: dict[str, T] = {}
            for i, value in enumerate(values):
                if results[i] is _MISSING and value in self._old:
                    results[i] = aged[value] = self._old[value]
            self._remember(aged)
        return results

    def _remember(self, results: dict[str, T]) -> None:
        for value, result in results.items():
            if len(self._young) >= self._size:
                self._old, self._young = self._young, {}
            self._young[value] = result
