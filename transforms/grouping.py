"""Rows grouped by several columns: codes of values, computed once for a batch, and exact sums within groups."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_128_digest

from headrace.schemas.columns import MONEY, TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import as_type, encoded, mask_of, plain
from headrace.transforms.conditions import Conditions, matches
from headrace.transforms.hashing import decimal_limbs, int64_values

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]

_FLOAT_ROWS = 1 << 20
"""So many 32-bit numbers add up to less than 2⁵³, which a float64 holds exactly."""


class Groups:
    """Numbers rows by group.

    Args:
        codes: for each key column a code for each row, and one more than the highest code.
        rows: how many rows there are.
    """

    def __init__(self, codes: Sequence[tuple[I64, int]], rows: int) -> None:
        code, span = np.zeros(rows, np.int64), 1
        for more, distinct in codes:
            if span * distinct >= 1 << 62:
                found, code = np.unique(code, return_inverse=True)
                span = len(found)
            code, span = code * distinct + more if span > 1 else more, span * distinct
        if span <= 4 * rows + 1024:
            first_of = np.full(span, -1, np.int64)
            first_of[code[::-1]] = np.arange(rows - 1, -1, -1)
            found = np.flatnonzero(first_of >= 0)
            number = np.empty(span, np.int64)
            number[found] = np.arange(len(found))
            first, group = first_of[found], number[code]
        else:
            _, first, group = np.unique(code, return_index=True, return_inverse=True)
        self.of: I64 = group
        """The group of each row: 0, 1, 2, … in the order of the key columns' codes."""
        self.size = len(first)
        self.first: I64 = first
        """The first row of each group."""

    def count(self, chosen: Flags | None = None) -> I64:
        """Counts each group's rows, or those chosen."""
        return np.bincount(self.of if chosen is None else self.of[chosen], minlength=self.size)

    def add(self, numbers: I64) -> I64:
        """Sums int64 numbers within each group, exactly modulo 2⁶⁴."""
        if not self.size:
            return numbers[:0]
        order, starts = self._sorted()
        return np.add.reduceat(numbers[order], starts)

    def add_32(self, numbers: I64) -> I64:
        """Sums numbers of which each lies within ±2³², exactly."""
        if len(numbers) > _FLOAT_ROWS:
            return self.add(numbers)
        return np.bincount(self.of, weights=numbers, minlength=self.size).astype(np.int64)

    def _sorted(self) -> tuple[I64, I64]:
        order = argsort_groups(self.of, self.size)
        return order, np.searchsorted(self.of[order], np.arange(self.size))


def argsort_groups(group: I64, size: int) -> I64:
    """A stable sort; of 16-bit numbers numpy has a linear one."""
    return np.argsort(group.astype(np.uint16) if size <= 1 << 16 else group, kind="stable")


def codes_of(key: pa.Array) -> tuple[I64, int]:
    """Returns a code for each value, null having one of its own, and one more than the highest."""
    if pa.types.is_int64(key.type) and not key.null_count:
        numbers = key.to_numpy()
        low, high = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
        if high - low <= len(numbers):
            return numbers - low, high - low + 1
        found, codes = np.unique(numbers, return_inverse=True)
        return codes, max(1, len(found))
    return _codes(distinct_codes(key))


def _codes(values: pa.DictionaryArray) -> tuple[I64, int]:
    last = len(values.dictionary)
    codes = pc.fill_null(values.indices, last).to_numpy(zero_copy_only=False)
    return codes.astype(np.int64), last + 1


def distinct_codes(values: pa.Array) -> pa.DictionaryArray:
    """Dictionary-encodes; no value stands twice in the dictionary, as it may in a dictionary from elsewhere."""
    found = encoded(values)
    if found is values and pc.count_distinct(found.dictionary).as_py() < len(found.dictionary):
        return plain(values).dictionary_encode()
    return found


class Rows:
    """The rows of a batch that an aggregate takes, and what was computed of their columns; several aggregates share it.

    Args:
        batch: any columns.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self.count = int(batch.num_rows)
        self._chosen: dict[Conditions, Rows] = {}
        self._matching: dict[Conditions, Flags] = {}
        self._encoded: dict[str, pa.DictionaryArray] = {}
        self._codes: dict[str, tuple[I64, int]] = {}
        self._digests: dict[str, U64] = {}
        self._groups: dict[tuple[int, tuple[str, ...]], Groups] = {}
        self._parts: dict[Hashable, list[pa.Array]] = {}
        self._times: I64 | None = None

    def require(self, names: Sequence[str]) -> None:
        """Raises ConfigError if the batch lacks one of these columns."""
        missing = [n for n in names if self._batch.schema.get_field_index(n) < 0]
        if missing:
            raise ConfigError(
                f"windows over {missing}: the batches have no such column; they have {self._batch.schema.names}. "
                "Apply the transform that adds it (Enrich adds revenue and event_category) before"
            )

    def chosen(self, wanted: Conditions) -> "Rows":
        """Returns the rows that fulfil conditions."""
        if not wanted:
            return self
        if wanted not in self._chosen:
            flags = self.matching(wanted)
            self._chosen[wanted] = self if flags.all() else _Chosen(self, flags)
        return self._chosen[wanted]

    def matching(self, wanted: Conditions) -> Flags:
        """Returns which rows fulfil conditions."""
        if wanted not in self._matching:
            self._matching[wanted] = self._matches(wanted)
        return self._matching[wanted]

    def times(self) -> I64:
        """Returns the event times, µs since 1970.

        Raises:
            ValueError: a row has none.
        """
        if self._times is None:
            self._times = self._read_times()
        return self._times

    def groups(self, pane_us: int, by: tuple[str, ...]) -> Groups:
        """Returns the rows grouped by pane, then columns."""
        key = (pane_us, by)
        if key not in self._groups:
            panes = codes_of(pa.array(self.times() // pane_us))
            self._groups[key] = Groups([panes, *(self.codes(name) for name in by)], self.count)
        return self._groups[key]

    def once(self, what: Hashable, make: Callable[[], list[pa.Array]]) -> list[pa.Array]:
        """Returns what was made under this name before, or makes it."""
        if what not in self._parts:
            self._parts[what] = make()
        return self._parts[what]

    def column(self, name: str) -> pa.Array:
        """Returns a column."""
        return self._batch.column(name)

    def codes(self, name: str) -> tuple[I64, int]:
        """Returns codes of a column, the highest for null, and their number."""
        if name not in self._codes:
            self._codes[name] = _codes(self._encode(name))
        return self._codes[name]

    def digests(self, name: str) -> U64:
        """Returns XXH3's 128 bits of the value of each code but the highest, as two numbers a row."""
        if name not in self._digests:
            texts = self._encode(name).dictionary.cast(pa.string()).cast(pa.binary()).to_pylist()
            joined = b"".join([xxh3_128_digest(text or b"") for text in texts])
            self._digests[name] = np.frombuffer(joined, np.uint64).reshape(-1, 2)
        return self._digests[name]

    def _encode(self, name: str) -> pa.DictionaryArray:
        if name not in self._encoded:
            self._encoded[name] = distinct_codes(self._batch.column(name))
        return self._encoded[name]

    def _matches(self, wanted: Conditions) -> Flags:
        return matches(self._batch, wanted)

    def _read_times(self) -> I64:
        array = self._batch.column("event_time")
        if array.null_count:
            raise ValueError("a row has no event_time; reject such rows before")
        return int64_values(as_type(array, TIME))


class _Chosen(Rows):
    """Some rows of others, of which all that is known is used."""

    def __init__(self, rows: Rows, flags: Flags) -> None:
        super().__init__(pa.RecordBatch.from_arrays([], names=[]))
        self._all, self._flags = rows, flags
        self._at: I64 = np.flatnonzero(flags)
        self._columns: dict[str, pa.Array] = {}
        self.count = len(self._at)

    def column(self, name: str) -> pa.Array:
        if name not in self._columns:
            self._columns[name] = self._all.column(name).filter(pa.array(self._flags))
        return self._columns[name]

    def codes(self, name: str) -> tuple[I64, int]:
        if name not in self._codes:
            codes, distinct = self._all.codes(name)
            self._codes[name] = codes[self._at], distinct
        return self._codes[name]

    def digests(self, name: str) -> U64:
        return self._all.digests(name)

    def _matches(self, wanted: Conditions) -> Flags:
        return self._all.matching(wanted)[self._at]

    def _read_times(self) -> I64:
        return self._all.times()[self._at]


def sum_decimals(values: pa.Array, groups: Groups, name: str, chosen: Flags | None = None) -> pa.Array:
    """Sums decimal128(38, 9) exactly within groups, by 32-bit limbs; null where a group has no value.

    Args:
        name: of the measure, for messages.
        chosen: rows to take; None: all.

    Raises:
        OverflowError: a sum has more than 38 digits.
    """
    valid = mask_of(values.is_valid())
    if chosen is not None:
        valid = valid & chosen
    limbs = np.ascontiguousarray(decimal_limbs(values)).view(np.uint32).reshape(-1, 4)
    if not valid.all():
        limbs = limbs * valid[:, None].astype(np.uint32)
    sums = [groups.add_32(limbs[:, i].astype(np.int64)) for i in range(3)]
    sums.append(groups.add_32(limbs[:, 3].astype(np.int32).astype(np.int64)))
    out = np.empty((groups.size, 4), np.uint32)
    for i in range(3):
        out[:, i] = (sums[i] & 0xFFFFFFFF).astype(np.uint32)
        sums[i + 1] += sums[i] >> 32
    out[:, 3] = (sums[3] & 0xFFFFFFFF).astype(np.uint32)
    some = groups.count(valid) > 0
    bitmap = None if some.all() else pa.py_buffer(np.packbits(some, bitorder="little"))
    array = pa.Array.from_buffers(MONEY, groups.size, [bitmap, pa.py_buffer(out)])
    fits = bool((np.abs(sums[3]) < 1 << 31).all())
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        fits = False
    if not fits:
        raise OverflowError(
            f"measure {name!r}: a sum has more than 38 digits, which decimal128(38, 9) can't hold"
        )
    return array
