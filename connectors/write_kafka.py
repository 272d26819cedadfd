"""Rows as JSON records in a Kafka topic, at least once, keyed by event id."""

from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import KafkaError, KafkaException, Message

from headrace.connectors.json_rows import decimal_text, jsonable
from headrace.connectors.kafka_cluster import LOG, Clients, Cluster, NotNowError, not_let_in
from headrace.connectors.kafka_options import KafkaSinkOptions
from headrace.schemas.errors import ConfigError, HeadraceError, InputError
from headrace.transforms.batches import plain

ANSWER_SECONDS = 20.0
_WAIT_SECONDS = 0.1


class DeliveryError(HeadraceError):
    """Records that did not reach the topic; write them again, the key tells doubles apart."""


@dataclass(frozen=True)
class KafkaSink:
    """A topic that gets each row as one record.

    The value is canonical JSON: one object of the columns that are not null, keys sorted, no white space; decimals as text without
    exponent and without zeros at the end, times ISO 8601 in UTC with six decimals, dates ISO 8601, JSON columns as text. The key
    is the column ``key`` (``event_id``) as text, so that all copies of an event lie in one partition. At least once: what is
    written again, because a bundle was retried, is there twice with the same key and value.

    Args:
        options: from ``KafkaSinkOptions.parse(url)``.
        clients: makes the clients; for tests.
    """

    options: KafkaSinkOptions
    clients: Clients = field(default=Clients(), repr=False)

    @property
    def name(self) -> str:
        """The sink in messages, without secrets."""
        return self.options.name

    def check(self) -> None:
        """Connects once, from the launcher.

        Raises:
            ConfigError: an option that can't be right.
            InputError: the cluster can't be reached, or has no such topic.
        """
        cluster = Cluster(self.options, self.clients)
        try:
            cluster.topic(ANSWER_SECONDS)
        except LookupError as error:
            raise InputError(f"{error}; make it first, with the partitions and retention you want") from None
        except NotNowError as error:
            if refused := cluster.refused():
                raise not_let_in(refused, self.name) from None
            raise InputError(
                f"{self.name} can't be reached: {error}; check the brokers' names and ports"
            ) from None

    def open(self) -> "KafkaWriter":
        """Returns a writer for one thread; it connects in the background."""
        return KafkaWriter(self.options, self.clients)


class KafkaWriter:
    """Writes batches. After an error it is of no more use: open another and write again what was not flushed."""

    def __init__(self, options: KafkaSinkOptions, clients: Clients) -> None:
        self._options = options
        self._failed = 0
        self._reason: KafkaError | None = None
        self._producer = clients.producer({**options.producer_settings(), "on_delivery": self._undelivered})

    def write(self, batch: pa.RecordBatch) -> None:
        """Hands each row to the client, and waits while its queue is full.

        Raises:
            ConfigError: the batch lacks the key's column.
            DeliveryError: a record can't be delivered, or one of those before was not.
        """
        keys = self._keys(batch)
        produce, topic = self._producer.produce, self._options.topic
        for value, key in zip(rows_as_json(batch), keys, strict=True):
            while True:
                try:
                    produce(topic, value, key)
                    break
                except BufferError:
                    self._producer.poll(_WAIT_SECONDS)
                    self._check()
                except KafkaException as error:
                    self._failed, self._reason = self._failed + 1, error.args[0]
                    self._check()
        self._producer.poll(0)
        self._check()

    def flush(self, timeout_seconds: float) -> None:
        """Returns when all that was written is in all in-sync replicas.

        Raises:
            DeliveryError: something is not, or not yet.
        """
        left = self._producer.flush(timeout_seconds)
        self._check()
        if left:
            raise DeliveryError(
                f"{self._options.name}: {left} records are not delivered after {timeout_seconds:g} s; is a broker away? "
                "They have to be written again"
            )

    def close(self) -> None:
        """Drops what was not flushed."""
        self._producer.purge()
        self._producer.flush(_WAIT_SECONDS)

    def _keys(self, batch: pa.RecordBatch) -> list[str | None]:
        if not self._options.key:
            return [None] * batch.num_rows
        at = batch.schema.get_field_index(self._options.key)
        if at < 0:
            raise ConfigError(
                f"{self._options.name}: the rows have no column {self._options.key!r} for the key; name another with key=COLUMN, "
                "or none with key="
            )
        found: list[str | None] = plain(batch.column(at)).cast(pa.string()).to_pylist()
        return found

    def _undelivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed += 1
            self._reason = error

    def _check(self) -> None:
        if self._reason is not None:
            LOG.error(
                "%s: %d records were not delivered: %s", self._options.name, self._failed, self._reason.str()
            )
            raise DeliveryError(
                f"{self._options.name}: {self._failed} records were not delivered: {self._reason.str()}; they have to be "
                "written again"
            )


def rows_as_json(batch: pa.RecordBatch) -> list[bytes]:
    """Returns each row as canonical JSON, as :class:`KafkaSink` says."""
    names = sorted(batch.schema.names)
    columns = [_values(batch.column(batch.schema.get_field_index(name))) for name in names]
    if not columns:
        return [b"{}"] * batch.num_rows
    return [
        orjson.dumps({name: value for name, value in zip(names, row, strict=True) if value is not None})
        for row in zip(*columns, strict=True)
    ]


def _values(array: pa.Array) -> list[Any]:
    """Returns a column as JSON values."""
    type_ = array.type
    if pa.types.is_dictionary(type_):
        values = _values(array.dictionary)
        return [None if i is None else values[i] for i in array.indices.to_pylist()]
    if pa.types.is_timestamp(type_) and type_.tz:
        micros = array.cast(pa.timestamp("us", "UTC"))
        return list(pc.strftime(micros, "%Y-%m-%dT%H:%M:%SZ").to_pylist())
    if pa.types.is_decimal(type_):
        return [None if value is None else _trimmed(decimal_text(value)) for value in array.to_pylist()]
    if pa.types.is_string(type_) or pa.types.is_integer(type_) or pa.types.is_boolean(type_):
        return list(array.to_pylist())
    return [jsonable(value) for value in array.to_pylist()]


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text
