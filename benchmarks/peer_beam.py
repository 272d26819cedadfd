"""The Beam peer: an idiomatic pipeline with one dict per element, doing the work of ``headrace run batch``.

``ReadFromText`` → one ParDo a stage with a tagged output for what it rejects → GroupByKey on the event id → enrich, rule →
``WriteToParquet`` by date, ``FixedWindows(60)`` with a lifted ``CombinePerKey``, ``WriteToParquet`` of the quarantine. Both
variants (``json``: json and jsonschema; ``orjson``: orjson and jsonschema-rs) share all but the library calls.

Differences from ours, all in the peer's favour: it keeps no position of an event in its file, writes no ledger or manifest and
commits no Delta table, is not safe against a run killed in the middle, and explains an invalid event by keyword and pointer only.
"First" among events of one id is the order in which the runner delivers them. Money written as a JSON number goes through a float.
"""

import argparse
import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.parquetio import WriteToParquet
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from benchmarks.rowwise import DAY, KEEP, LEEWAY, VARIANTS, Reject, Row, Rowwise, micros_of
from headrace.schemas.columns import ENRICHED_SCHEMA, MONEY, TIME

Element = tuple[bytes, Any]
"""The raw line, and what the stages made of it so far."""


def _plain(schema: pa.Schema) -> pa.Schema:
    """Plain strings (Parquet encodes them by dictionary all the same); the date is in the folder's name."""
    return pa.schema(
        [
            pa.field(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type)
            for f in schema
            if f.name != "event_date"
        ]
    )


LAKE_SCHEMA = _plain(ENRICHED_SCHEMA)
QUARANTINE_SCHEMA = pa.schema(
    [
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("pointer", pa.string()),
        ("errors", pa.string()),
        ("event_id", pa.string()),
        ("event_time", TIME),
        ("event_type", pa.string()),
        ("user_id", pa.string()),
        ("document", pa.binary()),
    ]
)
METRICS_SCHEMA = pa.schema(
    [
        ("window_start", TIME),
        ("event_type", pa.string()),
        ("currency", pa.string()),
        ("events", pa.int64()),
        ("users", pa.int64()),
        ("revenue", MONEY),
    ]
)


class _StepFn(beam.DoFn):
    """Base of the stages: builds the steps once a worker, sends what a step rejects to ``rejected``."""

    def __init__(self, variant: str, now: int) -> None:
        self._variant, self._now = variant, now

    def setup(self) -> None:
        self._steps = Rowwise(self._variant, self._now)

    def _rejected(
        self, reject: Reject, raw: bytes | None, row: Row | None = None
    ) -> beam.pvalue.TaggedOutput:
        row = row or {}
        first = reject.failures[0][1] if reject.failures else None
        errors = "; ".join(f"{pointer}: {keyword}" for keyword, pointer in reject.failures) or None
        return beam.pvalue.TaggedOutput(
            "rejected",
            {
                "stage": reject.stage,
                "reason": reject.reason,
                "pointer": first,
                "errors": errors,
                "document": None if raw is None else self._steps.seal(raw),
                **{name: row[name] for name in KEEP if name in row},
            },
        )


class _DecodeFn(_StepFn):
    def process(self, raw: bytes) -> Iterator[Any]:
        try:
            yield raw, self._steps.decode(raw)
        except Reject as reject:
            yield self._rejected(reject, raw)


class _ValidateFn(_StepFn):
    def process(self, element: Element) -> Iterator[Any]:
        raw, document = element
        try:
            yield raw, self._steps.validate(document)
        except Reject as reject:
            yield self._rejected(reject, raw)


class _MapFamilyFn(_StepFn):
    def process(self, element: Element) -> Iterator[Any]:
        raw, (key, document) = element
        try:
            yield raw, self._steps.to_row(raw, key, document)
        except Reject as reject:
            yield self._rejected(reject, raw)


class _RejectStaleFn(_StepFn):
    def process(self, element: Element) -> Iterator[Any]:
        raw, row = element
        try:
            yield raw, self._steps.check_time(row)
        except Reject as reject:
            yield self._rejected(reject, raw)


class _LocateFn(_StepFn):
    def process(self, element: Element) -> Iterator[Row]:
        yield self._steps.locate(element[1])


class _MaskFn(_StepFn):
    def process(self, row: Row) -> Iterator[tuple[str, Row]]:
        row = self._steps.mask(row)
        yield row["event_id"], row


class _DeduplicateFn(_StepFn):
    def process(self, group: tuple[str, Iterable[Row]]) -> Iterator[Any]:
        for row, reason in self._steps.first_of(list(group[1])):
            yield row if reason is None else self._rejected(Reject("dedupe", reason), None, row)


class _EnrichFn(_StepFn):
    def process(self, row: Row) -> Iterator[Row]:
        yield self._steps.enrich(row)


class _FilterFn(_StepFn):
    def process(self, row: Row) -> Iterator[Any]:
        try:
            yield self._steps.check_rule(row)
        except Reject as reject:
            yield self._rejected(reject, None, row)


class _KeyMetricFn(beam.DoFn):
    def process(self, row: Row) -> Iterator[Any]:
        value = (row["event_type"], row.get("currency")), (row.get("user_id"), row.get("revenue"))
        yield TimestampedValue(value, row["event_time"] / 1_000_000)


class _MetricsFn(beam.CombineFn):
    """Count, distinct users and revenue; Beam lifts it before the shuffle."""

    def create_accumulator(self) -> list[Any]:
        return [0, set(), None]

    def add_input(self, total: list[Any], value: tuple[str | None, Any]) -> list[Any]:
        user, revenue = value
        total[0] += 1
        if user is not None:
            total[1].add(user)
        if revenue is not None:
            total[2] = revenue if total[2] is None else total[2] + revenue
        return total

    def merge_accumulators(self, totals: Iterable[list[Any]]) -> list[Any]:
        merged = self.create_accumulator()
        for events, users, revenue in totals:
            merged[0] += events
            merged[1] |= users
            if revenue is not None:
                merged[2] = revenue if merged[2] is None else merged[2] + revenue
        return merged

    def extract_output(self, total: list[Any]) -> tuple[int, int, Any]:
        return total[0], len(total[1]), total[2]


class _MetricRowFn(beam.DoFn):
    def process(self, item: Any, window: Any = beam.DoFn.WindowParam) -> Iterator[Row]:
        (kind, currency), (events, users, revenue) = item
        yield {
            "window_start": window.start.micros,
            "event_type": kind,
            "currency": currency,
            "events": events,
            "users": users,
            "revenue": revenue,
        }


def build(pipeline: beam.Pipeline, variant: str, source: str, output: Path, now: int) -> None:
    """Adds the whole job to the pipeline."""
    rejected = []

    def stage(label: str, step: beam.DoFn, events: Any) -> Any:
        done = events | label >> beam.ParDo(step).with_outputs("rejected", main="accepted")
        rejected.append(done.rejected)
        return done.accepted

    lines = pipeline | "Read" >> beam.io.ReadFromText(source, coder=beam.coders.BytesCoder())
    events = stage("Decode", _DecodeFn(variant, now), lines)
    events = stage("Validate", _ValidateFn(variant, now), events)
    events = stage("MapFamily", _MapFamilyFn(variant, now), events)
    events = stage("RejectStale", _RejectStaleFn(variant, now), events)
    events = events | "Locate" >> beam.ParDo(_LocateFn(variant, now))
    keyed = events | "Mask" >> beam.ParDo(_MaskFn(variant, now)).with_output_types(tuple[str, Row])
    events = stage("Deduplicate", _DeduplicateFn(variant, now), keyed | "GroupById" >> beam.GroupByKey())
    events = events | "Enrich" >> beam.ParDo(_EnrichFn(variant, now))
    events = stage("Filter", _FilterFn(variant, now), events)

    first = (now - DAY) // DAY
    days = (now + LEEWAY) // DAY - first + 1
    dated = events | "ByDate" >> beam.Partition(lambda row, n: row["event_date"] - first, days)
    for n, rows in enumerate(dated):
        date = datetime.fromtimestamp((first + n) * 86_400, UTC).date()
        prefix = output / "events" / f"event_date={date}" / "part"
        rows | f"WriteDate{n}" >> _write(prefix, LAKE_SCHEMA)
    metrics = (
        events
        | "KeyMetrics" >> beam.ParDo(_KeyMetricFn()).with_output_types(tuple[tuple[str, str | None], Any])
        | "Minutes" >> beam.WindowInto(FixedWindows(60))
        | "Metrics" >> beam.CombinePerKey(_MetricsFn())
        | "MetricRows" >> beam.ParDo(_MetricRowFn())
        | "Unwindow" >> beam.WindowInto(beam.window.GlobalWindows())
    )
    metrics | "WriteMetrics" >> _write(output / "metrics" / "minutes" / "part", METRICS_SCHEMA)
    quarantine = rejected | "AllRejected" >> beam.Flatten()
    quarantine | "WriteQuarantine" >> _write(output / "quarantine" / "part", QUARANTINE_SCHEMA)


def _write(prefix: Path, schema: pa.Schema) -> beam.PTransform:
    return WriteToParquet(str(prefix), schema, codec="snappy", file_name_suffix=".parquet")


def run(variant: str, source: str, output: Path, now: datetime) -> None:
    """Runs the pipeline in this process on Beam's FnApiRunner."""
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        build(pipeline, variant, source, output, micros_of(now))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--now", type=datetime.fromisoformat, required=True)
    given = parser.parse_args(arguments)
    run(given.variant, given.input, given.output, given.now)


if __name__ == "__main__":
    main()
