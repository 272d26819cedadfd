"""Deduplicate as a PTransform of its own."""

import random
from datetime import UTC, datetime, timedelta

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.transforms.window import FixedWindows, SlidingWindows
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import EVENT_SCHEMA, QUARANTINE_SCHEMA
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import replace
from headrace.transforms.deduplicate import Deduplicate, deduplicate
from headrace.transforms.identity import occurrence_ids
from headrace.transforms.to_dicts import ToDicts

from .collect import Batches, collect

START = datetime(2024, 5, 1, tzinfo=UTC)
BASE = "00000000-0000-8000-8000-00000000000f"


def row(id_: str | None, ingest: int | None, page: str = "p", **more: object) -> dict:
    time = None if ingest is None else START + timedelta(seconds=ingest)
    return {"event_id": id_, "ingest_time": time, "page_url": page, "event_time": START, **more}


def events(rows: list[dict]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=EVENT_SCHEMA)


def decide(batches: list[pa.RecordBatch]) -> tuple[list[dict], list[dict]]:
    outcomes = list(deduplicate(batches))
    accepted = [r for o in outcomes for r in o.accepted.to_pylist()]
    return accepted, [r for o in outcomes for r in o.rejected.to_pylist()]


def order(r: dict) -> tuple:
    """The sort key of the docstring without the payload hash; null last."""
    keys = (r.get("ingest_time"), r.get("origin"), r.get("origin_position"))
    return tuple((k is None, k) if k is not None else (True,) for k in keys)


CELL = st.fixed_dictionaries(
    {
        "event_id": st.sampled_from(["a", "b", "c", BASE]),
        "ingest_time": st.sampled_from([None, START, START + timedelta(1)]),
        "origin": st.sampled_from([None, "f", "g"]),
        "page_url": st.sampled_from(["p", "q"]),
    }
)


@settings(max_examples=40, deadline=None)
@given(st.lists(CELL, max_size=25), st.randoms(use_true_random=False), st.integers(1, 7))
def test_the_winner_is_the_first_in_order_whatever_the_arrival(cells, shuffle, size):
    rows = [c | {"origin_position": i, "id_generated": c["event_id"] == BASE} for i, c in enumerate(cells)]
    shuffled = list(rows)
    shuffle.shuffle(shuffled)
    accepted, rejected = decide([events(shuffled[i : i + size]) for i in range(0, len(rows), size)])
    winners: dict[str, dict] = {}
    kept, lost = {}, {}
    for r in sorted(rows, key=order):
        if r["id_generated"]:
            number = sum(1 for k in kept.values() if k["id_generated"])
            kept[r["origin_position"]] = r | {"event_id": occurrence_ids([BASE], [number])[0].as_py()}
        elif r["event_id"] not in winners:
            winners[r["event_id"]] = kept[r["origin_position"]] = r
        else:
            same = winners[r["event_id"]]["page_url"] == r["page_url"]
            lost[r["origin_position"]] = "duplicate" if same else "duplicate_conflict"
    assert {a["origin_position"]: a["event_id"] for a in accepted} == {
        p: r["event_id"] for p, r in kept.items()
    }
    assert {r["origin_position"]: r["reason"] for r in rejected} == lost


def test_equal_keys_are_ordered_by_content():
    rows = [row("a", 1, page) for page in "xyz"]
    winners = set()
    for _ in range(6):
        random.Random(_).shuffle(rows)
        accepted, rejected = decide([events(rows)])
        assert [r["reason"] for r in rejected] == ["duplicate_conflict"] * 2
        winners.add(accepted[0]["page_url"])
    assert len(winners) == 1


def run(batches: list, *, shards: int = 4, window: object = None) -> dict[str, list]:
    def build(pipeline):
        read = pipeline | Batches(batches)
        read = read | beam.WindowInto(window) if window else read
        results = read | Deduplicate(shards)
        return {
            "batches": results.accepted,
            "accepted": results.accepted | "A" >> ToDicts(),
            "rejected": results.rejected | "R" >> ToDicts(),
        }

    return collect(build)


def test_in_a_pipeline():
    rows = [
        row("a", 3),
        row("a", 1, "first"),
        row(None, 1),
        row("b", 1),
        row("b", 2),
        row("c", 1, user_id="token"),
    ]
    rows += [row(BASE, i, id_generated=True) for i in range(19)]
    profile = replace(events(rows[:3]), {"tier": pa.array(["x", "y", "z"])})
    batches = [profile, events(rows[3:4]), events(rows[4:])]
    found = run(batches)
    accepted, rejected = ([e.value for e in found[n]] for n in ("accepted", "rejected"))
    ids = occurrence_ids([BASE] * 19, range(19)).to_pylist()
    assert sorted(r["event_id"] for r in accepted) == sorted(["a", "b", "c", *ids])
    (a,) = (r for r in accepted if r["event_id"] == "a")
    assert (a["page_url"], a["tier"]) == ("first", "y")
    verdicts = sorted((r["event_id"] or "", r["reason"], r["stage"]) for r in rejected)
    assert verdicts == [
        ("", "no_id", "dedupe"),
        ("a", "duplicate_conflict", "dedupe"),
        ("b", "duplicate", "dedupe"),
    ]
    assert set(rejected[0]) == set(QUARANTINE_SCHEMA.names)
    assert {r["page_url"] for r in rejected} == {"p"}
    assert {r["document"] for r in rejected} == {None}


def test_each_window_is_deduplicated_for_itself():
    later = START + timedelta(hours=1)
    batches = [
        (events([row("a", 1), row("b", 1)]), START.timestamp()),
        (events([row("a", 2), row("b", 2, "other")]), START.timestamp()),
        (events([row("a", 3, event_time=later)]), later.timestamp()),
    ]
    found = run(batches, window=FixedWindows(3600))
    assert sorted(e.value["event_id"] for e in found["accepted"]) == ["a", "a", "b"]
    assert sorted(e.value["reason"] for e in found["rejected"]) == ["duplicate", "duplicate_conflict"]
    assert {float(e.window.start) for e in found["batches"]} == {START.timestamp(), later.timestamp()}


def test_a_batch_has_its_minimum_event_time_as_timestamp_within_its_window():
    later, beyond = START + timedelta(minutes=1), START + timedelta(hours=3)
    rows = [
        row("a", 1, event_time=later),
        row("b", 1),
        row("c", 1, event_time=None),
        row("d", 1, event_time=beyond),
    ]
    found = run([(events(rows), START.timestamp())], shards=64, window=FixedWindows(3600))
    start = int(START.timestamp()) * 1_000_000
    stamps = {e.value["event_id"][0].as_py(): e.micros - start for e in found["batches"]}
    assert stamps == {"a": 60_000_000, "b": 0, "c": 0, "d": 3_600_000_000 - 1}


def test_many_batches_of_a_shard_leave_as_few():
    found = run([events([row(f"{i}/{j}", 1) for j in range(10)]) for i in range(20)], shards=1)
    assert [e.value.num_rows for e in found["batches"]] == [200]


def test_unbounded_input_in_windows_is_refused():
    pipeline = beam.Pipeline(runner="FnApiRunner")
    batches = pipeline | Batches([]) | beam.WindowInto(FixedWindows(60))
    batches.is_bounded = False
    with pytest.raises(
        ConfigError, match=r"unbounded input in FixedWindows.*apply it before that WindowInto"
    ):
        batches | Deduplicate()


def test_sliding_windows_are_refused():
    batches = beam.Pipeline(runner="FnApiRunner") | Batches([]) | beam.WindowInto(SlidingWindows(60, 30))
    with pytest.raises(ConfigError, match="apply it before that WindowInto"):
        batches | Deduplicate()


def test_no_warnings_about_types_when_applied(caplog):
    beam.Pipeline(runner="FnApiRunner") | Batches([]) | Deduplicate()
    assert [r.message for r in caplog.records if "type" in r.message] == []


@pytest.mark.parametrize("shards", [0, -1, 65_537, 1.5, True, "4"])
def test_bad_shards_are_refused(shards):
    with pytest.raises(ConfigError, match=r"Deduplicate\(shards=.*from 1 to 65536"):
        Deduplicate(shards)


@pytest.mark.parametrize("value", [timedelta(0), timedelta(-1), 24, None])
def test_bad_horizons_are_refused(value):
    with pytest.raises(ConfigError, match=r"Deduplicate\(horizon=.*a timedelta above zero"):
        Deduplicate(horizon=value)


@pytest.mark.parametrize("value", [timedelta(-1), 2, None])
def test_bad_disorder_is_refused(value):
    with pytest.raises(ConfigError, match=r"Deduplicate\(max_disorder=.*a timedelta of at least zero"):
        Deduplicate(max_disorder=value)
