"""The questions to the files, against plain Python."""

import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.pipelines.ledgers import held_rows
from headrace.pipelines.ledgers.held_rows import Files, HeldRows, hold
from headrace.schemas.columns import TIME
from headrace.schemas.errors import ConfigError

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
Row = tuple[str, str, int]
"""Table, origin, position."""

ROWS = st.lists(
    st.tuples(st.sampled_from(["events", "quarantine"]), st.sampled_from(["a", "it's"]), st.integers(0, 140)),
    max_size=60,
)


def write(
    root: Path, rows: list[Row], *, ids: list[str] | None = None, minutes: list[int] | None = None
) -> Files:
    paths: dict[str, list[str]] = {}
    for table, partition in (("events", "event_date"), ("quarantine", "ingest_date")):
        mine = [(n, row) for n, row in enumerate(rows) if row[0] == table]
        paths[table] = []
        if not mine:
            continue
        times = [NOON + timedelta(minutes=minutes[n] if minutes else 0) for n, _ in mine]
        columns = {
            "event_id": pa.array([ids[n] if ids else str(n) for n, _ in mine]),
            "event_time": pa.array(
                [None if n % 3 == 2 else at for (n, _), at in zip(mine, times, strict=True)], TIME
            ),
            "ingest_time": pa.array(times, TIME),
            "origin": pa.array([row[1] for _, row in mine]),
            "origin_position": pa.array([row[2] for _, row in mine], pa.int64()),
            "stage": pa.array(["validate"] * len(mine)),
            "reason": pa.array(["type" if n % 2 else "required" for n, _ in mine]),
        }
        names = [n for n in columns if table == "quarantine" or n not in ("stage", "reason")]
        path = root / table / f"{partition}=2026-01-05" / "part-1.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({n: columns[n] for n in names}), path)
        paths[table].append(str(path))
    return Files(root, paths, [])


def missing(positions: set[int], first: int, stop: int) -> set[int]:
    return set(range(first, stop)) - positions


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=ROWS, first=st.integers(0, 70), length=st.integers(1, 80))
def test_positions_gaps_and_twice(rows: list[Row], first: int, length: int) -> None:
    with tempfile.TemporaryDirectory() as folder, hold(write(Path(folder), rows)) as held:
        places = Counter((origin, position) for _, origin, position in rows)
        by_origin = {name: {p for o, p in places if o == name} for name, _ in places}
        found = {each.origin: each for each in held.positions()}
        assert {o: (e.distinct, e.first, e.last) for o, e in found.items()} == {
            o: (len(p), min(p), max(p)) for o, p in by_origin.items()
        }
        surplus, twice = held.twice(1000)
        assert surplus == len(rows) - len(places)
        assert {(t.origin, t.position): t.events + t.quarantine for t in twice} == {
            place: n for place, n in places.items() if n > 1
        }
        for origin in ("a", "it's", "none"):
            gaps = list(held.gaps(origin, first, first + length, 1000))
            here = by_origin.get(origin, set())
            assert {p for low, high in gaps for p in range(low, high)} == missing(here, first, first + length)
            assert all(low < high for low, high in gaps)
            assert list(held.gaps(origin, first, first + length, 1)) == gaps[:1]
        ranges = {"a": [(first, first + length)], "it's": [(0, 10), (90, 141)]}
        inside = {p for p in places if any(low <= p[1] < high for low, high in ranges[p[0]])}
        assert held.distinct_within(ranges) == len(inside)
        assert held.beyond(ranges) == sum(n for place, n in places.items() if place not in inside)


def test_counts_by_partition_hour_run_stage_and_reason(tmp_path: Path) -> None:
    rows = [("events", "a", 1), ("quarantine", "a", 2), ("quarantine", "a", 3), ("quarantine", "a", 4)]
    files = write(tmp_path, rows, minutes=[0, 0, 90, 0])
    again = Path(files.paths["events"][0]).with_name("part-replay-0123abcd.parquet")
    again.write_bytes(Path(files.paths["events"][0]).read_bytes())
    files.paths["events"].append(str(again))
    with hold(files) as held:
        assert held.counts("events") == [
            ("2026-01-05", "2026-01-05T12", "", "", "", 1),
            ("2026-01-05", "2026-01-05T12", "replay-0123abcd", "", "", 1),
        ]
        assert held.counts("quarantine") == [
            ("2026-01-05", "2026-01-05T12", "", "validate", "type", 2),
            (
                "2026-01-05",
                "2026-01-05T13",
                "",
                "validate",
                "required",
                1,
            ),  # Of ingest: its own time is not known.
        ]
        assert held.origins("quarantine") == [("a", 3, 2, 4)]


@pytest.mark.parametrize("at_once", [2, 1000])
def test_copies_of_ids_within_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(held_rows, "IDS_AT_ONCE", at_once)
    rows: list[Row] = [("events", "a", n) for n in range(6)]
    ids = ["x", "y", "x", "z", "y", "x"]
    with hold(write(tmp_path, rows, ids=ids, minutes=[0, 0, 10, 0, 2000, 20])) as held:

        def copies(held: HeldRows, **within: timedelta | None) -> tuple[int, dict[str, int]]:
            surplus, found = held.copies(10, within=within.get("within"), by_day=False)
            return surplus, {each.event_id: each.rows for each in found}

        assert copies(held) == (3, {"x": 3, "y": 2})
        assert copies(held, within=timedelta(hours=24)) == (2, {"x": 3})


def test_a_file_that_went_away_is_told(tmp_path: Path) -> None:
    files = write(tmp_path, [("events", "a", 1)])
    with pytest.raises(ConfigError, match="went away"), hold(files) as held:
        Path(files.paths["events"][0]).unlink()
        held.counts("events")
