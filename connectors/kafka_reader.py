"""Reading the partitions of one position of a Kafka topic, poll by poll."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import orjson
from confluent_kafka import KafkaError, Message, TopicPartition
from confluent_kafka.admin import OffsetSpec

from headrace.connectors.kafka_cluster import (
    LOG,
    UNKNOWN,
    UNTRUSTED,
    Clients,
    Cluster,
    NotNowError,
    denial,
    no_topic,
    not_let_in,
)
from headrace.connectors.kafka_options import KafkaSourceOptions
from headrace.connectors.kafka_partitions import KafkaPosition, Partition, aligned
from headrace.connectors.kafka_rows import Hand, check_append_time, raw_batch
from headrace.connectors.stream_source import Poll
from headrace.schemas.errors import InputError

REFRESH_SECONDS = 1.0
"""How long a poll waits for the topic's description; beyond its own time if need be."""
RETRY_SECONDS = 5.0
"""How long after a description that did not come a reader that reads already asks again."""
UNKNOWN_SECONDS = 30.0
"""How long a topic may be unknown (a broker that starts may not know it yet) until that counts."""
HANDSHAKE_SECONDS = 10.0
"""How long handshakes may fail (they do with a broker that dies) until the client counts as not let in."""
POLL_BYTES = 32 << 20
"""About how much one poll takes."""
_CHUNK = 512
_FIRST_BYTES = 1 << 19
_OUT_OF_RANGE = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
_DAMAGED = (KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError._NOT_IMPLEMENTED)


class KafkaReader:
    """Reads the partitions of one position. Connects with the first poll.

    Args:
        options: of the source.
        position: where to go on.
        clients: makes the clients.
        clock: seconds; for waiting, never for data.
    """

    def __init__(
        self,
        options: KafkaSourceOptions,
        position: KafkaPosition,
        *,
        clients: Clients | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._position = position
        self._clients = clients or Clients()
        self._clock = clock
        self._partitions = {
            p: Partition(p, offset, position.times.get(p)) for p, offset in position.next.items()
        }
        self._assigned: set[int] = set()
        self._acknowledged = dict(position.next)
        self._lost: set[int] = set()
        self._troubles: dict[str, float] = {}
        self._errors: list[KafkaError] = []
        self._refresh_at = float("-inf")
        self._average = float(_FIRST_BYTES)
        self._consumer: Any = None
        self._cluster: Cluster | None = None
        self.skipped: dict[str, int] = {}
        """Records that were skipped because they are gone or damaged, by origin."""

    def poll(self, max_rows: int, timeout_seconds: float) -> Poll:
        """Returns what the contract of ``Reader.poll`` says.

        Raises:
            InputError: the topic is gone, was made anew or has fewer partitions; records are no longer kept, damaged, or not
                stamped by the broker; access is denied.
        """
        deadline = self._clock() + timeout_seconds
        if self._consumer is None:
            settings = {**self._options.consumer_settings(), "error_cb": self._errors.append}
            self._consumer = self._clients.consumer(settings)
        if self._cluster is None:
            self._cluster = Cluster(self._options, self._clients, self._clock)
        if self._clock() >= self._refresh_at:
            self._refresh(self._cluster)
        if self._lost:
            self._recover(self._cluster)
        hand = self._take(max_rows, deadline)
        self._check_errors()
        return self._poll_of(hand, max_rows)

    def close(self) -> None:
        """Ends the connections; what was consumed and not returned is read again by the next reader."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = self._cluster = None

    def _poll_of(self, hand: Hand, max_rows: int) -> Poll:
        """Returns what may be returned of the records at hand and holds the rest."""
        allowed = aligned(self._partitions, hand.numbers, hand.times) if len(hand) else None
        if len(hand) > max_rows:
            allowed = np.ones(len(hand), bool) if allowed is None else allowed
            allowed &= np.cumsum(allowed) <= max_rows
        taken = hand if allowed is None else hand.pick(allowed)
        if self._options.ingest_time == "append":
            check_append_time(taken, self._options.name)
        batch, reads = raw_batch(taken, self._options.topic, self._options.max_record_bytes)
        for number in _present(taken):
            partition = self._partitions[number]
            latest = int(taken.times[taken.numbers == number].max())
            if latest >= 0:
                partition.time = latest if partition.time is None else max(latest, partition.time)
        self._hold(hand.pick(~allowed) if allowed is not None else Hand([]))
        position = KafkaPosition(
            self._position.reader,
            self._position.readers,
            self._position.topic_id,
            {p.number: p.next for p in self._partitions.values()},
            {p.number: p.time for p in self._partitions.values() if p.time is not None},
        )
        moved = {p: offset for p, offset in position.next.items() if offset != self._acknowledged.get(p, 0)}
        self._acknowledged |= moved
        receipt = orjson.dumps({str(p): offset for p, offset in moved.items()}).decode() if moved else ""
        behind = {f"{self._options.topic}/{p.number}": p.behind for p in self._partitions.values()}
        return Poll(batch, position.text(), reads, behind, receipt)

    def _hold(self, held: Hand) -> None:
        """Keeps records for later, and stops their partitions until they are returned."""
        for partition in self._partitions.values():
            partition.held = []
        for message, number in zip(held.messages, held.numbers.tolist(), strict=True):
            self._partitions[number].held.append(message)
        changed = [p for p in self._partitions.values() if p.paused != bool(p.held)]
        for partition in changed:
            partition.paused = not partition.paused
        if off := [self._at(p) for p in changed if p.paused]:
            self._consumer.pause(off)
        if on := [self._at(p) for p in changed if not p.paused]:
            self._consumer.resume(on)

    def _take(self, max_rows: int, deadline: float) -> Hand:
        """Returns the held records and new ones: many, or what comes in time."""
        found = [message for p in self._partitions.values() for message in p.held]
        size, fresh = 0, 0
        while True:
            want = int(max(min(_CHUNK, max_rows - len(found), POLL_BYTES // self._average), 1))
            got: list[Message] = self._consumer.consume(want, max(deadline - self._clock(), 0.0))
            complete = len(got) == want
            if any(error is not None for error in map(Message.error, got)):
                got = self._without_errors(got)
            found += got
            fresh += len(got)
            size += sum(map(len, got))
            self._average = max(size / fresh, 64.0) if fresh else self._average
            if not complete or len(found) >= max_rows or size >= POLL_BYTES or self._lost:
                break
        if fresh:
            self._troubles.pop("not let in", None)
        hand = Hand(found)
        self._move_on(hand)
        return hand

    def _move_on(self, hand: Hand) -> None:
        """Notes how far the broker has delivered, and where its ends are."""
        for number in _present(hand):
            last = int(np.flatnonzero(hand.numbers == number)[-1])
            partition = self._partitions[number]
            partition.consumed = max(partition.consumed, int(hand.messages[last].offset() or 0) + 1)
        for partition in self._partitions.values():
            if partition.number in self._assigned and partition.consumed != partition.at_end:
                _, end = self._consumer.get_watermark_offsets(self._at(partition), cached=True)
                if end >= 0:
                    partition.end = max(end, partition.end or 0)

    def _without_errors(self, messages: Iterable[Message]) -> list[Message]:
        """Handles the events among messages and returns the records."""
        records: list[Message] = []
        jumped: set[int | None] = set()
        for message in messages:
            error, number, offset = message.error(), message.partition(), message.offset()
            if number in jumped:
                continue  # It comes again after the jump.
            if error is None:
                records.append(message)
                continue
            partition = None if number is None else self._partitions.get(number)
            if partition is None or offset is None:
                self._errors.append(error)
            elif error.code() == KafkaError._PARTITION_EOF:
                partition.consumed = max(partition.consumed, offset)
                partition.at_end = offset
            elif error.code() in _OUT_OF_RANGE:
                self._lost.add(partition.number)
            elif error.code() in _DAMAGED:
                read = [(m.offset() or 0) + 1 for m in records if m.partition() == number]
                self._skip_damaged(partition, max(partition.consumed, offset, *read), error)
                jumped.add(number)
            else:
                self._errors.append(error)
        return records

    def _check_errors(self) -> None:
        """Raises what never passes, or has not passed for long; what may pass is logged by the client itself."""
        errors, self._errors[:] = list(self._errors), []
        for error in errors:
            if denied := denial(error, self._options.name):
                raise denied
            if error.code() in UNKNOWN:
                self._refresh_at = min(self._refresh_at, self._clock() + REFRESH_SECONDS)
            if error.code() in UNTRUSTED and self._persists("not let in", HANDSHAKE_SECONDS):
                raise not_let_in(error, self._options.name)

    def _persists(self, trouble: str, seconds: float) -> bool:
        """Notes trouble; true once it has lasted too long."""
        return self._clock() - self._troubles.setdefault(trouble, self._clock()) >= seconds

    def _refresh(self, cluster: Cluster) -> None:
        """Asks for the topic's partitions and ends; takes up what is new. No answer: a later poll asks again."""
        name = self._options.name
        try:
            topic = cluster.topic(REFRESH_SECONDS)
        except LookupError:
            if self._persists("no topic", UNKNOWN_SECONDS):
                raise no_topic(name) from None
            self._refresh_at = self._clock() + REFRESH_SECONDS
            return
        except NotNowError as error:
            LOG.debug("%s: %s", name, error)
            self._refresh_at = self._clock() + (RETRY_SECONDS if self._assigned else 0.0)
            return
        self._troubles.clear()
        if topic.id and self._position.topic_id and topic.id != self._position.topic_id:
            raise InputError(
                f"{name}: the topic was deleted and made anew, so its offsets mean other records; write its events to a new output"
            )
        if gone := sorted(set(self._partitions) - set(topic.partitions)):
            raise InputError(
                f"{name}: partitions {gone} are gone; Kafka never removes partitions, so this is another topic of the same "
                "name; write its events to a new output"
            )
        for number in topic.partitions:
            if self._position.owns(number) and number not in self._partitions:
                LOG.info("%s: partition %d is new, read from its beginning", name, number)
                self._partitions[number] = Partition(number, 0)
        committed = self._options.isolation == "read_committed"
        ends = cluster.offsets(self._partitions, OffsetSpec.latest(), REFRESH_SECONDS, committed=committed)
        for number, end in ends.items():
            self._partitions[number].learn_end(end)
        self._assign([p for p in self._partitions.values() if p.number not in self._assigned])
        self._refresh_at = self._clock() + self._options.discover_seconds

    def _recover(self, cluster: Cluster) -> None:
        """Finds out why the broker refused offsets, once it answers."""
        name = self._options.name
        first = cluster.offsets(self._lost, OffsetSpec.earliest(), REFRESH_SECONDS)
        last = cluster.offsets(self._lost, OffsetSpec.latest(), REFRESH_SECONDS)
        for number in sorted(set(first) & set(last)):
            partition = self._partitions[number]
            wanted = partition.consumed
            if wanted > last[number]:
                raise InputError(
                    f"{name}: offset {wanted} of partition {number} lies beyond its end {last[number]}: the topic was made "
                    "anew, or its broker lost records (unclean leader election); write its events to a new output"
                )
            if wanted < first[number]:
                gone = f"{first[number] - wanted} offsets from {wanted} on of partition {number} are no longer kept"
                if self._options.on_data_loss == "fail":
                    raise InputError(
                        f"{name}: {gone}, the earliest is {first[number]}: retention deleted them before they were read; raise "
                        "retention.ms or retention.bytes of the topic, and go on without them with the option on_data_loss=skip"
                    )
                self._count_skipped(number, first[number] - wanted, gone)
            self._jump(partition, max(wanted, first[number]))
            self._lost.discard(number)

    def _skip_damaged(self, partition: Partition, offset: int, error: KafkaError) -> None:
        what = f"the record at offset {offset} of partition {partition.number} is damaged ({error.str()})"
        if self._options.on_data_loss == "fail":
            raise InputError(
                f"{self._options.name}: {what}; repair the broker's log, or go on without it with the option on_data_loss=skip"
            )
        self._count_skipped(partition.number, 1, what)
        self._jump(partition, offset + 1)

    def _count_skipped(self, number: int, records: int, what: str) -> None:
        origin = f"{self._options.topic}/{number}"
        self.skipped[origin] = self.skipped.get(origin, 0) + records
        LOG.error("%s: DATA LOSS: %s; skipped, as on_data_loss=skip says", self._options.name, what)

    def _assign(self, partitions: Sequence[Partition]) -> None:
        if partitions:
            at = [TopicPartition(self._options.topic, p.number, p.consumed) for p in partitions]
            self._consumer.incremental_assign(at)
            self._assigned |= {p.number for p in partitions}

    def _jump(self, partition: Partition, offset: int) -> None:
        """Goes on elsewhere in a partition; drops what was fetched of it."""
        self._consumer.incremental_unassign([self._at(partition)])
        partition.consumed = offset
        self._assign([partition])
        if partition.paused:
            self._consumer.pause([self._at(partition)])

    def _at(self, partition: Partition) -> TopicPartition:
        return TopicPartition(self._options.topic, partition.number)


def _present(hand: Hand) -> list[int]:
    """Returns the partitions of the records."""
    found: list[int] = np.flatnonzero(np.bincount(hand.numbers)).tolist()
    return found
