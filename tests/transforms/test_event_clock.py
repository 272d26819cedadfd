"""A reader's watermark: monotone, never past a partition that it must wait for, and moving when all are silent."""

from datetime import timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import CODE, TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms.event_clock import EventClock

SECOND = 1_000_000
DELAY = 30 * SECOND
IDLE = 60 * SECOND
LAST_YEAR = 1_700_000_000 * SECOND
NOW = LAST_YEAR + 365 * 86_400 * SECOND


def rows(*found: tuple[str | None, int | None]) -> pa.RecordBatch:
    origins = pa.array([origin for origin, _ in found], pa.string()).dictionary_encode().cast(CODE)
    times = pa.array([time for _, time in found], pa.int64()).cast(TIME)
    return pa.RecordBatch.from_arrays([origins, times], names=["origin", "event_time"])


def test_the_slowest_partition_holds_the_watermark():
    clock = EventClock()
    behind = {"a": 0, "b": 5, "c": 0}
    assert clock.observe(rows(("a", 100 * SECOND)), behind, NOW) is None
    assert clock.observe(rows(("b", 90 * SECOND)), behind, NOW) is None
    assert clock.observe(rows(("c", 200 * SECOND), ("b", 80 * SECOND)), behind, NOW) == 60 * SECOND
    assert clock.observe(rows(("b", 150 * SECOND)), behind, NOW) == 70 * SECOND
    assert clock.watermark == 70 * SECOND
    assert clock.idle is False


def test_a_partition_with_records_waiting_blocks_however_long():
    clock = EventClock()
    clock.observe(rows(("a", SECOND)), {"a": 0, "b": 0}, NOW)
    assert clock.observe(rows(), {"a": 0, "b": 7}, NOW + 10 * IDLE) is None
    assert clock.observe(rows(("a", 500 * SECOND)), {"a": 0, "b": 7}, NOW + 20 * IDLE) is None


def test_a_silent_partition_is_left_out_after_a_time_and_counts_again_when_it_speaks():
    clock = EventClock()
    clock.observe(rows(("a", 100 * SECOND)), {"a": 0, "b": 0}, NOW)
    assert clock.observe(rows(("a", 200 * SECOND)), {"a": 0, "b": 0}, NOW + IDLE - 1) is None
    assert clock.observe(rows(("a", 200 * SECOND)), {"a": 0, "b": 0}, NOW + IDLE) == 170 * SECOND
    assert clock.observe(rows(("b", 150 * SECOND)), {"a": 0, "b": 0}, NOW + IDLE + 1) == 170 * SECOND
    assert clock.observe(rows(("a", 400 * SECOND)), {"a": 0, "b": 0}, NOW + IDLE + 2) == 170 * SECOND
    assert clock.observe(rows(("b", 210 * SECOND)), {"a": 0, "b": 0}, NOW + IDLE + 3) == 180 * SECOND


def test_when_all_are_silent_the_watermark_goes_on_with_the_clock_also_over_events_of_last_year():
    clock = EventClock()
    clock.observe(rows(("a", LAST_YEAR), ("b", LAST_YEAR + 50 * SECOND)), {"a": 0, "b": 0}, NOW)
    assert clock.observe(rows(("b", LAST_YEAR)), {"a": 0, "b": 0}, NOW + 10 * SECOND) == LAST_YEAR - DELAY
    behind = {"a": 0, "b": 0}
    silent = NOW + 10 * SECOND + IDLE
    end = LAST_YEAR + 50 * SECOND - DELAY
    assert clock.observe(rows(), behind, silent - 1) == end
    assert clock.idle is False
    assert clock.observe(rows(), behind, silent + 7 * SECOND) == end + 7 * SECOND
    assert clock.idle is True
    assert clock.observe(rows(), behind, silent - 30 * IDLE) == end + 7 * SECOND
    assert clock.observe(rows(), behind, silent + 3600 * SECOND) == end + 3600 * SECOND
    later = silent + 3600 * SECOND
    assert clock.observe(rows(("a", LAST_YEAR + 60 * SECOND)), behind, later) == end + 3600 * SECOND
    assert clock.observe(rows(), behind, later + IDLE + SECOND) == end + 3601 * SECOND


def test_a_reader_without_events_knows_nothing_but_that_it_is_idle():
    clock = EventClock()
    assert clock.observe(rows(), {}, NOW) is None
    assert clock.idle is True
    assert clock.observe(rows(), {"a": 0}, NOW) is None
    assert clock.idle is False
    assert clock.observe(rows(), {"a": 0}, NOW + 2 * IDLE) is None
    assert clock.idle is True


def test_a_partition_that_is_not_owned_any_more_is_forgotten():
    clock = EventClock()
    clock.observe(rows(("a", 100 * SECOND), ("b", 300 * SECOND)), {"a": 0, "b": 0}, NOW)
    assert clock.watermark == 70 * SECOND
    assert clock.observe(rows(), {"b": 0}, NOW + 1) == 270 * SECOND
    assert '"a"' not in clock.to_json()


def test_a_broker_that_is_away_is_not_silence():
    clock = EventClock()
    clock.observe(rows(("a", 100 * SECOND)), {"a": 0, "b": 0}, NOW)
    assert clock.observe(rows(("b", 100 * SECOND)), {"a": 0, "b": 0}, NOW) == 70 * SECOND
    for minute in range(1, 30):
        assert clock.observe(rows(), {}, NOW + minute * IDLE) == 70 * SECOND
        assert clock.idle is False
    back = NOW + 30 * IDLE
    assert clock.observe(rows(("a", 101 * SECOND)), {"a": 900, "b": 900}, back) == 70 * SECOND


def test_rows_without_time_move_nothing_and_rows_without_origin_are_refused():
    clock = EventClock()
    assert clock.observe(rows(("a", None)), {"a": 0}, NOW) is None
    with pytest.raises(ValueError, match="1 rows have no origin"):
        clock.observe(rows((None, 5), ("a", 5)), {"a": 0}, NOW)


def test_plain_origins_and_repeated_dictionary_values_count_alike():
    times = pa.array([9 * SECOND, 5 * SECOND], pa.int64()).cast(TIME)
    plain = pa.array(["a", "a"])
    twice = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), plain)
    for origins in (plain, twice):
        clock = EventClock(timedelta(0))
        batch = pa.RecordBatch.from_arrays([origins, times], names=["origin", "event_time"])
        assert clock.observe(batch, {"a": 0}, NOW) == 9 * SECOND


NAMES = "abc"
POLLS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 900)), max_size=4),
        st.dictionaries(st.sampled_from(NAMES), st.integers(0, 1)),
        st.integers(-20, 90),
        st.booleans(),
    ),
    max_size=25,
)


@settings(max_examples=100, deadline=None)
@given(POLLS)
def test_monotone_and_never_past_a_partition_that_is_not_idle(polls):
    clock, before, now = EventClock(), None, NOW
    highest: dict[str, int] = {}
    active: dict[str, int] = {}
    for found, told_behind, seconds, save in polls:
        told = now + seconds * SECOND
        now = max(now, told)
        behind = told_behind or dict.fromkeys(active, 1)
        owned = {*behind, *(origin for origin, _ in found)}
        highest = {o: t for o, t in highest.items() if o in owned}
        active = {o: active.get(o, now) for o in owned}
        for origin, time in found:
            highest[origin] = max(highest.get(origin, 0), time * SECOND)
            active[origin] = now
        active |= {o: now for o, waiting in behind.items() if waiting}
        watermark = clock.observe(rows(*((o, t * SECOND) for o, t in found)), told_behind, told)
        if before is not None:
            assert watermark is not None
            assert watermark >= before
        busy = [o for o in owned if now - active[o] < IDLE]
        assert clock.idle == (not busy)
        if any(o not in highest for o in busy):
            assert watermark == before
        elif busy:
            lowest = min(highest[o] for o in busy) - DELAY
            assert watermark == (lowest if before is None else max(before, lowest))
        if save:
            again = EventClock.from_json(clock.to_json())
            assert again.to_json() == clock.to_json()
            clock = again
        before = watermark


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"watermark_delay": timedelta(seconds=-1)}, "watermark_delay=.*must be a timedelta of zero or more"),
        ({"watermark_delay": 30}, "watermark_delay=30: must be a timedelta"),
        ({"idle_seconds": 0}, "idle_seconds=0: must be a number above zero"),
        ({"idle_seconds": True}, "idle_seconds=True: must be a number above zero"),
    ],
)
def test_bad_arguments_are_refused(arguments, text):
    with pytest.raises(ConfigError, match=text):
        EventClock(**arguments)
