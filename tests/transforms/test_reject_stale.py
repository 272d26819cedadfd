"""Age and lead of events against their own ingest time."""

import pickle
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import QUARANTINE_SCHEMA, RAW, VALID_SCHEMA
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import drop
from headrace.transforms.keys import Key
from headrace.transforms.reject_stale import RejectStale

from .collect import Batches, collect

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
DAY, MINUTES, TICK = timedelta(hours=24), timedelta(minutes=5), timedelta(microseconds=1)


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return Key(tmp_path_factory.mktemp("key") / "key", create=True)


def valid(rows: list[dict]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=VALID_SCHEMA)


def row(event: datetime | None, ingest: datetime | None = NOW, **more: object) -> dict:
    return {"event_time": event, "ingest_time": ingest, RAW: b"secret", **more}


def test_the_limits_themselves_are_accepted(key):
    times = [NOW - DAY, NOW - DAY - TICK, NOW + MINUTES, NOW + MINUTES + TICK, NOW]
    accepted, rejected = RejectStale(key=key).kernel()(valid([row(t) for t in times]))
    assert accepted["event_time"].to_pylist() == [NOW - DAY, NOW + MINUTES, NOW]
    assert accepted.schema == VALID_SCHEMA
    assert rejected["reason"].to_pylist() == ["stale", "future"]
    assert rejected["stage"].to_pylist() == ["time", "time"]
    assert rejected["message"].to_pylist() == [
        "event_time is more than 1 day, 0:00:00 before ingest_time",
        "event_time is more than 0:05:00 after ingest_time",
    ]


def test_a_missing_time_is_rejected(key):
    accepted, rejected = RejectStale(key=key).kernel()(valid([row(None), row(NOW, None), row(None, None)]))
    assert accepted.num_rows == 0
    assert rejected["reason"].to_pylist() == ["no_time"] * 3
    untimed = drop(valid([row(NOW)]), "ingest_time")
    assert RejectStale(key=key).kernel()(untimed).rejected["reason"].to_pylist() == ["no_time"]


def test_before_masking_the_document_is_sealed_and_nothing_is_in_clear(key):
    stale = row(NOW - 2 * DAY, user_id="alice", ip_address="1.2.3.4", event_id="e", event_type="click")
    rejected = RejectStale(key=key).kernel()(valid([stale, row(NOW)])).rejected
    assert rejected.schema == QUARANTINE_SCHEMA
    (lost,) = rejected.to_pylist()
    assert key.unseal(lost["document"]) == b"secret"
    assert (lost["user_id"], lost["ip_address"]) == (None, None)
    assert (lost["event_id"], lost["event_type"], lost["event_time"]) == ("e", "click", NOW - 2 * DAY)
    assert b"secret" not in lost["document"]


def test_after_masking_the_columns_are_kept(key):
    masked = drop(valid([row(NOW - 2 * DAY, user_id="token")]), RAW)
    (lost,) = RejectStale(key=key).kernel()(masked).rejected.to_pylist()
    assert (lost["user_id"], lost["document"]) == ("token", None)


def test_limits_of_zero_count(key):
    kernel = RejectStale(timedelta(0), timedelta(0), key=key).kernel()
    accepted, rejected = kernel(valid([row(NOW), row(NOW - TICK), row(NOW + TICK)]))
    assert accepted.num_rows == 1
    assert rejected["reason"].to_pylist() == ["stale", "future"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.none() | st.datetimes(timezones=st.just(UTC))] * 2), max_size=15))
def test_against_plain_python(key, pairs):
    def verdict(event, ingest):
        if event is None or ingest is None:
            return "no_time"
        age = ingest - event
        return "stale" if age > DAY else "future" if -age > MINUTES else None

    batch = valid([row(e, i, origin_position=n) for n, (e, i) in enumerate(pairs)])
    accepted, rejected = RejectStale(key=key).kernel()(batch)
    verdicts = {n: verdict(e, i) for n, (e, i) in enumerate(pairs)}
    assert accepted["origin_position"].to_pylist() == [n for n, v in verdicts.items() if v is None]
    found = dict(zip(rejected["origin_position"].to_pylist(), rejected["reason"].to_pylist(), strict=True))
    assert found == {n: v for n, v in verdicts.items() if v}


def test_in_a_pipeline(key):
    batch = valid([row(NOW), row(NOW - 2 * DAY)])

    def build(pipeline):
        results = pipeline | Batches([(batch, NOW.timestamp())]) | RejectStale(key=key)
        return results._asdict()

    found = collect(build)
    assert [e.value.num_rows for e in found["accepted"]] == [1]
    assert [e.value["reason"].to_pylist() for e in found["rejected"]] == [["stale"]]
    assert {e.micros for es in found.values() for e in es} == {int(NOW.timestamp()) * 1_000_000}


@pytest.mark.parametrize(
    "bad",
    [{"max_age": timedelta(-1)}, {"max_ahead": 5}, {"max_age": None}, {"max_ahead": -timedelta(minutes=5)}],
)
def test_bad_durations_are_refused(key, bad):
    (name,) = bad
    with pytest.raises(ConfigError, match=rf"RejectStale\({name}=.*timedelta of zero or more"):
        RejectStale(**bad, key=key)


def test_the_default_key_is_made_and_the_secret_is_not_pickled(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_KEY_FILE", str(tmp_path / "new" / "key"))
    stage = RejectStale()
    secret = (tmp_path / "new" / "key").read_bytes().strip()
    assert secret not in pickle.dumps(stage)
    assert pickle.loads(pickle.dumps(stage)).kernel()(valid([row(NOW)])).accepted.num_rows == 1
