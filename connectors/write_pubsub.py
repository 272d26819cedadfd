"""Rows as JSON messages in a Pub/Sub topic, at least once, with their event id as an attribute."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
import pyarrow as pa

from headrace.connectors.pubsub_connection import (
    PubsubConnection,
    PubsubMessage,
    connected,
    passes,
    refused,
)
from headrace.connectors.pubsub_leases import LOG
from headrace.connectors.pubsub_options import PubsubSinkOptions
from headrace.connectors.write_kafka import DeliveryError, rows_as_json
from headrace.schemas.errors import ConfigError, InputError
from headrace.transforms.batches import plain

ROLE = "roles/pubsub.publisher and roles/pubsub.viewer"
_MOST_MESSAGES = 1000
_MOST_BYTES = 4 << 20
_OPEN = 8
_REQUEST_SECONDS = 60.0
_PAUSE_SECONDS = (0.1, 0.2, 0.5, 1.0)


class _Sent(NamedTuple):
    messages: list[Any]
    future: Any
    attempt: int


@dataclass(frozen=True)
class PubsubSink:
    """A topic that gets each row as one message.

    The data is the canonical JSON of the Kafka sink; the attribute ``event_id`` is the row's. At least once: what is written again,
    because a bundle or a request was retried, is there twice with equal attributes and data.

    Args:
        options: from ``PubsubSinkOptions.parse(url)``.
    """

    options: PubsubSinkOptions

    @property
    def name(self) -> str:
        """The sink in messages."""
        return self.options.name

    def check(self) -> None:
        """Connects once, from the launcher.

        Raises:
            InputError: the topic does not exist or can't be reached.
        """
        try:
            connected(self.options.emulator, self.options.endpoint).topic(self.options.path, 20)
        except grpc.RpcError as error:
            if passes(error):
                raise InputError(
                    f"{self.name} can't be reached: {error.details()}; check the network and PUBSUB_EMULATOR_HOST"
                ) from None
            raise refused(error, f"topic {self.options.project}/{self.options.topic}", ROLE) from None

    def open(self) -> "PubsubWriter":
        """Returns a writer for one thread."""
        return PubsubWriter(self.options, connected(self.options.emulator, self.options.endpoint))


class PubsubWriter:
    """Writes batches. After an error it is of no more use: open another and write again what was not flushed."""

    def __init__(
        self,
        options: PubsubSinkOptions,
        connection: PubsubConnection,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._options = options
        self._connection = connection
        self._clock = clock
        self._sleep = sleep
        self._sent: deque[_Sent] = deque()
        self._most_open = 1 if options.ordering_key else _OPEN

    def write(self, batch: pa.RecordBatch) -> None:
        """Sends each row, and waits while too many requests are open.

        Raises:
            ConfigError: the batch lacks the column of the ordering key.
            DeliveryError: a message can't be delivered, or one of those before was not.
        """
        ids = _texts(batch, "event_id") if "event_id" in batch.schema.names else [None] * batch.num_rows
        keys = self._ordering_keys(batch)
        messages: list[Any] = []
        size = 0
        for data, event_id, key in zip(rows_as_json(batch), ids, keys, strict=True):
            if messages and (len(messages) == _MOST_MESSAGES or size + len(data) > _MOST_BYTES):
                self._send(messages)
                messages, size = [], 0
            message = PubsubMessage(data=data, ordering_key=key or "")
            if event_id is not None:
                message.attributes["event_id"] = event_id
            messages.append(message)
            size += len(data) + 100
        if messages:
            self._send(messages)

    def flush(self, timeout_seconds: float) -> None:
        """Returns when the service has taken all that was written.

        Raises:
            DeliveryError: something it has not, or not yet.
        """
        end = self._clock() + timeout_seconds
        while self._sent:
            self._settle(end)

    def close(self) -> None:
        """Drops what was not flushed."""
        for sent in self._sent:
            sent.future.cancel()
        self._sent.clear()

    def _send(self, messages: list[Any]) -> None:
        while len(self._sent) >= self._most_open:
            self._settle(self._clock() + _REQUEST_SECONDS)
        future = self._connection.publish(self._options.path, messages, _REQUEST_SECONDS)
        self._sent.append(_Sent(messages, future, 0))

    def _settle(self, end: float) -> None:
        """Waits for the oldest request; what may pass is sent again, a few times and until ``end``."""
        sent = self._sent.popleft()
        try:
            answer = sent.future.result(timeout=max(end - self._clock(), 0))
            if len(answer.message_ids) != len(sent.messages):
                raise self._undelivered(sent, f"{len(answer.message_ids)} of them were taken")
        except grpc.FutureTimeoutError:
            raise self._undelivered(sent, "no answer in time") from None
        except grpc.RpcError as error:
            reason = f"{error.code().name.lower()}: {error.details()}"
            if not passes(error) or sent.attempt == len(_PAUSE_SECONDS):
                raise self._undelivered(sent, reason) from None
            pause = _PAUSE_SECONDS[sent.attempt]
            if self._clock() + pause > end:
                raise self._undelivered(sent, reason) from None
            self._sleep(pause)
            future = self._connection.publish(self._options.path, sent.messages, _REQUEST_SECONDS)
            self._sent.appendleft(_Sent(sent.messages, future, sent.attempt + 1))

    def _undelivered(self, sent: _Sent, reason: str) -> DeliveryError:
        count = len(sent.messages) + sum(len(other.messages) for other in self._sent)
        LOG.error("%s: %d messages are not delivered: %s", self._options.name, count, reason)
        return DeliveryError(
            f"{self._options.name}: {count} messages are not known to be delivered: {reason}; they have to be written again"
        )

    def _ordering_keys(self, batch: pa.RecordBatch) -> list[str | None]:
        name = self._options.ordering_key
        if not name:
            return [None] * batch.num_rows
        if name not in batch.schema.names:
            raise ConfigError(
                f"{self._options.name}: the rows have no column {name!r} for the ordering key; name another with "
                "ordering_key=COLUMN"
            )
        return _texts(batch, name)


def _texts(batch: pa.RecordBatch, name: str) -> list[str | None]:
    found: list[str | None] = plain(batch.column(name)).cast(pa.string()).to_pylist()
    return found
