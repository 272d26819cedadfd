"""Event-time windows: tumbling or sliding, with any measures of :mod:`window_definitions
<headrace.transforms.window_definitions>`."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Literal

import apache_beam as beam
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

from headrace.schemas.columns import CODE, RAW
from headrace.schemas.errors import ConfigError
from headrace.transforms.aggregate_stream import STAGE, AggregateStream
from headrace.transforms.base import LateResults, Outcome
from headrace.transforms.batches import column, constant, replace
from headrace.transforms.coders import register_coders
from headrace.transforms.hashing import present
from headrace.transforms.merge_partials import MergePartials
from headrace.transforms.rejects import no_rejects, rejected
from headrace.transforms.window_definitions import PANE, Measure, Top, Windows
from headrace.transforms.window_partials import finish_windows, merge, partial
from headrace.transforms.window_rows import by_pane, counted, partial_with_rows, split_partial
from headrace.transforms.window_shard import Accumulation

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
    rows or on how they are cut into batches; a replay gives the same output. A batch's own timestamp must not lie after its rows'
    event times, which holds for all transforms of this package.

    *Bounded* input: each window fires once, ``final``, with the window's last instant as its timestamp. ``allowed_lateness``,
    ``early`` and ``accumulation`` change nothing there, and nothing is late.

    *Unbounded* input: a window fires ``early`` at most every ``early`` while it changes, ``on_time`` once the watermark has passed
    its end, ``late`` when it changes after that, ``final`` once the watermark has passed its end by ``allowed_lateness``. What
    comes after that is in ``.late``, so that nothing is dropped: of all pairs of a row and one of its windows each is in the
    window's final result or in ``.late``. Final results of events that were not late are those of a batch. Stateful by shard in
    the GlobalWindow; exactly once where the runner's state is. Result batches have the timestamp of what fired them, which is
    not behind the watermark.

    Input: batches with ``event_time`` (UTC, microseconds) and the named columns; masked, as they may be shuffled.
    Output: accepted, batches sorted by group: ``window_start``, ``window_end`` (UTC, end exclusive), the ``by`` columns (null is
    a group of its own), the measures (see :class:`Windows <headrace.transforms.window_definitions.Windows>`), ``rank`` with
    ``top``; ``retraction`` (bool) if ``accumulation`` is retracting; then how the window was fired: ``pane_index`` (int32, 0, 1,
    2, … within window and shard: the highest counts), ``timing`` (early, on_time, late, final), ``is_final`` (bool),
    ``window_shard`` (int32). Late: ``window_start``, ``window_end``, the ``by`` columns, the measures' partial columns, ``rows``
    (int64, how many events), ``window_shard``.
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
        allowed_lateness: how far the watermark may be beyond a window's end for the window to take rows.
        early: time between early firings, by the worker's clock; zero: none.
        accumulation: what a firing has: ``accumulating`` all of the window's rows so far; ``discarding`` what came since the firing
            before; ``retracting`` of each group that changed the row published last, with ``retraction`` true, then the new one.

    Raises:
        ConfigError: an argument as described in its message; the input is in sliding windows, or is unbounded and has a trigger
            of its own; a batch lacks a column.
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
        allowed_lateness: timedelta = timedelta(minutes=5),
        early: timedelta = timedelta(seconds=30),
        accumulation: Accumulation = "accumulating",
    ) -> None:
        super().__init__()
        groups: Any = by if isinstance(by, str) else tuple(by)
        given = {} if measures is None else {"measures": dict(measures)}
        self._windows = Windows(size, groups, where=where, every=every, top=top, **given)
        counted(self._windows)
        if isinstance(shards, bool) or not isinstance(shards, int) or not 1 <= shards <= 1024:
            raise ConfigError(f"AggregateWindows(shards={shards!r}): must be a whole number from 1 to 1024")
        if shards > 1 and not self._windows.together:
            raise ConfigError(
                f"AggregateWindows(shards={shards!r}): each result needs all rows of a window, so there is nothing to "
                "spread; leave shards at 1"
            )
        for name, value in (("allowed_lateness", allowed_lateness), ("early", early)):
            if not isinstance(value, timedelta) or value < timedelta(0):
                raise ConfigError(
                    f"AggregateWindows({name}={value!r}): must be a timedelta of zero or more, e.g. timedelta(minutes=10)"
                )
        self._shards = shards
        self._retracts = accumulation == "retracting"
        self._stream = AggregateStream(self._windows, allowed_lateness, early, accumulation)

    @beam.typehints.no_annotations
    def expand(self, batches: PCollection) -> LateResults:
        windowing = batches.windowing
        if isinstance(windowing.windowfn, SlidingWindows):
            raise ConfigError(
                "AggregateWindows on a PCollection in SlidingWindows would count each row several times; "
                "apply it before that WindowInto"
            )
        if not batches.is_bounded and not isinstance(windowing.triggerfn, DefaultTrigger):
            raise ConfigError(
                f"AggregateWindows on unbounded input with the trigger {windowing.triggerfn}: windows fire by early=, "
                "allowed_lateness= and accumulation=, so the trigger would be ignored; apply it before that WindowInto, or put "
                "beam.WindowInto(GlobalWindows()) before it"
            )
        register_coders()
        parts = batches | "Partials" >> beam.ParDo(
            _PartialFn(self._windows, self._shards, cut=batches.is_bounded)
        ).with_output_types(
            tuple[int, pa.RecordBatch], rejected=pa.RecordBatch, late=pa.RecordBatch
        ).with_outputs("rejected", "late", main="partials")
        if not batches.is_bounded:
            done = parts.partials | "Stream" >> self._stream
            return LateResults(done.fired, parts.rejected, done.late)
        results = (
            parts.partials
            | "Windows" >> beam.WindowInto(self._window_fn())
            | "Merge" >> beam.CombinePerKey(MergePartials(merge, self._windows))
            | "Finish"
            >> beam.ParDo(_FinishFn(self._windows, self._retracts)).with_output_types(pa.RecordBatch)
        )
        return LateResults(results, parts.rejected, parts.late)

    def _window_fn(self) -> WindowFn:
        size, every = (Duration(micros=us) for us in (self._windows.size_us, self._windows.every_us))
        return SlidingWindows(size, every) if self._windows.slides else FixedWindows(size)


class _PartialFn(beam.DoFn):
    """Aggregates each batch, and emits its partial, with rows counted, by shard.

    Args:
        cut: emit one partial a pane, at the pane's last microsecond. Its start would lie before the batch's own timestamp, so
            behind the watermark, and the runner would drop it as late.
    """

    def __init__(self, windows: Windows, shards: int, *, cut: bool) -> None:
        self._windows = windows
        self._shards = shards
        self._cut = cut

    def process(
        self, batch: pa.RecordBatch
    ) -> Iterator[Any | TaggedOutput[Literal["rejected"], pa.RecordBatch]]:
        batch, lost = split_timeless(batch)
        Metrics.counter(f"headrace.{STAGE}", "accepted").inc(batch.num_rows)
        Metrics.counter(f"headrace.{STAGE}", "rejected").inc(lost.num_rows)
        if lost.num_rows:
            yield TaggedOutput("rejected", lost)
        whole = (partial if self._cut else partial_with_rows)(batch, self._windows)
        for shard, part in enumerate(split_partial(whole, self._windows, self._shards)):
            if part is None:
                continue
            if not self._cut:
                yield shard, part
                continue
            for pane, piece in by_pane(part):
                last = Timestamp(micros=pane + self._windows.pane_us - 1)
                yield TimestampedValue((shard, piece), last)


class _FinishFn(beam.DoFn):
    """Turns the merged partial of one window and shard into its rows."""

    def __init__(self, windows: Windows, retracts: bool) -> None:
        self._windows = windows
        self._retracts = retracts

    def process(
        self, keyed: tuple[int, pa.RecordBatch], window: IntervalWindow = beam.DoFn.WindowParam
    ) -> Iterator[pa.RecordBatch]:
        shard, merged = keyed
        if not merged.num_rows:
            return
        rows = merged.num_rows
        if self._windows.slides:
            start = pa.repeat(pa.scalar(window.start.micros, pa.int64()), rows)
            merged = merge([replace(merged, {PANE: start}), merged.slice(0, 0)], self._windows)
        table = finish_windows(merged, self._windows)
        more: list[tuple[str, object, pa.DataType]] = [
            ("pane_index", 0, pa.int32()),
            ("timing", "final", CODE),
            ("is_final", True, pa.bool_()),
            ("window_shard", shard, pa.int32()),
        ]
        for name, value, type_ in [("retraction", False, pa.bool_())] * self._retracts + more:
            table = table.append_column(pa.field(name, type_), constant(value, table.num_rows, type_))
        yield from table.combine_chunks().to_batches()
