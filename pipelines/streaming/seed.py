"""What a new job takes over from the lake: recent ids for dedupe, and the rows of windows that are not final."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from headrace.connectors.commit_stream import METRICS
from headrace.connectors.resume_stream import recent_ids
from headrace.connectors.stream_entries import EVENTS
from headrace.pipelines.definition import Definition
from headrace.schemas.columns import TIME

PANE_BITS = 20
"""A pane's index says in its higher bits which job fired it; a job may fire a window a million times."""
SHARD = "window_shard"
PAYLOAD = "payload"
"""A seed batch with this column has ids for dedupe; one without it has rows for windows."""
APART_US = 3_600_000_000
"""How far a source reads one partition ahead of another, in ingest time."""
_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class Seed:
    """Where to look. Plain values: it is kept in ``OUT/stream.json``, as a restart has to seed the same."""

    since_us: int | None
    """Ids accepted from this ingest time on are remembered; None: the lake is empty."""
    rows_from_us: int | None
    """Event time from which on rows may belong to windows that are not final; None: all of the lake's rows may."""
    closed: dict[str, list[int | None]]
    """{window table: for each of its shards the latest end, µs, of a window that was published as final}."""
    version: int | None = None
    """The lake's version when it was looked at: whatever is appended or compacted since, the same files are read."""

    @classmethod
    def plan(
        cls, out: Path, definition: Definition, horizon_seconds: int, closed: dict[str, list[int | None]]
    ) -> "Seed":
        """Looks at the lake, after it was rolled back.

        Ids are remembered for the horizon before the slowest partition, which a source keeps within an hour of the fastest. Until
        each shard of each window table has published a final window, any row of the lake may belong to one that is not final.
        """
        newest = _newest_ingest(out / EVENTS)
        since = None if newest is None else newest - APART_US - horizon_seconds * 1_000_000
        starts = [
            None if end is None else end - definition.metrics[name].size_us
            for name, shards in closed.items()
            for end in shards
        ]
        known = [start for start in starts if start is not None]
        rows_from = min(known) if known and len(known) == len(starts) else None
        return cls(since, rows_from, closed, _version(out / EVENTS))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def batches(self, out: str | os.PathLike[str], definition: Definition) -> Iterator[pa.RecordBatch]:
        """Yields the same batches in the same order each time, until ``remove_replaced`` has taken files of that version away.

        Yields:
            ``event_id``, ``ingest_time`` and ``payload`` for dedupe; then ``event_id`` and the columns of the window tables.
        """
        if self.since_us is None:
            return
        for batch in recent_ids(out, self.since_us, version=self.version):
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.slice(start, _BATCH_ROWS)
        wanted = {"event_id", *(c for w in definition.metrics.values() for c in w.columns())}
        table = DeltaTable(os.fspath(Path(out) / EVENTS), version=self.version)
        dataset = table.to_pyarrow_dataset()
        columns = sorted(wanted & set(dataset.schema.names))
        chosen = (
            None
            if self.rows_from_us is None
            else pc.field("event_time") >= pa.scalar(self.rows_from_us, pa.timestamp("us", tz="UTC"))
        )
        scanner = ds.Scanner.from_dataset(
            dataset, columns=columns, filter=chosen, batch_size=_BATCH_ROWS, use_threads=False
        )
        for batch in scanner.to_batches():
            if batch.num_rows:
                yield pa.RecordBatch.from_arrays(
                    [
                        c.cast(TIME) if n == "event_time" else c
                        for n, c in zip(columns, batch.columns, strict=True)
                    ],
                    names=columns,
                )


def _version(root: Path) -> int | None:
    return int(DeltaTable(os.fspath(root)).version()) if DeltaTable.is_deltatable(os.fspath(root)) else None


def _newest_ingest(root: Path) -> int | None:
    if not DeltaTable.is_deltatable(os.fspath(root)):
        return None
    actions = pa.table(DeltaTable(os.fspath(root)).get_add_actions(flatten=True))
    if "max.ingest_time" not in actions.column_names:
        return None
    newest = pc.max(actions.column("max.ingest_time")).as_py()
    return None if newest is None else int(newest.timestamp() * 1_000_000)


def closed_windows(
    out: Path, definition: Definition, window_shards: int, settled: Sequence[int | None]
) -> dict[str, list[int | None]]:
    """Returns what ``Seed.closed`` holds, before the lake is rolled back.

    A result may have been published before all of its rows were: it counts as final only if all that its stage had received
    by then is done. Otherwise the new job fires the window anew.

    Args:
        settled: for each job that wrote to the output the time, µs, up to which all of its polls are done; None: not known.
    """
    return {
        name: _closed(out / METRICS / name, window_shards, settled) for name in sorted(definition.metrics)
    }


def late_again(definition: Definition, closed: Mapping[str, Sequence[int | None]]) -> dict[str, list[str]]:
    """Returns, for each window table, SQL conditions of late rows whose windows are not closed, and get them after all."""
    return {
        name: [
            f"({SHARD} = {shard})"
            if end is None
            else f"({SHARD} = {shard} AND window_end > '{_timestamp(end)}')"
            for shard, end in enumerate(ends)
        ]
        for name, ends in closed.items()
    }


def _timestamp(time_us: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).isoformat()


def _closed(root: Path, window_shards: int, settled: Sequence[int | None]) -> list[int | None]:
    if not DeltaTable.is_deltatable(os.fspath(root)):
        return [None] * window_shards
    table = (
        DeltaTable(os.fspath(root))
        .to_pyarrow_dataset()
        .to_table(columns=["window_end", SHARD, "pane_index", "fired_at"], filter=pc.field("is_final"))
    )
    ends: dict[int, int] = {}
    if table.num_rows:
        limits = np.array([-1 if time is None else time for time in settled], np.int64)
        job = table.column("pane_index").to_numpy() >> PANE_BITS
        safe = table.column("fired_at").cast(TIME).cast(pa.int64()).to_numpy() <= limits[job]
        grouped = table.filter(pa.array(safe)).group_by(SHARD).aggregate([("window_end", "max")])
        latest = grouped.column("window_end_max").cast(TIME).cast(pa.int64())
        ends = dict(zip(grouped.column(SHARD).to_pylist(), latest.to_pylist(), strict=True))
    return [ends.get(shard) for shard in range(window_shards)]


def has_ids(batch: pa.RecordBatch) -> bool:
    """True for a batch for dedupe."""
    return bool(batch.schema.get_field_index(PAYLOAD) >= 0)
