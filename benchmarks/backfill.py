"""Archived events: `headrace run backfill` over Parquet, and `headrace run batch` over the same events as JSON lines.

    python -m benchmarks.backfill [--events 500000] [--days 5] [--repeat 1] [--work FOLDER]

The archive has a folder a date and in it a file a family, as simulated, without faults: times as timestamps, money as decimals,
objects as structs. Prints CPU and wall time of whole processes and peak memory; marginal CPU leaves out what a run over the
hundredth part costs. Medians of the repetitions, which take turns. Exit code 1 if the runs do not accept the same number of
events.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Usage, measure

FIRST = date(2026, 1, 1)
FAMILIES = ("envelope", "clickstream", "behaviour", "commerce", "interaction", "financial")
MONEY = frozenset(("price", "amount", "total_amount", "size", "bid", "ask"))
SMALL = 100
"""The part of the events that a small run reads."""


def typed(document: dict[str, Any]) -> dict[str, Any]:
    """Returns a document as an archive's typed columns have it."""
    found: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict) and name != "custom_data":
            found[name] = typed(value)
        elif name == "timestamp":
            found[name] = datetime.fromisoformat(value)
        elif name in MONEY and value is not None:
            found[name] = Decimal(str(value))
        elif name == "custom_data":
            found[name] = json.dumps(value)
        else:
            found[name] = value
    return found


def make(folder: Path, events: int, days: int) -> None:
    """Writes ``jsonl/DATE.jsonl`` and ``archive/dt=DATE/FAMILY.parquet`` of the same events."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from headrace.simulator.simulate import simulate

    (folder / "jsonl").mkdir(parents=True)
    for day in range(days):
        on = FIRST + timedelta(days=day)
        start = datetime(on.year, on.month, on.day, tzinfo=UTC)
        target = folder / "archive" / f"dt={on}"
        target.mkdir(parents=True)
        with open(folder / "jsonl" / f"{on}.jsonl", "wb") as lines:
            for number, family in enumerate(FAMILIES):
                here = events // days // len(FAMILIES)
                span = timedelta(hours=23, minutes=30)
                data = b"".join(
                    simulate(
                        here, 10 * day + number, start=start, span=span, families=[family], fault_rate=0.0
                    )
                )
                lines.write(data)
                documents = [json.loads(line) for line in data.splitlines()]
                names = list(dict.fromkeys(name for document in documents for name in document))
                rows = [typed(document) for document in documents]
                table = pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
                path = target / f"{family}.parquet"
                pq.write_table(table, path, compression="zstd", row_group_size=100_000)


def commands(folder: Path, key: Path, days: int) -> dict[str, list[str]]:
    """Returns what is measured, but for the output."""
    last = FIRST + timedelta(days=days - 1)
    end = datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=1)
    headrace = [sys.executable, "-c", "from headrace.pipelines.cli import main; main()", "run"]
    age = ["--max-age-seconds", str(86_400 * days)]
    shared = ["--key-file", str(key), "--json"]
    batch = [*headrace, "batch", *shared, *age, "--now", end.isoformat()]
    return {
        "batch, JSON": [*batch, "--input", str(folder / "jsonl")],
        "batch, Parquet": [*batch, "--input", str(folder / "archive")],
        "backfill": [*headrace, "backfill", *shared, "--archive", str(folder / "archive"), "--from", str(FIRST), "--to", str(last)],
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.backfill", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=int, default=500_000)
    parser.add_argument("--days", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--work", type=Path, help="keep the archives here, and use those that are there")
    parser.add_argument("--only", choices=("make",), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.only:
        make(given.work, given.events, given.days)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        work = given.work or scratch
        sizes = {"whole": given.events, "small": given.events // SMALL}
        for name, events in sizes.items():
            if not (work / name).exists():
                here = [
                    sys.executable,
                    "-m",
                    "benchmarks.backfill",
                    "--only",
                    "make",
                    "--work",
                    str(work / name),
                ]
                measure([*here, "--events", str(events), "--days", str(given.days)], log=scratch / "make.log")
        key = scratch / "key"
        measure(
            [
                sys.executable,
                "-c",
                f"from headrace.transforms.keys import Key; Key({str(key)!r}, create=True)",
            ],
            log=scratch / "key.log",
        )
        usages: dict[tuple[str, str], list[Usage]] = {}
        accepted: dict[str, int] = {}
        for turn in range(given.repeat):
            for size in sizes:
                for number, (name, command) in enumerate(commands(work / size, key, given.days).items()):
                    log = scratch / "run.log"
                    out = scratch / f"out-{size}-{turn}-{number}"
                    usages.setdefault((name, size), []).append(
                        measure([*command, "--output", str(out)], log=log)
                    )
                    if size == "whole":
                        found = json.loads(log.read_text().splitlines()[-1])
                        accepted[name] = found["accepted"]
    print(
        f"{'':16s} {'CPU s':>8s} {'wall s':>8s} {'peak MB':>8s} {'µs/event':>9s} {'marginal':>9s} {'ratio':>6s}"
    )
    base = 0.0
    for name in accepted:
        whole, small = usages[name, "whole"], usages[name, "small"]
        cpu = median(u.cpu_seconds for u in whole)
        marginal = (cpu - median(u.cpu_seconds for u in small)) / (sizes["whole"] - sizes["small"]) * 1e6
        base = base or marginal
        print(
            f"{name:16s} {cpu:8.1f} {median(u.wall_seconds for u in whole):8.1f} {max(u.peak_bytes for u in whole) / 2**20:8.0f} "
            f"{cpu / given.events * 1e6:9.1f} {marginal:9.1f} {base / marginal:6.2f}"
        )
    if len(set(accepted.values())) > 1:
        print(f"the runs accept different numbers of events: {accepted}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
