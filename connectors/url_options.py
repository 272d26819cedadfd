"""Options behind the ``?`` of a source's or sink's address."""

import difflib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

from headrace.schemas.errors import ConfigError
from headrace.schemas.rfc3339 import parse_one

Convert = Callable[[str], Any]


def read_options(query: str, known: Mapping[str, Convert], of: str) -> dict[str, Any]:
    """Reads ``name=value&…``; ``-`` and ``.`` in names count as ``_``, values are percent-decoded.

    Args:
        known: how each option's text is converted; a converter raises ``ValueError`` saying what it takes.
        of: what the options belong to, for messages: ``Pub/Sub``.

    Raises:
        ConfigError: unknown, given twice, or not convertible; with the fix.
    """
    found: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        name, _, text = pair.partition("=")
        key = unquote(name).replace("-", "_").replace(".", "_")
        if key not in known:
            near = difflib.get_close_matches(key.lower(), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{of} option {unquote(name)!r} is not known; {hint}")
        if key in found:
            raise ConfigError(f"{of} option {key} is given twice; leave one out")
        try:
            found[key] = known[key](unquote(text))
        except ValueError as error:
            raise ConfigError(f"{of} option {key}={unquote(text)}: {error}") from None
    return found


def one_of(*choices: str) -> Convert:
    """Converts to one of these words."""

    def convert(text: str) -> str:
        if text not in choices:
            raise ValueError(f"use one of {', '.join(choices)}")
        return text

    return convert


def flag(text: str) -> bool:
    """Converts ``true`` and ``false``."""
    return bool(one_of("true", "false")(text) == "true")


def number(type_: type[int] | type[float], low: float, high: float) -> Convert:
    """Converts to a number within bounds."""

    def convert(text: str) -> float:
        try:
            value = type_(text)
        except ValueError:
            value = type_(low) - 1
        if not low <= value <= high:
            kind = "whole number" if type_ is int else "number"
            raise ValueError(f"use a {kind} from {low:g} to {high:g}")
        return value

    return convert


def instant(text: str) -> datetime:
    """Converts an RFC 3339 time."""
    micros = parse_one(text)
    if micros is None:
        raise ValueError("use a time such as 2026-01-05T10:00:00Z")
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)


def word(text: str) -> str:
    """Takes any text but none."""
    if not text:
        raise ValueError("a value is needed")
    return text
