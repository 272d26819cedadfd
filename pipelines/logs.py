"""Logs of the command line: lines for people, or one JSON object a line for machines. Neither holds a value of a document."""

import builtins
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, get_args

from headrace.pipelines.progress import Shown
from headrace.schemas.errors import ConfigError, HeadraceError

Format = Literal["text", "json"]
LEVELS = ("debug", "info", "warning", "error")
NOISY = (
    "apache_beam",
    "org.apache",
    "azure",
    "botocore",
    "google",
    "grpc",
    "hdfs",
    "opentelemetry",
    "presidio-analyzer",
    "s3transfer",
    "urllib3",
)
"""Loggers of others that tell much while nothing is wrong; they are heard from ``warning`` on."""
CHATTY = ("apache_beam.utils.subprocess_server", "PrismRunner")
"""Loggers whose warnings are about nothing that a user can change; they are heard from ``error`` on."""
WITHHELD = "(withheld: it may quote a document)"
PROGRESS_SECONDS = 30.0

_SAFE = (HeadraceError, OSError, ImportError, MemoryError)
"""Errors whose message is about files, hosts and settings, never about the content of an event."""
_TRACEBACK = "Traceback (most recent call last):"
_FRAME = ("  File ", "    ", "  [")
_AFTER = (
    "During handling of the above exception",
    "The above exception was the direct cause",
    "\tat ",
    "Caused by: ",
)
_RAISED = re.compile(r"^(?P<type>[A-Za-z_][\w.]*)(?::\s.*)?$")
_job: str | None = None


def configure_logs(
    format: str = "text", level: str = "info", *, job: str | None = None, stream: TextIO | None = None
) -> None:
    """Sends all logs of this process to standard error, in one format. Called again, it replaces what it did before.

    Args:
        format: ``text`` or ``json``.
        level: ``debug``, ``info``, ``warning`` or ``error``.
        job: see :func:`name_job`.
        stream: where to; None: whatever ``sys.stderr`` is at the time of the line, so that a live line is not torn.

    Raises:
        ConfigError: unknown format or level.
    """
    if format not in get_args(Format):
        raise ConfigError(f"--log-format is {format!r}; it is text or json")
    if level.lower() not in LEVELS:
        raise ConfigError(f"--log-level is {level!r}; it is one of {', '.join(LEVELS)}")
    number: int = getattr(logging, level.upper())
    handler = _Handler(stream)
    handler.setLevel(number)
    if number > logging.DEBUG:
        handler.addFilter(_without_chatter)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)
    for name in NOISY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    logging.captureWarnings(True)
    name_job(job)


def name_job(job: str | None) -> None:
    """Puts the name of a job into every line from now on, whatever thread it is of."""
    global _job
    _job = job


def _without_chatter(record: logging.LogRecord) -> bool:
    """Beam says as warnings that it starts and stops Prism, and sets the level of Prism's own logger itself."""
    return record.name not in CHATTY or record.levelno >= logging.ERROR


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to the stream given, or to the present standard error."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream)
        self._given = stream

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = self._given if self._given is not None else sys.stderr
        super().emit(record)


class TextFormatter(logging.Formatter):
    """``2026-01-05T13:00:00.123Z WARNING headrace.x: message``, then the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        moment = _time(record).isoformat(timespec="milliseconds")[:-6]
        lines = [f"{moment}Z {record.levelname} {record.name}: {without_values(record.getMessage())}"]
        fields = _fields(record)
        if fields:
            lines[0] += " (" + ", ".join(f"{key} {value}" for key, value in fields.items()) + ")"
        for error in _errors(record):
            message = _message(error)
            lines += [
                "".join([_TRACEBACK, "\n", *traceback.format_tb(error.__traceback__)]).rstrip(),
                _type(error) + (f": {message}" if message else ""),
            ]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """One object a line; its keys are described in ``docs/metrics.md``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record).isoformat(timespec="microseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_values(record.getMessage()),
        }
        if _job is not None:
            line["job"] = _job
        fields = _fields(record)
        if fields:
            line["fields"] = fields
        errors = [
            {
                "type": _type(error),
                "message": _message(error),
                "traceback": "".join(traceback.format_tb(error.__traceback__)),
            }
            for error in _errors(record)
        ]
        if errors:
            line["exception"] = {**errors[0], "causes": errors[1:]}
        return json.dumps(line, default=str)


class ProgressLog:
    """Logs progress every half minute, for runs without a terminal; call it with each :class:`Shown`.

    Args:
        every_seconds: between two lines.
        clock: seconds that only grow.
    """

    def __init__(
        self, every_seconds: float = PROGRESS_SECONDS, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every, self._clock = every_seconds, clock
        self._said = clock()
        self._log = logging.getLogger("headrace.progress")

    def __call__(self, progress: Shown) -> None:
        now = self._clock()
        if now - self._said >= self._every:
            self._said = now
            known = {key: value for key, value in vars(progress).items() if value is not None}
            self._log.info("%s", ", ".join(progress.describe()), extra={"fields": known})


def without_values(text: str) -> str:
    """Returns a text without the messages of the Python errors whose tracebacks it quotes: they may hold a document's values.

    What a runner says of a failed job quotes its workers' tracebacks. Errors of headrace and of the operating system keep their
    message; that of any other is replaced, with all that follows up to the next traceback or line of Java. Frames stay.
    """
    kept: list[str] = []
    within, hidden = False, False
    for line in text.split("\n"):
        before, header, after = line.partition(_TRACEBACK)
        if header:
            within, hidden = not after.strip(), bool(after.strip())
            kept.append(before + header + (f" {WITHHELD}" if hidden else ""))
        elif within and not line.startswith(_FRAME):
            within = False
            found = _RAISED.match(line)
            kind = found["type"] if found else ""
            hidden = not _keeps_message(kind)
            kept.append(line if not hidden else f"{kind}: {WITHHELD}" if kind else WITHHELD)
        elif not hidden or line.startswith(_AFTER):
            hidden = False
            kept.append(line)
    return "\n".join(kept)


def _keeps_message(kind: str) -> bool:
    """Says whether the errors of a type, by its name, have messages without values."""
    if kind.startswith("headrace."):
        return True
    known = getattr(builtins, kind.removeprefix("builtins."), None)
    return isinstance(known, type) and issubclass(known, _SAFE)


def _errors(record: logging.LogRecord) -> Iterator[BaseException]:
    """The error of a record and its causes, the last one first."""
    error = record.exc_info[1] if record.exc_info else None
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _type(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    return without_values(str(error)) if isinstance(error, _SAFE) else WITHHELD


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What ``extra={"fields": …}`` gave."""
    return dict(getattr(record, "fields", None) or {})


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)
