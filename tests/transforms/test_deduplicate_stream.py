"""Deduplicate on unbounded input, on two runners."""

from datetime import UTC, datetime, timedelta

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import TimestampedValue

from headrace.schemas.columns import EVENT_SCHEMA, QUARANTINE_SCHEMA
from headrace.transforms import dedupe_shard
from headrace.transforms.batches import replace
from headrace.transforms.beam_shard_state import StatefulShardFn
from headrace.transforms.coders import RecordBatchCoder
from headrace.transforms.dedupe_shard import HORIZON, DedupeShard
from headrace.transforms.dedupe_slots import SLOTS, Cell
from headrace.transforms.deduplicate import MAX_DISORDER, Deduplicate
from headrace.transforms.deduplicate_stream import WITNESSES, _CutFn, _DecideFn
from headrace.transforms.index_cache import IndexCache
from headrace.transforms.shard_state import MemoryState

from .collect import Batches, collect

START = datetime(2024, 5, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def events(ids: list, hours: float = 0, page: str = "p") -> pa.RecordBatch:
    time = START + hours * HOUR
    rows = [{"event_id": i, "ingest_time": time, "event_time": START, "page_url": page} for i in ids]
    return pa.RecordBatch.from_pylist(rows, schema=EVENT_SCHEMA)


def unbounded(batches: beam.PCollection) -> beam.PCollection:
    batches.is_bounded = False
    return batches


def ids_of(batch: pa.RecordBatch) -> list:
    return batch["event_id"].to_pylist()


def test_a_stream_over_several_watermarks():
    """Copies come in the same batch, in a later one, behind the watermark, and with other content."""
    parts = [
        events(["a", "b", None, "a"]),
        events(["b", "c"], 1),
        events(["a"], 2, "other"),
        events(["d"], 0),
    ]
    stream = test_stream.TestStream(coder=beam.coders.registry.get_coder(int))
    for i in range(len(parts)):
        stream = stream.advance_watermark_to(START.timestamp() + 3600 * i)
        stream = stream.add_elements([TimestampedValue(i, START.timestamp() + 3600 * (i % 3))])
    stream = stream.advance_watermark_to_infinity()

    def build(pipeline):
        read = pipeline | stream | beam.Map(lambda i: parts[i]).with_output_types(pa.RecordBatch)
        return (unbounded(read) | Deduplicate(3))._asdict()

    found = collect(build, stream=True)
    accepted = {id_: e.micros for e in found["accepted"] for id_ in ids_of(e.value)}
    start = int(START.timestamp()) * 1_000_000
    assert accepted == {"a": start, "b": start, "c": start + 3_600_000_000, "d": start}
    assert sum(e.value.num_rows for e in found["accepted"]) == 4
    verdicts = sorted(
        (r["event_id"] or "", r["reason"]) for e in found["rejected"] for r in e.value.to_pylist()
    )
    assert verdicts == [("", "no_id"), ("a", "duplicate"), ("a", "duplicate_conflict"), ("b", "duplicate")]
    assert all(e.value.schema.equals(QUARANTINE_SCHEMA) for e in found["rejected"])


class _SplitFn(beam.DoFn):
    def process(self, batch):
        yield from ids_of(batch)


def run_with_repeated_bundles() -> None:
    parts = [events([f"{i}" for i in range(n, n + 40)], n / 40) for n in range(0, 120, 20)]
    with beam.Pipeline(runner=FnApiRunner(bundle_repeat=1)) as pipeline:
        results = unbounded(pipeline | Batches(parts)) | Deduplicate(2)
        kept = results.accepted | "Kept" >> beam.ParDo(_SplitFn())
        lost = results.rejected | "Lost" >> beam.ParDo(_SplitFn())
        assert_that(kept, equal_to([f"{i}" for i in range(140)]), label="accepted")
        assert_that(lost, equal_to([f"{i}" for i in range(20, 120)]), label="rejected")


def test_a_bundle_that_runs_twice_loses_and_doubles_nothing():
    run_with_repeated_bundles()


def test_without_the_version_rule_it_does(monkeypatch):
    """The test of the test above."""

    class Trusting(IndexCache):
        def take(self, key, version):
            held = self._held.pop(key, None)
            return None if held is None else held[1]

    class Versioned(DedupeShard):
        def _take(self, cell, state):
            cell.version = cell.version or bytes(16)
            return super()._take(cell, state)

    monkeypatch.setattr(dedupe_shard, "_CACHE", Trusting())
    monkeypatch.setattr("headrace.transforms.deduplicate_stream.DedupeShard", Versioned)
    with pytest.raises(Exception, match="Failed assert"):
        run_with_repeated_bundles()


def test_no_collection_is_pickled_and_outputs_are_batches():
    pipeline = beam.Pipeline(runner="FnApiRunner")
    results = unbounded(pipeline | Batches([events(["a"])])) | "Tested" >> Deduplicate()
    assert results.accepted.element_type is results.rejected.element_type is pa.RecordBatch
    proto, context = pipeline.to_runner_api(return_context=True)
    names = [
        p.outputs
        for p in proto.components.transforms.values()
        if p.unique_name.startswith("Tested/Stream/") and p.spec.urn == "beam:transform:pardo:v1"
    ]
    coders = {
        context.coders.get_by_id(proto.components.pcollections[c].coder_id)
        for outputs in names
        for c in outputs.values()
    }
    assert len(names) == 2
    keyed = [c for c in coders if isinstance(c, beam.coders.TupleCoder)]
    assert [type(c) for c in keyed[0].coders()] == [beam.coders.VarIntCoder, RecordBatchCoder]
    assert {type(c) for c in coders} == {beam.coders.TupleCoder, RecordBatchCoder}


def test_no_warnings_about_types_when_applied(caplog):
    unbounded(beam.Pipeline(runner="FnApiRunner") | Batches([])) | Deduplicate()
    assert [r.message for r in caplog.records if "type" in r.message] == []


def test_a_batch_is_cut_by_id_in_its_order():
    ids = [f"{i % 30}" for i in range(90)]
    parts = dict(_CutFn(4).process(events(ids)))
    assert sorted(parts) == [0, 1, 2, 3]
    for part in parts.values():
        mine = set(ids_of(part))
        assert ids_of(part) == [i for i in ids if i in mine]
    assert sum(p.num_rows for p in parts.values()) == 90
    assert list(_CutFn(4).process(events([]))) == []
    coded = replace(events(ids), {"event_id": pa.array(ids).dictionary_encode()})
    assert {shard: ids_of(p) for shard, p in _CutFn(4).process(coded)} == {
        shard: ids_of(p) for shard, p in parts.items()
    }


def feed(batch: pa.RecordBatch, state: MemoryState, horizon=HORIZON, disorder=MAX_DISORDER) -> list[str]:
    outputs = _DecideFn("step", horizon, disorder).handle(0, batch, state)
    return [i for o in outputs if isinstance(o, pa.RecordBatch) for i in ids_of(o)]


def test_decide_has_the_slots_of_the_kernel():
    assert issubclass(_DecideFn, StatefulShardFn)
    state = MemoryState()
    feed(events(["a"]), state)
    assert len(Cell.unpack(state.cell, WITNESSES, 1).ends) == SLOTS


def test_ids_expire_a_horizon_and_the_disorder_after_their_hour():
    """A hundred batches an hour; it takes about fifty, at times a hundred, until each witness has been replaced."""
    state, times = MemoryState(), (HOUR, HOUR / 2)
    for n in range(500):
        assert feed(events([f"{n}"], n / 100 + n % 7 / 1e5), state, *times) == [f"{n}"]
    held = sum(len(c) for chunks in state.slots.values() for c in chunks) // 22
    assert 150 <= held <= 350
    assert feed(events([f"{n}" for n in range(350, 500)], 5), state, *times) == []
    assert feed(events(["0"], 5), state, *times) == ["0"]


def test_single_batches_with_a_wrong_clock_make_nothing_expire():
    state = MemoryState()
    for n in range(100):
        feed(events([f"{n}"], n / 100), state)
        if n % 20 == 0:
            feed(events([f"late{n}"], 24 * 365 * 900 + n), state)
            feed(events([f"early{n}"], -24 * 365 * 40 + n), state)
    again = [f"{n}" for n in range(100)] + [f"late{n}" for n in range(0, 100, 20)]
    assert feed(events(again, 1), state) == []


def test_a_batch_without_any_ingest_time_tells_no_position():
    state = MemoryState()
    batch = pa.RecordBatch.from_pylist([{"event_id": "a"}], schema=EVENT_SCHEMA)
    assert feed(batch, state) == ["a"]
    assert feed(batch, state) == []
    assert Cell.unpack(state.cell, WITNESSES, 1).positions == [None] * WITNESSES
