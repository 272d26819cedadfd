"""What a new job takes over from the lake: recent ids for dedupe, and the rows of windows that are not final."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from headrace.connectors.commit_stream import METRICS
from headrace.connectors.resume_stream import recent_ids
from headrace.connectors.stream_entries import EVENTS
from headrace.pipelines.definition import Definition
from headrace.schemas.columns import TIME

PAYLOAD = "payload"
"""A seed batch with this column has ids for dedupe; one without it has rows for windows."""
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

    @classmethod
    def plan(cls, out: Path, definition: Definition, horizon_seconds: int, window_shards: int) -> "Seed":
        """Looks at the lake, after it was rolled back.

        A window table whose shards were another number counts as final up to its latest final window on any of them.
        """
        newest = _newest_ingest(out / EVENTS)
        since = None if newest is None else newest - horizon_seconds * 1_000_000
        closed = {name: _closed(out / METRICS / name, window_shards) for name in sorted(definition.metrics)}
        ends = [end for shards in closed.values() for end in shards]
        longest = max((w.size_us for w in definition.metrics.values()), default=0)
        known = [end for end in ends if end is not None]
        rows_from = min(known) - longest if known and len(known) == len(ends) else since
        return cls(since, rows_from, closed)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def batches(self, out: str | os.PathLike[str], definition: Definition) -> Iterator[pa.RecordBatch]:
        """Yields the same batches in the same order while the lake's files are the same.

        Yields:
            ``event_id``, ``ingest_time`` and ``payload`` for dedupe; then ``event_id`` and the columns of the window tables.
        """
        if self.since_us is None:
            return
        for batch in recent_ids(out, self.since_us):
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.slice(start, _BATCH_ROWS)
        wanted = {"event_id", *(c for w in definition.metrics.values() for c in w.columns())}
        table = DeltaTable(os.fspath(Path(out) / EVENTS))
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


def _newest_ingest(root: Path) -> int | None:
    if not DeltaTable.is_deltatable(os.fspath(root)):
        return None
    actions = pa.table(DeltaTable(os.fspath(root)).get_add_actions(flatten=True))
    if "max.ingest_time" not in actions.column_names:
        return None
    newest = pc.max(actions.column("max.ingest_time")).as_py()
    return None if newest is None else int(newest.timestamp() * 1_000_000)


def _closed(root: Path, window_shards: int) -> list[int | None]:
    if not DeltaTable.is_deltatable(os.fspath(root)):
        return [None] * window_shards
    table = (
        DeltaTable(os.fspath(root))
        .to_pyarrow_dataset()
        .to_table(columns=["window_end", "window_shard"], filter=pc.field("is_final"))
    )
    grouped = table.group_by("window_shard").aggregate([("window_end", "max")])
    ends = {
        shard: int(end.timestamp() * 1_000_000)
        for shard, end in zip(
            grouped.column("window_shard").to_pylist(),
            grouped.column("window_end_max").to_pylist(),
            strict=True,
        )
    }
    if ends and max(ends) >= window_shards:
        return [max(ends.values())] * window_shards
    return [ends.get(shard) for shard in range(window_shards)]


def has_ids(batch: pa.RecordBatch) -> bool:
    """True for a batch for dedupe."""
    return bool(batch.schema.get_field_index(PAYLOAD) >= 0)
