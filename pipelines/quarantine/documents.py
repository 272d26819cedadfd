"""Sealed documents opened for those who hold the key: as text to show, and for the few fields that tell producers apart."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import orjson
import pyarrow as pa

from headrace.schemas.json_text import MAX_DEPTH, MalformedJsonError, depth, parse
from headrace.schemas.registry import Registry, Schema
from headrace.transforms.decode_weblog import record_of
from headrace.transforms.distinct import DistinctCache
from headrace.transforms.keys import Key
from headrace.transforms.mask_json import JsonMasker, Operator
from headrace.transforms.mask_pii import network
from headrace.transforms.pii_patterns import PatternScanner

FACTS = ("source", "schema_version", "app_version", "device_type", "platform", "os_version")
"""Columns that are null in rows rejected by decode and validate, and that their documents may tell."""
WEBLOG = "weblog"

_LONGEST_FACT = 80
_CACHED_FACTS = 16_384


class Unsealer:
    """Opens documents.

    Args:
        key: that they were sealed with.

    Raises:
        ConfigError: another key, by the first document.
    """

    def __init__(self, key: Key, registry: Registry | None = None) -> None:
        self._key = key
        self._registry = registry or Registry.default()
        self._scanner = PatternScanner()
        self._scanner.setup()
        self._maskers: dict[str, JsonMasker] = {}
        self._known_paths: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        self._clean: DistinctCache[str] = DistinctCache(self._scanner.scrub_values, _CACHED_FACTS)

    def masked(self, sealed: bytes, schema: str | None) -> str:
        """Returns a document as text with its PII masked as MaskPii masks it in the lake.

        Fields that the document's schema tags become tokens and networks, e-mails, cards and credentials labels, wherever they
        stand. Of a document without a known schema the tagged fields of all families are masked; one that can't be parsed is
        not shown.
        """
        raw = self._key.unseal(sealed)
        value = record_of(raw) if (schema or WEBLOG).startswith(WEBLOG) else None
        text = orjson.dumps(value).decode() if value is not None else _json_text(raw)
        if text is None:
            return f"(not JSON, {len(raw):,} bytes, so PII can't be told apart in it; --clear shows it)"
        masked: str = self._masker(schema).scrub(pa.array([text], pa.string()))[0].as_py()
        return masked

    def clear(self, sealed: bytes) -> str:
        """Returns a document as text, with everything in it; bytes that are not UTF-8 as ``\\xNN``."""
        return self._key.unseal(sealed).decode("utf-8", "backslashreplace")

    def raw(self, sealed: bytes) -> bytes:
        """Returns the record as the source had it."""
        return self._key.unseal(sealed)

    def facts(self, sealed: bytes, schema: str | None) -> dict[str, str]:
        """Returns what a document says of :data:`FACTS`, scrubbed as text; empty if it can't be parsed."""
        raw = self._key.unseal(sealed)
        try:
            value: Any = record_of(raw) if (schema or "").startswith(WEBLOG) else parse(raw)
        except MalformedJsonError:
            return {}
        if not isinstance(value, dict):
            return {}
        facts = {}
        for name, path in self._paths(schema, value):
            stated: Any = value
            for part in path:
                stated = stated.get(part) if isinstance(stated, dict) else None
            if isinstance(stated, str) and len(stated) <= _LONGEST_FACT and stated.isprintable():
                facts[name] = stated
        clean = self._clean(list(facts.values()))
        return {name: str(text) for name, text in zip(facts, clean, strict=True)}

    def _paths(self, ref: str | None, value: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
        """Returns where documents of this schema, or of the family that the document looks like, state each fact."""
        name = ref or self._registry.detect(value) or ""
        paths = self._known_paths.get(name)
        if paths is None:
            schema = self._schema(ref, value)
            fields = [(fact, schema.column(fact)) for fact in FACTS] if schema else []
            paths = self._known_paths[name] = [(fact, field.path) for fact, field in fields if field]
        return paths

    def _schema(self, ref: str | None, value: Mapping[str, Any]) -> Schema | None:
        name = (ref or "").partition(":")[0] or self._registry.detect(value)
        if name is None or name not in self._registry.names():
            return None
        known = ref is not None and ref.partition(":")[2] in self._registry.versions(name)
        return self._registry.get(str(ref) if known else name)

    def _masker(self, ref: str | None) -> JsonMasker:
        masker = self._maskers.get(ref or "")
        if masker is None:
            name = (ref or "").partition(":")[0]
            names = [name] if name in self._registry.names() else self._registry.names()
            members: dict[tuple[str, ...], Operator] = {}
            fields = [field for n in names for field in self._registry.get(n).fields]
            for field in sorted(fields, key=lambda f: len(f.path)):
                if field.pii in ("token", "ip") and not _overlaps(field.path, members):
                    members[field.path] = self._token if field.pii == "token" else _network
            masker = self._maskers[ref or ""] = JsonMasker(self._scanner, members, Counter())
        return masker

    def _token(self, values: pa.Array) -> pa.Array:
        return self._key.tokens(values)


def _network(values: pa.Array) -> pa.Array:
    return pa.array([None if v is None else network(v) for v in values.to_pylist()], pa.string())


def _overlaps(path: tuple[str, ...], members: Mapping[tuple[str, ...], Operator]) -> bool:
    """True if it lies in a member, which is masked as a whole; paths of different families may."""
    return any(path[: len(known)] == known for known in members)


def _json_text(raw: bytes) -> str | None:
    """Returns the document in one line; None if it is no JSON object or array that a parser takes."""
    if depth(raw) > MAX_DEPTH:
        return None
    try:
        text = raw.decode()
        return text.strip() if isinstance(orjson.loads(text), dict | list) else None
    except (UnicodeDecodeError, json.JSONDecodeError):
        return None
