"""A Pub/Sub subscription as a stream."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc

from headrace.connectors.pubsub_connection import connected, in_requests, passes, refused
from headrace.connectors.pubsub_leases import LOG, released
from headrace.connectors.pubsub_options import PubsubSourceOptions
from headrace.connectors.pubsub_reader import ROLE, PubsubReader, packed, unpacked_receipt
from headrace.schemas.errors import ConfigError, InputError

_ATTEMPTS = 3
_BETWEEN_SECONDS = 0.2


@dataclass(frozen=True)
class PubsubSource:
    """A subscription whose messages are JSON documents or log lines, one a message.

    ``origin`` is ``PROJECT/SUBSCRIPTION``; ``origin_position`` is made of the message id, so that a copy of a message has the
    position of the first; ``ingest_time`` is the publish time. Order is not kept, and attributes are not read.

    Delivery: a message is acknowledged once the records of its poll are in the lake (:meth:`acknowledge`), so none is lost.
    Until then it is leased, for ``max_lease_seconds`` at most. A copy that comes to the reader that has returned the message
    is not returned again; a reader remembers its last million messages, and forgets them when it is closed. All other copies
    (after a crash, at another reader) are returned once more, with the same position, and are left to the deduplication by
    event id. What was returned and is then not used must be read by a reader that is opened anew: its predecessor would take
    the copies for known.

    All readers pull from the same subscription, which shares the messages out. On Dataflow, Beam's ``ReadFromPubSub`` is the
    better source: the service pulls, acknowledges after its own checkpoint and drops copies by message id.

    Args:
        options: from ``PubsubSourceOptions.parse(url)``.
    """

    options: PubsubSourceOptions

    @property
    def name(self) -> str:
        return self.options.name

    @property
    def format(self) -> str:
        return self.options.format

    def check(self) -> None:
        options = self.options
        try:
            found = connected(options.emulator, options.endpoint).subscription(options.path, 20)
        except grpc.RpcError as error:
            if passes(error):
                where = f"the emulator at {options.emulator}" if options.emulator else "Google Cloud"
                raise InputError(
                    f"{self.name} can't be reached at {where}: {error.details()}; check that it runs, the network, and "
                    "PUBSUB_EMULATOR_HOST"
                ) from None
            raise refused(error, f"subscription {options.origin}", ROLE) from None
        if found.push_config.push_endpoint or found.HasField("bigquery_config") or found.detached:
            raise InputError(
                f"{self.name} can't be pulled from: it is detached, or pushes its messages elsewhere; create a pull subscription"
            )

    def start(self, readers: int, resume: Mapping[str, int] | None = None) -> list[str]:
        """Returns the first positions. The subscription itself knows what is not acknowledged, so ``resume`` is of no use."""
        if readers < 1:
            raise ConfigError(f"{self.name}: {readers} readers can't read it; use 1 or more")
        return [packed(reader, readers, 0, "") for reader in range(readers)]

    def open(self, position: str) -> PubsubReader:
        return PubsubReader(self.options, position, connected(self.options.emulator, self.options.endpoint))

    def acknowledge(self, receipts: Sequence[str]) -> None:
        """Acknowledges the messages of these polls, from any process.

        What can't be acknowledged is logged and delivered again; nothing is raised for it.
        """
        ack_ids: list[str] = []
        done: list[tuple[str, list[tuple[int, int]]]] = []
        for receipt in filter(None, receipts):
            session, pulls = unpacked_receipt(receipt)
            done.append((session, [(number, len(ids)) for number, ids in pulls]))
            for _, ids in pulls:
                ack_ids += ids
        for part in in_requests(ack_ids):
            self._acknowledge(part)
        for session, pulls_done in done:
            released(session, pulls_done)

    def _acknowledge(self, ack_ids: list[str]) -> None:
        connection = connected(self.options.emulator, self.options.endpoint)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                connection.acknowledge(self.options.path, ack_ids)
                return
            except grpc.RpcError as error:
                if attempt == _ATTEMPTS or not passes(error):
                    LOG.warning(
                        "%s: %d messages were not acknowledged and will be delivered again: %s",
                        self.name,
                        len(ack_ids),
                        error.code().name,
                    )
                    return
                time.sleep(_BETWEEN_SECONDS * attempt)
