"""Produces events of which it is known what has to become of them, and writes down which record holds which.

Run as a program of its own, so that a fault of the stream does not touch it::

    python -m tests.chaos.producer BROKER TOPIC MANIFEST --events 100000 --rate 3000 --seed 7

The manifest is a CSV file with one line for each record that the broker has acknowledged:
``partition,offset,kind,event_id,cents``. SIGTERM ends it early; it exits with 0 only if every record was acknowledged.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
import uuid
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

EVENT, LATE, DUPLICATE, CONFLICT = "event", "late", "duplicate", "conflict"
UNPARSABLE, INVALID, STALE = "unparsable", "invalid", "stale"
KINDS = {EVENT: 955, DUPLICATE: 25, UNPARSABLE: 4, INVALID: 4, CONFLICT: 4, STALE: 4, LATE: 4}
"""How many of a thousand records are of a kind."""
REFUSED = (UNPARSABLE, INVALID, STALE)
"""Kinds that never get into the lake."""
LATE_BY = timedelta(minutes=10)
REMEMBERED = 50_000
"""Duplicates and conflicts are of one of so many events before."""
PROGRESS_SECONDS = 0.3

_PAGES = ("home", "cart", "search", "c/books", "c/garden")
_TYPES = ("page_view", "page_view", "page_view", "purchase")


class Events:
    """Makes records; the same ones for a seed and times, but for the ids of the run's start.

    Args:
        seed: decides everything but the times.
    """

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._kinds = list(KINDS)
        self._weights = list(KINDS.values())
        self._made: deque[tuple[str, bytes, int]] = deque(maxlen=REMEMBERED)
        self._number = 0

    def next(self, now: datetime) -> tuple[str, str, int, bytes]:
        """Returns kind, event id, cents and record."""
        chance = self._chance
        self._number += 1
        [kind] = chance.choices(self._kinds, self._weights)
        if kind in (DUPLICATE, CONFLICT) and self._made:
            id_, record, cents = chance.choice(self._made)
            if kind == CONFLICT:
                document = json.loads(record)
                document["user"]["session_id"] = f"other-{self._number}"
                record = json.dumps(document).encode()
            return kind, id_, cents, record
        if kind in (DUPLICATE, CONFLICT):
            kind = EVENT
        id_ = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        time_ = now - (LATE_BY if kind == LATE else timedelta(hours=30) if kind == STALE else timedelta())
        user = f"late-{self._number}" if kind == LATE else f"user-{chance.randrange(20_000)}"
        cents = 0
        properties: dict[str, Any] = {"page_url": f"https://shop.example/{chance.choice(_PAGES)}"}
        type_ = chance.choice(_TYPES)
        if type_ == "purchase":
            cents = chance.randrange(100, 90_000)
            properties |= {
                "product_id": f"P-{chance.randrange(500)}",
                "quantity": 1,
                "price": cents / 100,
                "amount": cents / 100,
                "currency": chance.choice(("EUR", "USD")),
                "order_id": f"o-{self._number}",
            }
        document = {
            "metadata": {
                "event_id": id_,
                "timestamp": time_.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "version": "1.0.0",
                "source": "chaos",
            },
            "user": {"id": user, "session_id": f"s-{chance.randrange(50_000)}"},
            "context": {"device_type": "desktop", "platform": "web", "ip_address": "87.140.165.76"},
            "payload": {"event_type": type_, "properties": properties},
        }
        if kind == INVALID:
            document["payload"] = {"event_type": 7}
        record = json.dumps(document).encode()
        if kind == UNPARSABLE:
            record = record[: len(record) // 2]
        if kind == EVENT:
            self._made.append((id_, record, cents))
        return kind, id_, cents, record


def make_topic(broker: str, topic: str, partitions: int) -> None:
    """Makes a topic that stamps its records itself and keeps them."""
    settings = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"}
    new = NewTopic(topic, num_partitions=partitions, replication_factor=1, config=settings)
    client = AdminClient({"bootstrap.servers": broker})
    for future in client.create_topics([new]).values():
        future.result(30)


def produce(
    broker: str, topic: str, manifest: Path, *, events: int, rate: float, seed: int, partitions: int
) -> int:
    """Produces until all events are out or SIGTERM; returns how many records were not acknowledged."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    client = Producer(
        {
            "bootstrap.servers": broker,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 20,
            "message.timeout.ms": 900_000,
            "queue.buffering.max.messages": 2_000_000,
            "queue.buffering.max.kbytes": 2_000_000,
            "reconnect.backoff.max.ms": 1000,
            "log_level": 0,
        }
    )
    source = Events(seed)
    acknowledged = failed = sent = 0
    with manifest.open("w", buffering=1 << 16) as file:

        def note(error: Any, message: Any, kind: str, id_: str, cents: int) -> None:
            nonlocal acknowledged, failed
            if error is not None:
                failed += 1
                print(f"not acknowledged: {error}", file=sys.stderr)
                return
            acknowledged += 1
            file.write(f"{message.partition()},{message.offset()},{kind},{id_},{cents}\n")

        began = time.monotonic()
        told = 0.0
        while sent < events and not stopped:
            due = min(events, int((time.monotonic() - began) * rate) + 1)
            while sent < due:
                kind, id_, cents, record = source.next(datetime.now(UTC))
                client.produce(
                    topic,
                    record,
                    partition=sent % partitions,
                    on_delivery=lambda error, message, k=kind, i=id_, c=cents: note(error, message, k, i, c),
                )
                sent += 1
                if sent % 500 == 0:
                    client.poll(0)
            client.poll(0.01)
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                _tell(manifest, acknowledged)
        left = client.flush(300)
    _tell(manifest, acknowledged)
    print(f"sent {sent}, acknowledged {acknowledged}, failed {failed}, unknown {left}")
    return failed + left


def acknowledged_of(manifest: Path) -> int:
    """Returns how many records a running producer knows to be in the topic."""
    try:
        return int(_progress(manifest).read_text())
    except FileNotFoundError:
        return 0


def _tell(manifest: Path, acknowledged: int) -> None:
    aside = _progress(manifest).with_suffix(".new")
    aside.write_text(str(acknowledged))
    os.replace(aside, _progress(manifest))


def _progress(manifest: Path) -> Path:
    return manifest.with_suffix(".count")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("broker")
    parser.add_argument("topic")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=3000.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--partitions", type=int, default=4)
    given = parser.parse_args()
    lost = produce(
        given.broker,
        given.topic,
        given.manifest,
        events=given.events,
        rate=given.rate,
        seed=given.seed,
        partitions=given.partitions,
    )
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
