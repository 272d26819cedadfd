"""Asking a Kafka cluster about a topic, and telling trouble that passes from refusals."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource

from headrace.connectors.kafka_options import KafkaConnection
from headrace.schemas.errors import ConfigError, InputError

LOG = logging.getLogger("headrace.kafka")
_NO_ID = "AAAAAAAAAAAAAAAAAAAAAA"
"""Topic id that brokers without topic ids give."""

UNKNOWN = frozenset(
    (
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    )
)
"""The topic or partition is not there, as far as the broker knows that was asked."""
UNTRUSTED = frozenset(
    (
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError.ILLEGAL_SASL_STATE,
    )
)
"""The broker does not let the client in. A broker that dies in the handshake looks the same, so readers look twice."""
DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "the user may not use the topic; grant Describe, and Read or Write, on it",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "the user may not use the cluster; grant what the broker's log asks for",
    KafkaError.TOPIC_EXCEPTION: "the broker refuses the topic's name",
    KafkaError.UNSUPPORTED_VERSION: "the broker is too old; use Kafka 2.8 or newer",
}


class NotNowError(Exception):
    """The cluster did not answer, which may pass; the text says why, as far as is known."""


@dataclass(frozen=True)
class Clients:
    """Makes the clients of confluent-kafka; the seam through which tests put others."""

    def consumer(self, settings: Mapping[str, Any]) -> Any:
        """Returns a consumer."""
        return _made(Consumer, settings)

    def producer(self, settings: Mapping[str, Any]) -> Any:
        """Returns a producer."""
        return _made(Producer, settings)

    def admin(self, settings: Mapping[str, Any]) -> Any:
        """Returns a client for questions."""
        return _made(AdminClient, {"log_level": 2, **settings})


@dataclass(frozen=True)
class Topic:
    """What a topic is now."""

    id: str
    """Differs between a topic and another of the same name made later; empty if the broker has none."""
    partitions: tuple[int, ...]


class Cluster:
    """Questions about one topic. Connects when it is first asked.

    Args:
        options: where it is.
        clients: what makes the client.
        clock: seconds.
    """

    def __init__(
        self, options: KafkaConnection, clients: Clients, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._options = options
        self._clock = clock
        self._untrusted: KafkaError | None = None
        self._last = "no answer"
        self._admin = clients.admin({**options.settings(), "error_cb": self._on_error})

    def topic(self, timeout_seconds: float) -> Topic:
        """Returns the topic's id and partitions.

        Raises:
            NotNowError: no answer in time.
            LookupError: there is no such topic, as far as the broker knows.
            InputError: access is denied.
        """
        asked = self._admin.describe_topics(
            TopicCollection([self._options.topic]), request_timeout=max(timeout_seconds, 0.1)
        )
        found = self._answer(asked[self._options.topic], timeout_seconds)
        name = str(found.topic_id or "")
        return Topic("" if name == _NO_ID else name, tuple(sorted(p.id for p in found.partitions)))

    def offsets(
        self, partitions: Iterable[int], spec: Any, timeout_seconds: float, *, committed: bool = False
    ) -> dict[int, int]:
        """Returns the offset of each partition for ``OffsetSpec.earliest()``, ``.latest()`` or ``.for_timestamp(ms)``.

        A partition that does not answer in time is left out.

        Args:
            committed: the end is that of the committed transactions.

        Raises:
            InputError: access is denied.
        """
        wanted = {TopicPartition(self._options.topic, p): spec for p in partitions}
        if not wanted:
            return {}
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        asked = self._admin.list_offsets(
            wanted, isolation_level=level, request_timeout=max(timeout_seconds, 0.1)
        )
        deadline = self._clock() + timeout_seconds
        found = {}
        for partition, future in asked.items():
            try:
                found[partition.partition] = self._answer(future, deadline - self._clock()).offset
            except (NotNowError, LookupError) as error:
                LOG.debug("%s: partition %d: %s", self._options.name, partition.partition, error)
        return found

    def stamped_by_broker(self, timeout_seconds: float) -> bool | None:
        """Whether the topic has ``message.timestamp.type=LogAppendTime``; None if the user may not see its configuration.

        Raises:
            NotNowError: no answer in time.
        """
        resource = ConfigResource(ConfigResource.Type.TOPIC, self._options.topic)
        asked = self._admin.describe_configs([resource], request_timeout=max(timeout_seconds, 0.1))
        try:
            (future,) = asked.values()
            found = self._answer(future, timeout_seconds)
        except (InputError, LookupError):
            return None
        entry = found.get("message.timestamp.type")
        return None if entry is None else bool(entry.value == "LogAppendTime")

    def refused(self) -> KafkaError | None:
        """Returns the error with which brokers refused the client since the last answer, if they did."""
        self._admin.poll(0)
        return self._untrusted

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in UNTRUSTED:
            self._untrusted = error
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._last = error.str()

    def _answer(self, future: "Future[Any]", timeout_seconds: float) -> Any:
        deadline = self._clock() + timeout_seconds
        while not future.done():
            left = deadline - self._clock()
            if left <= 0:
                raise NotNowError(self._last)
            wait([future], timeout=min(left, 0.05))
            self._admin.poll(0)
            if self._untrusted:
                raise NotNowError(self._untrusted.str())
        try:
            found = future.result()
        except KafkaException as error:
            cause = error.args[0]
            if denied := denial(cause, self._options.name):
                raise denied from None
            if cause.code() in UNKNOWN:
                raise LookupError(f"{self._options.name}: there is no such topic") from None
            raise NotNowError(self._last if cause.code() == KafkaError._TIMED_OUT else cause.str()) from None
        self._untrusted = None
        return found


def denial(error: KafkaError, name: str) -> InputError | None:
    """Returns the error to raise if this one never passes by itself, else None."""
    if error.code() in DENIED:
        return InputError(f"{name}: {error.str()}: {DENIED[error.code()]}")
    if error.fatal():
        return InputError(f"{name}: the client gave up: {error.str()}")
    return None


def not_let_in(error: KafkaError, name: str) -> InputError:
    """Returns the error to raise where brokers don't let the client in."""
    return InputError(
        f"{name}: the broker does not let the client in: {error.str()}; check security.protocol, sasl.mechanism, username, "
        "the password's file or variable, and ca_file against the listener that the port belongs to"
    )


def no_topic(name: str) -> InputError:
    """Returns the error to raise where the topic is not there."""
    return InputError(
        f"{name}: there is no such topic, or the user may not see it; make it first, or fix the name"
    )


def _made(make: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    try:
        return make(dict(settings), logger=LOG)
    except KafkaException as error:  # It names the property, never its value.
        raise ConfigError(f"the Kafka client refuses its options: {error.args[0].str()}") from None
