"""Rates, lag and latency of a stream, read from what it left behind: the tables' logs, the ledger, the producer's notes."""

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.stream_processes import Usage

Series = Sequence[tuple[float, int]]
"""(seconds since 1970, total so far), ascending."""
PERCENTILES = (50, 95, 99)


def commits_of(table: Path) -> list[tuple[float, list[str]]]:
    """Returns when each version of a Delta table became visible, and the data files that it brought.

    Files that only rearrange rows (a compaction) are left out. The time is that of the log entry itself.
    """
    found = []
    for path in sorted((table / "_delta_log").glob("*.json")):
        actions = [json.loads(line) for line in path.read_text().splitlines() if line]
        files = [
            unquote(action["add"]["path"])
            for action in actions
            if "add" in action and action["add"].get("dataChange", True)
        ]
        found.append((path.stat().st_mtime, files))
    return found


def latencies(table: Path, first: float, last: float) -> tuple[npt.NDArray[np.float64], int]:
    """Returns, for every row that reached the source between two times, the seconds until it could be queried.

    Returns:
        (seconds by row, files that are gone and so left out).
    """
    parts, gone = [np.empty(0)], 0
    for visible, files in commits_of(table):
        for name in files:
            try:
                column = pq.read_table(table / name, columns=["ingest_time"], partitioning=None).column(0)
            except FileNotFoundError:
                gone += 1
                continue
            times = column.cast(pa.int64()).to_numpy() / 1e6
            times = times[(times >= first) & (times <= last)]
            parts.append(visible - times)
    return np.concatenate(parts), gone


def percentiles(values: npt.NDArray[np.float64]) -> dict[str, float]:
    """Returns p50, p95, p99 and max; empty for no values."""
    if not len(values):
        return {}
    found = {f"p{p}": round(float(np.percentile(values, p)), 3) for p in PERCENTILES}
    return {**found, "max": round(float(values.max()), 3)}


def ledger_series(out: Path) -> list[tuple[float, int]]:
    """Returns when how many records were committed, from ``OUT/ledger``."""
    rows: list[tuple[float, int]] = []
    for visible, files in commits_of(out / "ledger"):
        for name in files:
            table = pq.read_table(out / "ledger" / name, columns=["total_rows_in"], partitioning=None)
            rows += [(visible, total) for total in table.column(0).to_pylist()]
    return rows


def at(series: Series, time: float) -> float:
    """Returns the total at a time, between two points by the line through them; 0 before the first."""
    i = bisect_right(series, time, key=lambda point: point[0])
    if i == 0:
        return 0.0
    if i == len(series):
        return float(series[-1][1])
    (t0, n0), (t1, n1) = series[i - 1], series[i]
    return n0 + (n1 - n0) * (time - t0) / (t1 - t0)


def reached(series: Series, time: float) -> int:
    """Returns the total of the last point that is not after a time: what was visible then."""
    i = bisect_right(series, time, key=lambda point: point[0])
    return series[i - 1][1] if i else 0


def rate(series: Series, first: float, last: float) -> float:
    """Returns events a second between the first and the last point in a span of time."""
    inside = [point for point in series if first <= point[0] <= last]
    if len(inside) < 2:
        return 0.0
    return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


def lag(produced: Series, committed: Series, times: Iterable[float]) -> list[tuple[float, int]]:
    """Returns the events that were written to the source and not to be queried, at these times."""
    return [(time, max(0, round(at(produced, time)) - reached(committed, time))) for time in times]


def worked_off(lags: Series, burst_end: float, usual: float) -> float | None:
    """Returns how many seconds after a burst the lag was for the first time not above what it was before; None: never."""
    return next((time - burst_end for time, rows in lags if time >= burst_end and rows <= usual), None)


@dataclass(frozen=True)
class Checkpoint:
    """One completed checkpoint of Flink."""

    at: float
    """Seconds since 1970."""
    number: int
    state_bytes: int
    metadata_bytes: int
    seconds: float


def checkpoint_figures(found: Sequence[Checkpoint]) -> dict[str, float]:
    """Returns how large checkpoints were at the beginning and in the end, and how long they took."""
    if not found:
        return {}
    seconds = sorted(each.seconds for each in found)
    return {
        "checkpoints": len(found),
        "first state bytes": found[0].state_bytes,
        "last state bytes": found[-1].state_bytes,
        "first metadata bytes": found[0].metadata_bytes,
        "last metadata bytes": found[-1].metadata_bytes,
        "median seconds": seconds[len(seconds) // 2],
        "longest seconds": seconds[-1],
    }


@dataclass(frozen=True)
class Figures:
    """What came of one run."""

    runner: str
    produced: int
    committed: int
    accepted: int
    balanced: bool
    wanted_rate: float
    rate: float
    """Committed events a second, in the steady part."""
    lag_median: int
    lag_slope: float
    """Events a second by which the lag grew in the steady part."""
    latency: dict[str, float]
    cpu: dict[str, float]
    """µs of CPU for each event, by kind of process."""
    memory: dict[str, tuple[float, float, float]]
    """Megabytes at the beginning and the end of the steady part, and the growth per minute."""
    burst: dict[str, float | None]
    files_gone: int = 0
    checkpoints: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


def costs(usage: Usage, committed: Series, first: float, last: float) -> dict[str, float]:
    """Returns µs of CPU for each event that was committed between two times, by kind of process."""
    events = at(committed, last) - at(committed, first)
    if events <= 0:
        return {}
    found = {name: usage.cpu_between(name, first, last) / events * 1e6 for name in usage.samples}
    return {name: round(cost, 2) for name, cost in found.items() if cost >= 0.005}


def report(figures: Figures) -> str:
    """Returns the run as text."""
    f = figures
    steady = "flat" if abs(f.lag_slope) < 0.02 * max(1.0, f.wanted_rate) else f"{f.lag_slope:+,.0f} a second"
    lines = [
        f"runner            {f.runner}",
        f"events            {f.produced:,} written, {f.committed:,} committed, {f.accepted:,} accepted, "
        + ("balanced" if f.balanced else "NOT BALANCED"),
        f"rate              {f.rate:,.0f}/s committed of {f.wanted_rate:,.0f}/s written",
        f"lag               {f.lag_median:,} events (median), {steady}",
        "latency           " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in f.latency.items()),
    ]
    if f.files_gone:
        lines.append(f"                  without {f.files_gone} files that a compaction has removed")
    for name, value in f.burst.items():
        lines.append(f"burst             {name}: {'not in this run' if value is None else f'{value:,.1f}'}")
    lines += [f"{name:<22}{value:,.9g}" for name, value in f.checkpoints.items()]
    lines.append(f"\n{'process':<18}{'CPU µs/event':>13}{'MB first':>10}{'MB last':>9}{'MB/min':>8}")
    for name in sorted(f.cpu, key=lambda n: -f.cpu[n]):
        first, last, growth = f.memory.get(name, (0.0, 0.0, 0.0))
        lines.append(f"{name:<18}{f.cpu[name]:>13.1f}{first:>10.0f}{last:>9.0f}{growth:>8.1f}")
    ours = pipeline_cost(f.cpu)
    lines.append(f"{'stream in all':<18}{ours:>13.1f}   (without producer and broker)")
    return "\n".join(lines)


def pipeline_cost(cpu: Mapping[str, float]) -> float:
    """Returns what the stream costs itself: all processes but the producer and the broker."""
    return math.fsum(cost for name, cost in cpu.items() if name not in ("producer", "kafka"))
