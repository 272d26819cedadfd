"""Lines as records of a Kafka topic, for trials: what ``headrace simulate --output kafka://…`` does."""

import time
from collections.abc import Iterable

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from headrace.connectors.kafka_options import KafkaSinkOptions
from headrace.connectors.write_kafka import DeliveryError
from headrace.schemas.errors import InputError

PARTITIONS = 4
_ANSWER_SECONDS = 20.0


def produce_lines(url: str, chunks: Iterable[bytes]) -> int:
    """Writes each line as one record without a key, dealt to the partitions in turn, and returns their number.

    The topic is made if it is missing: 4 partitions, timestamps by the broker (``message.timestamp.type=LogAppendTime``), kept
    for ever. Order within a partition is the order of the lines. Returns when all in-sync replicas have everything.

    Args:
        url: ``kafka://host:port/topic``, options as for a sink.
        chunks: bytes of whole lines, each ended by a newline.

    Raises:
        ConfigError: an address that can't be right.
        InputError: the cluster can't be reached, or refuses the topic.
        DeliveryError: records were not delivered.
    """
    options = KafkaSinkOptions.parse(url)
    partitions = _topic(options)
    failed: list[KafkaError] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failed.append(error)

    producer = Producer({**options.producer_settings(), "on_delivery": delivered})
    number = 0
    for chunk in chunks:
        for line in chunk.splitlines():
            while True:
                try:
                    producer.produce(options.topic, line, partition=number % partitions)
                    break
                except BufferError:
                    producer.poll(0.1)
            number += 1
        producer.poll(0)
        if failed:
            break
    left = producer.flush(_ANSWER_SECONDS)
    if failed or left:
        why = failed[0].str() if failed else "no answer; is a broker away?"
        raise DeliveryError(
            f"{options.name}: {len(failed) + left} of {number} records were not delivered: {why}"
        )
    return number


def _topic(options: KafkaSinkOptions) -> int:
    """Returns the topic's number of partitions; makes it if it is missing."""
    admin = AdminClient(options.settings())
    try:
        known = admin.list_topics(timeout=_ANSWER_SECONDS).topics
        if options.topic in known and known[options.topic].partitions:
            return len(known[options.topic].partitions)
        settings = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"}
        made = admin.create_topics(
            [NewTopic(options.topic, num_partitions=PARTITIONS, replication_factor=1, config=settings)]
        )
        made[options.topic].result(_ANSWER_SECONDS)
        deadline = time.monotonic() + _ANSWER_SECONDS
        while options.topic not in admin.list_topics(timeout=_ANSWER_SECONDS).topics:
            if time.monotonic() > deadline:
                raise InputError(f"{options.name}: the topic was made and is not there yet; try again")
            time.sleep(0.1)
    except KafkaException as error:
        raise InputError(
            f"{options.name} can't be used: {error.args[0].str()}; check the brokers' names and ports"
        ) from error
    return PARTITIONS
