"""Commits of dates, without a runner."""

import shutil
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from headrace.connectors.write_lake import PartitionedWriter, WrittenFile
from headrace.connectors.write_quarantine import QuarantineWriter
from headrace.pipelines.backfill.backfill_folder import BackfillFolder, DateManifest, open_folder, saved_plan
from headrace.pipelines.backfill.commit_date import commit_date, finish_dates, is_committed, is_written
from headrace.pipelines.backfill.finish_dates_fn import panes_name, write_panes
from headrace.pipelines.definition import Definition
from headrace.schemas.columns import ENRICHED_SCHEMA, QUARANTINE_SCHEMA
from headrace.schemas.errors import ConfigError, UntrustedRunError
from headrace.transforms.batches import conform
from headrace.transforms.keys import Key
from headrace.transforms.rejects import rejected
from headrace.transforms.window_definitions import Count, Windows
from headrace.transforms.window_partials import partial
from tests.pipelines.backfill.archives import DAY, at

ONE = date(2026, 1, 5)
HITS = Windows(timedelta(hours=1), by=(), measures={"events": Count()}, every=timedelta(minutes=30))


@pytest.fixture
def definition(key: Path) -> Definition:
    return Definition(key=Key(key), metrics={"hits": HITS})


@pytest.fixture
def folder(tmp_path: Path) -> BackfillFolder:
    return open_folder(str(tmp_path / "out"), key="k")


def written(folder: BackfillFolder, day: date, name: str, hours: list[float]) -> DateManifest:
    """Stages a date: an event at each hour, and one rejected row that arrived a day later."""
    times = [at(day, hour) for hour in hours]
    columns = {
        "event_id": pa.array([f"{name}-{hour}" for hour in hours]),
        "event_time": pa.array(times, pa.timestamp("us", "UTC")),
        "event_date": pa.array([day] * len(hours), pa.date32()),
    }
    rows = conform(columns, ENRICHED_SCHEMA, len(hours))
    lake = PartitionedWriter(folder.staging / "events", partition="event_date", name=name)
    lake.write(rows)
    arrived = {"ingest_time": pa.array([at(day + DAY)], pa.timestamp("us", "UTC"))}
    bad = rejected(conform(arrived, QUARANTINE_SCHEMA, 1), "time", "stale", message="old")
    place = f"backfill_date={day}"
    quarantine = QuarantineWriter(folder.staging / "quarantine" / place, name)
    quarantine.write(bad)
    panes = panes_name("hits", HITS)
    write_panes(folder.root / "_work" / "panes" / day.isoformat() / panes, partial(rows, HITS))
    files = [
        WrittenFile(
            f"{place}/{f.path}", f.rows, f.size_bytes, {"backfill_date": str(day), **f.partition}, f.stats
        )
        for f in quarantine.close()
    ]
    manifest = DateManifest(
        date=day.isoformat(),
        fingerprint=name,
        files={"events": lake.close(), "quarantine": files},
        partials={"hits": f"panes/{day}/{panes}"},
        accepted=len(hours),
        rejected={"time": {"stale": 1}},
    )
    folder.save(manifest)
    return manifest


def ids(folder: BackfillFolder) -> list[str]:
    found: list[str] = DeltaTable(str(folder.table("events"))).to_pyarrow_table()["event_id"].to_pylist()
    return sorted(found)


def test_a_date_replaces_itself_and_no_other(folder: BackfillFolder, definition: Definition) -> None:
    for day, name in ((ONE, "a"), (ONE + DAY, "b")):
        manifest = written(folder, day, name, [1, 2])
        assert is_written(folder, manifest) and not is_committed(folder, manifest)
        commit_date(folder, definition, manifest)
        finish_dates(folder, definition, [manifest])
        assert is_committed(folder, manifest)
    old = folder.manifest(ONE)
    assert old is not None and old.state == "done"
    new = written(folder, ONE, "c", [3])
    before = DeltaTable(str(folder.table("events"))).version()
    commit_date(folder, definition, new)
    commit_date(folder, definition, new)
    assert ids(folder) == ["b-1", "b-2", "c-3"]
    assert DeltaTable(str(folder.table("events"))).version() == before + 1
    assert not is_committed(folder, old)
    quarantine = DeltaTable(str(folder.table("quarantine"))).to_pyarrow_table()
    assert sorted(quarantine["backfill_date"].to_pylist()) == [ONE, ONE + DAY]
    assert sorted(quarantine["ingest_date"].to_pylist()) == [ONE + DAY, ONE + 2 * DAY]
    kept = DeltaTable(str(folder.table("events")), version=before).to_pyarrow_table()
    assert sorted(kept["event_id"].to_pylist()) == ["a-1", "a-2", "b-1", "b-2"]


def test_an_altered_file_is_not_committed(folder: BackfillFolder, definition: Definition) -> None:
    manifest = written(folder, ONE, "a", [1])
    staged = folder.staging / "events" / manifest.files["events"][0].path
    staged.write_bytes(staged.read_bytes() + b"x")
    with pytest.raises(UntrustedRunError, match="bytes, it was written with"):
        commit_date(folder, definition, manifest)
    assert ids(folder) == []


def test_windows_over_midnight_are_whole_once_both_dates_are_there(
    folder: BackfillFolder, definition: Definition
) -> None:
    import pyarrow.parquet as pq

    def hits(day: date) -> dict[str, int]:
        table = pq.read_table(
            folder.root / "metrics" / "hits" / f"date={day}" / "part-0.parquet", partitioning=None
        )
        starts = [start.strftime("%dT%H:%M") for start in table["window_start"].to_pylist()]
        return dict(zip(starts, table["events"].to_pylist(), strict=True))

    one = written(folder, ONE, "a", [12, 23.6])
    commit_date(folder, definition, one)
    finish_dates(folder, definition, [one])
    assert hits(ONE) == {"05T11:30": 1, "05T12:00": 1, "05T23:00": 1, "05T23:30": 1}
    two = written(folder, ONE + DAY, "b", [0.1, 0.2])
    commit_date(folder, definition, two)
    finish_dates(folder, definition, [two])
    assert hits(ONE) == {"05T11:30": 1, "05T12:00": 1, "05T23:00": 1, "05T23:30": 3}
    assert hits(ONE + DAY) == {"06T00:00": 2}
    shutil.rmtree(folder.root / "_work")
    commit_date(folder, definition, two)
    finish_dates(folder, definition, [two])
    assert hits(ONE + DAY) == {"06T00:00": 2}


def test_an_output_has_one_key_one_run_and_no_foreign_rows(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="has no plan of a backfill"):
        saved_plan(str(out))
    with open_folder(str(out), key="one") as folder:
        folder.save_plan({"first": "2026-01-01"})
        with pytest.raises(ConfigError, match="another run"):
            open_folder(str(out), key="one")
    assert saved_plan(str(out))["first"] == "2026-01-01"
    with pytest.raises(ConfigError, match="made with another key"):
        open_folder(str(out), key="two")
    (tmp_path / "lake" / "events").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"was not made by a backfill \(it holds events\)"):
        open_folder(str(tmp_path / "lake"), key="one")
    with pytest.raises(ConfigError, match="does not exist"):
        open_folder(str(tmp_path / "no" / "out"), key="one")


def test_a_damaged_manifest_is_named(folder: BackfillFolder) -> None:
    manifest = written(folder, ONE, "a", [1])
    path = folder.state / "dates" / f"{ONE}.json"
    assert [day for day, _ in folder.manifests()] == [ONE]
    assert folder.manifest(ONE) == manifest
    path.write_text(path.read_text().replace('"fingerprint"', '"finger"'))
    with pytest.raises(ConfigError, match="is damaged"):
        folder.manifest(ONE)
    path.write_text('{"format": 9, "headrace": "9.9"}')
    with pytest.raises(ConfigError, match=r"has format 9, this headrace knows 1; use headrace 9\.9"):
        folder.manifest(ONE)
