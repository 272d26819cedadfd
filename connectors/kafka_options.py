"""Where a Kafka topic is and how it is read or written: ``kafka://host:port[,host:port]/topic?option=value…``."""

import dataclasses
import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from headrace.schemas.errors import ConfigError
from headrace.schemas.rfc3339 import parse_one

PORT = 9092
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}", re.ASCII)
_PASS = "librdkafka."
_PROTOCOLS = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER")
_SECRET = re.compile(r"password|secret|\.pem$|jaas|private|assertion|token", re.ASCII)
_SECRET_FIX = "anybody who sees the command, the process list or a log can read it"
_OWN = {
    "bootstrap.servers": "name the brokers before the topic: kafka://host:port,host:port/topic",
    "metadata.broker.list": "name the brokers before the topic: kafka://host:port,host:port/topic",
    "group.id": "use group=NAME",
    "isolation.level": "use isolation=read_committed|read_uncommitted",
    "security.protocol": "use security.protocol=… without librdkafka.",
    "sasl.mechanism": "use sasl.mechanism=… without librdkafka.",
    "sasl.mechanisms": "use sasl.mechanism=… without librdkafka.",
    "sasl.username": "use username=NAME",
    "ssl.ca.location": "use ca_file=PATH",
    "ssl.certificate.location": "use cert_file=PATH",
    "ssl.key.location": "use key_file=PATH",
}
_REFUSED = {
    "enable.auto.commit": "the pipeline's checkpoints say what is done; offsets are committed for monitoring only",
    "enable.auto.offset.store": "the pipeline's checkpoints say what is done",
    "auto.offset.reset": "jumping over offsets that are gone would lose records unseen; see on_data_loss",
    "enable.partition.eof": "headrace finds the end of a partition by it",
    "check.crcs": "damaged records must not pass as sound ones",
    "acks": "a record counts as written when all in-sync replicas have it",
    "request.required.acks": "a record counts as written when all in-sync replicas have it",
    "enable.idempotence": "without it a retry of the client doubles and reorders records",
    "delivery.report.only.error": "headrace counts what was delivered by it",
    "transactional.id": "the sink is at-least-once and writes outside of transactions",
}


@dataclass(frozen=True, kw_only=True)
class KafkaConnection:
    """A topic and how to get at it. Picklable and printable: it names where a password is, and never holds one."""

    brokers: str
    """``host:port``, several joined by commas."""
    topic: str
    security_protocol: str = ""
    """``plaintext``, ``ssl``, ``sasl_plaintext`` or ``sasl_ssl``; by default what the other options need."""
    sasl_mechanism: str = ""
    """``PLAIN`` (default if there is a username), ``SCRAM-SHA-256``, ``SCRAM-SHA-512``, ``GSSAPI`` or ``OAUTHBEARER``."""
    username: str = ""
    password_file: str = ""
    """File with the password, on every worker; a newline at its end does not count."""
    password_env: str = ""
    """Environment variable with the password, on every worker."""
    ca_file: str = ""
    """PEM file of the authorities that sign the brokers' certificates."""
    cert_file: str = ""
    """PEM file of the client's own certificate."""
    key_file: str = ""
    """PEM file of the key of ``cert_file``."""
    key_password_file: str = ""
    """File with the password of ``key_file``."""
    librdkafka: tuple[tuple[str, str], ...] = dataclasses.field(default=(), repr=False)
    """Other properties of the client, given as ``librdkafka.NAME=VALUE``."""

    def __post_init__(self) -> None:
        self._choose("security_protocol", ("", *_PROTOCOLS))
        self._choose("sasl_mechanism", ("", *_MECHANISMS))
        if self.password_file and self.password_env:
            raise ConfigError(f"{self.name}: password_file and password_env are both given; leave one out")
        if bool(self.username) != bool(self.password_file or self.password_env):
            lacks = "password_file=PATH or password_env=VARIABLE" if self.username else "username=NAME"
            raise ConfigError(f"{self.name}: a username and a password go together; add {lacks}")
        if bool(self.cert_file) != bool(self.key_file):
            raise ConfigError(f"{self.name}: cert_file and key_file go together; give both or neither")
        if self._sasl and self.protocol in ("plaintext", "ssl"):
            raise ConfigError(
                f"{self.name}: security.protocol={self.protocol} would ignore the username or sasl.mechanism; "
                f"use {'sasl_ssl' if self.protocol == 'ssl' else 'sasl_plaintext, or better sasl_ssl'}"
            )
        if (self.ca_file or self.cert_file) and not self.protocol.endswith("ssl"):
            raise ConfigError(
                f"{self.name}: security.protocol={self.protocol} would ignore ca_file and cert_file; use ssl or sasl_ssl"
            )
        for name, value in self.librdkafka:
            _check_property(name, value)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Reads ``kafka://host:port[,host:port]/topic?option=value&…``; the options are the fields of this class.

        ``-`` and ``.`` in option names count as ``_``; values are percent-decoded. No message repeats the value of an option that
        is not known, or of a ``librdkafka.`` one.

        Raises:
            ConfigError: not such an address, an unknown, repeated or impossible option, a password in it; with the fix.
        """
        found = re.fullmatch(r"kafka://([^/?#]*)/([^?#]*)(?:\?([^#]*))?", url)
        if not found:
            raise ConfigError("a Kafka address looks like kafka://host:port[,host:port]/topic?option=value")
        hosts, topic, query = found[1], unquote(found[2]), found[3] or ""
        if "@" in hosts:
            raise ConfigError(
                f"the Kafka address holds a user or password before its host; {_SECRET_FIX}. "
                "Use ?username=NAME&password_file=PATH (or password_env=VARIABLE)"
            )
        if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
            raise ConfigError(
                f"Kafka topic {topic!r} is no valid name: 1 to 249 letters, digits, '.', '_' and '-', after one '/'"
            )
        fields = {f.name: f for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {"brokers": _brokers(hosts), "topic": topic}
        passed: dict[str, str] = {}
        for pair in filter(None, query.split("&")):
            name, _, text = pair.partition("=")
            name, text = unquote(name), unquote(text)
            if name.startswith(_PASS):
                place, key = passed, name[len(_PASS) :]
            else:
                place, key = values, re.sub(r"[.-]", "_", name)
                known = [n for n in fields if n not in ("brokers", "topic", "librdkafka")]
                if key not in known:
                    raise ConfigError(_unknown(name, known))
                text = _number(name, text, fields[key].type)
            if key in place:
                raise ConfigError(f"Kafka option {name} is given twice; leave one out")
            place[key] = text
        return cls(**values, librdkafka=tuple(sorted(passed.items())))

    @property
    def name(self) -> str:
        """The address without options."""
        return f"kafka://{self.brokers}/{self.topic}"

    @property
    def protocol(self) -> str:
        """The security protocol in force."""
        if self.security_protocol:
            return self.security_protocol
        tls = bool(self.ca_file or self.cert_file)
        return "sasl_ssl" if self._sasl else "ssl" if tls else "plaintext"

    @property
    def _sasl(self) -> bool:
        return bool(self.username or self.sasl_mechanism)

    def settings(self) -> dict[str, Any]:
        """Returns the properties of any client; reads the passwords, so keep the result out of logs and pickles.

        Raises:
            ConfigError: a password is not where it should be.
        """
        found: dict[str, Any] = {
            "bootstrap.servers": self.brokers,
            "client.id": "headrace",
            "security.protocol": self.protocol,
            "socket.keepalive.enable": True,
            "reconnect.backoff.ms": 200,
            "reconnect.backoff.max.ms": 2000,
        }
        if self.protocol.startswith("sasl"):
            found["sasl.mechanism"] = self.sasl_mechanism or "PLAIN"
        if self.username:
            found["sasl.username"] = self.username
            found["sasl.password"] = _secret("password", self.password_file, self.password_env)
        if self.ca_file:
            found["ssl.ca.location"] = _readable("ca_file", self.ca_file)
        if self.cert_file:
            found["ssl.certificate.location"] = _readable("cert_file", self.cert_file)
            found["ssl.key.location"] = _readable("key_file", self.key_file)
        if self.key_password_file:
            found["ssl.key.password"] = _secret("key_password", self.key_password_file, "")
        return found | dict(self.librdkafka)

    def _choose(self, field: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, field)
        if value not in choices:
            option = field.replace("_", ".") if field in ("security_protocol", "sasl_mechanism") else field
            known = ", ".join(choice for choice in choices if choice)
            raise ConfigError(f"Kafka option {option}={value} is not one of {known}")


@dataclass(frozen=True, kw_only=True)
class KafkaSourceOptions(KafkaConnection):
    """How a topic is read."""

    format: str = "json"
    """What the records are: ``json`` or ``weblog``."""
    start: str = "earliest"
    """Where a new stream begins: ``earliest``, ``latest``, or a time (RFC 3339): the first record that is not older."""
    group: str = ""
    """Consumer group that gets the offsets of what is in the lake, for monitoring; default ``headrace-TOPIC``."""
    ingest_time: str = "append"
    """Whose clock is the ingest time. ``append``: the broker's; records with a ``CreateTime`` (the default of Kafka's topics) are
    refused. ``create``: the record's own timestamp, whoever set it: staleness is then judged by the producers' clocks."""
    on_data_loss: str = "fail"
    """What to do where records are gone (retention) or damaged: ``fail``, or ``skip`` them, counted and logged."""
    isolation: str = "read_committed"
    """``read_uncommitted`` also reads open and aborted transactions."""
    max_record_bytes: int = 16 << 20
    """Longer records are rejected; only their beginning is kept."""
    discover_seconds: float = 30.0
    """How often new partitions are looked for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._choose("format", ("json", "weblog"))
        self._choose("ingest_time", ("append", "create"))
        self._choose("on_data_loss", ("fail", "skip"))
        self._choose("isolation", ("read_committed", "read_uncommitted"))
        if self.start not in ("earliest", "latest") and parse_one(self.start) is None:
            raise ConfigError(
                f"Kafka option start={self.start} is neither earliest, latest nor a time like 2026-01-05T10:00:00Z"
            )
        if self.max_record_bytes < 1:
            raise ConfigError(f"Kafka option max_record_bytes={self.max_record_bytes} must be 1 or more")
        if not 1 <= self.discover_seconds <= 86_400:
            raise ConfigError(f"Kafka option discover_seconds={self.discover_seconds:g} must be 1 to 86400")

    @property
    def consumer_group(self) -> str:
        """The group in force."""
        return self.group or f"headrace-{self.topic}"

    @property
    def start_millis(self) -> int | None:
        """The time at which a new stream begins, in ms since 1970; None if it is no time."""
        micros = parse_one(self.start)
        return None if micros is None else -(-micros // 1000)

    def consumer_settings(self) -> dict[str, Any]:
        """Returns the properties of a consumer that is given its partitions by hand; holds passwords."""
        return {
            "fetch.wait.max.ms": 100,
            "fetch.queue.backoff.ms": 20,
            "max.poll.interval.ms": 86_400_000,
            **self.settings(),
            "group.id": self.consumer_group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "isolation.level": self.isolation,
            "check.crcs": True,
        }


@dataclass(frozen=True, kw_only=True)
class KafkaSinkOptions(KafkaConnection):
    """How a topic is written."""

    key: str = "event_id"
    """Column that becomes the records' key; empty: no key."""
    compression: str = "lz4"
    """``none``, ``gzip``, ``snappy``, ``lz4`` or ``zstd``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._choose("compression", ("none", "gzip", "snappy", "lz4", "zstd"))

    def producer_settings(self) -> dict[str, Any]:
        """Returns the properties of an idempotent producer; holds passwords."""
        return {
            "linger.ms": 20,
            "queue.buffering.max.kbytes": 1 << 16,
            "partitioner": "murmur2_random",
            "compression.type": self.compression,
            **self.settings(),
            "acks": "all",
            "enable.idempotence": True,
            "delivery.report.only.error": True,
        }


def _brokers(hosts: str) -> str:
    found = []
    for host in hosts.split(","):
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\s\[\]]+)(?::(\d{1,5}))?", host)
        if not match or not 0 < int(match[2] or PORT) < 65_536:
            raise ConfigError(
                f"Kafka broker {host!r} is not host or host:port; write kafka://host:port[,host:port]/topic"
            )
        found.append(f"{match[1]}:{match[2] or PORT}")
    return ",".join(found)


def _number(name: str, text: str, type_: Any) -> Any:
    """Reads a value as its field's type."""
    if type_ is str:
        return text
    try:
        return type_(text)
    except ValueError:
        raise ConfigError(f"Kafka option {name}={text} is not a number") from None


def _unknown(name: str, known: list[str]) -> str:
    if _SECRET.search(name.lower()):
        return (
            f"Kafka option {name}: a secret in the address is refused, for {_SECRET_FIX}; "
            "use password_file=PATH or password_env=VARIABLE"
        )
    near = difflib.get_close_matches(re.sub(r"[.-]", "_", name.lower()), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"Kafka option {name!r} is not known; {hint} (any property of the client goes as librdkafka.NAME=VALUE)"


def _check_property(name: str, value: str) -> None:
    if name in _OWN:
        raise ConfigError(f"Kafka option librdkafka.{name}: {_OWN[name]}")
    if name in _REFUSED:
        raise ConfigError(f"Kafka option librdkafka.{name} can't be set: {_REFUSED[name]}")
    if _SECRET.search(name):
        raise ConfigError(
            f"Kafka option librdkafka.{name}: a secret in the address is refused, for {_SECRET_FIX}; use password_file, "
            "password_env or key_password_file"
        )
    if not name or not value:
        raise ConfigError(f"Kafka option librdkafka.{name} needs a name and a value")


def _secret(what: str, file: str, variable: str) -> str:
    if variable:
        value = os.environ.get(variable, "")
        if not value:
            raise ConfigError(
                f"Kafka {what}: environment variable {variable} is not set here; set it on the launcher and on every worker"
            )
        return value
    try:
        value = Path(file).expanduser().read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(
            f"Kafka {what}_file={file} can't be read: {cause}; it has to be on every worker"
        ) from None
    if not value:
        raise ConfigError(f"Kafka {what}_file={file} is empty; write the password into it")
    return value


def _readable(option: str, file: str) -> str:
    path = Path(file).expanduser()
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(
            f"Kafka {option}={file} can't be read: {error.strerror}; it has to be on every worker"
        ) from None
    return str(path)
