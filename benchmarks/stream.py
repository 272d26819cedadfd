"""A stream at a rate, on a real runner: sustained events a second, lag, latency from broker to query, CPU and memory by process.

    python -m benchmarks.stream [--runner prism|flink] [--rate 17000] [--seconds 60] [--burst FACTOR]
        [--set NAME=VALUE …] [--option=--parallelism=2 …] [--work FOLDER] [--json FILE]

Starts a Kafka and the runner of its own, simulates the events before the clock starts, writes them at the rate to four partitions
(``LogAppendTime``), runs ``headrace run stream`` as a user would, ends it with SIGTERM, and reads the figures from what it left. A
row counts as queryable from the moment at which the entry of its Delta version is in the log. It begins with a quarter of the rate
until everything is warm, which is not counted.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.stream_figures import (
    Checkpoint,
    Figures,
    checkpoint_figures,
    costs,
    lag,
    latencies,
    ledger_series,
    percentiles,
    rate,
    reached,
    report,
    worked_off,
)
from benchmarks.stream_processes import Sampler, Usage, slope
from benchmarks.stream_producer import Burst, due
from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.runners.servers.flink import FlinkCluster
from headrace.runners.servers.kafka import KafkaServer
from headrace.runners.servers.server import Server
from headrace.simulator.simulate import simulate

PARTITIONS = 4
WARM_SECONDS, WARM_SHARE = 40.0, 0.25
"""At first so much of the rate is written, for so long, until all workers have started and Java has compiled what it runs."""
SETTLE_SECONDS = 10.0
"""After that; not counted either."""
START_SECONDS = 300.0
DRAIN_SECONDS = 360.0
BURST_SECONDS = 5.0
_HEADRACE = (sys.executable, "-c", "from headrace.pipelines.cli import main; main() # headrace.pipelines.cli")


class StreamFailedError(Exception):
    """The stream or the producer ended as it should not; the message has the end of its output."""


def simulate_lines(path: Path, events: int, seed: int, span: timedelta) -> None:
    """Writes events whose times begin now."""
    with open(path, "wb") as file:
        for chunk in simulate(events, seed=seed, start=datetime.now(UTC), span=span):
            file.write(chunk)


def make_topic(broker: str, topic: str) -> None:
    from confluent_kafka.admin import AdminClient, NewTopic

    settings = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"}
    new = NewTopic(topic, num_partitions=PARTITIONS, replication_factor=1, config=settings)
    admin = AdminClient({"bootstrap.servers": broker})
    for future in admin.create_topics([new]).values():
        future.result()


class CheckpointSampler:
    """Notes each checkpoint that a cluster's only job completes, in a thread of its own."""

    def __init__(self, flink: FlinkCluster) -> None:
        self._flink = flink
        self.found: list[Checkpoint] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            with suppress(
                OSError
            ):  # The cluster is busy: the next look sees the same checkpoint, or a later one.
                self._look()

    def _look(self) -> None:
        for job in self._flink.rest("/jobs/overview")["jobs"]:
            told = self._flink.rest(f"/jobs/{job['jid']}/checkpoints")["latest"]["completed"]
            if told is None or (self.found and self.found[-1].number == told["id"]):
                continue
            metadata = self._flink.checkpoints_dir / job["jid"] / f"chk-{told['id']}" / "_metadata"
            self.found.append(
                Checkpoint(
                    told["trigger_timestamp"] / 1e3,
                    told["id"],
                    told["state_size"],
                    metadata.stat().st_size,
                    told["end_to_end_duration"] / 1e3,
                )
            )


class Bench:
    """One run.

    Args:
        work: folder for servers, events and output.
        settings: of the stream's configuration.
        options: passed on to the runner.
    """

    def __init__(
        self, work: Path, runner: str, settings: dict[str, Any], options: Sequence[str], *, sdk_workers: int
    ) -> None:
        self._work, self._runner = work, runner
        self._settings, self._options = settings, list(options)
        self._sdk_workers = sdk_workers
        self._out = work / "out"
        self._sampler = Sampler()
        self._checkpoints: CheckpointSampler | None = None

    def run(self, rate_: float, events: int, burst: Burst | None, seed: int) -> Figures:
        lines = self._work / "events.jsonl"
        simulate_lines(lines, events, seed, timedelta(seconds=events / rate_))
        bursts = [Burst(0, WARM_SECONDS, WARM_SHARE), *([burst] if burst is not None else [])]
        with ExitStack() as stack:
            kafka = KafkaServer(self._work / "cluster")
            broker = str(stack.enter_context(self._up(kafka)))
            topic = f"bench-{secrets.token_hex(4)}"
            make_topic(broker, topic)
            flags = self._flags(stack)
            self._sampler.start()
            stack.callback(self._stop_sampler)
            stream = stack.enter_context(self._stream(f"kafka://{broker}/{topic}", flags))
            notes = self._work / "produced.jsonl"
            self._produce(stream, broker, topic, lines, rate_, bursts, notes)
            produced = [(t, n) for t, n in map(json.loads, notes.read_text().splitlines())]
            self._await_committed(stream, produced[-1][1])
            self._drain(stream)
        usage = self._sampler.usage
        checkpoints = self._checkpoints.found if self._checkpoints is not None else []
        return figures(self._out, self._runner, produced, usage, rate_, burst, checkpoints)

    def _stop_sampler(self) -> None:
        self._sampler.stop()

    @contextmanager
    def _up(self, server: Server) -> Iterator[object]:
        """Starts a server, has its processes watched, and takes it down in the end."""
        try:
            address = server.up()
            for pid in server.status().pids.values():
                self._sampler.add(pid)
            yield address
        finally:
            server.down()

    def _flags(self, stack: ExitStack) -> list[str]:
        if self._runner == "prism":
            return ["--runner", "prism"]
        flink = FlinkCluster(self._work / "cluster", slots=2, worker_pool=True)
        stack.enter_context(self._up(flink))
        self._checkpoints = CheckpointSampler(flink)
        stack.callback(self._checkpoints.stop)
        return [
            *("--runner", "flink", f"--job_endpoint={flink.job_endpoint}", f"--flink-rest={flink.rest_url}"),
            *("--environment_type=EXTERNAL", f"--environment_config={flink.worker_pool_address}"),
            *("--shared-paths", "--parallelism=2", f"--sdk_worker_parallelism={self._sdk_workers}"),
        ]

    @contextmanager
    def _stream(self, source: str, flags: list[str]) -> "Iterator[subprocess.Popen[bytes]]":
        key, config = self._work / "key", self._work / "stream.json"
        subprocess.run([*_HEADRACE, "key", "create", str(key)], check=True, stdout=subprocess.DEVNULL)
        config.write_text(json.dumps(self._settings))
        command = [
            *_HEADRACE,
            *("run", "stream", "--source", source, "--output", str(self._out), "--key-file", str(key)),
            *("--config", str(config), "--json", *flags, *self._options),
        ]
        with open(self._work / "stream.log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            self._sampler.add(process.pid)
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()

    def _produce(
        self,
        stream: "subprocess.Popen[bytes]",
        broker: str,
        topic: str,
        lines: Path,
        rate_: float,
        bursts: Sequence[Burst],
        notes: Path,
    ) -> None:
        self._await_start(stream)
        command = [
            *(sys.executable, "-m", "benchmarks.stream_producer", "--broker", broker, "--topic", topic),
            *("--input", str(lines), "--rate", str(rate_), "--log", str(notes)),
            *("--partitions", str(PARTITIONS)),
        ]
        for burst in bursts:
            command += ["--burst", f"{burst.at_seconds}:{burst.seconds}:{burst.factor}"]
        producer = subprocess.Popen(command)
        self._sampler.add(producer.pid)
        try:
            while producer.poll() is None:
                self._require_alive(stream)
                time.sleep(0.5)
        finally:
            if producer.poll() is None:
                producer.kill()
                producer.wait()
        if producer.returncode:
            raise StreamFailedError("the producer failed")

    def _await_start(self, stream: "subprocess.Popen[bytes]") -> None:
        """Returns once the first reader has polled: the job runs."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self._require_alive(stream)
            if (self._out / "ledger" / "_delta_log" / f"{1:020d}.json").exists():
                return
            time.sleep(0.2)
        raise StreamFailedError(
            f"nothing was committed {START_SECONDS:.0f} s after the start\n{self._tail()}"
        )

    def _await_committed(self, stream: "subprocess.Popen[bytes]", events: int) -> None:
        """Returns once all events are committed, or after a time: a stream that is told to end reads no further."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline:
            self._require_alive(stream)
            if read_stream_ledger(self._out, positions=False).rows_in >= events:
                return
            time.sleep(1.0)

    def _drain(self, stream: "subprocess.Popen[bytes]") -> None:
        stream.send_signal(signal.SIGTERM)
        try:
            stream.wait(DRAIN_SECONDS)
        except subprocess.TimeoutExpired:
            raise StreamFailedError(f"the stream did not end {DRAIN_SECONDS:.0f} s after SIGTERM") from None
        if stream.returncode:
            raise StreamFailedError(f"exit code {stream.returncode}\n{self._tail()}")

    def _require_alive(self, stream: "subprocess.Popen[bytes]") -> None:
        if stream.poll() is not None:
            raise StreamFailedError(f"the stream ended with code {stream.returncode}\n{self._tail()}")

    def _tail(self) -> str:
        return (self._work / "stream.log").read_text(errors="replace")[-3000:]


def figures(
    out: Path,
    runner: str,
    produced: Sequence[tuple[float, int]],
    usage: Usage,
    wanted: float,
    burst: Burst | None,
    checkpoints: Sequence[Checkpoint] = (),
) -> Figures:
    """Reads a run's figures; its steady part is what is left without the beginning, the burst and what follows it."""
    committed = ledger_series(out)
    began, ended = produced[0][0], produced[-1][0]
    first, last = began + WARM_SECONDS + SETTLE_SECONDS, ended
    lags = lag(produced, committed, [began + i for i in range(int(ended - began) + 60)])
    told: dict[str, float | None] = {}
    if burst is not None:
        last = began + burst.at_seconds
        over = last + burst.seconds
        usual = median(n for t, n in lags if first <= t <= last) * 1.5
        told = {
            "events a second": wanted * burst.factor,
            "seconds": burst.seconds,
            "largest lag": max(n for t, n in lags if t >= last),
            "worked off after seconds": worked_off(lags, over, usual),
        }
    steady = [point for point in lags if first <= point[0] <= last]
    seconds, gone = latencies(out / "events", first, last - 1)
    totals = read_stream_ledger(out, positions=False)
    return Figures(
        runner=runner,
        produced=produced[-1][1],
        committed=reached(committed, float("inf")),
        accepted=totals.accepted,
        balanced=totals.balanced,
        wanted_rate=wanted,
        rate=round(rate(committed, first, last), 1),
        lag_median=round(median(n for _, n in steady)) if steady else 0,
        lag_slope=round(slope([t for t, _ in steady], [n for _, n in steady]), 1) if steady else 0.0,
        latency=percentiles(seconds),
        cpu=costs(usage, committed, first, last),
        memory={name: usage.memory(name, first, last) for name in usage.samples},
        burst=told,
        files_gone=gone,
        checkpoints=checkpoint_figures([c for c in checkpoints if first <= c.at <= last]),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.stream", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runner", choices=("prism", "flink"), default="prism")
    parser.add_argument("--rate", type=float, default=17_000)
    parser.add_argument("--seconds", type=float, default=60, help="at the full rate, after the beginning")
    parser.add_argument("--burst", type=float, metavar="FACTOR", help="for 5 s, after two fifths of the time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sdk-workers", type=int, default=1, help="Python worker processes (flink)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of the stream")
    parser.add_argument("--option", action="append", default=[], help="passed on to the runner")
    parser.add_argument("--work", type=Path, default=Path("build/bench-stream"))
    parser.add_argument("--keep", action="store_true", help="leave output and logs in the work folder")
    parser.add_argument("--json", type=Path, help="file that the figures are appended to, a line a run")
    given = parser.parse_args(arguments)
    settings = {}
    for pair in given.set:
        name, _, value = pair.partition("=")
        settings[name] = json.loads(value)
    seconds = given.seconds + WARM_SECONDS + SETTLE_SECONDS
    burst = Burst(seconds - 0.6 * given.seconds, BURST_SECONDS, given.burst) if given.burst else None
    events = due(seconds, given.rate, [Burst(0, WARM_SECONDS, WARM_SHARE), *([burst] if burst else [])])
    work = given.work.absolute() / f"{given.runner}-{os.getpid()}"
    work.mkdir(parents=True)
    try:
        bench = Bench(work, given.runner, settings, given.option, sdk_workers=given.sdk_workers)
        found = bench.run(given.rate, events, burst, given.seed)
    except StreamFailedError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        if not given.keep:
            shutil.rmtree(work, ignore_errors=True)
    print(report(found))
    if given.json:
        with open(given.json, "a") as file:
            file.write(json.dumps({"arguments": sys.argv[1:], **found.as_json()}) + "\n")
    return 0 if found.balanced and found.committed == found.produced else 1


if __name__ == "__main__":
    sys.exit(main())
