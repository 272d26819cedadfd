"""What measures are made of: their columns in a partial, how these merge, and their columns in the result. Pure functions.

| measure | in a partial | in the result |
|---|---|---|
| Count | int64 | int64 |
| Sum | decimal128(38, 9) | the same |
| Mean | ``NAME_sum`` decimal128(38, 9), ``NAME_count`` int64 | decimal128(38, 9) |
| Min, Max | the column's type | the same |
| Distinct | large_list of 16-byte hashes, the smallest ``exact + 1`` at most | int64, ``NAME_error`` float64 |
| Quantiles | large_list of struct(bucket int32, count int64), sorted by bucket | float64 for each quantile |
| Ratio | nothing | float64 |
"""

import math
from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Context, Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columns import MONEY
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import as_type, mask_of, plain
from headrace.transforms.grouping import I64, U64, Flags, Groups, Rows, argsort_groups, sum_decimals
from headrace.transforms.hashing import int64_values, mix64
from headrace.transforms.window_definitions import (
    Count,
    Distinct,
    Max,
    Mean,
    Measure,
    Min,
    Quantiles,
    Ratio,
    Sum,
    Windows,
)

HASHES = pa.large_list(pa.binary(16))
BUCKETS = pa.large_list(pa.struct([("bucket", pa.int32()), ("count", pa.int64())]))

_BUCKET_SHIFT = 52 - 7
"""A float64 has 52 bits of fraction; a bucket keeps 7 of them: 128 buckets to a power of two."""
_NORMAL = 1.96
"""95 of 100 values of a normal distribution lie within so many standard deviations."""
_EXACT = Context(prec=120, rounding=ROUND_HALF_EVEN)
_UNIT = Decimal("1e-9")


def partial_columns(rows: Rows, groups: Groups, name: str, measure: Measure) -> list[pa.Array]:
    """Returns a measure's columns of a partial.

    Raises:
        ConfigError: the column has a type that the measure can't take.
        OverflowError: a sum has more than 38 digits.
    """
    if isinstance(measure, Ratio):
        return []
    chosen = rows.matching(measure.where) if measure.where else None
    if isinstance(measure, Count):
        return [pa.array(groups.count(chosen))]
    if isinstance(measure, Distinct):
        return [_distinct_values(rows, groups, measure, chosen)]
    values = plain(rows.column(measure.column))
    if isinstance(measure, Min | Max):
        return [_extreme(_ordered(values, measure), groups, measure, chosen)]
    values = _money(values, measure)
    if isinstance(measure, Quantiles):
        return [_bucket_counts(values, groups, chosen)]
    sums = sum_decimals(values, groups, name, chosen)
    if isinstance(measure, Sum):
        return [sums]
    valid = mask_of(values.is_valid())
    return [sums, pa.array(groups.count(valid if chosen is None else valid & chosen))]


def merge_columns(
    arrays: Mapping[str, pa.Array], groups: Groups, name: str, measure: Measure
) -> list[pa.Array]:
    """Merges a measure's columns of partials, concatenated, by the groups of their rows.

    Raises:
        OverflowError: a sum has more than 38 digits.
    """
    parts = [arrays[part] for part in Windows.parts_of(name, measure)]
    if isinstance(measure, Ratio):
        return []
    if isinstance(measure, Count):
        return [pa.array(groups.add(int64_values(parts[0])))]
    if isinstance(measure, Sum):
        return [sum_decimals(parts[0], groups, name)]
    if isinstance(measure, Mean):
        return [sum_decimals(parts[0], groups, name), pa.array(groups.add(int64_values(parts[1])))]
    if isinstance(measure, Min | Max):
        return [_extreme(parts[0], groups, measure, None)]
    if isinstance(measure, Distinct):
        return [_union(parts[0], groups, measure.exact + 1)]
    return [_merge_buckets(parts[0], groups)]


def result_columns(
    merged: pa.RecordBatch, windows: Windows, counted: Mapping[str, tuple[pa.Array, pa.Array]]
) -> dict[str, pa.Array]:
    """Returns the measures' columns of the result, of merged rows.

    Args:
        counted: what ``Slide.distinct`` gave, by measure.
    """
    columns: dict[str, pa.Array] = {}
    for name, measure in windows.measures.items():
        if name in counted:
            columns |= zip(windows.names_of(name), counted[name], strict=True)
            continue
        parts = [merged.column(part) for part in windows.parts_of(name, measure)]
        if isinstance(measure, Ratio):
            numbers = [columns[n].cast(pa.float64()) for n in (measure.numerator, measure.denominator)]
            defined = pc.if_else(pc.equal(numbers[1], 0.0), pa.scalar(None, pa.float64()), numbers[1])
            columns[name] = pc.divide(numbers[0], defined)
        elif isinstance(measure, Mean):
            columns[name] = _means(*parts)
        elif isinstance(measure, Distinct):
            columns |= zip(windows.names_of(name), _estimates(parts[0], measure.exact + 1), strict=True)
        elif isinstance(measure, Quantiles):
            columns |= zip(windows.names_of(name), _quantiles(parts[0], measure.q), strict=True)
        else:
            columns[name] = parts[0]
    return columns


class Slide:
    """How panes make up windows that slide.

    Args:
        groups: of (pane, window) pairs: one for each window and group, sorted by the group's values, then the window.
        pane: number of the pane row of each pair; those of a pane row are windows one after another.
        by: number of the group's values of each pane row; pane rows are sorted by pane.
    """

    def __init__(self, groups: Groups, pane: I64, by: I64) -> None:
        self._groups, self._pane, self._by = groups, pane, by
        self._first = np.full(len(by), groups.size, np.int64)
        np.minimum.at(self._first, pane, groups.of)
        self._after = np.zeros(len(by), np.int64)
        np.maximum.at(self._after, pane, groups.of + 1)

    def distinct(self, lists: pa.Array, most: int) -> tuple[pa.Array, pa.Array]:
        """Returns how many distinct hashes each group has over its panes, and the relative error.

        A hash counts in the windows of a pane that are not windows of the pane before that has it, too; so each is looked at
        once, in however many windows it is.
        """
        sizes = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        row = np.repeat(np.arange(len(lists)), sizes)
        row, again = _in_order(_hashes(lists), self._by, row)
        low = self._first[row]
        low[again] = np.maximum(low[again], self._after[row[np.flatnonzero(again) - 1]])
        high = self._after[row]
        counts_in = low < high
        ups, downs = (np.bincount(at[counts_in], minlength=self._groups.size + 1) for at in (low, high))
        counts = np.cumsum(ups - downs)[: self._groups.size].astype(np.int64)
        errors = np.zeros(len(counts))
        large = counts >= most
        large[self._groups.of[sizes[self._pane] >= most]] = True
        if large.any():
            pairs = np.flatnonzero(large[self._groups.of])
            number = np.cumsum(large) - 1
            some = Groups([(number[self._groups.of[pairs]], int(large.sum()))], len(pairs))
            found = _estimates(_union(lists.take(pa.array(self._pane[pairs])), some, most), most)
            counts[large], errors[large] = (array.to_numpy() for array in found)
        return pa.array(counts), pa.array(errors)


def _in_order(hashes: U64, by: I64, row: I64) -> tuple[I64, Flags]:
    """Sorts hashes by their group and value, then row.

    Args:
        by: the group of each row.
        row: the row of each hash, ascending.

    Returns:
        The row of each, and whether the one before is the same hash of the same group.
    """
    group = by[row]
    key = _mixed(hashes, group)
    order = np.argsort(key, kind="stable")
    for _ in range(2):
        one, two = order[1:], order[:-1]
        same = (group[one] == group[two]) & (hashes[one] == hashes[two]).all(axis=1)
        if not (~same & (key[one] == key[two])).any():
            break
        order = np.lexsort((row, hashes[:, 1], hashes[:, 0], group))
    return row[order], np.r_[np.zeros(min(1, len(row)), bool), same]


def _mixed(hashes: U64, group: I64) -> U64:
    return hashes[:, 0] ^ mix64(hashes[:, 1], 1) ^ mix64(group.astype(np.uint64), 2)


def _money(values: pa.Array, measure: Sum | Mean | Quantiles) -> pa.Array:
    type_ = values.type
    if not (pa.types.is_decimal(type_) or pa.types.is_integer(type_) or pa.types.is_null(type_)):
        raise ConfigError(
            f"{type(measure).__name__}({measure.column!r}): the column is {type_}; it needs a decimal or integer column"
        )
    return as_type(values, MONEY)


def _ordered(values: pa.Array, measure: Min | Max) -> pa.Array:
    type_ = values.type
    if pa.types.is_null(type_):
        return values.cast(pa.int64())
    if not (pa.types.is_decimal(type_) or pa.types.is_integer(type_) or pa.types.is_temporal(type_)):
        raise ConfigError(
            f"{type(measure).__name__}({measure.column!r}): the column is {type_}; it needs a decimal, integer or time column"
        )
    return values


def _extreme(values: pa.Array, groups: Groups, measure: Min | Max, chosen: Flags | None) -> pa.Array:
    if chosen is not None:
        values = pc.if_else(pa.array(chosen), values, pa.scalar(None, values.type))
    which = "min" if isinstance(measure, Min) else "max"
    table = pa.table({"group": groups.of, "value": values})
    found = pa.TableGroupBy(table, "group", use_threads=False).aggregate([("value", which)])
    order = np.argsort(found.column("group").to_numpy())
    return pa.concat_arrays(found.column(f"value_{which}").chunks or [values[:0]]).take(pa.array(order))


def _means(sums: pa.Array, counts: pa.Array) -> pa.Array:
    means = [
        None if total is None else _EXACT.divide(total, Decimal(count)).quantize(_UNIT, context=_EXACT)
        for total, count in zip(sums.to_pylist(), counts.to_pylist(), strict=True)
    ]
    return pa.array(means, MONEY)


def _distinct_values(rows: Rows, groups: Groups, measure: Distinct, chosen: Flags | None) -> pa.Array:
    """Returns the hashes of the distinct values of each group."""
    codes, distinct = rows.codes(measure.column)
    valid = codes < distinct - 1
    if chosen is not None:
        valid &= chosen
    pairs = np.sort((groups.of * distinct + codes)[valid])
    pairs = pairs[np.r_[np.ones(min(1, len(pairs)), bool), pairs[1:] != pairs[:-1]]]
    lists = _hash_lists(pairs // distinct, rows.digests(measure.column)[pairs % distinct], groups.size)
    if groups.size and int(pc.max(pc.list_value_length(lists)).as_py()) > measure.exact + 1:
        return _union(lists, Groups([(np.arange(groups.size), groups.size)], groups.size), measure.exact + 1)
    return lists


def _hashes(lists: pa.Array) -> U64:
    flat = lists.flatten()
    if not len(flat):
        return np.empty((0, 2), np.uint64)
    return np.frombuffer(flat.buffers()[1], np.uint64).reshape(-1, 2)[flat.offset : flat.offset + len(flat)]


def _union(lists: pa.Array, groups: Groups, most: int) -> pa.Array:
    """Returns the union of the hash lists of each group, compared on all 128 bits, or its ``most`` smallest hashes."""
    hashes = _hashes(lists)
    group = np.repeat(groups.of, pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    key = _mixed(hashes, group)
    order = np.argsort(key)
    group, hashes, key = group[order], hashes[order], key[order]
    new = (group[1:] != group[:-1]) | (hashes[1:] != hashes[:-1]).any(axis=1)
    if (new & (key[1:] == key[:-1])).any():
        order = np.lexsort((hashes[:, 1], hashes[:, 0], group))
        group, hashes = group[order], hashes[order]
        new = (group[1:] != group[:-1]) | (hashes[1:] != hashes[:-1]).any(axis=1)
    keep = np.r_[np.ones(min(1, len(group)), bool), new]
    group, hashes = group[keep], hashes[keep]
    if len(group) > most and int(np.bincount(group).max()) > most:
        order = np.lexsort((hashes[:, 1], hashes[:, 0], group))
        group, hashes = group[order], hashes[order]
        place = np.arange(len(group)) - np.searchsorted(group, group)
        group, hashes = group[place < most], hashes[place < most]
    order = argsort_groups(group, groups.size)
    return _hash_lists(group[order], hashes[order], groups.size)


def _hash_lists(group: I64, hashes: U64, size: int) -> pa.Array:
    """Builds one list of hashes for each group; ``group`` is sorted."""
    offsets = np.searchsorted(group, np.arange(size + 1)).astype(np.int64)
    data = pa.py_buffer(np.ascontiguousarray(hashes))
    values = pa.Array.from_buffers(HASHES.value_type, len(hashes), [None, data])
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def _estimates(lists: pa.Array, most: int) -> tuple[pa.Array, pa.Array]:
    """Returns the numbers of distinct values and their relative errors.

    A list of ``most`` hashes holds the smallest of more: (most - 1) / (the largest of them as a part of all 2⁶⁴) estimates how
    many.
    """
    counts = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    errors = np.zeros(len(counts))
    for at in np.flatnonzero(counts >= most):
        largest = int(_hashes(lists[at : at + 1])[:, 0].max())
        counts[at] = round((most - 1) * 2**64 / (largest + 1))
        errors[at] = _NORMAL / math.sqrt(most - 2)
    return pa.array(counts), pa.array(errors)


def _buckets_of(values: pa.Array) -> I64:
    """Returns the bucket of each number: ordered as the numbers are, 0 for zero, negative for negative ones."""
    numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    bucket = np.abs(numbers).view(np.int64) >> _BUCKET_SHIFT
    return np.where(numbers < 0, -bucket, bucket)


def _middles(buckets: I64) -> "np.ndarray":
    size = np.abs(buckets)
    low, high = ((size + i << _BUCKET_SHIFT).view(np.float64) for i in (0, 1))
    return np.where(buckets == 0, 0.0, np.sign(buckets) * (low + high) / 2)


def _bucket_counts(values: pa.Array, groups: Groups, chosen: Flags | None) -> pa.Array:
    valid = mask_of(values.is_valid())
    if chosen is not None:
        valid &= chosen
    group = groups.of[valid]
    buckets = _buckets_of(values.filter(pa.array(valid)))
    return _counted_buckets(group, buckets, np.ones(len(group), np.int64), groups.size)


def _merge_buckets(lists: pa.Array, groups: Groups) -> pa.Array:
    flat = lists.flatten()
    group = np.repeat(groups.of, pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    return _counted_buckets(
        group, int64_values(flat.field("bucket")), int64_values(flat.field("count")), groups.size
    )


def _counted_buckets(group: I64, buckets: I64, counts: I64, size: int) -> pa.Array:
    order = np.lexsort((buckets, group))
    group, buckets, counts = group[order], buckets[order], counts[order]
    first = np.r_[
        np.ones(min(1, len(group)), bool), (group[1:] != group[:-1]) | (buckets[1:] != buckets[:-1])
    ]
    starts = np.flatnonzero(first)
    totals = np.add.reduceat(counts, starts) if len(starts) else counts
    values = pa.StructArray.from_arrays(
        [pa.array(buckets[starts].astype(np.int32)), pa.array(totals)], fields=list(BUCKETS.value_type)
    )
    offsets = np.searchsorted(group[starts], np.arange(size + 1)).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def _quantiles(lists: pa.Array, wanted: tuple[float, ...]) -> list[pa.Array]:
    """Returns an array for each quantile: the middle of the bucket that holds the value of rank ceil(q × n)."""
    flat = lists.flatten()
    sizes = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.cumsum(sizes)
    middles = _middles(int64_values(flat.field("bucket")))
    running = np.r_[0, np.cumsum(int64_values(flat.field("count")))]
    before, total = running[ends - sizes], running[ends] - running[ends - sizes]
    found = []
    for q in wanted:
        rank = np.ceil(np.round(q * total, 6)).astype(np.int64).clip(1)
        at = np.searchsorted(running, before + rank) - 1
        values = middles[at.clip(0, max(0, len(middles) - 1))] if len(middles) else np.zeros(len(sizes))
        found.append(pa.array(values, mask=total == 0))
    return found
