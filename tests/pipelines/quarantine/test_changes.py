import numpy as np
import pytest

from headrace.pipelines.quarantine.changes import BURST_ROWS, NEW_ROWS, Jump, bursts, jump, onset

DAY = np.sin(np.linspace(0, 2 * np.pi, 96)) * 0.8 + 1


def drawn(seed: int, share: float, events: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Traffic with a day's ups and downs, a share of it rejected."""
    rng = np.random.default_rng(seed)
    among = rng.poisson(events / 96 * DAY)
    return rng.binomial(among, share), among


@pytest.mark.parametrize("share", [0.001, 0.003, 0.01, 0.1])
def test_an_even_share_gives_no_alarm(share: float) -> None:
    for seed in range(500):
        rows, events = drawn(seed, share)
        assert onset(rows, events) is None and jump(rows, events) is None and bursts(rows, events) == [], seed


def test_an_onset_is_the_first_bin() -> None:
    rows, events = drawn(1, 0.02)
    rows[:60] = 0
    first = int(np.flatnonzero(rows)[0])
    assert onset(rows, events) == first
    assert bursts(rows, events, first) == []


def test_few_rows_or_few_events_before_prove_nothing() -> None:
    events = np.full(48, 100)
    rows = np.zeros(48, int)
    rows[40:] = 2
    rows[40] += NEW_ROWS - 1 - rows.sum()
    assert onset(rows, events) is None
    rows[40] += 1
    assert onset(rows, events) == 40
    events[:40] = 4
    assert onset(rows, events) is None


def test_what_passes_in_two_bins_is_a_burst_unless_the_data_end() -> None:
    events = np.full(48, 100)
    rows = np.zeros(48, int)
    rows[20:22] = BURST_ROWS
    assert onset(rows, events) is None
    (burst,) = bursts(rows, events)
    assert (burst.first, burst.last, burst.rows, burst.usual) == (20, 21, 2 * BURST_ROWS, 0)
    rows = np.roll(rows, 26)
    assert onset(rows, events) == 46


@pytest.mark.parametrize("seed", range(20))
def test_a_jump_that_stays(seed: int) -> None:
    rows, events = drawn(seed, 0.01)
    more, _ = drawn(seed + 100, 0.03)
    rows[48:] = np.minimum(rows[48:] + more[48:], events[48:])
    found = jump(rows, events)
    assert isinstance(found, Jump)
    assert abs(found.bin - 48) <= 8 and found.after > 2 * found.before
    assert bursts(rows, events, found.bin) == []


def test_a_burst_is_no_jump_and_more_traffic_is_neither() -> None:
    rows, events = drawn(3, 0.01)
    loud = rows.copy()
    loud[30] += 150
    events[30] += 150
    assert jump(loud, events) is None
    (burst,) = bursts(loud, events)
    assert (burst.first, burst.last, burst.rows) == (30, 30, loud[30])
    busy_rows, busy_events = rows.copy(), events.copy()
    busy_rows[30] *= 40
    busy_events[30] *= 40
    assert bursts(busy_rows, busy_events) == []


def test_empty_bins_are_no_bins() -> None:
    nothing = np.zeros(48, int)
    assert (
        onset(nothing, nothing) is None and jump(nothing, nothing) is None and bursts(nothing, nothing) == []
    )
