from pathlib import Path

import pyarrow as pa
import pytest

from headrace.connectors.stream_entries import JOB, EndEntry, LateEntry, MetricEntry, TakenEntry, unpack
from headrace.pipelines.streaming.seed import PANE_BITS, Seed
from headrace.transforms.ready_windows import METRICS
from headrace.transforms.stream_message import Message, pack_all
from headrace.transforms.window_rows import partial_with_rows
from tests.pipelines.streaming.line_source import LineSource
from tests.pipelines.streaming.local import NOW, NOW_US, WINDOW, Local, make_task

MINUTE = 60_000_000
START = NOW_US - NOW_US % MINUTE


def local_of(tmp_path: Path, key: Path, **changes: object) -> Local:
    source = LineSource(str(tmp_path / "x"), NOW)
    return Local(make_task(tmp_path / "out", source, key, shards=1, window_shards=1, **changes))


def message(
    local: Local, poll: int, watermark: int, *seconds: int, seed: bool = False, final: bool = False
) -> bytes:
    parts: tuple[tuple[int, pa.RecordBatch], ...] = ()
    if seconds:
        rows = pa.RecordBatch.from_pydict(
            {
                "event_time": pa.array([START + s * 1_000_000 for s in seconds]).cast(
                    pa.timestamp("us", tz="UTC")
                ),
                "event_type": pa.array(["click"] * len(seconds)),
                "user_id": pa.array(["u"] * len(seconds)),
            }
        )
        number = [name for name, _ in local.task.metrics].index("events_per_minute")
        parts = ((number, partial_with_rows(rows, local.task.metrics[number][1])),)
    mark = START + watermark * 1_000_000
    return pack_all([Message(0, 0, poll, mark, None, poll, None, final, seed=seed, parts=parts)])


def fired(local: Local, value: bytes) -> list[object]:
    """What a bundle tells, without how far it has come."""
    found = [e for _, _, packed in local.bundle(WINDOW, (0, value)) for e in unpack(packed)]
    assert isinstance(found[-1], TakenEntry)
    return found[:-1]


@pytest.mark.parametrize("number", [0, 3, 5_000])
def test_panes_of_a_job_come_after_those_of_the_jobs_before(number: int, tmp_path: Path, key: Path) -> None:
    local = local_of(tmp_path, key, number=number)
    assert fired(local, message(local, 0, 0, 1, 2)) == []
    (entry,) = fired(local, message(local, 1, 61))
    assert isinstance(entry, MetricEntry) and entry.name == "events_per_minute"
    (row,) = entry.table().to_pylist()
    assert (row["events"], row["timing"], row["pane_index"]) == (2, "on_time", number << PANE_BITS)
    final, end = fired(local, message(local, 2, 61, final=True))
    assert end == EndEntry(0)
    assert final.table()["pane_index"].to_pylist() == [(number << PANE_BITS) + 1]  # type: ignore[attr-defined]


def test_late_rows_say_where_they_are_from(tmp_path: Path, key: Path) -> None:
    local = local_of(tmp_path, key)
    fired(local, message(local, 0, 1000, 1))
    (entry,) = fired(local, message(local, 1, 1000, 1, 2))
    assert isinstance(entry, LateEntry) and entry.count == 1
    (row,) = entry.table().to_pylist()
    assert (row["rows"], row["poll"], row[JOB], row["window_shard"]) == (2, 1, "s0001-a", 0)


def test_windows_that_a_job_before_has_closed_stay_closed(tmp_path: Path, key: Path) -> None:
    closed: dict[str, list[int | None]] = {name: [None] for name in METRICS}
    closed["events_per_minute"] = [START + MINUTE]
    local = local_of(tmp_path, key, seed=Seed(0, 0, closed))
    assert fired(local, message(local, 0, 0, 1, 61, seed=True)) == []
    (late,) = fired(local, message(local, 1, 0, 2))
    assert isinstance(late, LateEntry)
    entry, end = fired(local, message(local, 2, 0, final=True))
    assert isinstance(entry, MetricEntry) and end == EndEntry(0)
    assert [(r["events"], r["is_final"]) for r in entry.table().to_pylist()] == [(1, True)]


def test_how_far_a_window_shard_has_come_is_told(tmp_path: Path, key: Path) -> None:
    local = local_of(tmp_path, key)

    def told(value: bytes) -> list[TakenEntry]:
        found = [e for _, _, packed in local.bundle(WINDOW, (0, value)) for e in unpack(packed)]
        return [e for e in found if isinstance(e, TakenEntry)]

    assert told(message(local, 0, 0, 1)) == [TakenEntry(0, {0: 0}, {0: 1})]
    assert told(message(local, 2, 0)) == []
    assert told(message(local, 1, 0)) == [TakenEntry(0, {0: 1}, {0: 3})]
