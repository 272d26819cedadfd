"""From single runs to the table: medians, cost per event, ratios, disagreements. Plain data, no Arrow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.measure import Usage

EXACT = ("ours", "beam-json", "beam-orjson")
"""Subjects whose verdicts must agree in every count; the others' differences are shown."""
CROWDED = 1.3
"""Wall time above so many times the CPU time means that something else was running."""
NOTES = """\
CPU is user + system time of the run's processes, the median of the repeated runs, which are interleaved. Marginal CPU leaves
out start-up (imports, pipeline construction), measured by a run on a few events. Peak is resident memory. Ratios are of
marginal CPU to ours.
The Beam peers use one dict per element on the FnApiRunner. They keep no position of an event in its file, write no ledger,
manifest or Delta table, are not safe against a run killed in the middle, name an invalid field by keyword and pointer only.
The DuckDB peer is one SQL script in memory: verdicts are not exact and have no pointer or message, nothing is sealed, no Luhn
check, user agents by CASE instead of ua-parser, no country from the address, salted SHA-256 tokens, no ledger or Delta table.
Both peers write Snappy, ours writes zstd."""


@dataclass(frozen=True)
class Run:
    """One measured run of one subject on one file."""

    subject: str
    events: int
    usage: Usage
    outcome: Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    subject: str
    events: int
    cpu_us_total: float
    cpu_us_marginal: float | None
    startup_cpu_seconds: float | None
    wall_seconds: float
    peak_bytes: int
    ratio: float | None
    """Its CPU divided by ours: marginal, or total without a start-up run."""


def lines(runs: Sequence[Run], startups: Sequence[Run]) -> list[Line]:
    """Returns a line for each subject and number of events, in order of first appearance by number of events."""
    idle: dict[str, tuple[float, int]] = {}
    for subject in dict.fromkeys(run.subject for run in startups):
        mine = [run for run in startups if run.subject == subject]
        idle[subject] = median(run.usage.cpu_seconds for run in mine), mine[0].events
    found: list[Line] = []
    for events in sorted({run.events for run in runs}):
        for subject in dict.fromkeys(run.subject for run in runs if run.events == events):
            mine = [run for run in runs if (run.subject, run.events) == (subject, events)]
            cpu = median(run.usage.cpu_seconds for run in mine)
            start, few = idle.get(subject, (None, 0))
            found.append(
                Line(
                    subject,
                    events,
                    cpu / events * 1e6,
                    None if start is None or events <= few else (cpu - start) / (events - few) * 1e6,
                    start,
                    median(run.usage.wall_seconds for run in mine),
                    int(median(run.usage.peak_bytes for run in mine)),
                    None,
                )
            )
    ours = {line.events: line for line in found if line.subject == "ours"}
    return [_with_ratio(line, ours.get(line.events)) for line in found]


def _with_ratio(line: Line, ours: Line | None) -> Line:
    if ours is None:
        return line
    both = line.cpu_us_marginal, ours.cpu_us_marginal
    top, bottom = both if None not in both else (line.cpu_us_total, ours.cpu_us_total)
    return Line(**{**line.__dict__, "ratio": top / bottom if top is not None and bottom else None})


def table(rows: Sequence[Line]) -> str:
    """Returns the lines as aligned text."""
    head = ("events", "subject", "CPU µs/event", "marginal", "start-up s", "wall s", "peak MB", "x ours")
    cells = [
        (
            f"{line.events:,}",
            line.subject,
            f"{line.cpu_us_total:.1f}",
            _number(line.cpu_us_marginal, 1),
            _number(line.startup_cpu_seconds, 2),
            f"{line.wall_seconds:.1f}",
            f"{line.peak_bytes / 1e6:.0f}",
            _number(line.ratio, 2),
        )
        for line in rows
    ]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 1 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *cells]
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Returns what differs between two outcomes, a line each; empty if nothing does."""
    found = []
    if one["accepted"] != other["accepted"]:
        found.append(f"accepted: {one['accepted']} and {other['accepted']}")
    for name in ("rejected", "revenue"):
        mine, theirs = one[name], other[name]
        found += [
            f"{name} {key or '(none)'}: {mine.get(key, 0)} and {theirs.get(key, 0)}"
            for key in sorted({*mine, *theirs})
            if mine.get(key) != theirs.get(key)
        ]
    return found


def disagreements(
    runs: Sequence[Run], truths: Mapping[int, Mapping[str, Any]] | None = None
) -> tuple[list[str], list[str]]:
    """Compares every run with the truth of its events, else with the first exact subject.

    Args:
        truths: number of events to the outcome that the simulator says must come out.

    Returns:
        (faults, remarks): rows lost, differences of exact subjects, or between two runs of one; differences of the others.
    """
    faults: list[str] = []
    remarks: list[str] = []
    for events in sorted({run.events for run in runs}):
        same = [run for run in runs if run.events == events]
        first_of = {run.subject: run for run in reversed(same)}
        name = next((name for name in EXACT if name in first_of), "")
        reference = first_of[name].outcome if name else None
        if truths and events in truths:
            name, reference = "the simulator's truth", truths[events]
        for run in same:
            outcome = run.outcome
            if events != outcome["accepted"] + sum(outcome["rejected"].values()):
                faults.append(
                    f"{events:,} events, {run.subject}: accepted and rejected rows do not add up to the input"
                )
            first = first_of[run.subject].outcome
            faults += [
                f"{events:,} events, {run.subject} twice: {text}" for text in differences(first, outcome)
            ]
        for subject, run in sorted(first_of.items()):
            if reference is not None:
                told = [
                    f"{events:,} events, {name} and {subject}: {t}"
                    for t in differences(reference, run.outcome)
                ]
                (faults if subject in EXACT else remarks).extend(told)
    return list(dict.fromkeys(faults)), remarks


def marks(rows: Sequence[Line]) -> list[str]:
    """Returns the marks that the project set itself, met or missed, as far as these lines can tell."""
    by = {(line.subject, line.events): line for line in rows}
    told = []
    for events in sorted({line.events for line in rows}):
        ours = by.get(("ours", events))
        if ours is None:
            continue
        beam, duck = by.get(("beam-json", events)), by.get(("duckdb", events))
        if beam and beam.ratio is not None:
            told.append(
                _mark(
                    beam.ratio >= 12, f"{events:,} events: {beam.ratio:.1f} x beam-json's speed; at least 12"
                )
            )
        if duck and duck.ratio is not None:
            told.append(
                _mark(duck.ratio >= 1, f"{events:,} events: {1 / duck.ratio:.2f} of duckdb's CPU; at most 1")
            )
        for limit_events, limit in ((1_000_000, 0.8e9), (3_000_000, 1.0e9)):
            if events == limit_events:
                told.append(
                    _mark(
                        ours.peak_bytes <= limit,
                        f"{events:,} events: peak {ours.peak_bytes / 1e9:.2f} GB; at most {limit / 1e9:.1f}",
                    )
                )
    return told


def crowded(rows: Sequence[Line]) -> list[str]:
    """Returns the lines whose runs had to wait for a processor: a busy machine also makes CPU time itself longer, so that
    ratios between runs at different times mislead."""
    return [
        f"{row.events:,} events, {row.subject}: {row.wall_seconds:.1f} s for {busy:.1f} s of CPU; run again on an idle machine"
        for row in rows
        if row.wall_seconds > CROWDED * (busy := row.cpu_us_total * row.events / 1e6)
    ]


def _mark(met: bool, text: str) -> str:
    return f"{'met   ' if met else 'MISSED'} {text}"
