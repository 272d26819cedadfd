from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipelines.verify.disturb import UNTIMED, Disturbance, disturb
from headrace.schemas.errors import ConfigError
from headrace.transforms.event_clock import EventClock

SECOND = 1_000_000


def plan(times: Any, **changes: Any) -> Disturbance:
    count = len(times)
    values: dict[str, Any] = {
        "seed": 1,
        "watermark_delay_us": 30 * SECOND,
        "allowed_lateness_us": 300 * SECOND,
        "repeatable": np.ones(count, bool),
        "after": np.full(count, -1),
        "deliveries": 12,
    }
    return disturb(np.array(times, np.int64), **{**values, **changes})


def hour(count: int) -> Any:
    return np.sort(np.random.default_rng(7).integers(0, 3600 * SECOND, count))


def test_the_plan_shuffles_delays_and_repeats() -> None:
    made = plan(hour(2000))
    assert made.shuffled > 1900 and 350 < made.delayed < 600 and 150 < made.repeated < 250
    assert made.repeated < made.copies < 2 * made.repeated
    assert 250 * SECOND < made.largest_disorder_us < 330 * SECOND
    assert len(made.record) == 2000 + made.copies
    assert Counter(made.copy.tolist()) == {0: 2000, 1: made.repeated, 2: made.copies - made.repeated}


def test_equal_seeds_make_equal_plans_and_others_do_not() -> None:
    first, again, other = plan(hour(300)), plan(hour(300)), plan(hour(300), seed=2)
    assert (first.record == again.record).all() and first.deliveries == again.deliveries
    assert len(first.record) != len(other.record) or (first.record != other.record).any()


times = st.lists(st.one_of(st.just(UNTIMED), st.integers(-(10**9), 10**9)), max_size=40)


@settings(max_examples=150, deadline=None)
@given(times, st.integers(0, 60), st.integers(0, 200), st.integers(1, 9), st.integers(0, 2**32), st.data())
def test_what_every_plan_keeps(
    given_times: list[int], delay: int, lateness: int, deliveries: int, seed: int, data: st.DataObject
) -> None:
    count = len(given_times)
    repeatable = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    after = np.full(count, -1)
    if count > 2:
        losers = data.draw(st.sets(st.integers(1, count - 1), max_size=3))
        after[list(losers)] = 0
    made = plan(
        given_times,
        seed=seed,
        watermark_delay_us=delay * SECOND,
        allowed_lateness_us=lateness * SECOND,
        repeatable=repeatable,
        after=after,
        deliveries=deliveries,
    )
    sent = list(zip(made.record.tolist(), made.copy.tolist(), strict=True))
    place = {each: i for i, each in enumerate(sent)}
    assert len(place) == len(sent) == count + made.copies
    for record in range(count):
        copies = [copy for r, copy in sent if r == record]
        assert copies == list(range(len(copies))) and 1 <= len(copies) <= (3 if repeatable[record] else 1)
        if after[record] >= 0:
            assert place[record, 0] > place[int(after[record]), 0]
    highest = None
    for record, copy in sent:
        time = given_times[record]
        if copy or time == UNTIMED or after[record] >= 0:
            continue
        if highest is not None:
            # Its window ends later than it, so no window of it can be final: watermark = highest - delay.
            assert time >= highest - (delay + lateness) * SECOND
        highest = time if highest is None else max(highest, time)
    if not delay and not lateness:
        assert made.delayed == 0 and made.largest_disorder_us == 0
    _check_deliveries(made, len(sent))


def _check_deliveries(made: Disturbance, count: int) -> None:
    at, lines = 0, Counter[int]()
    files, numbers = made.places()
    for file, start, end in made.deliveries:
        assert start == at < end
        assert files[start:end].tolist() == [file] * (end - start)
        assert numbers[start:end].tolist() == list(range(lines[file] + 1, lines[file] + end - start + 1))
        lines[file] += end - start
        at = end
    assert at == count
    assert sorted(lines) == list(range(len(lines)))


def test_some_deliveries_make_a_file_longer() -> None:
    files = [delivery.file for delivery in plan(hour(500)).deliveries]
    assert files[:6] == [0, 1, 1, 2, 3, 3] and sorted(files) == files


def test_half_of_the_deliveries_follow_each_other_within_a_quarter_of_the_lateness() -> None:
    """Over a day of events, where equal pieces would be longer than any window is open."""
    times = hour(20_000) * 24
    made = plan(times, deliveries=20)
    clock = EventClock()
    steps = []
    for delivery in made.deliveries:
        before, clock_time = (
            clock.watermark,
            times[made.record[delivery.start : delivery.end]].max() - 30 * SECOND,
        )
        clock._watermark = max(before or clock_time, int(clock_time))
        steps.append(clock._watermark - (before or clock_time))
    assert sum(0 < step < 300 * SECOND for step in steps) >= 8


def test_a_record_that_is_late_in_every_order_is_not_counted_as_disorder() -> None:
    made = plan([10_000 * SECOND, 0], after=np.array([-1, 0]), watermark_delay_us=0, allowed_lateness_us=0)
    assert made.record.tolist()[:2] in ([0, 1], [0, 0]) and made.largest_disorder_us == 0


def test_nothing_to_send_and_wrong_arguments() -> None:
    made = plan([])
    assert (len(made.record), made.deliveries, made.shuffled, made.copies) == (0, [], 0, 0)
    assert [len(part) for part in made.places()] == [0, 0]
    with pytest.raises(ConfigError, match="seed -1 is negative; use 0 or more"):
        plan([1], seed=-1)
    with pytest.raises(ConfigError, match="0 deliveries"):
        plan([1], deliveries=0)
    with pytest.raises(ValueError, match="waits itself"):
        plan([1, 2, 3], after=np.array([-1, 0, 1]))
