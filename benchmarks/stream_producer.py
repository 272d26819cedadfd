"""Writes lines of a file to a Kafka topic at a rate, and notes when how many were written.

    python -m benchmarks.stream_producer --broker HOST:PORT --topic T --input FILE --rate 17000 --log FILE
        [--burst AT:SECONDS:FACTOR …]

It imports no pyarrow and no Beam, so that it takes little of the machine that is measured.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

_STEP_SECONDS = 0.02
_NOTE_SECONDS = 0.5


@dataclass(frozen=True)
class Burst:
    """A time of a higher or a lower rate."""

    at_seconds: float
    seconds: float
    factor: float

    @classmethod
    def parse(cls, text: str) -> "Burst":
        """Reads ``AT:SECONDS:FACTOR``.

        Raises:
            ValueError: it is something else, or a number is not above zero.
        """
        at, seconds, factor = (float(part) for part in text.split(":"))
        if at < 0 or seconds <= 0 or factor <= 0:
            raise ValueError(f"burst {text!r}: give AT:SECONDS:FACTOR, all above zero")
        return cls(at, seconds, factor)


def due(elapsed: float, rate: float, bursts: Iterable[Burst] = ()) -> int:
    """Returns how many records should be written after so many seconds. Bursts don't overlap."""
    extra = 0.0
    for burst in bursts:
        inside = min(max(0.0, elapsed - burst.at_seconds), burst.seconds)
        extra += inside * rate * (burst.factor - 1)
    return int(elapsed * rate + extra)


def produce(
    lines: Iterable[bytes],
    send: Callable[[int, bytes], None],
    rate: float,
    bursts: Sequence[Burst],
    *,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[float, int]]:
    """Sends the lines at the rate; yields (time, records sent) now and then, and at the end.

    Args:
        send: gets the number of a record and its line.
    """
    began = noted = clock()
    iterator = iter(lines)
    sent = 0
    while True:
        wanted = due(clock() - began, rate, bursts) - sent
        chunk = list(islice(iterator, max(0, wanted)))
        for line in chunk:
            send(sent, line)
            sent += 1
        now = clock()
        if len(chunk) < wanted:
            yield now, sent
            return
        if now - noted >= _NOTE_SECONDS:
            noted = now
            yield now, sent
        sleep(_STEP_SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.stream_producer", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--broker", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--burst", type=Burst.parse, action="append", default=[])
    parser.add_argument("--log", type=Path, required=True, help="gets a JSON line [time, records] at a time")
    given = parser.parse_args(arguments)
    from confluent_kafka import Producer

    producer = Producer(
        {
            "bootstrap.servers": given.broker,
            "linger.ms": 20,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 1_000_000,
            "acks": "all",
        }
    )
    failed: list[str] = []

    def delivered(error: Any, _: Any) -> None:
        if error is not None:
            failed.append(str(error))

    def send(number: int, line: bytes) -> None:
        while True:
            try:
                producer.produce(
                    given.topic, line, partition=number % given.partitions, on_delivery=delivered
                )
                break
            except BufferError:
                producer.poll(0.05)
        if number % 1000 == 0:
            producer.poll(0)

    with open(given.input, "rb") as file, open(given.log, "w") as log:
        for now, sent in produce((line.rstrip(b"\n") for line in file), send, given.rate, given.burst):
            log.write(json.dumps([now, sent]) + "\n")
            log.flush()
        producer.flush()
    if failed:
        print(f"{len(failed)} records were not delivered: {failed[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
