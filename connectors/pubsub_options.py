"""Addresses of Pub/Sub: ``pubsub://PROJECT/SUBSCRIPTION?…`` to read, ``pubsub://PROJECT/topics/TOPIC?…`` to write."""

import re
from dataclasses import dataclass
from typing import Self

from headrace.connectors.pubsub_connection import checked_name, emulator_host
from headrace.connectors.url_options import Convert, number, one_of, read_options, word
from headrace.schemas.errors import ConfigError

_SOURCE_OPTIONS: dict[str, Convert] = {
    "format": one_of("json", "weblog"),
    "lease_seconds": number(int, 10, 600),
    "max_lease_seconds": number(int, 10, 7 * 86_400),
    "pulls": number(int, 1, 64),
    "max_record_bytes": number(int, 1, 1 << 30),
    "endpoint": word,
}
_SINK_OPTIONS: dict[str, Convert] = {"ordering_key": word, "endpoint": word}


@dataclass(frozen=True, kw_only=True)
class PubsubSourceOptions:
    """How a subscription is read. Credentials are found where Google's libraries look for them, and are not held here."""

    project: str
    subscription: str
    format: str = "json"
    """What the messages are: ``json`` or ``weblog``."""
    lease_seconds: int = 60
    """For how long messages are kept from other readers at first; a crash delays them by as much."""
    max_lease_seconds: int = 600
    """For how long at most, if their commit takes longer; then they are delivered again."""
    pulls: int = 4
    """Requests at once."""
    max_record_bytes: int = 16 << 20
    """Longer messages are rejected; only their beginning is kept."""
    endpoint: str = ""
    """``host:port`` of a regional endpoint."""
    emulator: str = ""
    """``host:port`` of the emulator that ``PUBSUB_EMULATOR_HOST`` named when the address was parsed."""

    def __post_init__(self) -> None:
        if self.max_lease_seconds < self.lease_seconds:
            raise ConfigError(
                f"{self.name}: max_lease_seconds={self.max_lease_seconds} is less than lease_seconds={self.lease_seconds}; raise it"
            )

    @classmethod
    def parse(cls, url: str) -> Self:
        """Reads ``pubsub://PROJECT/SUBSCRIPTION?option=value&…``; the options are the fields of this class.

        Raises:
            ConfigError: not such an address, an unknown, repeated or impossible option.
        """
        found = re.fullmatch(r"pubsub://([^/?#]*)/(?:subscriptions/)?([^/?#]*)(?:\?([^#]*))?", url)
        if not found:
            raise ConfigError(
                f"{url!r} is no subscription's address; write pubsub://PROJECT/SUBSCRIPTION?option=value (a topic can't be read "
                "itself, create a subscription to it)"
            )
        return cls(
            project=checked_name("project", found[1]),
            subscription=checked_name("subscription", found[2]),
            emulator=emulator_host(),
            **read_options(found[3] or "", _SOURCE_OPTIONS, "Pub/Sub"),
        )

    @property
    def name(self) -> str:
        """The address without options."""
        return f"pubsub://{self.project}/{self.subscription}"

    @property
    def origin(self) -> str:
        """The rows' origin."""
        return f"{self.project}/{self.subscription}"

    @property
    def path(self) -> str:
        """The subscription as requests name it."""
        return f"projects/{self.project}/subscriptions/{self.subscription}"


@dataclass(frozen=True, kw_only=True)
class PubsubSinkOptions:
    """How a topic is written."""

    project: str
    topic: str
    ordering_key: str = ""
    """Column whose text becomes the ordering key; messages go out one request after the other then."""
    endpoint: str = ""
    """``host:port`` of a regional endpoint, which ordering needs."""
    emulator: str = ""
    """``host:port`` of the emulator that ``PUBSUB_EMULATOR_HOST`` named when the address was parsed."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Reads ``pubsub://PROJECT/topics/TOPIC?option=value&…``; the options are the fields of this class.

        Raises:
            ConfigError: not such an address, an unknown, repeated or impossible option.
        """
        found = re.fullmatch(r"pubsub://([^/?#]*)/topics/([^/?#]*)(?:\?([^#]*))?", url)
        if not found:
            raise ConfigError(
                f"{url!r} is no topic's address; write pubsub://PROJECT/topics/TOPIC?option=value"
            )
        return cls(
            project=checked_name("project", found[1]),
            topic=checked_name("topic", found[2]),
            emulator=emulator_host(),
            **read_options(found[3] or "", _SINK_OPTIONS, "Pub/Sub"),
        )

    @property
    def name(self) -> str:
        """The address without options."""
        return f"pubsub://{self.project}/topics/{self.topic}"

    @property
    def path(self) -> str:
        """The topic as requests name it."""
        return f"projects/{self.project}/topics/{self.topic}"
