"""Settings declared once as a dataclass: reading, checking, printing and the reference page all come from the fields.

A field's type hint says what it takes (``str``, ``int``, ``float``, ``bool``, ``datetime``, ``Literal``, ``list``, ``dict``,
another settings dataclass, ``Any``, each possibly ``| None``); :func:`about` adds the help text, the bounds and whether the setting
decides what the output holds.
"""

import dataclasses
import functools
import json
import textwrap
import types
import typing
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import yaml

from headrace.runners.suggest import suggest
from headrace.schemas.errors import ConfigError


def about(help: str, *, minimum: float | None = None, identity: bool = True) -> dict[str, Any]:
    """Returns the metadata of one field of a settings dataclass, for ``dataclasses.field(metadata=...)``.

    Args:
        help: what it does, for a reader of the reference page.
        minimum: the smallest number allowed.
        identity: false if two runs that differ only in it write the same rows.
    """
    return {"help": help, "minimum": minimum, "identity": identity}


def build(cls: type, data: object, place: str, path: str = "") -> Any:
    """Makes the settings dataclass from what a file held.

    Args:
        place: the file's name, for messages.
        path: the key path of ``data`` in it; "" for the top.

    Raises:
        ConfigError: unknown or missing key, wrong type or value; the message has the place, the key path and the fix.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{_at(place, path)}: expected a table of settings, found {_found(data)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = _hints(cls)
    values = {}
    for key, value in data.items():
        here = f"{path}.{key}" if path else str(key)
        if key not in fields:
            raise ConfigError(f"{_at(place, here)}: unknown setting {key!r}; {suggest(str(key), fields)}")
        values[key] = convert(value, hints[key], place, here)
    for name, field in fields.items():
        if name not in values and _required(field):
            raise ConfigError(f"{_at(place, path)}: {name!r} is missing ({field.metadata['help']})")
    return cls(**values)


def check(instance: Any) -> None:
    """Checks every field of a frozen settings dataclass against its declaration; call it from ``__post_init__``.

    Raises:
        ConfigError: a value has another type than declared, or is below its minimum.
    """
    hints = _hints(type(instance))
    for field in dataclasses.fields(instance):
        value = convert(getattr(instance, field.name), hints[field.name], type(instance).__name__, field.name)
        minimum = field.metadata["minimum"]
        if minimum is not None and value is not None and value < minimum:
            raise ConfigError(f"{field.name} is {value}; it must be {minimum:g} or more")
        object.__setattr__(instance, field.name, value)


def convert(value: object, hint: Any, place: str, path: str) -> Any:
    """Returns the value as the hint's type: ISO 8601 text becomes a time, an integer a float; nothing else is coerced.

    Raises:
        ConfigError: it does not fit; the message says what was expected and what was found.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return convert(value, next(a for a in arguments if a is not types.NoneType), place, path)
    if hint is Any:
        return value
    if origin is Literal:
        if value in arguments and isinstance(value, str):
            return value
        hint_text = suggest(value, arguments) if isinstance(value, str) else f"known: {', '.join(arguments)}"
        raise ConfigError(f"{_at(place, path)}: {_found(value)} is not possible; {hint_text}")
    if origin is list and isinstance(value, list | tuple):
        return [convert(item, arguments[0], place, f"{path}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {
            convert(key, str, place, f"{path} (a key)"): convert(item, arguments[1], place, f"{path}.{key}")
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, typing.cast(type, hint)) else build(hint, value, place, path)  # type: ignore[arg-type]
    if hint is datetime:
        return _time(value, place, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{_at(place, path)}: expected {type_name(hint)}, found {_found(value)}")


def _time(value: object, place: str, path: str) -> datetime:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ConfigError(
                f"{_at(place, path)}: {value!r} is not a time; write it as 2024-05-17T12:00:00Z"
            ) from None
    if not isinstance(value, datetime):
        raise ConfigError(f"{_at(place, path)}: expected {type_name(datetime)}, found {_found(value)}")
    if value.tzinfo is None:
        raise ConfigError(
            f"{_at(place, path)}: {value.isoformat()} has no time zone; for UTC write {value.isoformat()}Z"
        )
    return value.astimezone(UTC)


def as_dict(instance: Any) -> dict[str, Any]:
    """Returns the settings as plain JSON values in declared order; times as ISO 8601 with Z."""
    return {f.name: _plain(getattr(instance, f.name)) for f in dataclasses.fields(instance)}


def identity(instance: Any) -> dict[str, Any]:
    """Returns, as plain JSON values, the settings that decide which rows the output holds."""
    return {
        f.name: _plain(getattr(instance, f.name))
        for f in dataclasses.fields(instance)
        if f.metadata["identity"]
    }


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if dataclasses.is_dataclass(value):
        return as_dict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def dump(instance: Any, width: int = 100) -> str:
    """Returns the settings as YAML with each one's help as a comment; reading it gives equal settings."""
    hints = _hints(type(instance))
    parts = []
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        comment = textwrap.fill(field.metadata["help"], width, initial_indent="# ", subsequent_indent="# ")
        nested = _nested(hints[field.name])
        if dataclasses.is_dataclass(value):
            text = f"{field.name}:\n{textwrap.indent(dump(value, width - 2), '  ').rstrip()}"
        else:
            text = _yaml({field.name: _plain(value)}, width)
            if nested is not None:
                names = "\n".join(
                    f"#   {f.name}: {_default_text(f)}  ({type_name(_hints(nested)[f.name])})"
                    for f in dataclasses.fields(nested)
                )
                comment += f"\n# A table of:\n{names}"
        parts.append(f"{comment}\n{text}\n")
    return "\n".join(parts)


def _yaml(data: dict[str, Any], width: int) -> str:
    # Unescaped, PyYAML would read line breaks such as U+0085 back as spaces.
    readable = json.dumps(data, ensure_ascii=False).isprintable()
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=readable, width=width).rstrip("\n")


def reference(cls: type, prefix: str = "") -> str:
    """Returns a Markdown table of all settings: key, type, default, help; nested ones by their key path."""
    rows = []
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        cells = (
            f"`{prefix}{field.name}`",
            type_name(hints[field.name]),
            _default_text(field),
            field.metadata["help"],
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        nested = _nested(hints[field.name])
        if nested is not None:
            rows += reference(nested, f"{prefix}{field.name}.").splitlines()[2:]
    return "\n".join(["| setting | type | default | what it does |", "|---|---|---|---|", *rows])


def type_name(hint: Any) -> str:
    """Returns a type in words, for messages and the reference."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return type_name(next(a for a in arguments if a is not types.NoneType)) + " or null"
    if origin is Literal:
        return "one of " + ", ".join(arguments)
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return "table" if arguments[1] is Any else f"table of {type_name(arguments[1])}"
    if dataclasses.is_dataclass(hint):
        return "table"
    words = {str: "text", int: "integer", float: "number", bool: "true or false", datetime: "time with zone"}
    return words.get(hint, "any value")


def _hints(cls: Any) -> dict[str, Any]:
    return _cached_hints(cls)


_cached_hints = functools.cache(typing.get_type_hints)


def _nested(hint: Any) -> type | None:
    for candidate in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(candidate):
            return typing.cast(type, candidate)
    return None


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default_text(field: dataclasses.Field[Any]) -> str:
    if _required(field):
        return "required"
    if field.default is not dataclasses.MISSING:
        return f"`{json.dumps(_plain(field.default))}`"
    made = field.default_factory() if callable(field.default_factory) else None
    return f"`{json.dumps(_plain(made))}`"


def _at(place: str, path: str) -> str:
    return ": ".join(part for part in (place, path) if part)


def _found(value: object) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return f"{str(value).lower()} (quote it if text is meant)"
    if isinstance(value, str):
        return f"text {value!r}"
    if isinstance(value, int):
        return f"integer {value}"
    if isinstance(value, float):
        return f"number {value}"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, Mapping):
        return "a table"
    return f"{type(value).__name__} {value}"
