"""Where the time of a stream goes: CPU per event of every stage, in one process, without a runner or a broker.

    python -m benchmarks.stream_stages [--events 204000] [--poll-rows 4250] [--polls-a-bundle 2] [--shards 16] [--profile FILE]

The stages are those of the pipeline (``headrace.pipelines.streaming``) with state in memory and messages passed on as bytes: what a
runner adds is left out. Simulated events; user and system time.
"""

import argparse
import cProfile
import json
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from headrace.connectors.commit_stream import StreamCommitter
from headrace.connectors.raw_blocks import BlockBuilder
from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.connectors.stream_source import Poll, Read
from headrace.pipelines.build_definition import build_definition
from headrace.pipelines.stream_config import StreamConfig
from headrace.pipelines.streaming.commit_fn import CommitFn
from headrace.pipelines.streaming.read_fn import TICK, ReadFn
from headrace.pipelines.streaming.shard_fn import ShardFn
from headrace.pipelines.streaming.start import settings_of
from headrace.pipelines.streaming.stream_task import StreamTask
from headrace.pipelines.streaming.window_fn import WindowFn
from headrace.simulator.simulate import simulate
from headrace.transforms.coders import register_coders
from headrace.transforms.shard_state import MemoryState

ORIGIN = "bench/0"
RATE = 17_000
"""Events per second that the clock of the commits goes by."""


@dataclass(frozen=True)
class MemorySource:
    """Records in memory, one partition; a poll takes ``poll_rows`` of them."""

    records: Sequence[bytes]
    poll_rows: int
    ingest_time: datetime
    format: str = "json"
    name: str = "memory"

    def check(self) -> None:
        pass

    def start(self, readers: int, resume: Mapping[str, int] | None = None) -> list[str]:
        return ["0"]

    def open(self, position: str) -> "MemoryReader":
        return MemoryReader(self, int(position))

    def acknowledge(self, receipts: Sequence[str]) -> None:
        pass


class MemoryReader:
    """Reads on from a position; the batches are made as a reader of lines makes them."""

    def __init__(self, source: MemorySource, position: int) -> None:
        self._source, self._at = source, position
        self._builder = BlockBuilder(ORIGIN, source.ingest_time)

    def poll(self, max_rows: int, timeout_seconds: float) -> Poll:
        records = self._source.records
        first = self._at
        self._at = last = min(len(records), first + min(max_rows, self._source.poll_rows))
        batch = self._builder.build(
            pa.array(records[first:last], pa.binary()), pa.array(range(first, last), pa.int64())
        )
        reads = (Read(ORIGIN, first, last, last - first),) if last > first else ()
        return Poll(batch, str(last), reads, {ORIGIN: len(records) - last})

    def close(self) -> None:
        pass


class Stage:
    """One DoFn over all its keys; CPU seconds and what it was sent are added up."""

    def __init__(self, name: str, fn: Any) -> None:
        self.name, self._fn = name, fn
        self._states: dict[int, MemoryState] = defaultdict(MemoryState)
        fn.setup()
        self.reset()

    def reset(self) -> None:
        """Forgets what was measured: the first bundle imports and compiles."""
        self.seconds = 0.0
        self.elements = self.bytes = 0

    def bundle(self, elements: Sequence[tuple[int, bytes]]) -> tuple[list[Any], list[Any]]:
        """Runs one bundle; returns (main outputs, entries for the commit stage)."""
        self.elements += len(elements)
        self.bytes += sum(len(value) for _, value in elements)
        began = time.process_time()
        out: list[Any] = []
        self._fn.start_bundle()
        for key, value in elements:
            out.extend(self._fn.handle(key, value, self._states[key]))
        finish = getattr(self._fn, "finish_bundle", None)
        last = list(finish() or ()) if finish is not None else []
        self.seconds += time.process_time() - began
        main: list[Any] = []
        commit: list[Any] = []
        for each in out:
            (commit if isinstance(each, TaggedOutput) else main).append(getattr(each, "value", each))
        for each in last:
            (commit if isinstance(each, TaggedOutput) else main).append(
                each.value.value if isinstance(each, TaggedOutput) else each.value
            )
        return main, commit


def make_task(output: Path, source: MemorySource, config: StreamConfig) -> StreamTask:
    """Returns what the stages need for one reader and one run that ends with the source."""
    return StreamTask(
        output=str(output),
        number=0,
        job="bench",
        run="bench",
        source=source,
        positions=tuple(source.start(1)),
        definition=build_definition(config),
        mapping=None,
        until_us=round(source.ingest_time.timestamp() * 1e6) + 1,
        **settings_of(config)
        # A poll that is not full ends the reader's turn, and the next follows at once.
        | {"poll_rows": source.poll_rows + 1, "poll_seconds": 0.0},
    )


def run(task: StreamTask, polls_a_bundle: int, profiler: cProfile.Profile | None = None) -> list[Stage]:
    """Drives the stages until the source is read to its end and committed; the first bundle is not counted."""
    read = Stage("read", ReadFn(task))
    shard, windows = Stage("shard", ShardFn(task)), Stage("windows", WindowFn(task))
    clock = [task.until_us or 0]
    commit = Stage("commit", CommitFn(task, clock=lambda: clock[0]))
    stages = [read, shard, windows, commit]
    StreamCommitter(task.output, app_id=task.job, lake_schema=task.definition.lake_schema()).prepare()
    ended = warm = False
    while not ended:
        entries: list[Any] = []
        messages: list[tuple[int, bytes]] = []
        for _ in range(polls_a_bundle):
            sent, told = read.bundle([(0, b"")])
            messages += sent
            entries += told
            ended = not any(len(value) > 100 for _, value in sent)
            clock[0] += round(task.poll_rows / RATE * 1e6)
        partials: list[tuple[int, bytes]] = []
        for half in (0, 1):
            # A runner with two slots works on half of the keys in each.
            sent, told = shard.bundle([m for m in messages if m[0] % 2 == half])
            partials += sent
            entries += told
        for half in (0, 1):
            sent, _ = windows.bundle([m for m in partials if m[0] % 2 == half])
            entries += sent
        commit.bundle(entries)
        if not warm:
            warm = True
            for stage in stages:
                stage.reset()
            if profiler is not None:
                profiler.enable()
    clock[0] += task.commit_us
    commit.bundle([(0, TICK)])
    if profiler is not None:
        profiler.disable()
    return stages


def table(events: int, stages: Sequence[Stage]) -> str:
    """Returns CPU, messages and bytes of each stage."""
    total = sum(stage.seconds for stage in stages)
    lines = [f"{'stage':<10}{'µs/event':>10}{'share':>8}{'messages':>10}{'bytes each':>12}{'ms each':>9}"]
    for stage in stages:
        each = max(1, stage.elements)
        lines.append(
            f"{stage.name:<10}{stage.seconds / events * 1e6:>10.2f}{stage.seconds / total:>8.0%}{stage.elements:>10,}"
            f"{stage.bytes / each:>12,.0f}{stage.seconds / each * 1e3:>9.2f}"
        )
    lines.append(f"{'all':<10}{total / events * 1e6:>10.2f}{1:>8.0%}")
    return "\n".join(lines)


def simulated(events: int, seed: int, now: datetime, span: timedelta) -> Iterator[bytes]:
    """Yields lines of events whose times end about now."""
    for chunk in simulate(events, seed=seed, start=now - span, span=span):
        yield from chunk.splitlines()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.stream_stages", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--events", type=int, default=204_000)
    parser.add_argument("--poll-rows", type=int, default=4250, help="default: a quarter second at 17,000/s")
    parser.add_argument("--polls-a-bundle", type=int, default=2)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--window-shards", type=int, default=2)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--profile", help="file for cProfile's figures, as `python -m pstats` reads them")
    parser.add_argument("--json", action="store_true", help="print µs/event by stage as JSON")
    given = parser.parse_args(arguments)
    register_coders()
    now = datetime.now(UTC)
    records = list(simulated(given.events, given.seed, now, timedelta(seconds=given.events / RATE)))
    source = MemorySource(records, given.poll_rows, now)
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="headrace-stages-"))
        stack.callback(shutil.rmtree, folder)
        config = StreamConfig(
            source="memory",
            output=str(folder / "out"),
            shards=given.shards,
            window_shards=given.window_shards,
            key_file=str(folder / "key"),
        )
        (folder / "key").write_bytes(b"")
        (folder / "key").unlink()
        from headrace.transforms.keys import Key

        Key(config.key_file or "", create=True)
        task = make_task(folder / "out", source, config)
        profiler = cProfile.Profile() if given.profile else None
        stages = run(task, given.polls_a_bundle, profiler)
        if profiler is not None:
            profiler.dump_stats(given.profile)
        totals = read_stream_ledger(folder / "out", positions=False)
    counted = len(records) - given.poll_rows * given.polls_a_bundle  # The first bundle warms up.
    if given.json:
        print(json.dumps({stage.name: round(stage.seconds / counted * 1e6, 2) for stage in stages}))
    else:
        print(table(counted, stages))
        print(f"{totals.rows_in:,} read, {totals.accepted:,} accepted, balanced: {totals.balanced}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
