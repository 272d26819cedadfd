"""Event-time windows: tumbling or sliding, with any measures of :mod:`window_definitions
<headrace.transforms.window_definitions>`."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection, TaggedOutput
from apache_beam.transforms.trigger import DefaultTrigger
from apache_beam.transforms.window import (
    FixedWindows,
    IntervalWindow,
    SlidingWindows,
    TimestampedValue,
    WindowFn,
)
from apache_beam.utils.timestamp import Duration, Timestamp
from apache_beam.utils.windowed_value import PaneInfo, PaneInfoTiming

from headrace.schemas.columns import CODE, RAW
from headrace.schemas.errors import ConfigError
from headrace.transforms.base import Outcome, Results
from headrace.transforms.batches import column, constant, replace
from headrace.transforms.coders import register_coders
from headrace.transforms.hashing import hash_columns, present
from headrace.transforms.merge_partials import MergePartials
from headrace.transforms.rejects import no_rejects, rejected
from headrace.transforms.window_definitions import PANE, Measure, Top, Windows
from headrace.transforms.window_partials import finish_windows, merge, partial

STAGE = "windows"
NO_TIME = "no_time"


def split_timeless(batch: pa.RecordBatch) -> Outcome:
    """Rejects the rows without event_time, which belong to no window."""
    timed = present(column(batch, "event_time"))
    if timed.all():
        return Outcome(batch, no_rejects())
    lost = rejected(
        batch.filter(pa.array(~timed)),
        STAGE,
        NO_TIME,
        message="event_time is null, so the event belongs to no window",
        masked=batch.schema.get_field_index(RAW) < 0,
    )
    return Outcome(batch.filter(pa.array(timed)), lost)


class AggregateWindows(beam.PTransform):
    """Aggregates events over event-time windows that tumble or slide.

    A window holds the rows whose ``event_time`` lies in [window_start, window_end), whatever windows the batches are in: rows are
    pre-aggregated by panes in each batch, and only these partial tables are shuffled. Results do not depend on the order of
    rows or on how they are cut into batches; a replay gives the same output. Stateless but for the aggregation itself.

    Bounded or unbounded. The input's trigger, accumulation mode and allowed lateness hold for the windows: with the default
    trigger there is one result a window; early and late firings give further ones, of only the new rows if the mode is
    DISCARDING. Of several firings in ACCUMULATING mode the one with the highest ``pane_index`` counts. Beam drops what comes
    later than the allowed lateness. A batch's own timestamp must not lie after its rows' event times, which holds for all
    transforms of this package.

    Input: batches with ``event_time`` (UTC, microseconds) and the named columns; masked, as they may be shuffled.
    Output: accepted, batches sorted by group, of one window each: ``window_start``, ``window_end`` (UTC, end exclusive), the ``by``
    columns (null is a group of its own), the measures (see :class:`Windows <headrace.transforms.window_definitions.Windows>`),
    ``rank`` with ``top``; then how the runner fired it: ``pane_index`` (int32, 0, 1, 2, … within window and shard), ``timing``
    (early, on_time or late; unknown where the runner does not say), ``is_final`` (true if no other will follow: with the default
    trigger and no allowed lateness, and where the runner knows it). Its timestamp is the window's last instant.
    Rejected, ``QUARANTINE_SCHEMA``: rows with a null ``event_time``, stage ``windows``, reason ``no_time``.

    Args:
        size: length of a window.
        by: columns to group by.
        measures: result column → measure; by default ``events``, ``unique_users`` and ``revenue``, for which ``Enrich`` must come
            before.
        where: aggregate only rows that fulfil these conditions.
        every: time between the starts of two windows, shorter than ``size`` if they slide; None: they tumble.
        top: keep only the largest groups of each window.
        shards: over how many keys the groups of a window are spread; each gives a result batch of its own.

    Raises:
        ConfigError: an argument as described in its message; the input is in sliding windows; a batch lacks a column.
        OverflowError: a sum has more than 38 digits.
    """

    def __init__(
        self,
        size: timedelta = timedelta(minutes=1),
        *,
        by: Iterable[str] = ("event_type",),
        measures: Mapping[str, Measure] | None = None,
        where: Mapping[str, object] | None = None,
        every: timedelta | None = None,
        top: Top | None = None,
        shards: int = 1,
    ) -> None:
        super().__init__()
        groups: Any = by if isinstance(by, str) else tuple(by)
        given = {} if measures is None else {"measures": dict(measures)}
        self._windows = Windows(size, groups, where=where, every=every, top=top, **given)
        if isinstance(shards, bool) or not isinstance(shards, int) or not 1 <= shards <= 1024:
            raise ConfigError(f"AggregateWindows(shards={shards!r}): must be a whole number from 1 to 1024")
        if shards > 1 and not self._windows.together:
            raise ConfigError(
                f"AggregateWindows(shards={shards!r}): each result needs all rows of a window, so there is nothing to "
                "spread; leave shards at 1"
            )
        self._shards = shards

    @beam.typehints.no_annotations
    def expand(self, batches: PCollection) -> Results:
        windowing = batches.windowing
        if isinstance(windowing.windowfn, SlidingWindows):
            raise ConfigError(
                "AggregateWindows on a PCollection in SlidingWindows would count each row several times; "
                "apply it before that WindowInto"
            )
        register_coders()
        parts = batches | "Partials" >> beam.ParDo(_PartialFn(self._windows, self._shards)).with_output_types(
            tuple[int, pa.RecordBatch], rejected=pa.RecordBatch
        ).with_outputs("rejected", main="partials")
        results = (
            parts.partials
            | "Windows"
            >> beam.WindowInto(
                self._window_fn(),
                trigger=windowing.triggerfn,
                accumulation_mode=windowing.accumulation_mode,
                allowed_lateness=windowing.allowed_lateness,
            )
            | "Merge" >> beam.CombinePerKey(MergePartials(merge, self._windows))
            | "Finish"
            >> beam.ParDo(_FinishFn(self._windows, _fires_once(windowing))).with_output_types(pa.RecordBatch)
        )
        return Results(results, parts.rejected)

    def _window_fn(self) -> WindowFn:
        size, every = (Duration(micros=us) for us in (self._windows.size_us, self._windows.every_us))
        return SlidingWindows(size, every) if self._windows.slides else FixedWindows(size)


def _fires_once(windowing: beam.Windowing) -> bool:
    """True if no trigger fires a window a second time."""
    return isinstance(windowing.triggerfn, DefaultTrigger) and windowing.allowed_lateness == 0


class _PartialFn(beam.DoFn):
    """Aggregates each batch, and emits one partial a pane and shard at the pane's last microsecond.

    Its start would lie before the batch's own timestamp, so behind the watermark, and the runner would drop it as late.
    """

    def __init__(self, windows: Windows, shards: int) -> None:
        self._windows = windows
        self._shards = shards

    def process(
        self, batch: pa.RecordBatch
    ) -> Iterator[TimestampedValue | TaggedOutput[Literal["rejected"], pa.RecordBatch]]:
        batch, lost = split_timeless(batch)
        Metrics.counter(f"headrace.{STAGE}", "accepted").inc(batch.num_rows)
        Metrics.counter(f"headrace.{STAGE}", "rejected").inc(lost.num_rows)
        if lost.num_rows:
            yield TaggedOutput("rejected", lost)
        whole = partial(batch, self._windows)
        panes = whole.column(PANE).to_numpy()
        if not whole.num_rows:
            return
        cuts = (np.flatnonzero(panes[1:] != panes[:-1]) + 1).tolist()
        for start, end in zip([0, *cuts], [*cuts, len(panes)], strict=True):
            last = Timestamp(micros=int(panes[start]) + self._windows.pane_us - 1)
            for shard, part in self._sharded(whole.slice(start, end - start)):
                yield TimestampedValue((shard, part), last)

    def _sharded(self, part: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        if self._shards == 1:
            yield 0, part
            return
        by = [(i, part.column(n), part.column(n).type) for i, n in enumerate(self._windows.together)]
        shard = hash_columns(by, part.num_rows) % np.uint64(self._shards)
        for number in np.unique(shard):
            yield int(number), part.filter(pa.array(shard == number))


class _FinishFn(beam.DoFn):
    """Turns the merged partial of one window and shard into its rows."""

    def __init__(self, windows: Windows, once: bool) -> None:
        self._windows = windows
        self._once = once

    def process(
        self,
        keyed: tuple[int, pa.RecordBatch],
        window: IntervalWindow = beam.DoFn.WindowParam,
        pane: PaneInfo = beam.DoFn.PaneInfoParam,
    ) -> Iterator[pa.RecordBatch]:
        merged = keyed[1]
        if not merged.num_rows:
            return
        rows = merged.num_rows
        if self._windows.slides:
            start = pa.repeat(pa.scalar(window.start.micros, pa.int64()), rows)
            merged = merge([replace(merged, {PANE: start}), merged.slice(0, 0)], self._windows)
        table = finish_windows(merged, self._windows)
        for name, value, type_ in (
            ("pane_index", max(0, pane.index), pa.int32()),
            ("timing", PaneInfoTiming.to_string(pane.timing).lower(), CODE),
            ("is_final", self._once or bool(pane.is_last), pa.bool_()),
        ):
            table = table.append_column(pa.field(name, type_), constant(value, table.num_rows, type_))
        yield from table.combine_chunks().to_batches()
