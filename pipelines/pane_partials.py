"""The window tables of one split: what its batches come to, table by table."""

from collections.abc import Iterator

import pyarrow as pa

from headrace.pipelines.definition import Definition
from headrace.transforms.batches import concat
from headrace.transforms.grouping import Rows
from headrace.transforms.window_partials import merge, partial

ROWS_AT_ONCE = 65_536
"""Batches are put together up to here: several tables over many rows cost less an event than over few."""


class PanePartials:
    """Aggregates batches for all window tables of a definition; tables that are made of the same panes share them."""

    def __init__(self, definition: Definition) -> None:
        self._metrics = definition.metrics
        self._partials: dict[str, list[pa.RecordBatch]] = {first: [] for first in definition.shared_panes()}
        self._columns = list(dict.fromkeys(c for w in self._metrics.values() for c in w.columns()))
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes the rows of a batch."""
        if not self._partials or not batch.num_rows:
            return
        self._waiting.append(batch.select(self._columns))
        self._rows += batch.num_rows
        if self._rows >= ROWS_AT_ONCE:
            self._aggregate()

    def merged(self) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Yields the first name of the tables that share panes, and their partial, for those that have rows."""
        self._aggregate()
        for first, parts in self._partials.items():
            if parts:
                yield first, merge(parts, self._metrics[first])

    def _aggregate(self) -> None:
        if not self._waiting:
            return
        shared = Rows(concat(self._waiting))
        for first, parts in self._partials.items():
            parts.append(partial(shared, self._metrics[first]))
        self._waiting, self._rows = [], 0
