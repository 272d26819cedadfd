"""Where the time goes: CPU per event of every step of the batch pipeline, in one process, without Beam.

    python -m benchmarks.kernels --input FILE --now T [--repeat 3]

The steps and their order are those of the pipeline (``headrace.pipelines.definition``), on one split of the file: read → the
kernels before the shuffle → hash records → stage file; verdicts → stage file read back → the kernels after it → lake files →
window partials. Rejected rows are written to quarantine files. Every cost is divided by the events read, not by the rows that reach
the step, so the column adds up.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from headrace.connectors.inputs import plan_inputs
from headrace.connectors.read_split import read_split
from headrace.connectors.stage import StageWriter, read_stage
from headrace.connectors.write_lake import PartitionedWriter
from headrace.connectors.write_quarantine import QuarantineWriter
from headrace.pipelines.definition import MASKED_STAGES, Definition
from headrace.pipelines.pane_partials import PanePartials
from headrace.transforms.base import Kernel
from headrace.transforms.dedupe_records import (
    by_shard,
    hash_records,
    pack,
    resolve,
    settle,
    unpack,
    unpack_records,
)
from headrace.transforms.filter_events import BUSINESS_RULES
from headrace.transforms.keys import Key
from headrace.transforms.window_partials import finish

T = TypeVar("T")

SHARDS = 64


class Steps:
    """CPU seconds by step, in order of first use."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Any, *arguments: Any) -> Any:
        """Calls ``work`` and books what it took."""
        start = time.process_time()
        result = work(*arguments)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
        return result

    def over(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yields the items and books what making each of them took."""
        iterator = iter(items)
        done = object()
        while (item := self(name, next, iterator, done)) is not done:
            yield item


def profile(source: str, now: datetime, work: Path) -> tuple[int, dict[str, float], Counter[str]]:
    """Runs all steps once on a file of JSON lines.

    Args:
        work: folder for the files that the steps write.

    Returns:
        (events read, CPU seconds by step, rows rejected by stage).
    """
    steps = Steps()
    rejected: Counter[str] = Counter()
    definition = Definition(Key(str(work / "key"), create=True), rules=dict(BUSINESS_RULES))
    plan = plan_inputs([source], format=None, split_bytes=1 << 40)
    quarantine = QuarantineWriter(str(work / "quarantine"), "bench", masked_stages=MASKED_STAGES)

    def run(kernels: Sequence[Kernel], batch: pa.RecordBatch) -> pa.RecordBatch:
        for kernel in kernels:
            batch, rejects = steps(kernel.name, kernel, batch)
            reject(kernel.name, rejects)
        return batch

    def reject(stage: str, rows: pa.RecordBatch) -> None:
        rejected[stage] += rows.num_rows
        steps("quarantine write", quarantine.write, rows)

    events = 0
    records = []
    stage = StageWriter(work / "stage.arrows")
    kernels = steps("set-up", definition.before_dedupe, plan.splits[0].format if plan.splits else "jsonl")
    for split in plan.splits:
        for block in steps.over("read", read_split(split, ingest_time=now)):
            events += block.records
            batch = run(kernels, block.raw)
            records.append(steps("dedupe hash", hash_records, batch, split.index, stage.rows))
            steps("stage write", stage.write, batch)
    steps("stage write", stage.close)

    verdicts = steps("dedupe verdicts", _verdicts, records)
    kernels = steps("set-up", definition.after_dedupe)
    lake = PartitionedWriter(str(work / "events"), partition="event_date", name="bench")
    windows = PanePartials(definition)
    row = 0
    for staged in steps.over("stage read", read_stage(work / "stage.arrows")):
        batch, losers = steps("dedupe settle", settle, staged, verdicts, row)
        reject("dedupe", losers)
        row += staged.num_rows
        batch = run(kernels, batch)
        steps("lake write", lake.write, batch)
        steps("windows", windows.add, batch)
    steps("lake write", lake.close)
    steps("quarantine write", quarantine.close)
    panes = definition.shared_panes()
    for first, merged in steps.over("windows", windows.merged()):
        for name in panes[first]:
            steps("windows", finish, merged, definition.metrics[name])
    return events, steps.seconds, rejected


def _verdicts(records: list[Any]) -> Any:
    """Decides as the pipeline does: by shard, then brought back to the split."""
    packed = (part for _, part in by_shard(np.concatenate(records), SHARDS)) if records else ()
    return unpack(part for shard in packed for _, part in pack(resolve(unpack_records([shard]))))


def table(events: int, runs: Sequence[dict[str, float]]) -> str:
    """Returns the median of each step in µs per event and as a share of the whole; set-up is in seconds and apart."""
    names = [name for name in runs[0] if name != "set-up"]
    cost = {name: median(run[name] for run in runs) / events * 1e6 for name in names}
    total = sum(cost.values())
    lines = [f"{'step':<18}{'µs/event':>10}{'share':>8}"]
    lines += [f"{name:<18}{cost[name]:>10.2f}{cost[name] / total:>8.0%}" for name in names]
    lines.append(f"{'all':<18}{total:>10.2f}{1:>8.0%}")
    lines.append(
        f"\n{events:,} events; set-up {median(run['set-up'] for run in runs):.2f} s apart, once a process"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.kernels", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--input", required=True, help="a file of JSON lines, for example one that benchmarks.run simulated"
    )
    parser.add_argument("--now", type=datetime.fromisoformat, required=True, help="reference time")
    parser.add_argument("--repeat", type=int, default=3, help="runs, of which the median counts")
    given = parser.parse_args(arguments)
    runs = []
    for _ in range(given.repeat):
        with tempfile.TemporaryDirectory(prefix="headrace-kernels-") as folder:
            events, seconds, _ = profile(given.input, given.now, Path(folder))
        runs.append(seconds)
    print(table(events, runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
