from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
from deltalake import write_deltalake

from headrace.pipelines.definition import Definition
from headrace.pipelines.streaming.seed import (
    APART_US,
    PANE_BITS,
    Seed,
    closed_windows,
    has_ids,
    late_again,
)
from headrace.transforms.keys import Key
from headrace.transforms.ready_windows import METRICS
from tests.pipelines.runs import event, lines
from tests.pipelines.streaming.line_source import LineSource
from tests.pipelines.streaming.local import NOW, NOW_US, Local, make_task

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
NOON_US = round(NOON.timestamp() * 1_000_000)
MINUTE_US = 60_000_000


TWO = {name: METRICS[name] for name in ("events_per_minute", "revenue_per_minute")}


def results(out: Path, *rows: tuple[int, int, int, int, bool]) -> None:
    """Writes result rows of (minute, window shard, job, second fired, final)."""
    times = pa.timestamp("us", tz="UTC")
    table = pa.table(
        {
            "window_end": pa.array([NOON + timedelta(minutes=m) for m, *_ in rows], times),
            "window_shard": pa.array([shard for _, shard, *_ in rows], pa.int32()),
            "pane_index": pa.array([(job << PANE_BITS) + 7 for _, _, job, *_ in rows], pa.int64()),
            "fired_at": pa.array([NOON + timedelta(seconds=s) for *_, s, _ in rows], times),
            "is_final": [final for *_, final in rows],
        }
    )
    write_deltalake(str(out / "metrics" / "events_per_minute"), table, mode="append")


def test_only_results_of_settled_polls_are_final(tmp_path: Path, key: Path) -> None:
    definition = Definition(Key(key), metrics=TWO)
    results(
        tmp_path,
        (1, 0, 0, 10, True),
        (2, 0, 0, 20, True),
        (3, 0, 0, 30, True),
        (9, 0, 0, 5, False),
        (4, 1, 1, 90, True),
        (5, 1, 2, 99, True),
    )
    settled = [NOON_US + 20_000_000, NOON_US + 90_000_000, None]
    found = closed_windows(tmp_path, definition, 2, settled)
    assert found == {
        "events_per_minute": [NOON_US + 2 * MINUTE_US, NOON_US + 4 * MINUTE_US],
        "revenue_per_minute": [None, None],
    }
    assert late_again(definition, found) == {
        "events_per_minute": [
            "(window_shard = 0 AND window_end > '2026-01-05T12:02:00+00:00')",
            "(window_shard = 1 AND window_end > '2026-01-05T12:04:00+00:00')",
        ],
        "revenue_per_minute": ["(window_shard = 0)", "(window_shard = 1)"],
    }


def test_an_empty_output_has_nothing(tmp_path: Path, key: Path) -> None:
    definition = Definition(Key(key), metrics=TWO)
    seed = Seed.plan(tmp_path, definition, 60, closed_windows(tmp_path, definition, 2, []))
    assert seed == Seed(None, None, {name: [None, None] for name in definition.metrics})
    assert list(seed.batches(tmp_path, definition)) == []


def test_what_is_taken_over(tmp_path: Path, key: Path, warm: None) -> None:
    path = tmp_path / "events"
    path.write_bytes(lines(event(n) for n in range(90)))
    Local(make_task(tmp_path / "out", LineSource(str(path), NOW, partitions=1), key)).run()
    definition = Definition(Key(key), metrics=TWO)
    names = sorted(definition.metrics)
    seed = Seed.plan(tmp_path / "out", definition, 60, {name: [None] for name in names})
    assert (seed.since_us, seed.rows_from_us) == (NOW_US - APART_US - MINUTE_US, None)
    assert Seed(**seed.as_dict()) == seed
    batches = list(seed.batches(tmp_path / "out", definition))
    assert [sum(b.num_rows for b in batches if has_ids(b) is of) for of in (True, False)] == [90, 90]
    assert sorted(map(has_ids, batches), reverse=True) == [has_ids(b) for b in batches]
    again = list(seed.batches(tmp_path / "out", definition))
    assert all(one.equals(two) for one, two in zip(batches, again, strict=True))

    closed = {name: [NOON_US + 2 * MINUTE_US] for name in names}
    later = Seed.plan(tmp_path / "out", definition, 60, closed)
    assert later.rows_from_us == NOON_US + MINUTE_US
    rows = [b for b in later.batches(tmp_path / "out", definition) if not has_ids(b)]
    assert sum(b.num_rows for b in rows) == 30
