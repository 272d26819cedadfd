"""From batches to one dict an element: the row-wise exit."""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from headrace.transforms.batches import column


class ToDicts(beam.PTransform):
    """Turns every row of a batch into a dict with the row's own time as its Beam timestamp.

    Works on any batches: events, ``.rejected``, windows' results. Stateless; bounded or unbounded. Each dict is put into the
    windows that the input's windowing assigns to its own timestamp. One element a row costs many times what the columnar stages
    cost: leave it to the end.

    Input: batches of n >= 0 rows.
    Output: dicts from column name to value: str, int, bool, ``bytes``, ``decimal.Decimal``, ``datetime.date``, ``datetime`` in
    UTC; null is None; JSON columns stay text. The timestamp is ``event_time``; where that is null or missing, the batch's.
    """

    def expand(self, batches: PCollection) -> PCollection:
        return batches | "ExplodeDicts" >> beam.ParDo(_ExplodeFn()).with_output_types(dict[str, Any])


def row_timestamps(batch: pa.RecordBatch, otherwise: Timestamp) -> list[Timestamp]:
    """Returns each row's event_time as a Beam timestamp; ``otherwise`` where it is null or the batch has none."""
    micros = pc.cast(column(batch, "event_time"), pa.int64()).to_pylist()
    return [otherwise if m is None else Timestamp(micros=m) for m in micros]


class _ExplodeFn(beam.DoFn):
    """Yields the rows of each batch."""

    def process(
        self, batch: pa.RecordBatch, timestamp: Timestamp = beam.DoFn.TimestampParam
    ) -> Iterator[TimestampedValue]:
        Metrics.counter("headrace.edges", "rows_out").inc(batch.num_rows)
        for row, time in zip(batch.to_pylist(), row_timestamps(batch, timestamp), strict=True):
            yield TimestampedValue(row, time)
