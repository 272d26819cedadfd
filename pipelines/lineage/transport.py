"""Where lineage events go: a file, or a collector over HTTP. Telling never fails a run."""

import json
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from headrace.schemas.errors import ConfigError

TARGET, URL, ENDPOINT, API_KEY, NAMESPACE = (
    "HEADRACE_LINEAGE",
    "OPENLINEAGE_URL",
    "OPENLINEAGE_ENDPOINT",
    "OPENLINEAGE_API_KEY",
    "OPENLINEAGE_NAMESPACE",
)
"""Environment variables: a file or URL; and those of OpenLineage's own clients."""
_ENDPOINT = "api/v1/lineage"
_TIMEOUT_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Transport(Protocol):
    """Takes events to where they are collected."""

    def send(self, event: Mapping[str, Any]) -> None:
        """Takes one event there; does not raise."""


class FileTransport:
    """Appends an event a line to a file; several processes may share it.

    Args:
        path: its folder has to exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told = False

    def send(self, event: Mapping[str, Any]) -> None:
        line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._told = _tell_once(self._told, f"file {self._path}: {error.strerror}")


class HttpTransport:
    """Posts events as JSON. A collector that fails or is away is told of once, and asked again with the next event.

    Args:
        url: of the collector.
        endpoint: the path below it.
        api_key: sent as a bearer token.
        timeout_seconds: how long a run waits for an answer.
    """

    def __init__(
        self,
        url: str,
        *,
        endpoint: str = _ENDPOINT,
        api_key: str | None = None,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> None:
        self._url = f"{url.rstrip('/')}/{endpoint.lstrip('/')}"
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout_seconds
        self._told = False

    def send(self, event: Mapping[str, Any]) -> None:
        request = urllib.request.Request(
            self._url, json.dumps(event, ensure_ascii=False).encode(), self._headers, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                answer.read()
        except (OSError, ValueError) as error:  # URLError and timeouts are OSErrors.
            self._told = _tell_once(self._told, f"{self._shown}: {error}")

    @property
    def _shown(self) -> str:
        """The URL without a password."""
        parts = urllib.parse.urlsplit(self._url)
        return urllib.parse.urlunsplit((parts.scheme, parts.hostname or "", parts.path, "", ""))


def transport_of(environment: Mapping[str, str] = os.environ) -> Transport | None:
    """Returns the transport that the environment asks for; None if it asks for none.

    Raises:
        ConfigError: it names neither a file in a folder that exists nor an http or https URL.
    """
    target = environment.get(TARGET) or environment.get(URL)
    if not target:
        return None
    scheme = urllib.parse.urlsplit(target).scheme
    if scheme in ("http", "https"):
        return HttpTransport(
            target, endpoint=environment.get(ENDPOINT) or _ENDPOINT, api_key=environment.get(API_KEY)
        )
    if scheme not in ("", "file"):
        raise ConfigError(
            f"{TARGET if environment.get(TARGET) else URL} is {scheme}://…; name a file, or an http or https URL of a collector"
        )
    path = Path(urllib.parse.unquote(urllib.parse.urlsplit(target).path) if scheme else target)
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"lineage file {path}: folder {path.absolute().parent} does not exist; make it")
    return FileTransport(path)


def _tell_once(told: bool, what: str) -> bool:
    if not told:
        _log.warning("lineage could not be told to %s; the run goes on without it", what)
    return True
