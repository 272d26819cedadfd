"""The registry of event families: versioned JSON Schemas, found by name, by version or by an event's shape.

A registry is a folder ``NAME/VERSION.json``. Besides plain JSON Schema a family document holds annotations
that no validator looks at: ``x-family`` and ``x-version`` (equal to its place in the folder), ``x-detect``
(sets of top-level keys by which an event without a stated schema is recognised), ``x-identity`` (where the
event id comes from), and for each named property ``x-column`` (the canonical column, see
``headrace.schemas.columns``) and ``x-pii`` (how it is masked).
"""

import difflib
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Self

from headrace.schemas.columns import EVENT_SCHEMA, JSON_COLUMNS
from headrace.schemas.errors import ConfigError, InputError

DETECT_ORDER = ("envelope", "financial", "behaviour", "commerce", "interaction", "clickstream")
"""Families in the order in which they claim an event; families not named here follow by name."""
IDENTITIES = ("event_id", "generated", "optional")
PII_KINDS = ("token", "ip", "url", "text", "json")

_VERSION = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})")
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_DATA_KEYWORDS = frozenset({"enum", "const", "default", "examples"})


@dataclass(frozen=True)
class Field:
    """One named property of a family that is mapped onto a column of its own.

    ``path`` leads from the event's top level to the value. ``column`` is a column of ``EVENT_SCHEMA``, or a
    JSON column and a key in it (``properties/bid``). ``pii`` is how it is masked, or None. ``required`` means
    at every level of the path.
    """

    path: tuple[str, ...]
    column: str
    pii: str | None
    schema: Mapping[str, Any] = field(hash=False)
    required: bool


@dataclass(frozen=True)
class Schema:
    """One version of one family. ``document`` is read-only: all users of the registry share it."""

    name: str
    version: str
    document: Mapping[str, Any] = field(hash=False, repr=False)

    @property
    def key(self) -> str:
        """``name:version``, the value of the ``schema`` column."""
        return f"{self.name}:{self.version}"

    @property
    def detect(self) -> tuple[tuple[str, ...], ...]:
        """Sets of top-level keys; an event that has all keys of one set belongs to this family."""
        return tuple(tuple(keys) for keys in self.document.get("x-detect", ()))

    @property
    def identity(self) -> str:
        """``event_id`` (the event carries its id), ``generated`` (it never does) or ``optional``."""
        return str(self.document.get("x-identity", "optional"))

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """The properties that carry ``x-column``, in the document's order."""
        return tuple(_fields(self.document, (), True))

    def column(self, name: str) -> Field | None:
        """Returns the field that is mapped onto the column, or None."""
        return next((found for found in self.fields if found.column == name), None)


class Registry:
    """The known families. Immutable, picklable (it is shipped to workers), equal results in every process.

    Example::

        registry = Registry.default()
        registry.get("commerce").key                     # 'commerce:1.0.0'
        registry.detect({"metadata": {}, "payload": {}})  # 'envelope'
    """

    def __init__(self, schemas: Mapping[str, Mapping[str, Schema]]) -> None:
        self._schemas: dict[str, dict[str, Schema]] = {
            name: dict(sorted(schemas[name].items(), key=lambda item: _semver(item[0]) or (0, 0, 0)))
            for name in sorted(schemas)
        }
        ranks = {name: rank for rank, name in enumerate(DETECT_ORDER)}
        order = sorted(self._schemas, key=lambda name: (ranks.get(name, len(ranks)), name))
        self._detect = [
            (name, frozenset(keys))
            for name in order
            for schema in reversed(self._schemas[name].values())
            for keys in schema.detect
        ]

    @classmethod
    def default(cls) -> "Registry":
        """Returns the families packaged with headrace; read once per process."""
        return _default()

    @classmethod
    def from_folder(cls, path: str | Path) -> Self:
        """Reads a folder ``NAME/VERSION.json``.

        Raises:
            InputError: the folder does not exist or a file in it can't be read.
            ConfigError: a document is not a JSON object, or its annotations contradict its place or the
                canonical columns.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise InputError(f"schema folder {folder} does not exist; expected a folder of NAME/VERSION.json")
        return cls._read(folder)

    @classmethod
    def _read(cls, folder: Traversable) -> Self:
        found: dict[str, dict[str, Schema]] = {}
        for family in folder.iterdir():
            if not family.is_dir() or family.name.startswith((".", "_")):
                continue
            for entry in family.iterdir():
                if entry.name.endswith(".json"):
                    schema = _load(entry, family.name, entry.name.removesuffix(".json"))
                    found.setdefault(schema.name, {})[schema.version] = schema
        return cls(found)

    def names(self) -> list[str]:
        """Returns the families' names, sorted."""
        return list(self._schemas)

    def versions(self, name: str) -> list[str]:
        """Returns a family's versions, lowest first.

        Raises:
            ConfigError: unknown name; the message names the nearest known ones.
        """
        return list(self._family(name))

    def get(self, ref: str) -> Schema:
        """Returns the schema that ``NAME`` (its highest version) or ``NAME:VERSION`` names.

        Raises:
            ConfigError: unknown name or version; the message names the nearest known ones.
        """
        name, colon, version = ref.partition(":")
        family = self._family(name)
        if not colon:
            return next(reversed(family.values()))
        if version not in family:
            raise ConfigError(f"schema {name!r} has no version {version!r}; known: {', '.join(family)}")
        return family[version]

    def resolve(self, name: str, version: str | None) -> Schema | None:
        """Returns the schema to check an event against that states this version; None if there is none.

        The version itself if it is registered, else the highest registered one of the same major version; the
        family's highest if the event states no version (``version`` is None).
        """
        family = self._schemas.get(name)
        if not family:
            return None
        if version is None:
            return next(reversed(family.values()))
        if version in family:
            return family[version]
        wanted = _semver(version)
        if wanted is None:
            return None
        same = [schema for known, schema in family.items() if (_semver(known) or (-1,))[0] == wanted[0]]
        return same[-1] if same else None

    def detect(self, document: Mapping[str, Any]) -> str | None:
        """Returns the first family in ``DETECT_ORDER`` that claims the event by its top-level keys."""
        keys = document.keys()
        for name, wanted in self._detect:
            if wanted <= keys:
                return name
        return None

    def sensitive(self) -> dict[str, str]:
        """Returns every column, or path in a JSON column (``properties/…``), that holds PII in any family.

        The value is the kind (``x-pii``).

        Raises:
            ConfigError: two families tag one column with different kinds.
        """
        found: dict[str, str] = {}
        for family in self._schemas.values():
            for schema in family.values():
                for item in schema.fields:
                    if item.pii is None:
                        continue
                    known = found.setdefault(item.column, item.pii)
                    if known != item.pii:
                        raise ConfigError(
                            f"schema {schema.key}: {_pointer(item.path)} tags column {item.column!r} with "
                            f"x-pii {item.pii!r}, another schema with {known!r}; use one kind for a column"
                        )
        return found

    def _family(self, name: str) -> dict[str, Schema]:
        family = self._schemas.get(name)
        if family:
            return family
        near = difflib.get_close_matches(name, self._schemas, n=3)
        hint = (
            f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(self._schemas) or 'none'}"
        )
        raise ConfigError(f"unknown schema {name!r}; {hint}")


@lru_cache(maxsize=1)
def _default() -> Registry:
    return Registry._read(importlib.resources.files("headrace.schemas") / "families")


def _semver(version: str) -> tuple[int, int, int] | None:
    match = _VERSION.fullmatch(version)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _pointer(path: tuple[str, ...]) -> str:
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)


def _load(entry: Traversable, name: str, version: str) -> Schema:
    where = f"schema file {name}/{entry.name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: {name!r} can't name a family; use a-z, 0-9, '_' and '-'")
    if _semver(version) is None:
        raise ConfigError(f"{where}: the file must be called MAJOR.MINOR.PATCH.json, for example 1.0.0.json")
    try:
        document = json.loads(entry.read_bytes())
    except OSError as error:
        raise InputError(f"{where} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{where} must hold a JSON object")
    for keyword, expected in (("x-family", name), ("x-version", version)):
        if document.get(keyword, expected) != expected:
            raise ConfigError(f"{where}: {keyword} is {document[keyword]!r}, its place says {expected!r}")
    detect = document.get("x-detect", [])
    if not isinstance(detect, list) or not all(
        isinstance(keys, list) and keys and all(isinstance(key, str) for key in keys) for keys in detect
    ):
        raise ConfigError(f"{where}: x-detect must be a list of non-empty lists of top-level keys")
    if document.get("x-identity", "optional") not in IDENTITIES:
        raise ConfigError(f"{where}: x-identity must be one of {', '.join(IDENTITIES)}")
    schema = Schema(name, version, document)
    _check_fields(schema, where)
    return schema


def _check_fields(schema: Schema, where: str) -> None:
    taken: dict[str, Field] = {}
    for item in schema.fields:
        at = f"{where}: {_pointer(item.path)}"
        head, _, rest = item.column.partition("/")
        if head not in EVENT_SCHEMA.names or ("/" in item.column and (head not in JSON_COLUMNS or not rest)):
            near = difflib.get_close_matches(head, EVENT_SCHEMA.names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"{at}: x-column {item.column!r} is neither an event column nor a key in a JSON column{hint}"
            )
        if item.pii is not None and item.pii not in PII_KINDS:
            raise ConfigError(f"{at}: x-pii must be one of {', '.join(PII_KINDS)}")
        if item.column in taken:
            raise ConfigError(
                f"{at}: column {item.column!r} is already filled from {_pointer(taken[item.column].path)}"
            )
        taken[item.column] = item
    if _count(schema.document) != len(schema.fields):
        raise ConfigError(
            f"{where}: an x-column stands where no event value is found by name; x-column belongs on a "
            "property reached from the top by 'properties' alone, outside of another x-column"
        )


def _fields(node: Mapping[str, Any], path: tuple[str, ...], required: bool) -> Iterator[Field]:
    properties = node.get("properties")
    if not isinstance(properties, dict):
        return
    names = node.get("required", ())
    for name, child in properties.items():
        if not isinstance(child, dict):
            continue
        here, needed = (*path, name), required and name in names
        if "x-column" in child:
            yield Field(here, str(child["x-column"]), child.get("x-pii"), child, needed)
        else:
            yield from _fields(child, here, needed)


def _count(node: Any, is_map: bool = False) -> int:
    """Counts the subschemas with an x-column; ``is_map`` says that the node maps names to schemas."""
    if isinstance(node, list):
        return sum(map(_count, node))
    if not isinstance(node, dict):
        return 0
    maps = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
    return int(not is_map and "x-column" in node) + sum(
        _count(child, not is_map and keyword in maps)
        for keyword, child in node.items()
        if is_map or keyword not in _DATA_KEYWORDS
    )
