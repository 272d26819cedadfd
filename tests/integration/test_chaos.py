"""A stream on Flink is killed and loses nothing; without its protection it is damaged, and the checker sees it."""

from pathlib import Path

import pytest

from tests.chaos.run import Report, run

pytestmark = [pytest.mark.integration, pytest.mark.chaos]


def _kinds(report: Report) -> list[str]:
    return [fault.kind for fault in report.faults]


def test_a_stream_on_flink_is_killed_three_times_and_loses_nothing(tmp_path: Path) -> None:
    report = run(tmp_path / "site", seed=1, kills=3, others=0, rate=1000, disk_megabytes=0)
    assert report.verdict.faults == []
    assert _kinds(report) == ["kill_workers", "kill_taskmanager", "kill_launcher"]
    assert all(fault.recovered_seconds is not None for fault in report.faults)
    assert report.verdict.counts["records duplicate"] > 0
    assert report.verdict.counts["rejected dedupe/duplicate"] > 0
    assert report.verdict.counts["late rows"] > 0


def test_with_the_protection_off_the_checker_finds_damage(tmp_path: Path) -> None:
    report = run(
        tmp_path / "site",
        seed=3,
        kills=2,
        rate=1000,
        only=["kill_taskmanager", "kill_taskmanager"],
        disk_megabytes=0,
        broken="commit_at_once",
        most_seconds=30,
    )
    assert any("(doubled)" in fault for fault in report.verdict.faults)
