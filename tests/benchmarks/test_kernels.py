"""The kernel profile runs the pipeline's own steps and loses no row."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fates import NOW, mixed

from benchmarks import kernels


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(mixed().lines) + b"\n")
    return path


def test_profile_accounts_for_every_event(source: Path, tmp_path: Path) -> None:
    fates = mixed()
    events, seconds, rejected = kernels.profile(str(source), NOW, tmp_path)
    lake = sum(pq.ParquetFile(path).metadata.num_rows for path in (tmp_path / "events").rglob("*.parquet"))
    assert events == len(fates.lines)
    assert lake == fates.accepted
    assert {stage: n for stage, n in rejected.items() if n} == {
        "decode": fates.rejected["malformed"] + fates.rejected["unknown_schema"],
        "validate": fates.rejected["invalid"],
        "time": fates.rejected["stale"] + fates.rejected["future"],
        "dedupe": fates.rejected["duplicate"] + fates.rejected["conflict"],
        "rules": fates.rejected["filtered"],
    }
    assert {"read", "decode", "mask", "dedupe hash", "stage write", "enrich", "windows", "lake write"} <= set(
        seconds
    )
    assert all(spent >= 0 for spent in seconds.values())


def test_the_table_adds_up() -> None:
    told = kernels.table(
        1000, [{"read": 0.001, "set-up": 0.5, "mask": 0.003}, {"read": 0.001, "set-up": 0.7, "mask": 0.003}]
    )
    assert [line.split() for line in told.splitlines()[1:4]] == [
        ["read", "1.00", "25%"],
        ["mask", "3.00", "75%"],
        ["all", "4.00", "100%"],
    ]
    assert "set-up 0.60 s apart" in told


def test_command_line(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main(["--input", str(source), "--now", NOW.isoformat(), "--repeat", "1"]) == 0
    assert re.search(r"(?m)^all +[0-9.]+ +100%$", capsys.readouterr().out)
