"""AggregateWindows as a PTransform of its own."""

import pickletools
import random
from collections import Counter
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
        if r["is_final"]
    }
    assert counts == {i: 1 if i < 15 else 2 for i in range(30)}
    assert found["late"] == []


def test_a_trigger_of_unbounded_input_is_refused():
    def build(pipeline):
        numbers = pipeline | test_stream.TestStream(coder=beam.coders.registry.get_coder(int))
        windowed = numbers | beam.WindowInto(
            GlobalWindows(),
            trigger=AfterWatermark(early=AfterCount(1)),
            accumulation_mode=AccumulationMode.DISCARDING,
        )
        batches = windowed | beam.Map(lambda second: events([row(second)])).with_output_types(pa.RecordBatch)
        return (batches | AggregateWindows())._asdict()

    with pytest.raises(ConfigError, match=r"windows fire by early=.*so the trigger would be ignored"):
        collect(build, stream=True)


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
    assert {(r.pop("pane_index"), r.pop("is_final"), r.pop("timing")) for r in found} == {(0, True, "final")}
    assert {r.pop("window_shard") for r in found} <= {0, 1, 2}
    windows = AggregateWindows(**definition)._windows
    expected = finish(partial(events(rows), windows), windows).to_pylist()
    assert sorted(map(str, found)) == sorted(map(str, expected))


START_S = START.timestamp()


def fired(steps, *, shards: int = 1, **definition) -> dict[str, list[dict]]:
    """Streams rows and watermarks (seconds after START) through the windows; returns the rows that came out, by output."""
    stream = test_stream.TestStream(coder=beam.coders.registry.get_coder(int)).advance_watermark_to(START_S)
    batches = []
    for step in steps:
        if isinstance(step, list):
            stream = stream.add_elements([TimestampedValue(len(batches), START_S + min(t for t, *_ in step))])
            batches.append(events([row(*r) for r in step]))
        else:
            stream = stream.advance_watermark_to(START_S + step)

    def build(pipeline):
        numbers = pipeline | stream.advance_watermark_to_infinity()
        found = numbers | beam.Map(lambda number: batches[number]).with_output_types(pa.RecordBatch)
        return (found | AggregateWindows(shards=shards, **definition))._asdict()

    return {
        name: [r for e in elements for r in e.value.to_pylist()]
        for name, elements in collect(build, stream=True).items()
    }


def brief(rows: list[dict], *names: str) -> list[tuple]:
    return [(int((r["window_start"] - START).total_seconds()), *(r[n] for n in names)) for r in rows]


COUNT = {"measures": {"n": Count()}, "early": timedelta(0)}


def test_each_firing_says_which_it_is_and_what_is_too_late_is_told():
    steps = [
        [(1,), (2,)],
        60,
        [(3,)],
        [(59,), (61,)],
        60 + 300,
        [(4, "view"), (62,)],
        120 + 300,
        [(63,), (400,)],
    ]
    found = fired(steps, **COUNT)
    assert brief(found["accepted"], "event_type", "n", "pane_index", "timing", "is_final") == [
        (0, "click", 2, 0, "on_time", False),
        (0, "click", 3, 1, "late", False),
        (60, "click", 1, 0, "on_time", False),
        (0, "click", 4, 2, "final", True),
        (60, "click", 2, 1, "final", True),
        (360, "click", 1, 0, "final", True),
    ]
    assert brief(found["late"], "event_type", "rows") == [(0, "view", 1), (60, "click", 1)]


def test_without_lateness_a_window_fires_once():
    found = fired([[(1,)], 60, [(2,), (61,)], 120], allowed_lateness=timedelta(0), **COUNT)
    assert brief(found["accepted"], "n", "timing") == [(0, 1, "final"), (60, 1, "final")]
    assert brief(found["late"], "rows") == [(0, 1)]


def test_what_changed_is_taken_back():
    found = fired([[(1,), (2, "view")], 60, [(3,)]], accumulation="retracting", **COUNT)
    held: dict = {}
    for r in found["accepted"]:
        held[r["event_type"]] = held.get(r["event_type"], 0) + (-1 if r["retraction"] else 1) * r["n"]
    assert held == {"click": 2, "view": 1}


def test_early_firings_come_by_the_clock():
    stream = (
        test_stream.TestStream(coder=beam.coders.registry.get_coder(int))
        .advance_watermark_to(START_S)
        .add_elements([TimestampedValue(1, START_S + 1)])
        .advance_processing_time(10_000_000_000)
        .add_elements([TimestampedValue(2, START_S + 2)])
    )

    def build(pipeline):
        numbers = pipeline | stream.advance_watermark_to_infinity()
        batches = numbers | beam.Map(lambda second: events([row(second)])).with_output_types(pa.RecordBatch)
        return {"accepted": (batches | AggregateWindows(measures={"n": Count()}, early=MINUTE)).accepted}

    seen = [r for e in collect(build, stream=True)["accepted"] for r in e.value.to_pylist()]
    assert [(r["n"], r["timing"]) for r in seen] == [
        (1, "early"),
        (2, "early"),
        (2, "on_time"),
        (2, "final"),
    ]


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(3))
def test_final_and_late_rows_are_all_rows(seed):
    chance = random.Random(seed)
    steps: list = []
    watermark = 0
    for _ in range(25):
        steps.append(
            [(max(0, watermark + chance.randint(-500, 200)), chance.choice("ab")) for _ in range(20)]
        )
        watermark += chance.randint(1, 60)
        steps.append(watermark)
    found = fired(
        steps,
        shards=3,
        size=2 * MINUTE,
        every=MINUTE,
        allowed_lateness=timedelta(seconds=100),
        **COUNT,
    )
    expected: Counter = Counter()
    for time, type_ in (r for step in steps if isinstance(step, list) for r in step):
        expected.update({(time // 60 * 60 - back, type_): 1 for back in (0, 60)})
    final = [r for r in found["accepted"] if r["is_final"]]
    assert len({(r["window_start"], r["event_type"]) for r in final}) == len(final)
    held = Counter({(start, type_): n for start, type_, n in brief(final, "event_type", "n")})
    late: Counter = Counter()
    for start, type_, rows in brief(found["late"], "event_type", "rows"):
        late[start, type_] += rows
    assert held + late == expected
    assert sum(late.values()) > 20


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


@pytest.mark.parametrize("name", ["allowed_lateness", "early"])
@pytest.mark.parametrize("value", [60, timedelta(seconds=-1)])
def test_bad_times_are_refused(name, value):
    with pytest.raises(ConfigError, match=rf"AggregateWindows\({name}=.*timedelta of zero or more"):
        AggregateWindows(**{name: value})


def test_bad_accumulation_and_reserved_names_are_refused():
    with pytest.raises(ConfigError, match="accumulation='both': must be one of accumulating"):
        AggregateWindows(accumulation="both")
    with pytest.raises(ConfigError, match="streams add columns of these names"):
        AggregateWindows(measures={"pane_index": Count()})


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
