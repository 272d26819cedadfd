from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from headrace.pipelines.streaming.reader_state import CLOCK_SKEW_US, ReaderState
from headrace.schemas.columns import RAW_SCHEMA
from headrace.transforms.batches import conform

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
NOON_US = round(NOON.timestamp() * 1_000_000)
NOW_US = NOON_US + 3 * CLOCK_SKEW_US


def batch(*records: tuple[str, int]) -> pa.RecordBatch:
    """Raw records of (origin, seconds after noon)."""
    origins = pa.array([origin for origin, _ in records], pa.string())
    times = [NOON + timedelta(seconds=seconds) for _, seconds in records]
    return conform({"origin": origins, "ingest_time": pa.array(times)}, RAW_SCHEMA, len(records))


def test_it_encodes_and_decodes_itself() -> None:
    state = ReaderState("here", 3, 5, 7, None, "run", 11, True, {"t/0": 13}, 17, "clock")
    assert ReaderState.decode(state.encode()) == state
    assert ReaderState.decode(ReaderState("p").encode()) == ReaderState("p", seeded=0)


def test_a_new_run_begins_once() -> None:
    state = ReaderState("p", poll=4, sent_at=9, run="first", rows=5, ended=True)
    state.enter("first")
    assert (state.rows, state.ended, state.sent_at) == (5, True, 9)
    state.enter("second")
    assert (state.run, state.rows, state.ended, state.sent_at, state.poll) == ("second", 0, False, 0, 4)


def test_the_slowest_partition_with_records_holds_the_ingest_position() -> None:
    state = ReaderState("p")
    state.observe_ingest(batch(("t/0", 50), ("t/1", 20), ("t/0", 40)), {"t/0": 1, "t/1": 1}, NOW_US)
    assert state.ingest_position == NOON_US + 20_000_000
    state.observe_ingest(batch(("t/1", 70)), {"t/0": 1, "t/1": 1}, NOW_US)
    assert state.ingest_position == NOON_US + 50_000_000


def test_a_partition_read_to_its_end_counts_as_read_up_to_now_but_for_the_skew_of_clocks() -> None:
    state = ReaderState("p")
    state.observe_ingest(batch(("t/0", 50)), {"t/0": 0}, NOW_US)
    assert state.ingest_position == NOW_US - CLOCK_SKEW_US


def test_records_of_unknown_age_hold_everything() -> None:
    state = ReaderState("p")
    state.observe_ingest(batch(("t/0", 50)), {"t/0": 0, "t/1": 9}, NOW_US)
    assert state.ingest_position is None


def test_it_never_goes_back() -> None:
    state = ReaderState("p")
    state.observe_ingest(batch(("t/0", 50)), {"t/0": 1}, NOW_US)
    state.observe_ingest(batch(("t/0", 10)), {"t/0": 1}, NOW_US)
    state.observe_ingest(batch(), {"t/0": 1, "t/9": 1}, NOW_US)
    assert state.ingest_position == NOON_US + 50_000_000


def test_an_outage_is_no_end_of_the_partitions() -> None:
    state = ReaderState("p")
    state.observe_ingest(batch(("t/0", 50)), {"t/0": 1}, NOW_US)
    state.observe_ingest(batch(), {}, NOW_US + 30 * CLOCK_SKEW_US)
    assert state.ingest_position == NOON_US + 50_000_000
    assert state.ingest == {"t/0": NOON_US + 50_000_000}


def test_partitions_that_are_gone_are_forgotten() -> None:
    """A folder has a partition for each file; thousands of them are read."""
    state = ReaderState("p")
    for number in range(5):
        state.observe_ingest(batch((f"file-{number}", number)), {f"file-{number}": 1}, NOW_US)
    assert state.ingest == {"file-4": NOON_US + 4_000_000}
    assert state.ingest_position == NOON_US + 4_000_000


@pytest.mark.parametrize("behind", [0, 1])
def test_a_record_without_ingest_time_moves_nothing(behind: int) -> None:
    state = ReaderState("p")
    raw = conform({"origin": pa.array(["t/0"])}, RAW_SCHEMA, 1)
    state.observe_ingest(raw, {"t/0": behind}, NOW_US)
    assert state.ingest_position == (None if behind else NOW_US - CLOCK_SKEW_US)
