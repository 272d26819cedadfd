"""Fixes of rejected rows, declared in a YAML file: which rows, and what is done to their documents or columns."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from headrace.connectors.json_rows import time_text
from headrace.connectors.read_quarantine import compile_where
from headrace.runners.suggest import suggest
from headrace.schemas.columns import ENRICHED_SCHEMA
from headrace.schemas.errors import ConfigError
from headrace.schemas.json_text import ExactNumber, MalformedJsonError, canonical, parse, parse_exact
from headrace.schemas.registry import Registry

RECORD = ""
"""The target that is a whole record, as text."""
_VERBS = ("set", "default", "cast", "rename", "replace", "drop", "schema")
_MORE = {
    "set": ("value",),
    "default": ("value",),
    "cast": ("to",),
    "rename": ("to",),
    "replace": ("pattern", "with"),
    "drop": (),
    "schema": (),
}
_KINDS = ("text", "integer", "number", "boolean", "seconds", "milliseconds")
_MISSING = object()


class NotFixable(Exception):
    """A step can't be done to a row; the message says why, without a value of the row."""


@dataclass(frozen=True)
class Step:
    """One change.

    ``target``: a JSON pointer (RFC 6901) into the document; a column's name, for rows that were rejected after masking and have
    no document; ``RECORD`` for the record's text.
    """

    verb: str
    target: str
    value: Any = None
    pattern: re.Pattern[str] | None = None

    @property
    def of_document(self) -> bool:
        return self.target == RECORD or self.target.startswith("/")


@dataclass(frozen=True)
class Fix:
    """What is done, in order, to the rows that ``where`` selects; to all without it."""

    name: str
    where: str | None
    steps: tuple[Step, ...]


@dataclass
class Fixed:
    """A record after its fixes."""

    raw: bytes
    schema: str | None = None
    """NAME:VERSION that it is held against; None finds it as ever."""
    names: list[str] = field(default_factory=list)
    """The fixes that were applied."""


def load_fixes(path: str | os.PathLike[str], registry: Registry) -> list[Fix]:
    """Reads a file of fixes.

    ``fixes`` is a list; each has ``steps``, and may have ``where`` (an expression over the quarantine's columns) and ``name``::

        fixes:
          - name: euro as a default
            where: reason = 'required' AND pointer = '/currency'
            steps:
              - default: /properties/currency
                value: EUR

    Steps: ``set`` and ``default`` (only where there is nothing, or null) with ``value``; ``cast`` with ``to`` (text, integer,
    number, boolean, or seconds or milliseconds since 1970, which become an RFC 3339 time); ``rename`` with ``to``, a pointer;
    ``replace`` with ``pattern`` (Python's regular expressions) and ``with``, in a text, or of the whole record with the target
    ``record``; ``drop``; ``schema`` names the family and version that the row is held against.

    Raises:
        ConfigError: the file can't be read, or a fix is wrong; the message has the place and what is expected.
    """
    try:
        data = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"fixes {path} can't be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"fixes {path} is no YAML: {error}") from error
    found = data.get("fixes") if isinstance(data, Mapping) and set(data) == {"fixes"} else None
    if not isinstance(found, list) or not found:
        raise ConfigError(f"fixes {path}: expected one key `fixes` with a list of fixes, each with `steps`")
    return [_fix(fix, f"{path}: fixes[{i}]", i, registry) for i, fix in enumerate(found)]


def _fix(data: object, place: str, number: int, registry: Registry) -> Fix:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{place}: expected a table with `steps`, found {type(data).__name__}")
    for key in data:
        if key not in ("name", "where", "steps"):
            raise ConfigError(
                f"{place}: unknown key {key!r}; {suggest(str(key), ('name', 'where', 'steps'))}"
            )
    where, steps = data.get("where"), data.get("steps")
    if where is not None:
        if not isinstance(where, str):
            raise ConfigError(f"{place}.where: expected an expression, e.g. reason = 'type'")
        try:
            compile_where(where)
        except ConfigError as error:
            raise ConfigError(f"{place}.where: {str(error).removeprefix('--where ')}") from None
    if not isinstance(steps, list) or not steps:
        raise ConfigError(f"{place}.steps: expected a list of steps, e.g. - drop: /debug")
    made = tuple(_step(step, f"{place}.steps[{i}]", registry) for i, step in enumerate(steps))
    return Fix(str(data.get("name") or f"fix {number + 1}"), where, made)


def _step(data: object, place: str, registry: Registry) -> Step:
    verbs = [key for key in data if key in _VERBS] if isinstance(data, Mapping) else []
    if not isinstance(data, Mapping) or len(verbs) != 1:
        raise ConfigError(f"{place}: expected one of {', '.join(_VERBS)}, e.g. - drop: /debug")
    verb = verbs[0]
    for key in data:
        if key != verb and key not in _MORE[verb]:
            raise ConfigError(
                f"{place}: {verb} has no {key!r}; it takes {', '.join(_MORE[verb]) or 'nothing more'}"
            )
    for key in _MORE[verb]:
        if key not in data:
            raise ConfigError(f"{place}: {verb} needs {key!r}")
    target = data[verb]
    if not isinstance(target, str):
        raise ConfigError(f"{place}.{verb}: expected text")
    if verb == "schema":
        registry.get(target)
        return Step(verb, RECORD, target)
    if target == "record":
        if verb != "replace":
            raise ConfigError(
                f"{place}: only replace works on a whole record; name a pointer, e.g. /properties/price"
            )
        target = RECORD
    elif not target.startswith("/") and target not in ENRICHED_SCHEMA.names:
        raise ConfigError(
            f"{place}.{verb}: {target!r} is neither a pointer into the document, such as /properties/price, nor a column; "
            f"{suggest(target, ENRICHED_SCHEMA.names)}"
        )
    return _checked(verb, target, data, place)


def _checked(verb: str, target: str, data: Mapping[str, Any], place: str) -> Step:
    pointed = target.startswith("/")
    if verb == "rename":
        to = data["to"]
        if not pointed or not isinstance(to, str) or not to.startswith("/"):
            raise ConfigError(
                f"{place}: rename goes from pointer to pointer, e.g. - rename: /uid, to: /user_id"
            )
        return Step(verb, target, to)
    if verb == "cast":
        if data["to"] not in _KINDS:
            raise ConfigError(f"{place}.to: {data['to']!r}; expected one of {', '.join(_KINDS)}")
        if not pointed:
            raise ConfigError(f"{place}: a column has its type; cast is for documents, by a pointer")
        return Step(verb, target, data["to"])
    if verb == "replace":
        try:
            pattern = re.compile(str(data["pattern"]))
            pattern.sub(str(data["with"]), "")
        except (re.error, IndexError) as error:
            raise ConfigError(f"{place}.pattern: {error}") from None
        return Step(verb, target, str(data["with"]), pattern)
    if verb in ("set", "default") and not pointed:
        try:
            pa.scalar(_for_column(data["value"]), _plain_type(target))
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError) as error:
            raise ConfigError(f"{place}.value: column {target} is {_plain_type(target)}: {error}") from None
    return Step(verb, target, data.get("value"))


def fix_document(raw: bytes, fixes: Sequence[Fix]) -> Fixed:
    """Returns a record after its fixes.

    Args:
        fixes: those whose condition the row fulfils, in order.

    Raises:
        NotFixable: a step can't be done; the record is as it was.
    """
    done = Fixed(raw)
    for fix in fixes:
        for step in fix.steps:
            if step.verb == "schema":
                done.schema = step.value
            elif step.target == RECORD:
                done.raw = _replace_text(done.raw, step)
            elif not step.of_document:
                raise NotFixable(
                    f"{fix.name}: {step.verb} names the column {step.target}, the row has a document"
                )
            else:
                done.raw = _change(done.raw, step, fix.name)
        done.names.append(fix.name)
    return done


def fix_columns(row: dict[str, Any], fixes: Sequence[Fix]) -> dict[str, Any]:
    """Returns a row without a document, by column, after its fixes.

    Raises:
        NotFixable: as above.
    """
    row = dict(row)
    for fix in fixes:
        for step in fix.steps:
            if step.of_document:
                raise NotFixable(
                    f"{fix.name}: {step.verb} is for documents, but the row was rejected after masking and has columns only; "
                    "name a column"
                )
            value = row.get(step.target)
            if step.verb == "drop":
                row[step.target] = None
            elif step.verb == "set" or (step.verb == "default" and value is None):
                row[step.target] = _for_column(step.value)
            elif step.verb == "replace" and step.pattern is not None and isinstance(value, str):
                row[step.target] = step.pattern.sub(step.value, value)
    return row


def _replace_text(raw: bytes, step: Step) -> bytes:
    assert step.pattern is not None
    text = raw.decode("utf-8", "surrogateescape")
    return step.pattern.sub(step.value, text).encode("utf-8", "surrogateescape")


def _change(raw: bytes, step: Step, name: str) -> bytes:
    try:
        parse(raw)
    except MalformedJsonError as error:
        raise NotFixable(
            f"{name}: the record is not JSON ({error}); mend it with replace: record first"
        ) from None
    document = parse_exact(raw)
    changed = _DO[step.verb](document, step)
    return canonical(changed).encode() if changed is not _MISSING else raw


def _set(document: Any, step: Step) -> Any:
    holder, key = _place(document, step.target, make=True)
    if step.verb == "default" and _get(holder, key) not in (_MISSING, None):
        return _MISSING
    _put(holder, key, step.value)
    return document


def _drop(document: Any, step: Step) -> Any:
    holder, key = _place(document, step.target)
    if _get(holder, key) is _MISSING:
        return _MISSING
    del holder[key]
    return document


def _rename(document: Any, step: Step) -> Any:
    holder, key = _place(document, step.target)
    value = _get(holder, key)
    if value is _MISSING:
        return _MISSING
    del holder[key]
    to, name = _place(document, step.value, make=True)
    if _get(to, name) is not _MISSING:
        raise NotFixable(f"rename to {step.value}: something stands there already")
    _put(to, name, value)
    return document


def _replace(document: Any, step: Step) -> Any:
    holder, key = _place(document, step.target)
    value = _get(holder, key)
    if not isinstance(value, str) or step.pattern is None:
        return _MISSING
    holder[key] = step.pattern.sub(step.value, value)
    return document


def _cast(document: Any, step: Step) -> Any:
    holder, key = _place(document, step.target)
    value = _get(holder, key)
    if value is _MISSING or value is None:
        return _MISSING
    text = value.text if isinstance(value, ExactNumber) else value
    try:
        holder[key] = _AS[step.value](text)
    except (ValueError, TypeError, InvalidOperation, OverflowError):
        raise NotFixable(f"cast: the value at {step.target} is no {step.value}") from None
    return document


def _place(document: Any, target: str, *, make: bool = False) -> tuple[Any, Any]:
    """Returns the object or array that holds what a pointer names, and its key there; (None, None) if there is none."""
    parts = [part.replace("~1", "/").replace("~0", "~") for part in target.split("/")[1:]]
    holder = document
    for part in parts[:-1]:
        value = _get(holder, _key(holder, part))
        if value is _MISSING or (value is None and make):
            if not make or not isinstance(holder, dict):
                return None, None
            value = holder[part] = {}
        holder = value
    if make and not isinstance(holder, dict | list):
        raise NotFixable(f"{target}: what it lies in is no object")
    return holder, _key(holder, parts[-1])


def _key(holder: Any, part: str) -> Any:
    return int(part) if isinstance(holder, list) and part.isascii() and part.isdigit() else part


def _get(holder: Any, key: Any) -> Any:
    if isinstance(holder, dict):
        return holder.get(key, _MISSING)
    if isinstance(holder, list) and isinstance(key, int) and key < len(holder):
        return holder[key]
    return _MISSING


def _put(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, list) and not (isinstance(key, int) and key < len(holder)):
        raise NotFixable("the array has no such place")
    holder[key] = value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | str):
        return str(value)
    raise TypeError


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    number = Decimal(str(value).strip())
    if not number.is_finite():
        raise ValueError
    return ExactNumber(str(number))


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    number = Decimal(str(value).strip())
    if not number.is_finite() or number != number.to_integral_value():
        raise ValueError
    return int(number)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
        str(value).strip().lower()
    ]


def _time(scale: int) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        number = Decimal(_text(value).strip())
        seconds, rest = divmod(int(number * (1_000_000 // scale)), 1_000_000)
        return time_text(datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest))

    return convert


_DO: dict[str, Callable[[Any, Step], Any]] = {
    "set": _set,
    "default": _set,
    "cast": _cast,
    "rename": _rename,
    "replace": _replace,
    "drop": _drop,
}
_AS: dict[str, Callable[[Any], Any]] = {
    "text": _text,
    "integer": _integer,
    "number": _number,
    "boolean": lambda value: _boolean_or_raise(value),
    "seconds": _time(1),
    "milliseconds": _time(1000),
}


def _boolean_or_raise(value: Any) -> bool:
    try:
        return _boolean(value)
    except KeyError:
        raise ValueError from None


def _plain_type(column: str) -> pa.DataType:
    type_ = ENRICHED_SCHEMA.field(column).type
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _for_column(value: Any) -> Any:
    return Decimal(str(value)) if isinstance(value, float) else value
