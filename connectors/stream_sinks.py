"""From an address to a sink beside the lake, and the outlet through which a stage writes to its sinks."""

import base64
import re
from collections.abc import Collection, Sequence
from typing import Protocol

import pyarrow as pa

from headrace.connectors.kafka_options import KafkaSinkOptions
from headrace.connectors.pubsub_options import PubsubSinkOptions
from headrace.connectors.write_kafka import KafkaSink
from headrace.connectors.write_pubsub import PubsubSink
from headrace.schemas.errors import ConfigError

FLUSH_SECONDS = 240.0
"""How long a bundle waits for a sink; longer than a broker takes to come back, shorter than the clients give records up (300 s)."""
REJECT_COLUMNS = (
    "event_id",
    "schema",
    "origin",
    "origin_position",
    "ingest_time",
    "stage",
    "reason",
    "pointer",
    "message",
    "attempt",
    "document",
)
"""Columns of a rejected row that go to a quarantine sink; none holds PII in clear."""
_KNOWN = "kafka://host:port/topic and pubsub://PROJECT/topics/TOPIC"


class SinkWriter(Protocol):
    """Writes batches for one thread. After an error it is of no more use."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Hands the rows on; waits while too many are under way.

        Raises:
            DeliveryError: a row can't be delivered, or one of those before was not.
        """
        ...

    def flush(self, timeout_seconds: float) -> None:
        """Returns when all that was written is delivered.

        Raises:
            DeliveryError: something is not, or not yet.
        """
        ...

    def close(self) -> None:
        """Drops what was not flushed."""
        ...


class Sink(Protocol):
    """Where rows go beside the lake, at least once. Frozen, picklable; holds no connection and no password."""

    @property
    def name(self) -> str:
        """The sink in messages, without secrets."""
        ...

    def check(self) -> None:
        """Connects once, from the launcher.

        Raises:
            ConfigError: an option that can't be right, with the fix.
            InputError: the sink can't be reached or does not exist.
        """
        ...

    def open(self) -> SinkWriter: ...


def open_sink(url: str, columns: Collection[str] = ()) -> Sink:
    """Returns the sink that an address names; connects to nothing.

    Args:
        url: ``kafka://…`` or ``pubsub://PROJECT/topics/…``; see ``KafkaSinkOptions`` and ``PubsubSinkOptions``.
        columns: of the rows that it will get; empty: not known.

    Raises:
        ConfigError: an unknown kind of address, an option that can't be right, or a key that is none of the columns.
    """
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*(?=:)", url)
    kind = scheme[0] if scheme else ""
    if kind == "kafka":
        kafka = KafkaSinkOptions.parse(url)
        _require_column(kafka.name, "key", kafka.key, columns)
        return KafkaSink(kafka)
    if kind == "pubsub":
        pubsub = PubsubSinkOptions.parse(url)
        _require_column(pubsub.name, "ordering_key", pubsub.ordering_key, columns)
        return PubsubSink(pubsub)
    if not kind:
        raise ConfigError(f"the sink has no scheme; known are {_KNOWN}")
    raise ConfigError(f"no sink is called {kind}:; known are {_KNOWN}")


def reject_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns rejected rows as a quarantine sink gets them: ``REJECT_COLUMNS``, the sealed document in base64.

    A row that was rejected after masking has no document; its masked columns are in the quarantine.

    Args:
        batch: ``QUARANTINE_SCHEMA``.
    """
    columns = {name: batch.column(name) for name in REJECT_COLUMNS}
    documents = columns["document"].to_pylist()
    columns["document"] = pa.array(
        [None if sealed is None else base64.b64encode(sealed).decode() for sealed in documents], pa.string()
    )
    return pa.RecordBatch.from_pydict(columns)


class Outlet:
    """Several sinks as one stage writes to them, bundle by bundle.

    At least once: what was written is delivered when ``flush`` returns; if it fails the bundle has to fail, and is tried again
    with all of its rows. Connections are kept from bundle to bundle and opened when there is something to write. Used by one
    thread.
    """

    def __init__(self, sinks: Sequence[Sink], flush_seconds: float = FLUSH_SECONDS) -> None:
        self._sinks = sinks
        self._flush_seconds = flush_seconds
        self._writers: list[SinkWriter] = []

    def write(self, batch: pa.RecordBatch) -> None:
        """Hands the rows to every sink.

        Raises:
            DeliveryError: one can't take them.
        """
        if not batch.num_rows or not self._sinks:
            return
        try:
            for sink in self._sinks[len(self._writers) :]:
                self._writers.append(sink.open())
            for writer in self._writers:
                writer.write(batch)
        except BaseException:
            self.close()
            raise

    def flush(self) -> None:
        """Returns when every sink has all rows.

        Raises:
            DeliveryError: one has not.
        """
        try:
            for writer in self._writers:
                writer.flush(self._flush_seconds)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drops what was not flushed, and the connections."""
        writers, self._writers = self._writers, []
        for writer in writers:
            writer.close()


def _require_column(name: str, option: str, column: str, columns: Collection[str]) -> None:
    if column and columns and column not in columns:
        raise ConfigError(
            f"{name}: {option}={column} is none of the columns that the sink gets; name one of them, for example event_id"
        )
