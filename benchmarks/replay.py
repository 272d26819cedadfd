"""A replay of rejected rows, against the run that rejected them: both over the same events, whole processes.

    python -m benchmarks.replay [--events 100000] [--repeat 3] [--work FOLDER]

Every event has a comma too many, so the run rejects all of them; the replay takes the comma out and accepts all. Prints CPU and
wall time, start-up included, as medians, and the ratio to a run over the same events without the comma.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Usage, measure

FIXES = """
fixes:
  - where: reason = 'malformed_json'
    steps:
      - replace: record
        pattern: ',}$'
        with: '}'
"""
NOW = "2026-01-06T11:00:00Z"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        return _compare(Path(folder), options.events, options.repeat)


def _compare(folder: Path, events: int, repeat: int) -> int:
    os.environ["HEADRACE_KEY_FILE"] = str(folder / "key")
    command = [str(Path(sys.executable).with_name("headrace"))]
    log, good = folder / "log", folder / "good.jsonl"
    simulate = [
        "simulate",
        "--events",
        str(events),
        "--seed",
        "7",
        "--fault-rate",
        "0",
        "--output",
        str(good),
    ]
    measure([*command, *simulate], log=log)
    with open(good, "rb") as lines, open(folder / "bad.jsonl", "wb") as damaged:
        damaged.writelines(line.rstrip()[:-1] + b",}\n" for line in lines)
    (folder / "fixes.yaml").write_text(FIXES)
    batch = [*command, "run", "batch", "--now", NOW, "--quiet"]
    used: dict[str, list[Usage]] = {"run": [], "replay": []}
    for turn in range(repeat):
        whole, mended = folder / f"whole-{turn}", folder / f"mended-{turn}"
        used["run"].append(measure([*batch, "--input", str(good), "--output", str(whole)], log=log))
        measure([*batch, "--input", str(folder / "bad.jsonl"), "--output", str(mended)], log=log)
        replayed = _ledger(mended)["rows_in"] - _ledger(mended)["accepted"]
        replay = [*command, "quarantine", "replay", str(mended), "--fix", str(folder / "fixes.yaml")]
        used["replay"].append(measure(replay, log=log))
        accepted = [_ledger(out)["accepted"] for out in (whole, mended)]
        if replayed != events or accepted[0] != accepted[1]:
            print(f"the replay accepted {accepted[1]:,}, the run {accepted[0]:,} of {events:,}")
            return 1
    for name, uses in used.items():
        cpu, wall = median(u.cpu_seconds for u in uses), median(u.wall_seconds for u in uses)
        peak = max(u.peak_bytes for u in uses) / 1e6
        print(f"{name:<8}{events:>10,} events  {cpu:>7.1f} s CPU  {wall:>7.1f} s wall  {peak:>6.0f} MB")
    ratio = median(
        replay.cpu_seconds / run.cpu_seconds for run, replay in zip(used["run"], used["replay"], strict=True)
    )
    print(f"the replay costs {ratio:.2f} times the run (CPU)")
    return 0


def _ledger(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "ledger.json").read_bytes())
    return found


if __name__ == "__main__":
    sys.exit(main())
