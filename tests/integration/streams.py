"""Streams run as users run them, from the command line, and what they leave."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from deltalake import DeltaTable

from headrace.connectors.stream_ledger import StreamTotals, read_stream_ledger
from headrace.transforms.window_rows import latest_rows

COMMAND = [sys.executable, "-c", "from headrace.pipelines.cli import main; main()"]
RUN_SECONDS = 300
"""A stream that takes longer hangs; on a quiet machine none takes more than 40 s."""


class Command:
    """``headrace run stream`` in a process of its own.

    Args:
        folder: gets the log and holds the key.
    """

    def __init__(self, folder: Path, *arguments: object, **environment: str) -> None:
        self._log = folder / f"stream-{time.monotonic_ns()}.log"
        settings = os.environ | {"HEADRACE_KEY_FILE": str(folder / "key")} | environment
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "run", "stream", "--json", *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=log,
                env=settings,
                text=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait(self, seconds: float = RUN_SECONDS) -> dict[str, Any]:
        """Returns the summary of a stream that has ended well."""
        try:
            out, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise AssertionError(f"the stream has not ended after {seconds} s:\n{self.log[-6000:]}") from None
        assert self.process.returncode == 0, self.log[-6000:]
        summary: dict[str, Any] = json.loads(out)
        return summary

    def drain(self) -> dict[str, Any]:
        """Sends SIGTERM and returns the summary."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def until(self, reached: Callable[[], bool], seconds: float = RUN_SECONDS) -> None:
        """Waits for something that the running stream brings about."""
        end = time.monotonic() + seconds
        while not reached():
            assert self.process.poll() is None, self.log[-6000:]
            if time.monotonic() > end:
                self.process.kill()
                self.process.communicate()
                raise AssertionError(f"not reached after {seconds} s:\n{self.log[-6000:]}")
            time.sleep(0.2)


def totals(out: Path) -> StreamTotals:
    return read_stream_ledger(out)


def table(out: Path, name: str) -> pa.Table:
    return DeltaTable(str(out / name)).to_pyarrow_table()


def rows(out: Path, name: str, *but: str) -> list[dict[str, Any]]:
    """Returns the rows of a table in order of origin and position, without the columns ``but``."""
    found = table(out, name).sort_by([("origin", "ascending"), ("origin_position", "ascending")])
    return [{k: v for k, v in row.items() if k not in but} for row in found.to_pylist()]


def require_whole(out: Path, events: int) -> None:
    """Asserts that the ledger balances over so many events, that the tables hold what it says, and that no row is there twice."""
    found = totals(out)
    assert (found.rows_in, found.balanced, found.drained, found.in_flight) == (events, True, True, 0)
    accepted, rejected = table(out, "events"), table(out, "quarantine")
    assert accepted.num_rows == found.accepted
    reasons: dict[str, Counter[str]] = {}
    for stage, reason in zip(rejected["stage"].to_pylist(), rejected["reason"].to_pylist(), strict=True):
        reasons.setdefault(stage, Counter())[reason] += 1
    assert reasons == {
        k: {r: n for r, n in v.items() if n} for k, v in found.rejected.items() if any(v.values())
    }
    places = [
        place
        for each in (accepted, rejected)
        for place in zip(each["origin"].to_pylist(), each["origin_position"].to_pylist(), strict=True)
    ]
    assert len(set(places)) == len(places) == events
    ids = accepted["event_id"].to_pylist()
    assert len(set(ids)) == len(ids)


def require_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Asserts that the rows are the same, and otherwise says which columns of which differ."""
    assert len(found) == len(expected)
    differences = [
        {
            name: (mine.get(name), other.get(name))
            for name in mine | other
            if mine.get(name) != other.get(name)
        }
        for mine, other in zip(found, expected, strict=True)
        if mine != other
    ]
    assert not differences, f"{len(differences)} of {len(found)} rows differ, the first in {differences[0]}"


def windows(out: Path, name: str, measure: str, by: str) -> Counter[str]:
    """Sums a measure of the present rows of a window table and of its late rows, by a column."""
    found: Counter[str] = Counter()
    present = latest_rows(table(out, f"metrics/{name}"))
    for value, number in zip(present[by].to_pylist(), present[measure].to_pylist(), strict=True):
        found[value] += number
    return found


class Topics:
    """Topics of a broker."""

    def __init__(self, address: object) -> None:
        self.address = str(address)
        self._admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})

    def make(self, name: str, partitions: int = 1) -> str:
        """Makes a topic whose records get the broker's time; returns its address."""
        settings = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"}
        self._admin.create_topics([NewTopic(name, partitions, 1, config=settings)])[name].result(20)
        return f"kafka://{self.address}/{name}"

    def write(self, name: str, lines: Iterable[bytes], partitions: int = 1) -> None:
        producer = Producer({"bootstrap.servers": self.address, "acks": "all", "linger.ms": 5})
        for i, line in enumerate(lines):
            producer.produce(name, line, partition=i % partitions)
            if not i % 1000:
                producer.poll(0)
        assert producer.flush(20) == 0

    def read(self, name: str) -> list[tuple[str | None, dict[str, Any]]]:
        """Returns the key and the document of every record."""
        consumer = Consumer(
            {"bootstrap.servers": self.address, "group.id": "test", "enable.partition.eof": True}
        )
        consumer.assign([TopicPartition(name, 0, 0)])
        found = []
        try:
            while (message := consumer.poll(20)) is not None and message.error() is None:
                key = message.key()
                found.append((key.decode() if key else None, json.loads(message.value() or b"")))
        finally:
            consumer.close()
        return found
