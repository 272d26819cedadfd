"""Runs ours and its peers on the same events, each in processes of its own, interleaved, and prints costs and ratios.

    python -m benchmarks.run [--events 200000,1000000,3000000] [--repeat 3] [--only ours,duckdb] [--input FILE --now T]

Without ``--input`` the events are simulated once for each number (kept in ``build/bench``). The Beam peers take minutes, so they
run only up to ``--slow-events``. Results: a table, and ``build/bench/results.json``. Exit code 1 if exact subjects disagree in a
count with each other or with what the simulator says it wrote, 2 if one of them fails.
"""

import argparse
import hashlib
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.measure import RunFailedError, measure
from benchmarks.report import NOTES, Run, crowded, disagreements, lines, marks, table

ROOT = Path(__file__).resolve().parent.parent
STARTUP_EVENTS = 200

Command = Callable[[Path, Path, datetime], list[str]]


def _headrace(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from headrace.pipelines.cli import main; main()", *arguments]


def _ours(source: Path, output: Path, now: datetime) -> list[str]:
    return _headrace(
        *("run", "batch", "--config", str(ROOT / "benchmarks" / "ours.yaml")),
        *("--input", str(source), "--output", str(output)),
        *("--now", now.isoformat(), "--quiet", "--json"),
    )


def _peer(module: str, *arguments: str) -> Command:
    def command(source: Path, output: Path, now: datetime) -> list[str]:
        paths = ("--input", str(source), "--output", str(output), "--now", now.isoformat())
        return [sys.executable, "-m", f"benchmarks.{module}", *arguments, *paths]

    return command


SUBJECTS: dict[str, Command] = {
    "ours": _ours,
    "duckdb": _peer("peer_duckdb"),
    "duckdb-2-threads": _peer("peer_duckdb", "--threads", "2"),
    "beam-orjson": _peer("peer_beam", "--variant", "orjson"),
    "beam-json": _peer("peer_beam", "--variant", "json"),
}
SLOW = ("beam-orjson", "beam-json")


@dataclass(frozen=True)
class Input:
    """Events to run on."""

    path: Path
    events: int
    now: datetime
    """The reference time."""
    truth: Mapping[str, Any] | None
    """The outcome that the simulator says must come out."""


class Bench:
    """Makes the inputs, runs the subjects and keeps what they cost.

    Args:
        work: folder for inputs, outputs, logs and results.
        say: takes progress lines.
    """

    def __init__(self, work: Path, say: Callable[[str], None]) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self._work, self._say = work, say
        key = work / "key"
        if not key.exists():
            key.write_text(secrets.token_hex(32))
        self._environment = {**os.environ, "HEADRACE_KEY_FILE": str(key), "PYTHONPATH": str(ROOT)}

    def simulate(self, events: int, seed: int) -> Input:
        """Returns simulated events; the file is made again when the simulator has changed."""
        sources = sorted(
            [*(ROOT / "simulator").rglob("*.py"), *(ROOT / "schemas" / "families").rglob("*.json")]
        )
        digest = hashlib.blake2b(b"".join(path.read_bytes() for path in sources), digest_size=4).hexdigest()
        path = self._work / f"events-{events}-{seed}-{digest}.jsonl"
        told = path.with_suffix(".truth.json")
        if not path.exists():
            self._say(f"simulating {events:,} events")
            part = path.with_suffix(".part")
            arguments = [
                "--events",
                str(events),
                "--seed",
                str(seed),
                "--output",
                str(part),
                "--truth",
                str(told),
            ]
            measure(
                _headrace("simulate", *arguments),
                log=self._work / "simulate.log",
                environment=self._environment,
            )
            part.rename(path)
        truth = json.loads(told.read_text())
        return Input(path, events, datetime.fromisoformat(truth["now"]), outcome_of(truth))

    def head(self, source: Input, events: int) -> Input:
        """Returns the first lines as an input of their own, of which no truth is known."""
        path = self._work / f"{source.path.stem}.first-{events}.jsonl"
        with open(source.path, "rb") as whole, open(path, "wb") as part:
            part.writelines(islice(whole, events))
        return Input(path, min(events, source.events), source.now, None)

    def run(self, subject: str, source: Input) -> Run:
        """Runs one subject once; its output is read and deleted.

        Raises:
            RunFailedError: the subject failed.
        """
        output = self._work / "out"
        shutil.rmtree(output, ignore_errors=True)
        command = SUBJECTS[subject](source.path, output, source.now)
        usage = measure(command, log=self._work / f"{subject}.log", environment=self._environment)
        read = [sys.executable, "-m", "benchmarks.outcome", str(output)]
        told = subprocess.run(read, env=self._environment, stdout=subprocess.PIPE, check=True).stdout
        shutil.rmtree(output)
        self._say(
            f"{source.events:>9,} events  {subject:<17} {usage.cpu_seconds:7.2f} s CPU  {usage.wall_seconds:7.2f} s  "
            f"{usage.peak_bytes / 1e6:6.0f} MB"
        )
        return Run(subject, source.events, usage, json.loads(told))


def outcome_of(truth: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the simulator says of its events in the form of an outcome."""
    rejected = {name: count for name, count in truth["classes"].items() if count and name != "accepted"}
    revenue = {currency: f"{Decimal(text).normalize():f}" for currency, text in truth["revenue"].items()}
    return {"accepted": truth["classes"]["accepted"], "rejected": rejected, "revenue": revenue}


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    subjects = given.only or list(SUBJECTS)
    bench = Bench(given.work, lambda text: print(text, file=sys.stderr, flush=True))
    try:
        if given.input:
            inputs = [Input(given.input, _lines_of(given.input), given.now, None)]
        else:
            inputs = [bench.simulate(events, given.seed) for events in given.events]
        few = bench.head(inputs[0], STARTUP_EVENTS)
        startups: list[Run] = []
        runs: list[Run] = []
        for _ in range(given.repeat):
            startups += [bench.run(subject, few) for subject in subjects]
            for source in inputs:
                fit = [s for s in subjects if s not in SLOW or source.events <= given.slow_events]
                runs += [bench.run(subject, source) for subject in fit]
    except RunFailedError as error:
        print(f"a run failed: {error}", file=sys.stderr)
        return 2
    rows = lines(runs, startups)
    truths = {source.events: source.truth for source in inputs if source.truth}
    faults, remarks = disagreements([*startups, *runs], truths)
    results = {
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
        },
        "repeat": given.repeat,
        "lines": [asdict(row) for row in rows],
        "runs": [asdict(run) for run in runs],
        "startup_runs": [asdict(run) for run in startups],
        "crowded": crowded(rows),
        "faults": faults,
        "remarks": remarks,
    }
    (given.work / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(table(rows), NOTES, sep="\n\n")
    _section("Marks", marks(rows))
    _section("The machine was busy: costs and ratios are not to be trusted", crowded(rows))
    _section("Counts in which inexact subjects differ", remarks)
    _section("DISAGREEMENT: the figures above compare different work", faults)
    return 1 if faults else 0


def _section(title: str, texts: Sequence[str]) -> None:
    if texts:
        print(f"\n{title}", *texts, sep="\n  ")


def _lines_of(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(1 for _ in file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--events", type=_numbers, default="200000,1000000,3000000", help="numbers of events, with commas"
    )
    parser.add_argument(
        "--slow-events", type=int, default=200_000, help="the most events that the Beam peers are given"
    )
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, of which the median counts")
    parser.add_argument("--only", type=_subjects, help=f"subjects, with commas: {', '.join(SUBJECTS)}")
    parser.add_argument("--seed", type=int, default=1, help="of the simulated events")
    parser.add_argument("--input", type=Path, help="a file of JSON lines instead of simulated events")
    parser.add_argument(
        "--now", type=datetime.fromisoformat, default=datetime.now(UTC), help="reference time of --input"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="folder for all files")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _subjects(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in SUBJECTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown subject {unknown[0]!r}; known: {', '.join(SUBJECTS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
