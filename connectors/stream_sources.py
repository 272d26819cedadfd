"""From an address to a stream's source."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from headrace.connectors.directory_options import DirectoryOptions
from headrace.connectors.kafka_options import KafkaSourceOptions
from headrace.connectors.map_fields import FieldMapping
from headrace.connectors.pubsub_options import PubsubSourceOptions
from headrace.connectors.read_directory import DirectorySource
from headrace.connectors.read_kafka import KafkaSource
from headrace.connectors.read_pubsub import PubsubSource
from headrace.connectors.stream_source import Source
from headrace.schemas.errors import ConfigError

FORMATS = ("json", "weblog")
_KNOWN = "kafka://host:port/topic, pubsub://PROJECT/SUBSCRIPTION, dir:PATH"


def open_source(
    url: str,
    *,
    format: str | None = None,
    max_record_bytes: int | None = None,
    mapping: FieldMapping | None = None,
    schema: Mapping[str, Any] | None = None,
) -> Source:
    """Returns the source that an address names; connects to nothing.

    Args:
        url: ``kafka://…``, ``pubsub://…`` or ``dir:…``; see ``KafkaSourceOptions``, ``PubsubSourceOptions`` and
            ``DirectoryOptions``.
        format: ``json`` or ``weblog``; None: what the address says, else ``json``.
        max_record_bytes: longest record; None: what the address says, else 16 MiB.
        mapping: the configuration's ``mapping`` section, compiled; only directories apply it themselves.
        schema: JSON Schema by which CSV cells are cast.

    Raises:
        ConfigError: an unknown kind of address, an option that can't be right, or one that is stated twice and differently.
    """
    if format not in (None, *FORMATS):
        raise ConfigError(f"format {format!r} is unknown; a stream is one of {', '.join(FORMATS)}")
    if max_record_bytes is not None and not 1 <= max_record_bytes <= 1 << 30:
        raise ConfigError(f"max_record_bytes is {max_record_bytes}; it must lie between 1 and {1 << 30}")
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*(?=:)", url)
    kind = scheme[0] if scheme else ""
    more: dict[str, Any] = {} if max_record_bytes is None else {"max_record_bytes": max_record_bytes}
    if kind == "dir":
        directory = DirectoryOptions.parse(url)
        if format == "weblog" and directory.format is None:
            more["format"] = "weblog"
        elif format is not None and format != directory.stream_format:
            raise _differs(format, str(directory.format))
        return DirectorySource(dataclasses.replace(directory, mapping=mapping, schema=schema, **more))
    if kind == "kafka":
        kafka = KafkaSourceOptions.parse(url)
        return KafkaSource(dataclasses.replace(kafka, format=_format(format, kafka.format, url), **more))
    if kind == "pubsub":
        pubsub = PubsubSourceOptions.parse(url)
        return PubsubSource(dataclasses.replace(pubsub, format=_format(format, pubsub.format, url), **more))
    if not kind:
        raise ConfigError(f"the source has no scheme; known are {_KNOWN} (a folder is dir:PATH)")
    raise ConfigError(f"no source is called {kind}:; known are {_KNOWN}")


def _format(stated: str | None, of_url: str, url: str) -> str:
    if stated is not None and stated != of_url and re.search(r"[?&]format=", url):
        raise _differs(stated, of_url)
    return stated or of_url


def _differs(stated: str, of_url: str) -> ConfigError:
    return ConfigError(
        f"the format is {stated}, but the source's address says format={of_url}; leave one of them out"
    )
