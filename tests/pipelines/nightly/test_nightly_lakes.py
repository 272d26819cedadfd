"""Nightly runs on lakes of the batch pipeline, on several workers, and with every bundle repeated."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from headrace.pipelines.batch import run_batch
from headrace.pipelines.config import BatchConfig
from headrace.pipelines.nightly.local_days import find_zone, local_day
from headrace.pipelines.nightly.nightly import run_nightly
from headrace.pipelines.nightly.nightly_tables import TABLES
from headrace.simulator.simulate import simulate
from headrace.transforms.keys import Key
from tests.pipelines.nightly.lakes import FIRST, config, data, nightly
from tests.pipelines.nightly.test_nightly_tables import expected, ours


@pytest.mark.integration
def test_tables_of_simulated_events_are_what_duckdb_says(tmp_path: Path) -> None:
    start = datetime(2026, 3, 28, 12, tzinfo=UTC)
    simulation = simulate(4000, 3, start=start, span=timedelta(hours=23), fault_rate=0.05)
    (tmp_path / "events.jsonl").write_bytes(b"".join(simulation))
    Key(tmp_path / "key", create=True)
    settings = BatchConfig(
        input=[str(tmp_path / "events.jsonl")],
        output=str(tmp_path / "lake"),
        key_file=str(tmp_path / "key"),
        now=datetime.fromisoformat(simulation.summary.to_dict()["now"]),
        metrics={},
    )
    accepted = run_batch(settings).ledger.accepted
    dates = date(2026, 3, 28), date(2026, 3, 29)
    warehouse = config(tmp_path / "lake", tmp_path / "out", timezone="Europe/Berlin")
    result = run_nightly(warehouse, dates)
    assert sum(day.events for day in result.days) == accepted
    days = [local_day(day, find_zone("Europe/Berlin")) for day in dates]
    found, wanted = ours(tmp_path / "out"), expected(tmp_path / "lake", days)
    channel = TABLES["user_sessions"].schema.names.index("channel")
    for table in (found, wanted):  # The script's channel is a rough one.
        table["user_sessions"] = [row[:channel] + row[channel + 1 :] for row in table["user_sessions"]]
    for name, rows in found.items():
        assert rows == wanted[name], name


def test_repeated_bundles_leave_the_same_bytes(lake: Path, tmp_path: Path) -> None:
    nightly(tmp_path, FIRST)
    nightly(tmp_path, FIRST, out="again", beam_args=["--direct_runner_bundle_repeat=1"])
    assert data(tmp_path / "out") == data(tmp_path / "again")


@pytest.mark.integration
def test_several_workers_leave_the_same_bytes(lake: Path, tmp_path: Path) -> None:
    nightly(tmp_path, FIRST)
    args = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    nightly(tmp_path, FIRST, out="two", beam_args=args)
    assert data(tmp_path / "out") == data(tmp_path / "two")
