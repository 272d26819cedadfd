"""MapFields: the configuration's ``mapping``, from a user's own documents onto the envelope family."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pyarrow as pa
import xxhash

from headrace.connectors.json_rows import NotJsonError, decimal_text, encode, jsonable, time_text
from headrace.connectors.raw_blocks import Block
from headrace.schemas.errors import ConfigError
from headrace.schemas.json_text import MalformedJsonError, parse, parse_exact
from headrace.schemas.registry import Registry

SETTINGS = ("from", "cast", "format", "timezone", "default", "map", "value", "generate")
CASTS = ("string", "integer", "decimal", "boolean", "timestamp", "lower", "upper")
VERSION = "1.0.0"
SOURCE = "mapped"

_ID = "metadata.event_id"
_REST = "payload.custom_data"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_TRUTH = {
    **dict.fromkeys(("true", "t", "yes", "y", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0"), False),
}
_EPOCHS = {"unix": Decimal(1), "unix_ms": Decimal(1000)}
_MISSING = object()
_LEAF: dict[str, Any] = {}

Tree = dict[str, dict[str, Any]]
Get = Callable[[Mapping[str, Any], bytes], Any]


def compile_mapping(config: Mapping[str, Any]) -> "FieldMapping":
    """Returns the mapping that ``config`` describes; see :class:`FieldMapping`."""
    return FieldMapping(config)


class FieldMapping:
    """Makes an envelope document of another document; pure, and picklable.

    ``config`` names for each target its source. A target is a column of the events (``event_time``, ``price``) or the dotted path
    of the envelope's field that fills it (``metadata.timestamp``, ``payload.properties.price``; other properties: any name).
    The source is

    - ``path.in.the.document`` (a key that itself contains the dots is found first);
    - ``{from: path, map: {a: b}, cast: …, default: value}``: ``map`` replaces values by their text, then ``cast`` is applied;
      ``default`` is for a source that is absent or null. Without one the target is absent.
    - ``{value: constant}``;
    - ``{generate: content}`` for ``metadata.event_id``: a UUIDv8 (RFC 9562) from the bytes of the record, so that equal records
      get equal ids and are taken for duplicates of one event.

    Casts: ``string``, ``integer``, ``decimal`` (text, every digit kept), ``boolean`` (true/false, t/f, yes/no, y/n, 1/0),
    ``lower``, ``upper``, ``timestamp`` (RFC 3339 in UTC; ``format`` is a strptime pattern, ``unix`` or ``unix_ms``, default
    ISO 8601; a time without offset is taken in ``timezone``, default UTC, the first of two where clocks are put back).
    A value that can't be cast stays as it is, so that validation gives the reason. Of duplicate keys the last one wins,
    as everywhere.

    ``metadata.version`` is "1.0.0" and ``metadata.source`` "mapped" unless mapped. Fields that no source names are kept under
    ``payload.custom_data``, by their own names (with ``unmapped_`` in front where a target has taken the name).

    Raises:
        ConfigError: a target that the envelope does not have, overlapping or missing targets, an unknown or wrong setting.

    Example::

        compile_mapping({"metadata.event_id": {"generate": "content"}, "metadata.timestamp": "when",
                         "user.id": "who", "payload.event_type": {"value": "visit"}})
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        if not isinstance(config, Mapping) or not config:
            raise ConfigError("mapping: expected a table of target: source, for example 'user.id: customer'")
        self.config: dict[str, Any] = {}
        for name, rule in config.items():
            target = _path_of(str(name))
            if target in self.config:
                raise ConfigError(f"mapping: {name} and another target both mean {target}; keep one of them")
            self.config[target] = dict(rule) if isinstance(rule, Mapping) else rule
        _check_targets(self.config)
        self._fields: list[tuple[tuple[str, ...], Get]] = []
        self._sources: list[str] = []
        for target, rule in self.config.items():
            get, source = _getter(target, rule)
            self._fields.append((tuple(target.split(".")), get))
            if source is not None:
                self._sources.append(source)
        self._used = _tree(tuple(source.split(".")) for source in self._sources)
        self._dotted = [source for source in self._sources if "." in source]

    def __reduce__(self) -> tuple[Any, ...]:
        return compile_mapping, (self.config,)

    def __call__(self, document: Mapping[str, Any], content: bytes | None = None) -> dict[str, Any]:
        """Returns the envelope document.

        Args:
            document: values as from ``json_text.parse_exact``; not changed.
            content: the record's bytes, for ``{generate: content}``; None: the document written as JSON.
        """
        bytes_ = encode(document) if content is None else content
        out: dict[str, Any] = {"metadata": {"version": VERSION, "source": SOURCE}}
        for path, get in self._fields:
            value = get(document, bytes_)
            if value is None:
                if path[0] == "metadata":
                    out["metadata"].pop(path[1], None)
                continue
            place = out
            for part in path[:-1]:
                place = place.setdefault(part, {})
            place[path[-1]] = value
        if rest := _unused(document, self._used_in(document)):
            custom = out.setdefault("payload", {}).setdefault("custom_data", {})
            for name, value in rest.items():
                while name in custom:
                    name = f"unmapped_{name}"
                custom[name] = value
        return out

    def map_json(self, raw: bytes) -> bytes:
        """Returns the mapped text of one JSON document; what is no JSON object is returned as it is, for Decode to reject."""
        try:
            parse(raw)
        except MalformedJsonError:
            return raw
        document = parse_exact(raw)
        return encode(self(document, raw)) if isinstance(document, dict) else raw

    def map_block(self, block: Block) -> Block:
        """Returns the block with every sound record mapped."""
        raw = block.raw.column("raw").to_pylist()
        faults = block.raw.column("fault").is_null().to_pylist()
        mapped = [self.map_json(r) if sound else r for r, sound in zip(raw, faults, strict=True)]
        columns = [pa.array(mapped, pa.binary()), *block.raw.columns[1:]]
        return block._replace(raw=pa.RecordBatch.from_arrays(columns, schema=block.raw.schema))

    def _used_in(self, document: Mapping[str, Any]) -> Tree:
        if not any(source in document for source in self._dotted):
            return self._used
        return _tree((s,) if s in document else tuple(s.split(".")) for s in self._sources)


def _getter(target: str, rule: Any) -> tuple[Get, str | None]:
    """Returns the function that makes the target's value, and the source path that it reads."""
    where = f"mapping: {target}"
    if isinstance(rule, str) and rule:
        return partial(_value_of, rule, lambda value: value, None), rule
    if not isinstance(rule, Mapping):
        raise ConfigError(
            f"{where}: expected a source path or a table with {', '.join(SETTINGS)}; found {rule!r}"
        )
    for key in rule:
        if key not in SETTINGS:
            raise ConfigError(f"{where}: unknown setting {key!r}; {_nearest(str(key), SETTINGS)}")
    if sum(key in rule for key in ("from", "value", "generate")) != 1:
        raise ConfigError(f"{where}: give exactly one of 'from', 'value' and 'generate'")
    if "from" not in rule and len(rule) > 1:
        raise ConfigError(f"{where}: 'cast', 'format', 'timezone', 'default' and 'map' need 'from'")
    if "generate" in rule:
        if rule["generate"] != "content" or target != _ID:
            raise ConfigError(f"{where}: 'generate' can only be 'content', and only for {_ID}")
        return _content_id, None
    if "value" in rule:
        return partial(_constant, _json(rule["value"], where)), None
    if not isinstance(rule["from"], str) or not rule["from"]:
        raise ConfigError(f"{where}: 'from' is {rule['from']!r}; expected a path such as 'order.total'")
    default = _json(rule.get("default"), where)
    return partial(_value_of, rule["from"], _converter(rule, where), default), rule["from"]


def _converter(rule: Mapping[str, Any], where: str) -> Callable[[Any], Any]:
    cast = rule.get("cast")
    if cast is not None and cast not in CASTS:
        raise ConfigError(f"{where}: unknown cast {cast!r}; {_nearest(str(cast), CASTS)}")
    for key in ("format", "timezone"):
        if key in rule and cast != "timestamp":
            raise ConfigError(f"{where}: {key!r} needs 'cast: timestamp'")
    names = rule.get("map")
    if names is not None and not isinstance(names, Mapping):
        raise ConfigError(f"{where}: 'map' is {names!r}; expected a table of value: replacement")
    replace = {_key(k): _json(v, where) for k, v in names.items()} if names else {}
    if cast == "timestamp":
        pattern = rule.get("format")
        if pattern is not None and not isinstance(pattern, str):
            raise ConfigError(
                f"{where}: 'format' is {pattern!r}; expected a strptime pattern, unix or unix_ms"
            )
        convert: Callable[[Any], Any] | None = partial(_timestamp, pattern, _zone(rule, where))
    else:
        convert = _CASTS[cast] if cast else None
    return partial(_converted, replace, convert)


def _zone(rule: Mapping[str, Any], where: str) -> tzinfo:
    name = rule.get("timezone")
    if name is None:
        return UTC
    try:
        return ZoneInfo(name)
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise ConfigError(
            f"{where}: unknown time zone {name!r}; use an IANA name such as Europe/Berlin"
        ) from error


def _value_of(source: str, convert: Callable[[Any], Any], default: Any, document: Any, _: bytes) -> Any:
    value = document.get(source, _MISSING)
    if value is _MISSING:
        value = document
        for part in source.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    return default if value is None else convert(value)


def _constant(value: Any, _document: Any, _content: bytes) -> Any:
    return value


def _content_id(_: Any, content: bytes) -> str:
    number = xxhash.xxh3_128_intdigest(content)
    number = number & ~(0xF << 76) | (0x8 << 76)
    return str(UUID(int=number & ~(0x3 << 62) | (0x2 << 62)))


def _converted(replace: Mapping[str, Any], convert: Callable[[Any], Any] | None, value: Any) -> Any:
    if replace and not isinstance(value, dict | list):
        value = replace.get(_key(value), value)
    if convert is None:
        return value
    try:
        return convert(value)
    except (ValueError, ArithmeticError, TypeError):
        return value


def _key(value: Any) -> str:
    """A scalar as text, the way JSON writes it."""
    return value if isinstance(value, str) else encode(value).decode()


def _text(value: Any) -> str:
    if isinstance(value, dict | list):
        raise TypeError("an object or array is no text")
    return _key(value)


def _number(value: Any) -> Decimal:
    text = _text(value).strip()
    if isinstance(value, bool) or not _NUMBER.fullmatch(text):
        raise ValueError("no number")
    return Decimal(text)


def _integer(value: Any) -> int:
    number = _number(value)
    if number != number.to_integral_value() or not -(1 << 63) <= number < 1 << 63:
        raise ValueError("no integer of 64 bits")
    return int(number)


def _boolean(value: Any) -> bool:
    text = _text(value).strip().lower()
    if text not in _TRUTH:
        raise ValueError("neither true nor false")
    return _TRUTH[text]


def _timestamp(pattern: str | None, zone: tzinfo, value: Any) -> str:
    if pattern in _EPOCHS:
        seconds = _number(value) / _EPOCHS[pattern]
        return time_text(datetime(1970, 1, 1) + timedelta(microseconds=int(seconds * 1_000_000)))
    text = _text(value).strip()
    parsed = datetime.fromisoformat(text) if pattern is None else datetime.strptime(text, pattern)
    return time_text(parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=zone))


_CASTS: dict[str, Callable[[Any], Any]] = {
    "string": _text,
    "integer": _integer,
    "decimal": lambda value: decimal_text(_number(value)),
    "boolean": _boolean,
    "lower": lambda value: _text(value).lower(),
    "upper": lambda value: _text(value).upper(),
}


def _tree(paths: Iterable[tuple[str, ...]]) -> Tree:
    """Returns the paths as nested tables; ``_LEAF`` is a path's end."""
    tree: Tree = {}
    for path in sorted(set(paths)):
        place: dict[str, Any] = tree
        for part in path[:-1]:
            place = place.setdefault(part, {})
            if place is _LEAF:
                break
        else:
            place[path[-1]] = _LEAF
    return tree


def _unused(document: Mapping[str, Any], used: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the document without what the tree names; objects that become empty so are left out."""
    rest = {}
    for name, value in document.items():
        below = used.get(name)
        if below is None:
            rest[name] = value
        elif below is not _LEAF:
            left = _unused(value, below) if isinstance(value, Mapping) and value else value
            if left or left is value:
                rest[name] = left
    return rest


def _path_of(target: str) -> str:
    """Returns the envelope's dotted path for a column's name; anything else is a path already."""
    field = Registry.default().get("envelope").column(target)
    return target if field is None or "." in target else ".".join(field.path)


def _check_targets(config: Mapping[str, Any]) -> None:
    envelope = Registry.default().get("envelope").document
    for target in config:
        _check_target(target, envelope)
        for other in config:
            if other.startswith(f"{target}."):
                raise ConfigError(f"mapping: {target} holds {other}; map one or the other")
    if _ID not in config:
        raise ConfigError(
            f"mapping: {_ID} is missing; map it to the field that identifies the event, or to {{generate: content}} if "
            "records that are equal in every byte are the same event"
        )
    missing = [t for t in ("metadata.timestamp", "user.id", "payload.event_type") if t not in config]
    if missing:
        raise ConfigError(
            f"mapping: {', '.join(missing)} missing; every event needs it (a constant is {{value: …}})"
        )


def _check_target(target: str, schema: Mapping[str, Any]) -> None:
    if target == _REST:
        raise ConfigError(f"mapping: {_REST} takes the unmapped fields; map to {_REST}.NAME, or leave it out")
    done: list[str] = []
    for part in target.split("."):
        fields = schema.get("properties", {})
        if not part:
            raise ConfigError(f"mapping: {target!r} has an empty part")
        if part not in fields:
            if done and (not fields or "x-rest" in schema) and _may_hold(schema):
                return
            known = [".".join([*done, name]) for name in fields]
            raise ConfigError(
                f"mapping: the envelope has no {'.'.join([*done, part])}; {_nearest(target, known)}"
            )
        schema = fields[part]
        done.append(part)
    if "properties" in schema and "x-rest" not in schema:
        known = [f"{target}.{name}" for name in schema["properties"]]
        raise ConfigError(f"mapping: {target} is an object; map its fields ({', '.join(known)})")


def _may_hold(schema: Mapping[str, Any]) -> bool:
    kinds = schema.get("type", "object")
    return "object" in ([kinds] if isinstance(kinds, str) else kinds)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'nothing below it'}"


def _json(value: Any, where: str) -> Any:
    """Returns a constant of the configuration as a JSON value."""
    if value is None:
        return None
    try:
        return jsonable(value)
    except NotJsonError as error:
        raise ConfigError(f"{where}: {value!r} is no JSON value") from error
