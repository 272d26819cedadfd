"""Event-time windows as mergeable partial tables: pure kernels over RecordBatches.

``finish(merge([partial(batch, d), …], d), d)`` is the result over all batches, whatever the order of rows, the cut into batches
and the shape of the merges: every measure is made of parts that merge so (:mod:`measures <headrace.transforms.measures>`).

A partial has one row for each pane (``pane``: int64, its start in microseconds since 1970) and group (the ``by`` columns, null
being a group of its own), and the columns of the measures. Panes are what windows are made of: a tumbling window is one pane, one
that slides is made of several.
"""

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columns import QUARANTINE_SCHEMA, TIME
from headrace.transforms.batches import as_type, plain
from headrace.transforms.grouping import I64, Groups, Rows, codes_of
from headrace.transforms.measures import Slide, merge_columns, partial_columns, result_columns
from headrace.transforms.window_definitions import PANE, Distinct, Top, Windows


def partial(rows: pa.RecordBatch | Rows, windows: Windows) -> pa.RecordBatch:
    """Aggregates one batch by panes.

    Args:
        rows: ``Rows`` of a batch if several definitions are applied to it.

    Raises:
        ConfigError: the batch lacks a column, or one has a type that its measure can't take.
        ValueError: a row has no event_time.
        OverflowError: a sum has more than 38 digits.
    """
    if isinstance(rows, pa.RecordBatch):
        rows = Rows(rows)
    rows.require(windows.columns())
    rows = rows.chosen(windows.where)
    groups = rows.groups(windows.pane_us, windows.by)
    first = pa.array(groups.first)
    panes = rows.times()[groups.first] // windows.pane_us * windows.pane_us
    columns = [pa.array(panes), *(_of_type(rows.column(n).take(first), n) for n in windows.by)]
    names = [PANE, *windows.by]
    for name, measure in windows.measures.items():
        what = (windows.pane_us, windows.by, measure)
        columns += rows.once(what, functools.partial(partial_columns, rows, groups, name, measure))
        names += windows.parts_of(name, measure)
    return pa.RecordBatch.from_arrays(columns, names=names)


def merge(partials: Sequence[pa.RecordBatch], windows: Windows) -> pa.RecordBatch:
    """Merges one or more partials of one definition; the result is sorted by pane.

    Raises:
        OverflowError: a sum has more than 38 digits.
    """
    if len(partials) == 1:
        return partials[0]
    table = pa.concat_tables([pa.Table.from_batches([p]) for p in partials], promote_options="default")
    arrays = {n: pa.concat_arrays(table.column(n).chunks) for n in table.column_names}
    return _merged(arrays, windows)


def _merged(arrays: dict[str, pa.Array], windows: Windows) -> pa.RecordBatch:
    keys = [arrays[n] for n in (PANE, *windows.by)]
    groups = Groups([codes_of(key) for key in keys], len(keys[0]))
    first = pa.array(groups.first)
    columns = [key.take(first) for key in keys]
    for name, measure in windows.measures.items():
        columns += merge_columns(arrays, groups, name, measure)
    return pa.RecordBatch.from_arrays(columns, names=list(arrays))


def starts_of(panes: I64, windows: Windows) -> tuple[I64, I64]:
    """Returns the windows that panes belong to: the number of the pane in ``panes``, and the window's start, µs."""
    every = windows.every_us
    first = -((windows.size_us - windows.pane_us - panes) // every) * every
    count = (panes // every * every - first) // every + 1
    number = np.repeat(np.arange(len(panes)), count)
    within = np.arange(len(number)) - np.repeat(np.cumsum(count) - count, count)
    return number, first[number] + within * every


def finish(merged: pa.RecordBatch, windows: Windows, only: I64 | None = None) -> pa.Table:
    """Returns the result of merged panes, sorted by pane: as :func:`finish_windows`.

    Args:
        only: starts of windows, µs; if they slide, the others are left out.
    """
    if not windows.slides:
        return finish_windows(merged, windows)
    panes = merged.column(PANE).to_numpy()
    number, starts = starts_of(panes, windows)
    if only is not None:
        wanted = np.isin(starts, only)
        number, starts = number[wanted], starts[wanted]
    by = [codes_of(merged.column(n)) for n in windows.by]
    starting = codes_of(pa.array(starts // windows.every_us))
    groups = Groups([*((codes[number], span) for codes, span in by), starting], len(number))
    first = pa.array(groups.first)
    columns = [
        pa.array(starts).take(first),
        *(merged.column(n).take(pa.array(number[groups.first])) for n in windows.by),
    ]
    names = [PANE, *windows.by]
    slide = Slide(groups, number, Groups(by, len(panes)).of)
    counted = {}
    for name, measure in windows.measures.items():
        if isinstance(measure, Distinct):
            counted[name] = slide.distinct(merged.column(name), measure.exact + 1)
            continue
        parts = windows.parts_of(name, measure)
        arrays = {part: merged.column(part).take(pa.array(number)) for part in parts}
        columns += merge_columns(arrays, groups, name, measure)
        names += parts
    return finish_windows(pa.RecordBatch.from_arrays(columns, names=names), windows, counted)


def finish_windows(
    composed: pa.RecordBatch,
    windows: Windows,
    counted: Mapping[str, tuple[pa.Array, pa.Array]] = MappingProxyType({}),
) -> pa.Table:
    """Returns the result, sorted: window_start and window_end (UTC, end exclusive), the ``by`` columns, the measures, ``rank``
    with ``top``.

    Args:
        composed: rows of windows, each once with each group.
        counted: by measure, what takes the place of its columns in ``composed``: numbers of distinct values, and errors.
    """
    columns: dict[str, pa.Array] = {
        "window_start": composed.column(PANE).cast(TIME),
        "window_end": pc.add_checked(composed.column(PANE), windows.size_us).cast(TIME),
    }
    columns |= {n: composed.column(n) for n in windows.by}
    columns |= result_columns(composed, windows, counted)
    table = pa.table(columns)
    if windows.top is not None:
        table = _largest(table, windows.by, windows.top)
    else:
        table = table.sort_by([(n, "ascending") for n in ("window_start", *windows.by)])
    for i, name in enumerate(table.column_names):
        if name in windows.by and name in QUARANTINE_SCHEMA.names:
            values = _joined(table.column(name))
            table = table.set_column(i, name, as_type(values, QUARANTINE_SCHEMA.field(name).type))
    return table


def _largest(table: pa.Table, by: tuple[str, ...], top: Top) -> pa.Table:
    others = [n for n in by if n not in top.within]
    apart = ["window_start", *top.within]
    keys = [
        *((n, "ascending") for n in apart),
        (top.measure, "descending"),
        *((n, "ascending") for n in others),
    ]
    table = table.sort_by(keys).combine_chunks()
    codes = [codes_of(_joined(table.column(n))) for n in apart]
    group = Groups(codes, table.num_rows)
    rank = np.arange(table.num_rows) - group.first[group.of] + 1
    table = table.append_column("rank", pa.array(rank.astype(np.int32)))
    return table.filter(pa.array(rank <= top.k))


def _joined(column: pa.ChunkedArray) -> pa.Array:
    """Returns the column as one array, times as numbers."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    return pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _of_type(values: pa.Array, name: str) -> pa.Array:
    """Returns a group column, plain, of its declared type if it is one of ours."""
    values = plain(values)
    if name not in QUARANTINE_SCHEMA.names:
        return values
    declared = QUARANTINE_SCHEMA.field(name).type
    return as_type(values, declared.value_type if pa.types.is_dictionary(declared) else declared)
