"""The benchmark's own arithmetic: medians, ratios, disagreements; and one real run of the runner."""

import json
import sys
from pathlib import Path

import pytest
from fates import NOW, mixed

from benchmarks import run
from benchmarks.measure import RunFailedError, Usage, measure
from benchmarks.outcome import rejection_class
from benchmarks.report import Run, crowded, differences, disagreements, lines, marks, table

GOOD = {"accepted": 900, "rejected": {"stale": 100}, "revenue": {"EUR": "1.5"}}


def ran(subject: str, cpu: float, events: int = 1000, outcome: dict = GOOD, peak: int = 10**6) -> Run:
    return Run(subject, events, Usage(cpu, cpu, peak), outcome)


def test_marginal_cost_leaves_out_the_startup() -> None:
    runs = [ran("ours", 1.5), ran("ours", 9.0), ran("ours", 1.0), ran("beam-json", 12.0)]
    few = [ran("ours", 0.5, 100), ran("beam-json", 3.0, 100)]
    ours, beam = lines(runs, few)
    assert (ours.cpu_us_total, ours.startup_cpu_seconds, ours.ratio) == (pytest.approx(1500), 0.5, 1)
    assert ours.cpu_us_marginal == pytest.approx(1.0 / 900 * 1e6)
    assert beam.ratio == pytest.approx(9)


def test_without_startup_runs_the_ratio_is_of_totals() -> None:
    ours, duck = lines([ran("ours", 1.0), ran("duckdb", 2.0)], [])
    assert (ours.cpu_us_marginal, duck.ratio) == (None, pytest.approx(2))
    assert [line.split()[1] for line in table([ours, duck]).splitlines()[1:]] == ["ours", "duckdb"]


def test_there_are_no_ratios_without_ours() -> None:
    (duck,) = lines([ran("duckdb", 2.0)], [])
    assert duck.ratio is None and marks([duck]) == []


def test_marks_are_met_or_missed() -> None:
    rows = lines(
        [ran("ours", 1.0, 10**6, peak=9 * 10**8), ran("duckdb", 0.5, 10**6), ran("beam-json", 13.0, 10**6)],
        [],
    )
    assert [mark.split()[0] for mark in marks(rows)] == ["met", "MISSED", "MISSED"]


def test_a_busy_machine_is_told() -> None:
    waited = Run("beam-json", 1000, Usage(10, 30, 1), GOOD)
    assert crowded(lines([ran("ours", 1), waited], [])) == [
        "1,000 events, beam-json: 30.0 s for 10.0 s of CPU; run again on an idle machine"
    ]


def test_exact_subjects_must_agree_and_others_are_remarked_on() -> None:
    other = {"accepted": 901, "rejected": {"stale": 99}, "revenue": {"EUR": "1.5"}}
    assert disagreements([ran("ours", 1), ran("beam-json", 1), ran("duckdb", 1)]) == ([], [])
    faults, remarks = disagreements(
        [ran("ours", 1), ran("beam-json", 1, outcome=other), ran("duckdb", 1, outcome=other)]
    )
    assert faults == [
        "1,000 events, ours and beam-json: accepted: 900 and 901",
        "1,000 events, ours and beam-json: rejected stale: 100 and 99",
    ]
    assert remarks == [fault.replace("beam-json", "duckdb") for fault in faults]


def test_runs_of_one_subject_must_agree_with_each_other() -> None:
    other = {**GOOD, "revenue": {"EUR": "1.6", "": "2"}}
    faults, _ = disagreements([ran("duckdb", 1), ran("duckdb", 1, outcome=other)])
    assert faults == [
        "1,000 events, duckdb twice: revenue (none): 0 and 2",
        "1,000 events, duckdb twice: revenue EUR: 1.5 and 1.6",
    ]


def test_lost_rows_are_a_fault() -> None:
    faults, _ = disagreements([ran("ours", 1, 1001)])
    assert faults == ["1,001 events, ours: accepted and rejected rows do not add up to the input"]


def test_the_simulators_truth_comes_before_any_subject() -> None:
    classes = {"accepted": 900, "malformed": 0, "stale": 100}
    truth = run.outcome_of({"classes": classes, "revenue": {"EUR": "1.50", "PLN": "1000.00"}})
    faults, remarks = disagreements([ran("ours", 1), ran("duckdb", 1)], {1000: truth})
    assert faults == ["1,000 events, the simulator's truth and ours: revenue PLN: 1000 and 0"]
    assert remarks == ["1,000 events, the simulator's truth and duckdb: revenue PLN: 1000 and 0"]


def test_no_differences_between_equal_outcomes() -> None:
    assert differences(GOOD, json.loads(json.dumps(GOOD))) == []


@pytest.mark.parametrize(
    ("stage", "reason", "name"),
    [
        ("decode", "nesting_too_deep", "malformed"),
        ("decode", "unknown_schema", "unknown_schema"),
        ("validate", "minLength", "invalid"),
        ("dedupe", "duplicate_conflict", "conflict"),
        ("rules", "purchase_price_positive", "rule"),
    ],
)
def test_rejection_classes(stage: str, reason: str, name: str) -> None:
    assert rejection_class(stage, reason) == name


def test_measure_counts_the_cpu_and_memory_of_children(tmp_path: Path) -> None:
    child = "x = bytearray(80_000_000); import time; t = time.process_time()\nwhile time.process_time() - t < 0.25: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    used = measure([sys.executable, "-c", parent], log=tmp_path / "log")
    assert 0.25 <= used.cpu_seconds < 3 and used.peak_bytes > 80_000_000


def test_measure_tells_how_a_run_failed(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match=r"(?s)exit code 3.*no luck"):
        measure([sys.executable, "-c", "print('no luck'); raise SystemExit(3)"], log=tmp_path / "log")


@pytest.mark.integration
def test_the_runner_measures_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fates = mixed()
    source = tmp_path / "events.jsonl"
    source.write_bytes(b"\n".join(fates.lines * 5) + b"\n")
    arguments = ["--input", str(source), "--now", NOW.isoformat(), "--only", "duckdb", "--repeat", "1"]
    assert run.main([*arguments, "--work", str(tmp_path / "work")]) == 0
    results = json.loads((tmp_path / "work" / "results.json").read_text())
    assert results["lines"][0]["events"] == len(fates.lines) * 5
    assert results["runs"][0]["outcome"]["revenue"] == {"EUR": "35.28"}
    assert "duckdb" in capsys.readouterr().out


def test_the_runner_reports_a_failed_subject(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "events.jsonl"
    source.write_bytes(b"{}\n")
    failing = {"duckdb": lambda *_: [sys.executable, "-c", "raise SystemExit('broken')"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "SUBJECTS", failing)
        code = run.main(["--input", str(source), "--only", "duckdb", "--work", str(tmp_path / "work")])
    assert code == 2 and "broken" in capsys.readouterr().err


def test_simulated_events_are_kept_with_their_truth(tmp_path: Path) -> None:
    told: list[str] = []
    bench = run.Bench(tmp_path, told.append)
    source = bench.simulate(300, 5)
    assert source.truth is not None
    assert source.truth["accepted"] + sum(source.truth["rejected"].values()) == 300
    assert len(source.path.read_bytes().splitlines()) == 300
    assert bench.simulate(300, 5) == source and told == ["simulating 300 events"]
    few = bench.head(source, 20)
    assert (few.events, few.truth, few.now) == (20, None, source.now)
    assert source.path.read_bytes().startswith(few.path.read_bytes())


def test_unknown_subjects_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--only", "ours,pandas"])
    assert "unknown subject 'pandas'; known: ours" in capsys.readouterr().err
