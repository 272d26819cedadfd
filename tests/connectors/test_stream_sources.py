import pickle
from pathlib import Path
from typing import Any

import pytest

from headrace.connectors.map_fields import compile_mapping
from headrace.connectors.read_directory import DirectorySource
from headrace.connectors.read_kafka import KafkaSource
from headrace.connectors.read_pubsub import PubsubSource
from headrace.connectors.stream_sources import open_source
from headrace.schemas.errors import ConfigError

KAFKA = "kafka://broker:9092/orders"
PUBSUB = "pubsub://project/orders"


@pytest.mark.parametrize(
    ("url", "kind", "name"),
    [
        (KAFKA, KafkaSource, KAFKA),
        (PUBSUB, PubsubSource, PUBSUB),
        ("dir:/tmp/in", DirectorySource, "dir:/tmp/in"),
        ("dir:/tmp/a%3Fb?follow=false", DirectorySource, "dir:/tmp/a?b"),
    ],
)
def test_every_kind_of_source(url: str, kind: type, name: str) -> None:
    source = open_source(url)
    assert isinstance(source, kind)
    assert (source.name, source.format) == (name, "json")
    assert pickle.loads(pickle.dumps(source)) == source


def test_relative_directories_are_made_absolute() -> None:
    assert open_source("dir:in").name == f"dir:{Path.cwd() / 'in'}"


@pytest.mark.parametrize(
    ("url", "format", "expected"),
    [
        (KAFKA, "weblog", "weblog"),
        (KAFKA + "?format=weblog", None, "weblog"),
        (PUBSUB + "?format=weblog", "weblog", "weblog"),
        (PUBSUB, "weblog", "weblog"),
        ("dir:/in", "weblog", "weblog"),
        ("dir:/in?format=weblog", None, "weblog"),
        ("dir:/in?format=csv", "json", "json"),
        ("dir:/in?format=csv", None, "json"),
    ],
)
def test_format_of_the_address_or_beside_it(url: str, format: str | None, expected: str) -> None:
    assert open_source(url, format=format).format == expected


@pytest.mark.parametrize("url", [KAFKA + "?max_record_bytes=7", PUBSUB + "?max_record_bytes=7", "dir:/in"])
def test_longest_record(url: str) -> None:
    source: Any = open_source(url, max_record_bytes=99)
    assert source.options.max_record_bytes == 99
    source = open_source(url)
    assert source.options.max_record_bytes == (7 if "7" in url else 16 << 20)


@pytest.mark.parametrize(
    ("url", "more", "message"),
    [
        ("s3://bucket/x", {}, "no source is called s3:; known are kafka://host:port/topic, pubsub://PROJECT"),
        (
            "/tmp/in",
            {},
            "the source has no scheme; known are kafka://host:port/topic, pubsub://PROJECT/SUBSC",
        ),
        ("", {}, "(a folder is dir:PATH)"),
        (KAFKA, {"format": "csv"}, "format 'csv' is unknown; a stream is one of json, weblog"),
        (PUBSUB, {"max_record_bytes": 0}, "max_record_bytes is 0; it must lie between 1 and"),
        (
            KAFKA + "?format=json",
            {"format": "weblog"},
            "the format is weblog, but the source's address says form",
        ),
        ("dir:/in?format=csv", {"format": "weblog"}, "address says format=csv; leave one of them out"),
        ("dir:/in?format=weblog", {"format": "json"}, "address says format=weblog; leave one of them out"),
        ("kafka://broker/bad topic", {}, "is no valid name"),
        ("pubsub://project", {}, "is no subscription's address"),
    ],
)
def test_wrong_addresses(url: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        open_source(url, **more)
    assert message in str(error.value)


def test_a_mapping_is_not_for_web_logs() -> None:
    targets = ("metadata.event_id", "metadata.timestamp", "user.id", "payload.event_type")
    mapping = compile_mapping(dict.fromkeys(targets, "a"))
    source: Any = open_source("dir:/in", mapping=mapping)
    assert source.options.mapping is mapping
    with pytest.raises(
        ConfigError, match="'mapping' applies to jsonl, csv, parquet and avro, not to web logs"
    ):
        open_source("dir:/in?format=weblog", mapping=mapping)
