"""kafka:// addresses: options, refusals with their fix, and no secret anywhere."""

import pickle
from pathlib import Path

import pytest

from headrace.connectors.kafka_options import KafkaSinkOptions, KafkaSourceOptions
from headrace.schemas.errors import ConfigError

ADDRESS = "kafka://a:9093,b/events.v1"


def parse(query: str = "", address: str = ADDRESS) -> KafkaSourceOptions:
    return KafkaSourceOptions.parse(address + query)


def test_an_address_alone_gives_the_defaults() -> None:
    options = parse()
    assert options == KafkaSourceOptions(brokers="a:9093,b:9092", topic="events.v1")
    assert options.name == "kafka://a:9093,b:9092/events.v1"
    assert options.consumer_group == "headrace-events.v1"
    settings = options.consumer_settings()
    assert settings["bootstrap.servers"] == "a:9093,b:9092"
    assert settings["security.protocol"] == "plaintext"
    assert settings["isolation.level"] == "read_committed"
    assert settings["enable.auto.commit"] is False
    assert settings["auto.offset.reset"] == "error"


def test_options_are_read_with_their_types_and_any_separator() -> None:
    options = parse(
        "?format=weblog&start=2026-01-05T10:00:00.0005%2B01:00&max-record-bytes=100&discover_seconds=2.5&group=g%20h"
        "&isolation=read_uncommitted&on.data.loss=skip&ingest_time=create&librdkafka.fetch.max.bytes=1000&"
    )
    assert options.start_millis == 1_767_603_600_001
    assert (options.max_record_bytes, options.discover_seconds) == (100, 2.5)
    assert (options.format, options.consumer_group, options.on_data_loss) == ("weblog", "g h", "skip")
    settings = options.consumer_settings()
    assert (settings["fetch.max.bytes"], settings["isolation.level"]) == ("1000", "read_uncommitted")
    assert parse("?start=latest").start_millis is None


def test_ipv6_brokers() -> None:
    assert parse(address="kafka://[::1]:9092,[fe80::1]/t").brokers == "[::1]:9092,[fe80::1]:9092"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?grup=x", "Kafka option 'grup' is not known; did you mean 'group'?"),
        ("?zzz=x", "Kafka option 'zzz' is not known; known: security_protocol,"),
        ("?topic=x", "Kafka option 'topic' is not known"),
        ("?format=csv", "Kafka option format=csv is not one of json, weblog"),
        ("?sasl.mechanism=X", "Kafka option sasl.mechanism=X is not one of PLAIN,"),
        ("?start=yesterday", "neither earliest, latest nor a time like 2026-01-05T10:00:00Z"),
        ("?max_record_bytes=a", "Kafka option max_record_bytes=a is not a number"),
        ("?max_record_bytes=0", "max_record_bytes=0 must be 1 or more"),
        ("?discover_seconds=nan", "discover_seconds=nan must be 1 to 86400"),
        ("?group=a&group=b", "Kafka option group is given twice"),
        ("?security_protocol=ssl&security.protocol=ssl", "security.protocol is given twice"),
        ("?username=me", "go together; add password_file=PATH or password_env=VARIABLE"),
        ("?password_env=X", "go together; add username=NAME"),
        ("?username=me&password_env=X&password_file=y", "are both given; leave one out"),
        ("?cert_file=x", "cert_file and key_file go together"),
        ("?username=me&password_env=X&security.protocol=ssl", "would ignore the username .*use sasl_ssl"),
        ("?sasl.mechanism=PLAIN&security.protocol=plaintext", "use sasl_plaintext, or better sasl_ssl"),
        ("?ca_file=x&security.protocol=plaintext", "would ignore ca_file and cert_file; use ssl or sasl_ssl"),
        ("?librdkafka.enable.auto.commit=true", r"enable\.auto\.commit can't be set: .*monitoring only"),
        ("?librdkafka.auto.offset.reset=latest", "would lose records unseen; see on_data_loss"),
        ("?librdkafka.group.id=x", "use group=NAME"),
        ("?librdkafka.x=", "needs a name and a value"),
    ],
)
def test_what_can_not_be_right_is_refused_with_the_fix(query: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(query)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://a/t", "looks like kafka://host:port"),
        ("kafka://a:9092", "looks like kafka://host:port"),
        ("kafka:///t", "Kafka broker '' is not host or host:port"),
        ("kafka://a:99999/t", "Kafka broker 'a:99999' is not host or host:port"),
        ("kafka://a/", "Kafka topic '' is no valid name"),
        ("kafka://a/t/u", "Kafka topic 't/u' is no valid name"),
        ("kafka://a/..", r"Kafka topic '\.\.' is no valid name"),
    ],
)
def test_what_is_no_address_is_refused(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(address=address)


@pytest.mark.parametrize(
    "address",
    [
        "kafka://me:hush@a/t",
        "kafka://a/t?password=hush",
        "kafka://a/t?sasl.password=hush",
        "kafka://a/t?librdkafka.sasl.password=hush",
        "kafka://a/t?librdkafka.ssl.key.password=hush",
        "kafka://a/t?librdkafka.ssl.key.pem=hush",
        "kafka://a/t?librdkafka.sasl.oauthbearer.client.secret=hush",
    ],
)
def test_secrets_in_the_address_are_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ConfigError, match=r"password_file") as caught:
        parse(address=address)
    assert "hush" not in str(caught.value)


def test_passwords_are_read_when_a_client_is_made_and_held_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pw").write_text("hush-1\n")
    (tmp_path / "pem").write_text("x")
    pem = tmp_path / "pem"
    options = parse(
        f"?username=me&password_file={tmp_path}/pw&ca_file={pem}&cert_file={pem}&key_file={pem}&key_password_file={tmp_path}/pw"
    )
    settings = options.settings()
    assert settings["security.protocol"] == "sasl_ssl"
    assert (settings["sasl.mechanism"], settings["sasl.username"]) == ("PLAIN", "me")
    assert (settings["sasl.password"], settings["ssl.key.password"]) == ("hush-1", "hush-1")
    assert settings["ssl.ca.location"] == settings["ssl.certificate.location"] == settings["ssl.key.location"]
    assert pickle.loads(pickle.dumps(options)) == options
    assert b"hush" not in pickle.dumps(options) and "hush" not in repr(options)
    monkeypatch.setenv("PW", "hush-2")
    scram = parse("?username=me&password_env=PW&sasl.mechanism=SCRAM-SHA-512").settings()
    assert (scram["sasl.password"], scram["sasl.mechanism"]) == ("hush-2", "SCRAM-SHA-512")
    assert parse(f"?ca_file={pem}").protocol == "ssl"


def test_passwords_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ConfigError, match=r"variable NOT_SET is not set here; .*on every worker"):
        parse("?username=me&password_env=NOT_SET").settings()
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        parse(f"?username=me&password_file={tmp_path}/none").settings()
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="is empty; write the password into it"):
        parse(f"?username=me&password_file={tmp_path}/empty").settings()
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="can't be read: not text"):
        parse(f"?username=me&password_file={tmp_path}/binary").settings()
    with pytest.raises(ConfigError, match=r"ca_file=.* can't be read"):
        parse(f"?ca_file={tmp_path}/none").settings()


def test_the_sink_has_its_own_options_and_an_exact_producer() -> None:
    options = KafkaSinkOptions.parse("kafka://a/t?key=user_id&compression=zstd&librdkafka.linger.ms=5")
    settings = options.producer_settings()
    assert (options.key, settings["compression.type"], settings["linger.ms"]) == ("user_id", "zstd", "5")
    assert (settings["acks"], settings["enable.idempotence"]) == ("all", True)
    with pytest.raises(ConfigError, match="'start' is not known"):
        KafkaSinkOptions.parse("kafka://a/t?start=latest")
    with pytest.raises(ConfigError, match=r"librdkafka.acks can't be set: a record counts as written when"):
        KafkaSinkOptions.parse("kafka://a/t?librdkafka.acks=1")
    with pytest.raises(ConfigError, match="compression=rar is not one of none, gzip"):
        KafkaSinkOptions.parse("kafka://a/t?compression=rar")
