"""The tables that a streaming window goes through: partials with rows counted, window shards, panes, result rows, late rows.

Pure functions. A *partial with rows* is a partial of :mod:`window_partials <headrace.transforms.window_partials>` with one
more column, ``rows`` (int64): how many input rows each (pane, group) has, so that windows + late = all can be checked.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columns import CODE, TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import plain
from headrace.transforms.grouping import Groups, Rows, codes_of
from headrace.transforms.hashing import hash_columns, int64_values
from headrace.transforms.stream_message import Message
from headrace.transforms.window_definitions import PANE, Count, Windows
from headrace.transforms.window_partials import partial

ROWS = "rows"
EARLY, ON_TIME, LATE, FINAL = range(4)
TIMINGS = pa.array(["early", "on_time", "late", "final"])
RESERVED = (
    ROWS,
    "pane_index",
    "timing",
    "is_final",
    "fired_at",
    "window_shard",
    "reader",
    "shard",
    "poll",
    "job",
)
"""Names of columns that are added to the groups and measures."""

I64 = npt.NDArray[np.int64]


def counted(windows: Windows) -> Windows:
    """Returns the definition with the measure ``rows``.

    Raises:
        ConfigError: it has a group or a measure of a name that is added here.
    """
    taken = [n for n in (*windows.by, *windows.measures) if n in RESERVED]
    if taken:
        raise ConfigError(f"windows with {taken}: streams add columns of these names; rename yours")
    return replace(windows, measures={**windows.measures, ROWS: Count()})


def partial_with_rows(rows: pa.RecordBatch | Rows, windows: Windows) -> pa.RecordBatch:
    """Aggregates one batch as :func:`window_partials.partial <headrace.transforms.window_partials.partial>` does, with ``rows``."""
    return partial(rows, counted(windows))


def split_partial(part: pa.RecordBatch, windows: Windows, shards: int) -> list[pa.RecordBatch | None]:
    """Spreads the groups of a partial over window shards; None for a shard that gets none.

    A group's shard depends on its values alone, in any process and any run: XXH3 of the ``by`` columns, or with ``top`` of those
    that are ranked apart; nulls are hashed too.

    Raises:
        TypeError: a group column of a type that can't be hashed.
    """
    if not part.num_rows:
        return [None] * shards
    if shards == 1:
        return [part]
    by = [(i, part.column(n), part.column(n).type) for i, n in enumerate(windows.together)]
    number = (hash_columns(by, part.num_rows) % np.uint64(shards)).astype(np.uint16)
    order = np.argsort(number, kind="stable")
    ends = np.searchsorted(number[order], np.arange(shards + 1))
    if ends.max() == part.num_rows and np.diff(ends).max() == part.num_rows:
        return [part if n == number[0] else None for n in range(shards)]
    ordered = part.take(pa.array(order))
    bounds = ends.tolist()
    return [ordered.slice(start, end - start) if end > start else None for start, end in pairwise(bounds)]


def by_pane(part: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields the rows of each pane; the partial is sorted by pane."""
    panes = part.column(PANE).to_numpy()
    cuts = (np.flatnonzero(panes[1:] != panes[:-1]) + 1).tolist()
    for start, end in zip([0, *cuts], [*cuts, len(panes)], strict=True):
        if end > start:
            yield int(panes[start]), part.slice(start, end - start)


def joined(parts: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Joins partials of disjoint panes, in order."""
    if len(parts) == 1:
        return parts[0]
    table = pa.concat_tables([pa.Table.from_batches([p]) for p in parts], promote_options="default")
    return pa.RecordBatch.from_arrays(
        [pa.concat_arrays(c.chunks) for c in table.columns], names=table.column_names
    )


def fired_rows(
    table: pa.Table,
    *,
    starts: I64,
    indexes: npt.NDArray[np.int32],
    timings: npt.NDArray[np.int32],
    fired_at: int,
    window_shard: int,
) -> pa.Table:
    """Adds to result rows how they were fired.

    Args:
        table: what ``finish`` gives.
        starts: of the fired windows, sorted; ``indexes`` and ``timings`` (codes of ``TIMINGS``) belong to them.
        fired_at: µs since 1970.
    """
    fired = pa.concat_arrays(table.column("window_start").chunks).cast(pa.int64()).to_numpy()
    window = np.searchsorted(starts, fired)
    timing = timings[window]
    columns = {
        "pane_index": pa.array(indexes[window], pa.int32()),
        "timing": pa.DictionaryArray.from_arrays(pa.array(timing, pa.int32()), TIMINGS),
        "is_final": pa.array(timing == FINAL),
        "fired_at": pa.array(np.full(len(window), fired_at)).cast(TIME),
        "window_shard": pa.array(np.full(len(window), window_shard, np.int32)),
    }
    for name, values in columns.items():
        table = table.append_column(pa.field(name, CODE if name == "timing" else values.type), values)
    return table


def by_window(table: pa.Table) -> dict[int, pa.RecordBatch]:
    """Returns result rows by their window's start, µs, with the start as ``pane`` before them; the table is sorted by window."""
    (batch,) = table.unify_dictionaries().combine_chunks().to_batches()
    starts = batch.column("window_start").cast(pa.int64())
    whole = pa.RecordBatch.from_arrays([starts, *batch.columns], names=[PANE, *batch.schema.names])
    return dict(by_pane(whole))


def corrections(
    before: Sequence[pa.RecordBatch], table: pa.Table, windows: Windows, final: Collection[int]
) -> pa.Table:
    """Returns what takes old rows back and publishes new ones: ``table``'s columns and ``retraction``, old rows (true) first.

    Args:
        before: rows published last of some of the windows, as ``by_window`` gives them.
        table: the windows' rows now.
        final: starts of windows of which rows that are as they were are taken back and published, too.
    """
    old = pa.concat_tables([pa.Table.from_batches([b]).drop([PANE]) for b in before] or [table.slice(0, 0)])
    both = pa.concat_tables([old.cast(table.schema), table]).unify_dictionaries().combine_chunks()
    plain_columns = [
        plain(pa.concat_arrays(column.chunks)) if column.num_chunks else None for column in both.columns
    ]
    codes = [codes_of(_comparable(array)) for array in plain_columns if array is not None]
    same = Groups(codes, both.num_rows)
    unchanged = same.count()[same.of] == 2
    starts = int64_values(pa.concat_arrays(both.column("window_start").chunks or [pa.array([], TIME)]))
    kept = ~unchanged | np.isin(starts, list(final))
    is_old = np.arange(both.num_rows) < old.num_rows
    return both.append_column("retraction", pa.array(is_old)).filter(pa.array(kept))


def _comparable(array: pa.Array) -> pa.Array:
    """Returns values as a type that can be dictionary-encoded."""
    return array.cast(pa.int64()) if pa.types.is_timestamp(array.type) else array


def late_rows(late: Sequence[tuple[Message, pa.RecordBatch]], windows: Windows) -> pa.Table:
    """Returns late partial rows of windows with the message that brought them: reader, shard (int32), poll (int64).

    Args:
        late: rows with the starts of their windows as ``pane``.
    """
    tables = []
    for message, part in late:
        starts = part.column(PANE)
        times = [starts.cast(TIME), pc.add_checked(starts, windows.size_us).cast(TIME)]
        others = [n for n in part.schema.names if n != PANE]
        table = pa.table(
            [*times, *(part.column(n) for n in others)], names=["window_start", "window_end", *others]
        )
        for name, number, type_ in (
            ("reader", message.reader, pa.int32()),
            ("shard", message.shard, pa.int32()),
            ("poll", message.poll, pa.int64()),
        ):
            table = table.append_column(name, pa.repeat(pa.scalar(number, type_), part.num_rows))
        tables.append(table)
    return pa.concat_tables(tables, promote_options="default")


def latest_rows(table: pa.Table) -> pa.Table:
    """Returns the rows that count: those with the highest ``pane_index`` of each window and window shard, in their order.

    ``table`` has the fired rows of one window table, in any order. Every firing has all groups of its window and window
    shard, so nothing of an older one is left to be kept.
    """
    if not table.num_rows:
        return table
    keys = [
        int64_values(pa.concat_arrays(table.column(n).chunks))
        for n in ("window_start", "window_shard", "pane_index")
    ]
    start, shard, index = keys
    order = np.lexsort((index, shard, start))
    last = np.r_[
        (start[order][1:] != start[order][:-1]) | (shard[order][1:] != shard[order][:-1]), np.ones(1, bool)
    ]
    ends = np.flatnonzero(last)
    highest = np.empty(len(order), np.int64)
    highest[order] = np.repeat(index[order][ends], np.diff(np.r_[-1, ends]))
    return table.filter(pa.array(index == highest))
