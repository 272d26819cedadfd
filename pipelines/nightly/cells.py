"""Sums by key that merge in any order: what splits and shards add to the tables that are summed up over all of them.

A table of cells has key columns, int64 counts, ``currency`` and ``revenue`` (decimal256, null where there is none); several rows of
one key add up. No column names a user.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.pipelines.nightly.nightly_tables import REVENUES
from headrace.schemas.columns import MONEY, STRING
from headrace.transforms.batches import as_type, encoded, plain
from headrace.transforms.conditions import matches
from headrace.transforms.grouping import Groups, codes_of
from headrace.transforms.hashing import int64_values, present
from headrace.transforms.session_partials import PAGE_VIEWS, PURCHASES

I64 = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Values = Any
"""A numpy or Arrow array."""

WIDE = pa.decimal256(76, 9)
"""Holds the sum of 10³⁸ values of decimal128(38, 9), so that only a final sum can be too large."""

GEO_KEYS, GEO_COUNTS = ("country", "region"), ("sessions", "users", "events", "page_views", "purchases")
PRODUCT_KEYS = ("product_id", "currency", "category")
PRODUCT_COUNTS = ("events", "views", "add_to_carts", "purchases", "units", "refunds", "buyers")
COHORT_KEYS, COHORT_COUNTS = ("cohort",), ("users",)
PRODUCT_TYPES = {"views": "product_view", "add_to_carts": "add_to_cart", "purchases": "purchase", "refunds": "refund"}  # fmt: skip
"""Count of ``product_daily`` → type of the events that it counts."""


def cells(
    keys: Mapping[str, pa.Array],
    counts: Mapping[str, Values],
    names: Sequence[str],
    rows: int,
    *,
    currency: pa.Array | None = None,
    revenue: pa.Array | None = None,
) -> pa.Table:
    """Returns cells of these rows, those of equal keys summed.

    Args:
        keys: key columns; dictionaries become plain.
        counts: some of ``names``; the others are 0.
        names: all counts of the table, in order.
        rows: length of every column.
        currency, revenue: of each row; a currency counts only where there is revenue.
    """
    zeros = np.zeros(rows, np.int64)
    columns: dict[str, Values] = {name: encoded(array) if _is_text(array) else array for name, array in keys.items()}  # fmt: skip
    columns |= {name: counts.get(name, zeros) for name in names}
    if revenue is None:
        revenue, currency = pa.nulls(rows, WIDE), pa.nulls(rows, STRING)
    if "currency" not in keys:
        assert currency is not None
        columns["currency"] = encoded(
            pc.if_else(pc.is_valid(revenue), as_type(currency, STRING), pa.scalar(None, STRING))
        )
    columns["revenue"] = revenue.cast(WIDE)
    return sum_cells(pa.table(columns), tuple(keys), names)


def sum_cells(table: pa.Table, keys: Sequence[str], names: Sequence[str]) -> pa.Table:
    """Sums cells of equal keys and currency."""
    by = list(dict.fromkeys([*keys, "currency"]))
    summed = table.group_by(by, use_threads=False).aggregate([(n, "sum") for n in (*names, "revenue")])
    summed = summed.rename_columns([n.removesuffix("_sum") for n in summed.column_names])
    arrays = {n: plain(summed.column(n).combine_chunks()) for n in (*by, *names, "revenue")}
    return pa.table({n: c.cast(STRING) if pa.types.is_null(c.type) else c for n, c in arrays.items()})


def geo_cells(batch: pa.RecordBatch) -> pa.Table:
    """Counts the day's events of a batch by country and region, those without user too."""
    counts: dict[str, Values] = {"events": np.ones(batch.num_rows, np.int64)}
    counts["page_views"] = _is(batch, PAGE_VIEWS).astype(np.int64)
    counts["purchases"] = _is(batch, PURCHASES).astype(np.int64)
    keys = {name: batch.column(name) for name in GEO_KEYS}
    money = {"currency": batch.column("currency"), "revenue": batch.column("revenue")}
    return cells(keys, counts, GEO_COUNTS, batch.num_rows, **money)


def product_cells(batch: pa.RecordBatch) -> pa.Table:
    """Counts the day's events of a batch by product, currency and category, those without user too."""
    batch = batch.filter(
        pa.array(present(batch.column("product_id")) & _is(batch, tuple(PRODUCT_TYPES.values())))
    )
    counts: dict[str, Values] = {"events": np.ones(batch.num_rows, np.int64)}
    counts |= {name: _is(batch, (kind,)).astype(np.int64) for name, kind in PRODUCT_TYPES.items()}
    counts["units"] = int64_values(batch.column("quantity")) * _is(batch, PURCHASES)
    keys = {name: batch.column(name) for name in PRODUCT_KEYS}
    return cells(keys, counts, PRODUCT_COUNTS, batch.num_rows, revenue=batch.column("revenue"))


def cube_geo(parts: Sequence[pa.Table]) -> pa.Table:
    """Returns the rows of ``cube_geo``, without their date."""
    return _by_key(parts, GEO_KEYS, GEO_COUNTS)


def cohorts(parts: Sequence[pa.Table], day: int) -> pa.Table:
    """Returns the rows of ``cohorts``, without their date; ``day`` is that date, like the cells' cohorts in days since 1970."""
    table = _by_key(parts, COHORT_KEYS, COHORT_COUNTS)
    first = int64_values(table.column("cohort").combine_chunks())
    table = table.set_column(0, "cohort", pa.array(first, pa.int32()).cast(pa.date32()))
    return table.add_column(1, "day", pa.array(day - first, pa.int32()))


def product_daily(parts: Sequence[pa.Table]) -> pa.Table:
    """Returns the rows of ``product_daily``, without their date."""
    found = sum_cells(pa.concat_tables(parts), PRODUCT_KEYS, PRODUCT_COUNTS)
    category = _most_frequent(found)
    names = [*PRODUCT_COUNTS[1:], "revenue"]
    by = found.group_by(["product_id", "currency"], use_threads=False).aggregate([(n, "sum") for n in names])
    by = by.rename_columns([n.removesuffix("_sum") for n in by.column_names])
    by = by.sort_by([("product_id", "ascending"), ("currency", "ascending")])
    at = pc.index_in(by.column("product_id"), value_set=category.column("product_id"))
    return pa.table(
        {
            "product_id": by.column("product_id"),
            "category": category.column("category").take(at),
            "currency": by.column("currency"),
            **{name: by.column(name) for name in PRODUCT_COUNTS[1:-1]},
            "revenue": exact(by.column("revenue").combine_chunks(), "a product"),
            "buyers": by.column("buyers"),
        }
    )


def revenue_columns(of: I64, currency: pa.Array, amount: pa.Array, size: int, place: str) -> dict[str, pa.Array]:  # fmt: skip
    """Sums amounts by group and currency.

    Args:
        of: the group of each amount, from 0.
        amount: decimals, not null.
        size: how many groups there are.
        place: what a group is, for messages.

    Returns:
        ``revenue`` and ``currency`` (null unless a group's amounts are all in one currency), and ``revenues``.

    Raises:
        OverflowError: a sum has more than 38 digits.
    """
    table = pa.table({"of": of, "currency": as_type(currency, STRING), "revenue": amount.cast(WIDE)})
    table = table.group_by(["of", "currency"], use_threads=False).aggregate([("revenue", "sum")])
    table = table.sort_by([("of", "ascending"), ("currency", "ascending")])
    groups = table.column("of").to_numpy()
    offsets = np.searchsorted(groups, np.arange(size + 1)).astype(np.int32)
    codes = table.column("currency").combine_chunks()
    sums = exact(table.column("revenue_sum").combine_chunks(), place)
    values = pa.StructArray.from_arrays([codes, sums], fields=list(REVENUES.value_type))
    single = pa.array(offsets[:-1], mask=np.diff(offsets) != 1)
    return {
        "revenue": sums.take(single),
        "currency": codes.take(single),
        "revenues": pa.ListArray.from_arrays(pa.array(offsets), values).cast(REVENUES),
    }


def exact(sums: pa.Array, place: str) -> pa.Array:
    """Returns sums as money.

    Raises:
        OverflowError: one has more than 38 digits.
    """
    try:
        return sums.cast(MONEY)
    except pa.ArrowInvalid as error:
        raise OverflowError(
            f"the revenue of {place} has more than 38 digits, which decimal128(38, 9) can't hold"
        ) from error


def _by_key(parts: Sequence[pa.Table], keys: Sequence[str], names: Sequence[str]) -> pa.Table:
    """Sums cells up to one row a key, with revenue in all currencies; sorted by key, null last."""
    found = sum_cells(pa.concat_tables(parts), keys, names)
    found = found.sort_by([(key, "ascending") for key in keys]).combine_chunks()
    columns = {n: found.column(n).combine_chunks() for n in found.column_names}
    groups = Groups([codes_of(columns[key]) for key in keys], found.num_rows)
    earning = columns["revenue"].is_valid()
    rows = present(columns["revenue"])
    money = revenue_columns(
        groups.of[rows],
        columns["currency"].filter(earning),
        columns["revenue"].filter(earning),
        groups.size,
        " and ".join(keys),
    )
    first = pa.array(groups.first)
    table = pa.table(
        {
            **{key: columns[key].take(first) for key in keys},
            **{name: groups.add(int64_values(columns[name])) for name in names},
            **money,
        }
    )
    return table.sort_by([(key, "ascending") for key in keys])


def _most_frequent(found: pa.Table) -> pa.Table:
    """Returns each product's category with most events; the first by alphabet of several, null only if none is stated."""
    by = found.group_by(["product_id", "category"], use_threads=False).aggregate([("events", "sum")])
    by = by.append_column("unstated", pc.is_null(by.column("category")))
    names = [(name, "ascending") for name in ("product_id", "unstated", "category")]
    by = by.sort_by([*names[:2], ("events_sum", "descending"), names[2]])
    products = encoded(by.column("product_id").combine_chunks()).indices.to_numpy()
    first = np.flatnonzero(np.diff(products, prepend=-1))
    return by.take(pa.array(first))


def _is(batch: pa.RecordBatch, types: tuple[str, ...]) -> Flags:
    found: Flags = matches(batch, (("event_type", types),))
    return found


def _is_text(array: pa.Array) -> bool:
    is_ = pa.types
    return bool(is_.is_dictionary(array.type) or is_.is_string(array.type) or is_.is_large_string(array.type))
