"""AggregateWindows as a PTransform of its own."""

import pickletools
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing import test_stream
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, AfterWatermark
from apache_beam.transforms.window import (
    FixedWindows,
    GlobalWindows,
    Sessions,
    SlidingWindows,
    TimestampedValue,
)

from headrace.schemas.columns import ENRICHED_SCHEMA, RAW
from headrace.schemas.errors import ConfigError
from headrace.transforms.aggregate_windows import AggregateWindows
from headrace.transforms.batches import replace
from headrace.transforms.merge_partials import MergePartials, PartialsCoder
from headrace.transforms.ready_windows import METRICS
from headrace.transforms.window_definitions import Count, Distinct, Sum, Top
from headrace.transforms.window_partials import finish, merge, partial

from .collect import Batches, collect

START = datetime(2024, 5, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def events(rows: list[dict]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=ENRICHED_SCHEMA)


def row(seconds: float, type_: str | None = "click", user: str = "u", **more: object) -> dict:
    time = START + timedelta(seconds=seconds)
    return {"event_time": time, "event_type": type_, "user_id": user, **more}


def stamped(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, float]:
    return batch, min(t for t in batch["event_time"].to_pylist() if t).timestamp()


ROWS = [row(0), row(59.999999, user="v"), row(60), row(61, "purchase", revenue=Decimal("9.99")), row(5, None)]
EXPECTED = [
    (0, "click", 2, 2, None),
    (0, None, 1, 1, None),
    (60, "click", 1, 1, None),
    (60, "purchase", 1, 1, Decimal("9.99")),
]


def results(elements: list) -> list[tuple]:
    rows = [r for e in elements for r in e.value.to_pylist()]
    assert all(r["window_end"] - r["window_start"] == MINUTE for r in rows)
    found = [
        (
            int((r["window_start"] - START).total_seconds()),
            r["event_type"],
            r["events"],
            r["unique_users"],
            r["revenue"],
        )
        for r in rows
    ]
    return sorted(found, key=lambda r: (r[0], r[1] is None, r[1]))


@pytest.mark.parametrize(
    "windowing",
    [
        GlobalWindows(),
        FixedWindows(7),
        Sessions(10),
    ],
    ids=["global", "fixed", "sessions"],
)
@pytest.mark.parametrize("shards", [1, 3])
def test_the_input_windows_do_not_matter(windowing, shards):
    batches = [stamped(events(ROWS[:1] + ROWS[3:])), stamped(events(ROWS[1:3]))]

    def build(pipeline):
        read = pipeline | Batches(batches) | beam.WindowInto(windowing)
        return (read | AggregateWindows(shards=shards))._asdict()

    found = collect(build)
    assert results(found["accepted"]) == EXPECTED
    assert found["rejected"] == []
    for element in found["accepted"]:
        (start,) = set(element.value["window_start"].to_pylist())
        assert element.window.start == start.timestamp()
        assert element.micros // 1000 == int((start + MINUTE).timestamp()) * 1000 - 1


def test_rows_without_time_are_rejected_and_the_others_counted():
    timeless = row(0, user="token") | {"event_time": None}
    raw = replace(events([timeless]), {RAW: pa.array([b"x"])})

    def build(pipeline):
        batches = pipeline | Batches([events([timeless, *ROWS]), raw])
        return (batches | AggregateWindows())._asdict()

    found = collect(build)
    assert results(found["accepted"]) == EXPECTED
    lost = [r for e in found["rejected"] for r in e.value.to_pylist()]
    assert [(r["stage"], r["reason"]) for r in lost] == [("windows", "no_time")] * 2
    assert {r["user_id"] for r in lost} == {"token", None}


def test_one_batch_over_many_windows_is_not_late_in_a_stream():
    """Each partial lies at the end of its window, so a watermark at the batch's own timestamp drops none."""
    rows = [row(60 * i) for i in range(30)]
    start = START.timestamp()
    stream = (
        test_stream.TestStream(coder=beam.coders.registry.get_coder(int))
        .advance_watermark_to(start)
        .add_elements([TimestampedValue(0, start)])
        .advance_watermark_to(start + 60 * 15)
        .add_elements([TimestampedValue(15, start + 60 * 15)])
        .advance_watermark_to_infinity()
    )

    def build(pipeline):
        numbers = pipeline | stream
        batches = numbers | beam.Map(lambda first: events(rows[first:])).with_output_types(pa.RecordBatch)
        return (batches | AggregateWindows(measures={"n": Count()}))._asdict()

    found = collect(build, stream=True)
    counts = {
        int((r["window_start"] - START) / MINUTE): r["n"]
        for e in found["accepted"]
        for r in e.value.to_pylist()
    }
    assert counts == {i: 1 if i < 15 else 2 for i in range(30)}
    assert len(found["accepted"]) == 30


@pytest.mark.parametrize(
    ("mode", "counts"),
    [(AccumulationMode.DISCARDING, [1, 1, 1]), (AccumulationMode.ACCUMULATING, [1, 2, 3])],
)
def test_the_trigger_of_the_input_is_kept(mode, counts):
    start = START.timestamp()
    stream = test_stream.TestStream(coder=beam.coders.registry.get_coder(int)).advance_watermark_to(start)
    for second in range(3):
        stream = stream.add_elements([TimestampedValue(second, start + second)])
    trigger = AfterWatermark(early=AfterCount(1))

    def build(pipeline):
        numbers = pipeline | stream.advance_watermark_to_infinity()
        windowed = numbers | beam.WindowInto(GlobalWindows(), trigger=trigger, accumulation_mode=mode)
        batches = windowed | beam.Map(lambda second: events([row(second)])).with_output_types(pa.RecordBatch)
        return (batches | AggregateWindows(measures={"n": Count()}))._asdict()

    found = collect(build, stream=True)
    seen = [r["n"] for e in found["accepted"] for r in e.value.to_pylist()]
    assert seen[:3] == counts


@pytest.mark.parametrize(
    "definition",
    [
        {"size": 5 * MINUTE, "every": MINUTE, "by": ("event_type",), "shards": 3},
        {"size": MINUTE * 10, "every": MINUTE * 4, "by": ()},
        {"size": 2 * MINUTE, "by": ("user_id",), "top": Top(2, "events"), "where": {"event_type": "click"}},
        {"size": MINUTE, "by": ("country", "user_id"), "top": Top(1, "revenue", ("country",)), "shards": 3},
    ],
    ids=["sliding", "uneven", "top", "top within"],
)
def test_windows_that_slide_and_top_groups_are_those_of_the_kernel(definition):
    rows = [
        row(
            31 * i,
            ("click", "view")[i % 2],
            f"u{i % 5}",
            country=("DE", None)[i % 3 == 0],
            revenue=Decimal(i % 7),
        )
        for i in range(60)
    ]
    batches = [stamped(events(rows[i::4])) for i in range(4)]

    def build(pipeline):
        return {"accepted": (pipeline | Batches(batches) | AggregateWindows(**definition)).accepted}

    found = [r for e in collect(build)["accepted"] for r in e.value.to_pylist()]
    assert {(r.pop("pane_index"), r.pop("is_final")) for r in found} == {(0, True)}
    assert {r.pop("timing") for r in found} == {"on_time"}
    windows = AggregateWindows(**definition)._windows
    expected = finish(partial(events(rows), windows), windows).to_pylist()
    assert sorted(map(str, found)) == sorted(map(str, expected))


def test_each_firing_says_which_it_is():
    start = START.timestamp()
    stream = (
        test_stream.TestStream(coder=beam.coders.registry.get_coder(int))
        .advance_watermark_to(start)
        .add_elements([TimestampedValue(1, start + 1)])
        .add_elements([TimestampedValue(2, start + 2)])
        .advance_watermark_to(start + 60)
        .add_elements([TimestampedValue(3, start + 3)])
        .advance_watermark_to_infinity()
    )
    trigger = AfterWatermark(early=AfterCount(1), late=AfterCount(1))

    def build(pipeline):
        numbers = pipeline | stream
        more = {
            "trigger": trigger,
            "accumulation_mode": AccumulationMode.ACCUMULATING,
            "allowed_lateness": 600,
        }
        windowed = numbers | beam.WindowInto(GlobalWindows(), **more)
        batches = windowed | beam.Map(lambda second: events([row(second)])).with_output_types(pa.RecordBatch)
        return {"accepted": (batches | AggregateWindows(measures={"n": Count()})).accepted}

    seen = [
        (r["n"], r["pane_index"], r["timing"])
        for e in collect(build, stream=True)["accepted"]
        for r in e.value.to_pylist()
    ]
    assert seen == [(1, 0, "early"), (2, 1, "early"), (2, 2, "on_time"), (3, 3, "late")]


def test_shards_without_groups_are_refused():
    with pytest.raises(ConfigError, match="there is nothing to spread; leave shards at 1"):
        AggregateWindows(by=(), shards=2)


def test_the_accumulator_is_arrow_not_a_pickle():
    windows = METRICS["events_per_minute"]
    merge_fn = MergePartials(merge, windows)
    accumulator = merge_fn.create_accumulator()
    coder = merge_fn.get_accumulator_coder()
    assert isinstance(coder, PartialsCoder)
    assert coder.encode(accumulator) == b"" and coder.decode(b"").parts == []
    batch = events([row(i % 50, user=f"u{i}") for i in range(500)])
    for i in range(500):
        accumulator = merge_fn.add_input(accumulator, partial(batch.slice(i, 1), windows))
    assert len(accumulator.parts) <= 65
    encoded = coder.encode(accumulator)
    assert len(encoded) < 500 * 16 + 1500
    with pa.ipc.open_stream(encoded) as reader:
        assert reader.read_all().num_rows == 1
    with pytest.raises(ValueError, match=r"at position|opcode|pickle"):
        list(pickletools.genops(encoded))
    again = merge_fn.merge_accumulators([coder.decode(encoded), merge_fn.create_accumulator(), accumulator])
    total = finish(merge_fn.extract_output(merge_fn.compact(again)), windows)
    assert total["events"].to_pylist() == [1000]
    assert total["unique_users"].to_pylist() == [500]


def test_the_pipeline_uses_the_arrow_coders():
    pipeline = beam.Pipeline(runner="FnApiRunner")
    pipeline | Batches([]) | AggregateWindows()
    proto, _ = pipeline.to_runner_api(return_context=True)
    (combine,) = (
        t for t in proto.components.transforms.values() if t.spec.urn == "beam:transform:combine_per_key:v1"
    )
    payload = beam.portability.api.beam_runner_api_pb2.CombinePayload.FromString(combine.spec.payload)
    coder = beam.coders.Coder.from_runner_api(
        proto.components.coders[payload.accumulator_coder_id],
        beam.runners.pipeline_context.PipelineContext(proto.components),
    )
    assert isinstance(coder, PartialsCoder)
    assert coder == PartialsCoder(merge, AggregateWindows()._windows)


def test_batches_without_rows_or_without_rows_that_count():
    def build(pipeline):
        batches = pipeline | Batches([events([]), events([row(0)]), events([row(1, revenue=Decimal(2))])])
        return {"accepted": (batches | AggregateWindows(where={"revenue": "*"})).accepted}

    assert results(collect(build)["accepted"]) == [(0, "click", 1, 1, Decimal(2))]


def test_sliding_windows_are_refused():
    batches = beam.Pipeline(runner="FnApiRunner") | Batches([]) | beam.WindowInto(SlidingWindows(60, 30))
    with pytest.raises(ConfigError, match="would count each row several times"):
        batches | AggregateWindows()


@pytest.mark.parametrize("shards", [0, 1025, True, 2.0])
def test_bad_shards_are_refused(shards):
    with pytest.raises(ConfigError, match=r"AggregateWindows\(shards=.*from 1 to 1024"):
        AggregateWindows(shards=shards)


def test_arguments_are_checked_at_construction():
    with pytest.raises(ConfigError, match="by='event_type': must be a tuple"):
        AggregateWindows(by="event_type")
    with pytest.raises(ConfigError, match="name at least one"):
        AggregateWindows(measures={})
    AggregateWindows(
        timedelta(hours=1),
        by=["country"],
        measures={"u": Distinct("user_id"), "r": Sum("revenue")},
        where={"revenue": "*"},
    )
