"""Windows that a replay moves: their rows before and after, over the lake as it is and the rows that are added to it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import DeltaTable

from headrace.connectors.delta_commit import committed_files
from headrace.connectors.stream_entries import storable
from headrace.pipelines.definition import Definition
from headrace.pipelines.pane_partials import PanePartials
from headrace.pipelines.replay.replay_rows import lake_files
from headrace.schemas.columns import CODE, TIME
from headrace.transforms.batches import conform, plain
from headrace.transforms.hashing import hash_columns, int64_values
from headrace.transforms.window_definitions import PANE, Windows
from headrace.transforms.window_partials import finish, merge, starts_of
from headrace.transforms.window_rows import corrections, latest_rows
from headrace.transforms.window_shard import Accumulation

METRICS, CORRECTIONS = "metrics", "corrections"
FIRING = ("pane_index", "timing", "is_final", "fired_at", "window_shard", "retraction")
DAY_US = 86_400 * 1_000_000

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Correction:
    """What a replay does to one window table."""

    moved: int
    """Windows of which a row changes."""
    rows: pa.Table
    """Rows that change, the old ones first: the table's columns and ``retraction`` (true: this row no longer holds)."""
    whole: pa.Table
    """All rows of the windows that got events, as they are now."""
    starts: I64
    """The starts of these windows, µs, sorted."""
    added: pa.Table
    """The same windows over the added events alone."""


def correct(
    out: Path, definition: Definition, added: Sequence[tuple[str, pa.RecordBatch]]
) -> dict[str, Correction]:
    """Returns what each window table becomes that gets events; the others are left out. Reads only.

    Args:
        added: partials over the recovered events, as of :class:`PanePartials
            <headrace.pipelines.pane_partials.PanePartials>`.
    """
    shared = definition.shared_panes()
    starts: dict[str, I64] = {}
    for first, part in added:
        for name in shared[first]:
            _, found = starts_of(part.column(PANE).to_numpy(), definition.metrics[name])
            if len(found):
                starts[name] = np.unique(found)
    spans = _spans(
        [(s, s + definition.metrics[name].size_us) for name, all_ in starts.items() for s in all_.tolist()]
    )
    whole: dict[str, list[pa.Table]] = {name: [] for name in starts}
    for begin, end in spans:
        panes = PanePartials(definition)
        for batch in _events(out, definition, begin, end):
            panes.add(batch)
        before = dict(panes.merged())
        for first, part in added:
            inside = _between(part, begin, end)
            if not inside.num_rows:
                continue
            merged = merge(
                [p for p in (before.get(first), inside) if p is not None], definition.metrics[first]
            )
            for name in shared[first]:
                if name in starts:
                    whole[name].append(_finished(merged, definition.metrics[name], starts[name], begin, end))
    alone = {name: part for first, part in added for name in shared[first]}
    return {
        name: _correction(out, name, definition.metrics[name], tables, starts[name], alone[name])
        for name, tables in whole.items()
    }


def _correction(
    out: Path, name: str, windows: Windows, tables: Sequence[pa.Table], starts: I64, added: pa.RecordBatch
) -> Correction:
    new = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    old = published(out, name)
    old = old.filter(_in(old.column("window_start"), starts)).select(new.column_names)
    (batch,) = old.combine_chunks().to_batches() or [_empty(old)]
    before = pa.RecordBatch.from_arrays(
        [batch.column("window_start").cast(TIME).cast(pa.int64()), *batch.columns],
        names=[PANE, *batch.schema.names],
    )
    rows = corrections([before], new, windows, ())
    moved = len(pc.unique(rows.column("window_start")))
    return Correction(moved, rows, new, starts, finish(added, windows))


def published(out: Path, name: str) -> pa.Table:
    """Returns the rows of a window table that count now.

    Of a stream's table those of the last firing of each window and shard; if it takes rows back, those that were not.
    """
    table = _stored(out, name)
    if "pane_index" not in table.column_names:
        return table
    if "retraction" in table.column_names:
        return _not_taken_back(table)
    return latest_rows(table)


def _not_taken_back(table: pa.Table) -> pa.Table:
    names = [n for n in table.column_names if n not in FIRING]
    sign = pc.if_else(table.column("retraction"), -1, 1)
    counted = table.select(names).append_column("_sign", sign)
    grouped = counted.group_by(names, use_threads=False).aggregate([("_sign", "sum")])
    return grouped.filter(pc.greater(grouped.column("_sign_sum"), 0)).drop_columns(["_sign_sum"])


def _stored(out: Path, name: str) -> pa.Table:
    root = out / METRICS / name
    if DeltaTable.is_deltatable(os.fspath(root)):
        paths = [root / path for path in committed_files(root)]
    else:
        paths = sorted(root.glob("*.parquet"))
    tables = [pq.read_table(path, partitioning=None) for path in paths]
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def _events(out: Path, definition: Definition, begin: int, end: int) -> Iterator[pa.RecordBatch]:
    """Yields the lake's rows with an event_time in [begin, end), µs, with the columns that window tables read."""
    days = set(range(begin // DAY_US, (end - 1) // DAY_US + 1))
    paths = [str(path) for path in lake_files(out, days)]
    if not paths:
        return
    schema = definition.lake_schema()
    names = list(dict.fromkeys(c for w in definition.metrics.values() for c in w.columns()))
    names = list(dict.fromkeys([*names, "event_time"]))
    low, high = (pa.scalar(us, TIME) for us in (begin, end))
    for path in paths:
        source = ds.dataset(path, format="parquet", partitioning=None)
        have = [n for n in names if n in source.schema.names]
        where = (ds.field("event_time") >= low) & (ds.field("event_time") < high)
        for batch in source.to_batches(columns=have, filter=where, use_threads=False):
            if batch.num_rows:
                columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                yield conform(columns, pa.schema([schema.field(n) for n in names]), batch.num_rows)


def _finished(merged: pa.RecordBatch, windows: Windows, starts: I64, begin: int, end: int) -> pa.Table:
    """Returns the rows of the windows that got events and lie in the span."""
    mine = starts[(starts >= begin) & (starts + windows.size_us <= end)]
    table = finish(merged, windows, mine)
    return table.filter(_in(table.column("window_start"), mine))


def _spans(windows: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Joins spans of time that touch."""
    joined: list[list[int]] = []
    for begin, end in sorted(windows):
        if joined and begin <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([begin, end])
    return [(begin, end) for begin, end in joined]


def _between(part: pa.RecordBatch, begin: int, end: int) -> pa.RecordBatch:
    panes = part.column(PANE).to_numpy()
    return part.filter(pa.array((panes >= begin) & (panes < end)))


def _in(times: pa.ChunkedArray, starts: I64) -> pa.Array:
    return pc.is_in(times.cast(TIME).cast(pa.int64()), value_set=pa.array(starts, pa.int64()))


def _empty(table: pa.Table) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in table.schema], names=table.column_names)


def correction_rows(correction: Correction, cause: str, at: datetime) -> pa.Table:
    """Returns the rows of ``OUT/corrections/NAME``: those that change, ``cause`` (the replay) and ``corrected_at``."""
    rows = storable(correction.rows)
    number = rows.num_rows
    rows = rows.append_column("cause", pa.repeat(pa.scalar(f"replay {cause}"), number))
    return rows.append_column("corrected_at", pa.repeat(pa.scalar(at.astimezone(UTC), TIME), number))


def batch_table(out: Path, name: str, correction: Correction) -> pa.Table:
    """Returns a batch's whole window table as it is to be."""
    old = _stored(out, name)
    kept = old.filter(pc.invert(_in(old.column("window_start"), correction.starts)))
    return pa.concat_tables([kept, storable(correction.whole).select(old.column_names).cast(old.schema)])


def stream_firing(
    out: Path,
    name: str,
    windows: Windows,
    correction: Correction,
    *,
    accumulation: Accumulation,
    window_shards: int,
    at: datetime,
) -> pa.Table:
    """Returns the rows that make a stream's window table right: one more firing, ``timing`` correction, of the windows that moved.

    With ``accumulating`` it has all groups of the window and its shard; with ``discarding`` what was added; with ``retracting`` the
    rows that changed, the old ones first.
    """
    shown = {
        "accumulating": correction.whole,
        "discarding": correction.added,
        "retracting": correction.rows,
    }[accumulation]
    stored = _stored(out, name)
    keys = [(i, plain(_joined(shown, n))) for i, n in enumerate(windows.together)]
    if keys and window_shards > 1:
        shard = hash_columns([(i, a, a.type) for i, a in keys], shown.num_rows) % np.uint64(window_shards)
    else:
        shard = np.zeros(shown.num_rows, np.uint64)
    starts = int64_values(_joined(shown, "window_start").cast(TIME).cast(pa.int64()))
    last = stored.group_by(["window_start", "window_shard"], use_threads=False).aggregate(
        [("pane_index", "max")]
    )
    index = {
        (int(start), int(number)): int(highest)
        for start, number, highest in zip(
            last.column("window_start").cast(TIME).cast(pa.int64()).to_pylist(),
            last.column("window_shard").to_pylist(),
            last.column("pane_index_max").to_pylist(),
            strict=True,
        )
    }
    panes = [index.get((s, n), -1) + 1 for s, n in zip(starts.tolist(), shard.tolist(), strict=True)]
    number = shown.num_rows
    more = {
        "pane_index": pa.array(panes, pa.int64()),
        "timing": pa.array(["correction"] * number, CODE.value_type),
        "is_final": pa.array([True] * number),
        "fired_at": pa.repeat(pa.scalar(at.astimezone(UTC), TIME), number),
        "window_shard": pa.array(shard.astype(np.int32)),
    }
    table = storable(shown)
    for column, values in more.items():
        table = table.append_column(column, values)
    return table.select(stored.column_names).cast(stored.schema)


def _joined(table: pa.Table, name: str) -> pa.Array:
    return pa.concat_arrays(
        table.column(name).unify_dictionaries().chunks or [pa.array([], table.schema.field(name).type)]
    )
