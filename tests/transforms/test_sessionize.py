"""Sessionize as a PTransform of its own."""

import pickletools
import random
from datetime import UTC, datetime, timedelta

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing import test_stream
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, Repeatedly
from apache_beam.transforms.window import (
    FixedWindows,
    GlobalWindows,
    SlidingWindows,
    TimestampedValue,
)
from apache_beam.transforms.window import Sessions as BeamSessions

from headrace.schemas.columns import ENRICHED_SCHEMA, QUARANTINE_SCHEMA, RAW
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import replace
from headrace.transforms.merge_partials import MergePartials, PartialsCoder
from headrace.transforms.session_definitions import Sessions
from headrace.transforms.session_partials import finish, merge, partial
from headrace.transforms.sessionize import Sessionize, split_keyless

from .collect import Batches, collect

START = datetime(2024, 5, 1, tzinfo=UTC)
GAP = timedelta(minutes=30)


def events(rows: list[dict]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=ENRICHED_SCHEMA)


def row(minutes: float, user: str | None = "u", **more: object) -> dict:
    time = START + timedelta(minutes=minutes)
    return {"event_time": time, "event_id": f"{minutes}", "user_id": user, "event_type": "page_view", **more}


def stamped(rows: list[dict]) -> tuple[pa.RecordBatch, float]:
    return events(rows), min(r["event_time"] for r in rows).timestamp()


def found_in(elements: list) -> list[tuple]:
    """User, start in minutes and number of events of each session."""
    rows = [r for e in elements for r in e.value.to_pylist()]
    minutes = [(r["session_start"] - START) / timedelta(minutes=1) for r in rows]
    return sorted((r["user_id"], m, r["events"]) for r, m in zip(rows, minutes, strict=True))


def read(numbers: beam.PCollection, rows: list[dict]) -> beam.PCollection:
    """Turns places in ``rows`` into batches of one row."""
    return numbers | beam.Map(lambda i: events([rows[i]])).with_output_types(pa.RecordBatch)


def stream_of(rows: list[dict]) -> test_stream.TestStream:
    stream = test_stream.TestStream(coder=beam.coders.registry.get_coder(int))
    stream = stream.advance_watermark_to(START.timestamp())
    for i, each in enumerate(rows):
        stream = stream.add_elements([TimestampedValue(i, each["event_time"].timestamp())])
    return stream.advance_watermark_to_infinity()


ROWS = [row(0), row(30), row(60.1), row(5, "v"), row(20, "w"), row(45, "w"), row(500, "v")]
EXPECTED = [("u", 0, 2), ("u", 60.1, 1), ("v", 5, 1), ("v", 500, 1), ("w", 20, 2)]


@pytest.mark.parametrize("shards", [1, 16])
def test_sessions_over_batches_in_any_order(shards):
    batches = [stamped(ROWS[i::3]) for i in (2, 0, 1)]

    def build(pipeline):
        return (pipeline | Batches(batches) | Sessionize(GAP, shards=shards))._asdict()

    found = collect(build)
    assert found_in(found["accepted"]) == EXPECTED
    assert found["rejected"] == []
    assert len(found["accepted"]) == 1 if shards == 1 else len(found["accepted"]) > 1
    for element in found["accepted"]:
        ends = element.value["session_end"].to_pylist()
        assert element.micros == int(min(ends).timestamp()) * 1_000_000
        keys = element.value.select(["user_id", "session_start"]).to_pylist()
        assert keys == sorted(keys, key=lambda k: tuple(k.values()))


def test_rows_are_in_a_session_or_rejected_and_counted():
    lost = [row(0, None), row(1, None) | {"event_time": None}, row(2, "token") | {"event_time": None}]
    raw = replace(events(lost[2:]), {RAW: pa.array([b"x"])})
    batches = [events([*lost, *ROWS[:3]]), events([]), raw, events(lost[:1]), events(ROWS[3:])]
    pipeline = beam.Pipeline(runner="FnApiRunner")
    results = pipeline | Batches(batches) | Sessionize()
    for name, values in results._asdict().items():
        values | f"Count {name}" >> beam.ParDo(_CountFn(name))
    result = pipeline.run()
    result.wait_until_finish()
    counts = {
        (m.key.metric.namespace, m.key.metric.name): m.committed for m in result.metrics().query()["counters"]
    }
    assert counts["found", "accepted"] == counts["headrace.sessions", "accepted"] == len(ROWS)
    assert counts["found", "rejected"] == counts["headrace.sessions", "rejected"] == 5
    assert counts["headrace.sessions", "left_out"] == 0


class _CountFn(beam.DoFn):
    def __init__(self, name: str) -> None:
        self._name = name

    def process(self, batch):
        rows = sum(batch["events"].to_pylist()) if self._name == "accepted" else batch.num_rows
        beam.metrics.Metrics.counter("found", self._name).inc(rows)


def test_rejected_rows_tell_why():
    batch = events([row(0, None), row(1) | {"event_time": None}, row(2, None) | {"event_time": None}, row(3)])
    kept, lost = split_keyless(batch, Sessions())
    assert kept.equals(batch.slice(3))
    assert lost.schema.equals(QUARANTINE_SCHEMA)
    assert [(r["stage"], r["reason"]) for r in lost.to_pylist()] == [
        ("sessions", "no_key"),
        ("sessions", "no_time"),
        ("sessions", "no_time"),
    ]
    assert lost["message"].to_pylist()[:2] == [
        "null in all key columns (user_id), so the event belongs to no session",
        "event_time is null, so the event belongs to no session",
    ]
    assert lost["user_id"].to_pylist() == [None, "u", None]
    raw = replace(batch, {RAW: pa.array([b"x"] * 4)})
    assert split_keyless(raw, Sessions()).rejected["user_id"].null_count == 3
    both = Sessions(by=("user_id", "platform"))
    platform = events([row(0, None, platform="web"), row(0, None), row(0)])
    assert split_keyless(platform, both).rejected.num_rows == 1


def test_rows_that_where_does_not_take_are_neither_in_a_session_nor_rejected():
    rows = [row(0), row(40, is_bot=True), row(60, is_bot=False), row(0, None, is_bot=True), row(0, None)]
    wanted = {"is_bot": [False, None]}
    kept, lost = split_keyless(events(rows), Sessions(where=wanted))
    assert (kept.num_rows, lost.num_rows) == (2, 1)

    def build(pipeline):
        return (pipeline | Batches([events(rows)]) | Sessionize(GAP, where=wanted))._asdict()

    found = collect(build)
    assert found_in(found["accepted"]) == [("u", 0, 1), ("u", 60, 1)]
    assert sum(e.value.num_rows for e in found["rejected"]) == 1


def test_a_key_is_the_same_in_every_encoding():
    names = pa.array([f"v{i}" for i in range(9)])
    batch = events([row(i, None) for i in range(9)])
    encodings = [names, names.cast(pa.large_string()), names.dictionary_encode()]
    batches = [replace(batch, {"visitor": visitor}) for visitor in encodings]

    def build(pipeline):
        return {"accepted": (pipeline | Batches(batches) | Sessionize(by=["visitor"])).accepted}

    found = [r for e in collect(build)["accepted"] for r in e.value.to_pylist()]
    assert sorted((r["visitor"], r["events"]) for r in found) == [(f"v{i}", 3) for i in range(9)]


def test_sessions_are_cut_at_the_windows_of_the_input():
    rows = [row(0), row(50), row(70), row(119), row(121)]

    def build(pipeline):
        batches = pipeline | Batches([stamped([r]) for r in rows]) | beam.WindowInto(FixedWindows(3600))
        return {"accepted": (batches | Sessionize(timedelta(minutes=60))).accepted}

    found = collect(build)["accepted"]
    assert found_in(found) == [("u", 0, 2), ("u", 70, 2), ("u", 121, 1)]
    for element in found:
        (end,) = element.value["session_end"].to_pylist()
        assert element.micros == int(end.timestamp()) * 1_000_000
        assert element.window.start == end.timestamp() // 3600 * 3600


def test_a_timestamp_stays_in_the_window_of_the_batch():
    """A batch lies in the window of its earliest event; sessions may go on behind it."""
    rows = [row(50), row(70)]

    def build(pipeline):
        batches = pipeline | Batches([stamped(rows)]) | beam.WindowInto(FixedWindows(3600))
        return {"accepted": (batches | Sessionize()).accepted}

    (element,) = collect(build)["accepted"]
    assert element.value["events"].to_pylist() == [2]
    assert element.micros == element.window.max_timestamp().micros


def streamed(steps: list, **arguments) -> dict[str, list]:
    """Streams rows and watermarks (minutes after START) through Sessionize."""
    batches: list = []
    stream = test_stream.TestStream(coder=beam.coders.registry.get_coder(int))
    stream = stream.advance_watermark_to(START.timestamp())
    for step in steps:
        if isinstance(step, list):
            batch, time = stamped(step)
            stream = stream.add_elements([TimestampedValue(len(batches), time)])
            batches.append(batch)
        else:
            stream = stream.advance_watermark_to(START.timestamp() + 60 * step)

    def build(pipeline):
        numbers = pipeline | stream.advance_watermark_to_infinity()
        read = numbers | beam.Map(lambda number: batches[number]).with_output_types(pa.RecordBatch)
        return (read | Sessionize(**arguments))._asdict()

    return collect(build, stream=True)


def test_a_session_of_a_stream_comes_once_when_nothing_can_change_it():
    lateness = timedelta(minutes=10)
    steps = [[row(0), row(25, "v")], 20, [row(12), row(11, "v")], 39, [row(28), row(29), row(30, "w")], 71]
    found = streamed([*steps, [row(58), row(75)]], allowed_lateness=lateness)
    assert found_in(found["accepted"]) == [("u", 0, 4), ("u", 75, 1), ("v", 11, 2), ("w", 30, 1)]
    assert [r["event_id"] for e in found["late"] for r in e.value.to_pylist()] == ["58"]


@pytest.mark.integration
def test_the_sessions_of_a_stream_are_those_of_a_batch():
    chance = random.Random(1)
    rows = [
        row(minute + chance.randint(0, 99) / 100, f"u{chance.randint(0, 9)}", device_type=chance.choice("ab"))
        for minute in range(0, 600, 2)
    ]
    blocks = [rows[i : i + 20] for i in range(0, len(rows), 20)]
    for one, next_ in zip(blocks[::2], blocks[1::2], strict=False):
        one[:5], next_[:5] = next_[:5], one[:5]
    steps = [step for i, block in enumerate(blocks) for step in (block, 1 + 40 * i)]
    found = streamed(steps, allowed_lateness=timedelta(minutes=90), shards=3)
    assert found["late"] == []
    expected = finish(merge([partial(events(rows), Sessions())], Sessions()), Sessions()).to_pylist()
    streamed_rows = [r for e in found["accepted"] for r in e.value.to_pylist()]
    assert sorted(map(str, streamed_rows)) == sorted(map(str, expected))
    assert len(found["accepted"]) > 10


@pytest.mark.parametrize("windows", [FixedWindows(60), None], ids=["windows", "trigger"])
def test_windows_and_triggers_of_unbounded_input_are_refused(windows):
    triggered = beam.WindowInto(
        GlobalWindows(), trigger=Repeatedly(AfterCount(5)), accumulation_mode=AccumulationMode.DISCARDING
    )
    numbers = beam.Pipeline(runner="BundleBasedDirectRunner") | stream_of([])
    batches = read(numbers, []) | (beam.WindowInto(windows) if windows else triggered)
    with pytest.raises(ConfigError, match=r"so these would be ignored.*WindowInto\(GlobalWindows\(\)\)"):
        batches | Sessionize()


def test_a_bad_lateness_is_refused():
    with pytest.raises(ConfigError, match="allowed_lateness=5: must be a timedelta"):
        Sessionize(allowed_lateness=5)


@pytest.mark.parametrize(
    ("windows", "message"),
    [(SlidingWindows(60, 30), "count each row several times"), (BeamSessions(60), "cut sessions at random")],
    ids=["sliding", "merging"],
)
def test_windows_that_make_no_sense_are_refused(windows, message):
    batches = beam.Pipeline(runner="FnApiRunner") | Batches([]) | beam.WindowInto(windows)
    with pytest.raises(ConfigError, match=message):
        batches | Sessionize()


def test_many_sessions_come_in_batches(monkeypatch):
    monkeypatch.setattr("headrace.transforms.sessionize.BATCH_ROWS", 3)

    def build(pipeline):
        batches = pipeline | Batches([events([row(i, f"u{i}") for i in range(8)])])
        return {"accepted": (batches | Sessionize(shards=1)).accepted}

    assert [e.value.num_rows for e in collect(build)["accepted"]] == [3, 3, 2]


def test_the_accumulator_is_arrow_not_a_pickle():
    sessions = Sessions()
    merge_fn = MergePartials(merge, sessions)
    accumulator = merge_fn.create_accumulator()
    coder = merge_fn.get_accumulator_coder()
    assert coder.encode(accumulator) == b"" and coder.decode(b"").parts == []
    assert merge_fn.extract_output(accumulator).num_rows == 0
    batch = events([row(i % 50, page_url=f"/{i}") for i in range(150)])
    for i in range(150):
        accumulator = merge_fn.add_input(accumulator, partial(batch.slice(i, 1), sessions))
    assert len(accumulator.parts) <= 65
    encoded = coder.encode(accumulator)
    with pa.ipc.open_stream(encoded) as reader:
        assert reader.read_all().num_rows == 1
    with pytest.raises(ValueError, match=r"at position|opcode|pickle"):
        list(pickletools.genops(encoded))
    again = merge_fn.merge_accumulators([coder.decode(encoded), merge_fn.create_accumulator(), accumulator])
    total = finish(merge_fn.extract_output(merge_fn.compact(again)), sessions)
    assert total["events"].to_pylist() == [300]
    assert total["unique_pages"].to_pylist() == [150]


def test_the_pipeline_uses_the_arrow_coders():
    pipeline = beam.Pipeline(runner="FnApiRunner")
    pipeline | Batches([]) | Sessionize()
    proto, _ = pipeline.to_runner_api(return_context=True)
    (combine,) = (
        t for t in proto.components.transforms.values() if t.spec.urn == "beam:transform:combine_per_key:v1"
    )
    payload = beam.portability.api.beam_runner_api_pb2.CombinePayload.FromString(combine.spec.payload)
    coder = beam.coders.Coder.from_runner_api(
        proto.components.coders[payload.accumulator_coder_id],
        beam.runners.pipeline_context.PipelineContext(proto.components),
    )
    assert coder == PartialsCoder(merge, Sessions())
    assert coder != PartialsCoder(merge, Sessions(timedelta(1)))


def test_batches_without_the_columns_are_refused():
    batch = events(ROWS).drop_columns(["is_bot", "revenue"])
    with pytest.raises(ConfigError, match=r"sessions need \['is_bot', 'revenue'\]"):
        split_keyless(batch, Sessions())


@pytest.mark.parametrize("shards", [0, 1025, True, 2.0])
def test_bad_shards_are_refused(shards):
    with pytest.raises(ConfigError, match=r"Sessionize\(shards=.*from 1 to 1024"):
        Sessionize(shards=shards)


def test_arguments_are_checked_at_construction():
    with pytest.raises(ConfigError, match="by='user_id': must be a tuple"):
        Sessionize(by="user_id")
    with pytest.raises(ConfigError, match=r"gap=.*above zero"):
        Sessionize(timedelta(0))
    with pytest.raises(ConfigError, match="where='': write columns"):
        Sessionize(where="")
    Sessionize(timedelta(hours=1), by=["platform", "user_id"], where={"is_bot": False}, shards=1)
