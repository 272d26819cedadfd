"""Event-time windows as mergeable partial tables: pure kernels over RecordBatches.

``finish(merge([partial(batch, d), …], d), d)`` is the result over all batches, whatever the order of rows, the cut into batches
and the shape of the merges. Counts and sums are exact integers and decimals; distinct counts compare 128-bit hashes of
the values (16 bytes are kept for each distinct value of a group).

A partial has one row for each pane (``pane``: int64, its start in microseconds since 1970) and group (the ``by`` columns, null
being a group of its own), with one column for each measure: int64 for Count, decimal128(38, 9) for Sum, and
``large_list<fixed_size_binary[16]>`` of distinct hashes for Distinct. A pane is one window; windows that slide would be made of
several panes in :func:`finish`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_128_digest

from headrace.schemas.columns import MONEY, QUARANTINE_SCHEMA, TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import as_type, encoded, plain
from headrace.transforms.hashing import decimal_limbs, int64_values, mix64, present
from headrace.transforms.window_definitions import PANE, Count, Distinct, Sum, Windows

HASHES = pa.large_list(pa.binary(16))

I64 = npt.NDArray[np.int64]


def partial(batch: pa.RecordBatch, windows: Windows) -> pa.RecordBatch:
    """Aggregates one batch.

    Raises:
        ConfigError: the batch lacks a column, or one has a type that its measure can't take.
        ValueError: a row has no event_time.
    """
    missing = [n for n in windows.columns() if batch.schema.get_field_index(n) < 0]
    if missing:
        raise ConfigError(
            f"windows over {missing}: the batches have no such column; they have {batch.schema.names}. "
            "Apply the transform that adds it (Enrich adds revenue and event_category) before"
        )
    batch = batch.select(windows.columns())
    if windows.where is not None:
        batch = batch.filter(pa.array(present(batch.column(windows.where))))
    if batch.column("event_time").null_count:
        raise ValueError("a row has no event_time; reject such rows before")
    times = int64_values(as_type(batch.column("event_time"), TIME))
    keys = [pa.array(times // windows.size_us * windows.size_us), *(_by(batch, n) for n in windows.by)]
    groups = _Groups(keys)
    columns = [key.take(groups.first) for key in keys]
    for name, measure in windows.measures.items():
        if isinstance(measure, Count):
            columns.append(pa.array(np.bincount(groups.group, minlength=groups.size)))
        elif isinstance(measure, Sum):
            columns.append(_sum_decimals(_money(batch, measure.column), groups, name))
        else:
            columns.append(_distinct_values(batch.column(measure.column), groups))
    return pa.RecordBatch.from_arrays(columns, names=[PANE, *windows.by, *windows.measures])


def merge(partials: Sequence[pa.RecordBatch], windows: Windows) -> pa.RecordBatch:
    """Merges one or more partials of one definition."""
    if len(partials) == 1:
        return partials[0]
    table = pa.concat_tables([pa.Table.from_batches([p]) for p in partials], promote_options="default")
    arrays = {n: pa.concat_arrays(table.column(n).chunks) for n in table.column_names}
    keys = [arrays[n] for n in (PANE, *windows.by)]
    groups = _Groups(keys)
    columns = [key.take(groups.first) for key in keys]
    for name, measure in windows.measures.items():
        if isinstance(measure, Count):
            columns.append(pa.array(groups.add(int64_values(arrays[name]))))
        elif isinstance(measure, Sum):
            columns.append(_sum_decimals(arrays[name], groups, name))
        else:
            columns.append(_union(arrays[name], groups))
    return pa.RecordBatch.from_arrays(columns, names=table.column_names)


def finish(merged: pa.RecordBatch, windows: Windows) -> pa.Table:
    """Returns the result, sorted: window_start and window_end (UTC, end exclusive), the ``by`` columns, the measures.

    Counts are int64, sums decimal128(38, 9).
    """
    columns: dict[str, pa.Array] = {
        "window_start": merged.column(PANE).cast(TIME),
        "window_end": pc.add_checked(merged.column(PANE), windows.size_us).cast(TIME),
    }
    columns |= {n: merged.column(n) for n in windows.by}
    for name, measure in windows.measures.items():
        values = merged.column(name)
        columns[name] = pc.list_value_length(values) if isinstance(measure, Distinct) else values
    table = pa.table(columns)
    table = table.sort_by([(n, "ascending") for n in ("window_start", *windows.by)])
    for i, name in enumerate(table.column_names):
        if name in windows.by and name in QUARANTINE_SCHEMA.names:
            values = pa.concat_arrays(table.column(name).chunks)
            table = table.set_column(i, name, as_type(values, QUARANTINE_SCHEMA.field(name).type))
    return table


class _Groups:
    """Rows grouped by their keys; null equals null."""

    def __init__(self, keys: Sequence[pa.Array]) -> None:
        code, span = np.zeros(len(keys[0]), np.int64), 1
        for key in keys:
            codes, distinct = _codes(key)
            if span * distinct >= 1 << 62:
                found, code = np.unique(code, return_inverse=True)
                span = len(found)
            code, span = code * distinct + codes, span * distinct
        _, first, group = np.unique(code, return_index=True, return_inverse=True)
        self.group: I64 = group
        self.size = len(first)
        self.first = pa.array(first)
        """A row of each group."""
        self._order = _argsort(group, self.size)
        self._starts = np.searchsorted(group[self._order], np.arange(self.size))

    def add(self, numbers: I64) -> I64:
        """Sums int64 numbers within each group."""
        return np.add.reduceat(numbers[self._order], self._starts) if self.size else numbers[:0]


def _codes(key: pa.Array) -> tuple[I64, int]:
    """Returns a code for each value, and one more than the highest."""
    if pa.types.is_int64(key.type) and not key.null_count:
        found, codes = np.unique(key.to_numpy(), return_inverse=True)
        return codes, max(1, len(found))
    values = encoded(plain(key))
    last = len(values.dictionary)
    codes = pc.fill_null(values.indices, last).to_numpy(zero_copy_only=False)
    return codes.astype(np.int64), last + 1


def _argsort(group: I64, size: int) -> I64:
    """A stable sort; of 16-bit numbers numpy has a linear one."""
    return np.argsort(group.astype(np.uint16) if size <= 1 << 16 else group, kind="stable")


def _by(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Returns a group column, plain, of its declared type if it is one of ours."""
    values = plain(batch.column(name))
    if name not in QUARANTINE_SCHEMA.names:
        return values
    declared = QUARANTINE_SCHEMA.field(name).type
    return as_type(values, declared.value_type if pa.types.is_dictionary(declared) else declared)


def _money(batch: pa.RecordBatch, name: str) -> pa.Array:
    values = batch.column(name)
    if not (
        pa.types.is_decimal(values.type) or pa.types.is_integer(values.type) or pa.types.is_null(values.type)
    ):
        raise ConfigError(
            f"Sum({name!r}): the column is {values.type}; sums need a decimal or integer column"
        )
    return as_type(values, MONEY)


def _sum_decimals(values: pa.Array, groups: _Groups, name: str) -> pa.Array:
    """Sums 128-bit two's complement numbers by 32-bit limbs with int64 sums: exact for 2³¹ rows.

    Raises:
        OverflowError: a sum has more than 38 digits.
    """
    limbs = np.ascontiguousarray(decimal_limbs(values)).view(np.uint32).reshape(-1, 4)
    sums = [groups.add(limbs[:, i].astype(np.int64)) for i in range(3)]
    sums.append(groups.add(limbs[:, 3].astype(np.int32).astype(np.int64)))
    out = np.empty((groups.size, 4), np.uint32)
    for i in range(3):
        out[:, i] = (sums[i] & 0xFFFFFFFF).astype(np.uint32)
        sums[i + 1] += sums[i] >> 32
    out[:, 3] = (sums[3] & 0xFFFFFFFF).astype(np.uint32)
    some = groups.add(present(values).astype(np.int64)) > 0
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


def _distinct_values(values: pa.Array, groups: _Groups) -> pa.Array:
    """Returns the hashes of the distinct values of each group."""
    codes = encoded(plain(values))
    valid = present(codes)
    last = max(1, len(codes.dictionary))
    numbers = pc.fill_null(codes.indices, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    pairs = np.sort((groups.group * last + numbers)[valid])
    pairs = pairs[np.r_[np.ones(min(1, len(pairs)), bool), pairs[1:] != pairs[:-1]]]
    texts = codes.dictionary.cast(pa.string()).cast(pa.binary()).to_pylist()
    digests = np.frombuffer(b"".join([xxh3_128_digest(t or b"") for t in texts]), np.uint64).reshape(-1, 2)
    return _lists(pairs // last, digests[pairs % last], groups.size)


def _union(lists: pa.Array, groups: _Groups) -> pa.Array:
    """Returns the union of the hash lists of each group, compared on all 128 bits."""
    flat = lists.flatten()
    hashes = (
        np.frombuffer(flat.buffers()[1], np.uint64).reshape(-1, 2)
        if len(flat)
        else np.empty((0, 2), np.uint64)
    )
    hashes = hashes[flat.offset : flat.offset + len(flat)]
    group = np.repeat(groups.group, pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    key = hashes[:, 0] ^ mix64(hashes[:, 1], 1) ^ mix64(group.astype(np.uint64), 2)
    order = np.argsort(key)
    group, hashes, key = group[order], hashes[order], key[order]
    new = (group[1:] != group[:-1]) | (hashes[1:] != hashes[:-1]).any(axis=1)
    if (new & (key[1:] == key[:-1])).any():
        order = np.lexsort((hashes[:, 1], hashes[:, 0], group))
        group, hashes = group[order], hashes[order]
        new = (group[1:] != group[:-1]) | (hashes[1:] != hashes[:-1]).any(axis=1)
    keep = np.r_[np.ones(min(1, len(group)), bool), new]
    group, hashes = group[keep], hashes[keep]
    order = _argsort(group, groups.size)
    return _lists(group[order], hashes[order], groups.size)


def _lists(group: I64, hashes: npt.NDArray[np.uint64], size: int) -> pa.Array:
    """Builds one list of hashes for each group; ``group`` is sorted."""
    offsets = np.searchsorted(group, np.arange(size + 1)).astype(np.int64)
    data = pa.py_buffer(np.ascontiguousarray(hashes))
    values = pa.Array.from_buffers(HASHES.value_type, len(hashes), [None, data])
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)
