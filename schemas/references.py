"""Checks a JSON Schema before its first use and resolves its ``$ref`` from local files only.

A schema that passes can be applied to any document: it fits its meta-schema, every pattern compiles, every reference leads to
a schema, and no chain of references comes back to where it started without reaching into the document.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import referencing
import referencing.exceptions
from jsonschema import (
    Draft4Validator,
    Draft6Validator,
    Draft7Validator,
    Draft201909Validator,
    Draft202012Validator,
)
from jsonschema.exceptions import best_match
from referencing.jsonschema import specification_with

from headrace.schemas.errors import ConfigError, HeadraceError, InputError

DIALECTS: dict[str, Any] = {
    "http://json-schema.org/draft-04/schema": Draft4Validator,
    "http://json-schema.org/draft-06/schema": Draft6Validator,
    "http://json-schema.org/draft-07/schema": Draft7Validator,
    "https://json-schema.org/draft/2019-09/schema": Draft201909Validator,
    "https://json-schema.org/draft/2020-12/schema": Draft202012Validator,
}
DEFAULT_DIALECT = "https://json-schema.org/draft/2020-12/schema"

IN_PLACE = ("not", "if", "then", "else")
IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
"""Keywords whose subschemas apply to the same value."""
WITHIN = ("additionalProperties", "additionalItems", "items", "contains", "propertyNames", "unevaluatedItems")
WITHIN_MAPS = ("properties", "patternProperties")
"""Keywords whose subschemas apply to values inside it."""
DEFINITIONS = ("$defs", "definitions")
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")

Json = dict[str, Any] | bool


def read_schema(path: Path) -> Json:
    """Reads one JSON Schema file (UTF-8, with or without BOM).

    Raises:
        InputError: the file can't be read.
        ConfigError: it is not JSON, or neither an object nor a boolean.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"schema {path} can't be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"schema {path} is not UTF-8 (byte {error.start + 1})") from error
    try:
        return _plain(json.loads(text))
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"schema {path} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"schema {path} can't be used: {_reason(error)}") from error


class CheckedSchema:
    """A JSON Schema that is safe to apply, with every local document that it refers to.

    Args:
        schema: the schema; ``$schema`` names its draft (4, 6, 7, 2019-09, 2020-12; 2020-12 if it names none).
        folder: where relative ``$ref`` are looked up; None: no files. Nothing outside of it is read, nor the network.
        resources: documents already read, by URI; used to rebuild a schema where its folder does not exist.

    Raises:
        ConfigError: the schema can't be used; the message says why and where in it (JSON pointer).
    """

    def __init__(
        self,
        schema: Mapping[str, Any] | bool,
        *,
        folder: Path | None = None,
        resources: Mapping[str, Json] | None = None,
    ) -> None:
        try:
            self.document = _plain(schema if isinstance(schema, bool) else dict(schema))
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"unusable schema: {_reason(error)}") from error
        self.dialect = _dialect(self.document, "")
        self.resources: dict[str, Json] = dict(resources or {})
        self._folder = folder.resolve() if folder else None
        self._by_id: dict[str, Path] | None = None
        self._base = self._id_of(self.document)
        validator_class = DIALECTS[self.dialect]
        registry = cast(Any, referencing.Registry)(retrieve=self._retrieve)
        self.validator = validator_class(
            self.document, format_checker=validator_class.FORMAT_CHECKER, registry=registry
        )
        try:
            self._check()
        except RecursionError as error:
            raise ConfigError("unusable schema: it is nested too deeply") from error

    # ------------------------------------------------------------------ files
    def _retrieve(self, uri: str) -> Any:
        if uri not in self.resources:
            path = self._locate(uri)
            if path is None:
                raise cast(Any, referencing.exceptions.NoSuchResource)(ref=uri)
            self.resources[uri] = read_schema(path)
        contents = self.resources[uri]
        dialect = _dialect(contents, f" in {uri}", self.dialect)
        return specification_with(dialect).create_resource(cast(Any, contents))

    def _locate(self, uri: str) -> Path | None:
        """Returns the file in the folder that the URI stands for: by its ``$id``, else by its path."""
        if self._folder is None:
            return None
        if self._by_id is None:
            self._by_id = dict(self._ids())
        if uri in self._by_id:
            return self._by_id[uri]
        parts = urlsplit(uri)
        if parts.scheme == "file":
            path = Path(unquote(parts.path))
        elif not parts.scheme and not parts.netloc:
            path = self._folder / unquote(parts.path)
        else:
            home = urljoin(self._base, ".")
            if not self._base or not uri.startswith(home):
                return None
            path = self._folder / unquote(urlsplit(uri[len(home) :]).path)
        path = path.resolve()
        return path if path.is_relative_to(self._folder) and path.is_file() else None

    def _ids(self) -> Iterator[tuple[str, Path]]:
        assert self._folder is not None
        for path in sorted(self._folder.glob("*.json")):
            try:
                contents = read_schema(path)
            except (ConfigError, InputError):  # not a schema: it can't be what a $ref means
                continue
            if name := self._id_of(contents):
                yield name, path

    @staticmethod
    def _id_of(contents: Json) -> str:
        if isinstance(contents, bool):
            return ""
        found = contents.get("$id", contents.get("id", ""))
        return urldefrag(found)[0] if isinstance(found, str) else ""

    # ------------------------------------------------------------------ checks
    def _check(self) -> None:
        specification = specification_with(self.dialect)
        resource = specification.create_resource(cast(Any, self.document))
        self._against_meta_schema(self.document, "", self.dialect)
        state = _Walk(self, specification)
        roots = [(self.document, self.validator._resolver.in_subresource(resource), "")]
        while roots:
            node, resolver, where = roots.pop()
            state.visit(node, resolver, where, roots)

    def _against_meta_schema(self, contents: Any, where: str, dialect: str) -> None:
        validator_class = DIALECTS[_dialect(contents, where, dialect)]
        meta = validator_class(validator_class.META_SCHEMA, format_checker=validator_class.FORMAT_CHECKER)
        error = best_match(meta.iter_errors(contents))
        if error is not None:
            pointer = where + "".join("/" + escape(str(part)) for part in error.absolute_path)
            raise ConfigError(f"unusable schema at {pointer or 'its top level'}: {_cut(error.message)}")


class _Walk:
    """Depth-first over the schema. ``open`` holds the nodes that apply to the same value as the current one."""

    def __init__(self, owner: CheckedSchema, specification: Any) -> None:
        self.owner = owner
        self.specification = specification
        self.done: set[int] = set()
        self.open: set[int] = set()

    def visit(self, node: Any, resolver: Any, where: str, roots: list[Any]) -> None:
        if not isinstance(node, dict) or id(node) in self.done:
            return
        if id(node) in self.open:
            raise ConfigError(
                f"unusable schema at {where or 'its top level'}: its references form a loop that never reaches "
                "into the document"
            )
        self.open.add(id(node))
        for keyword in REFERENCES:
            if isinstance(node.get(keyword), str):
                self._follow(node, keyword, resolver, where, roots)
        for keyword, child in node.items():
            here = f"{where}/{escape(keyword)}"
            if keyword == "pattern" and isinstance(child, str):
                _compile(child, here)
            elif keyword in IN_PLACE:
                self._step(child, resolver, here, roots)
            elif keyword in IN_PLACE_LISTS:
                for index, item in enumerate(child):
                    self._step(item, resolver, f"{here}/{index}", roots)
            elif keyword in ("dependentSchemas", "dependencies"):
                for name, item in child.items():
                    self._step(item, resolver, f"{here}/{escape(name)}", roots)
            elif keyword in (*WITHIN, "unevaluatedProperties", "prefixItems"):
                items = enumerate(child) if isinstance(child, list) else [(None, child)]
                for name, item in items:
                    at = here if name is None else f"{here}/{name}"
                    roots.append((item, self._inside(item, resolver), at))
            elif keyword in (*WITHIN_MAPS, *DEFINITIONS) and isinstance(child, dict):
                for name, item in child.items():
                    if keyword == "patternProperties":
                        _compile(name, here)
                    roots.append((item, self._inside(item, resolver), f"{here}/{escape(name)}"))
        self.open.discard(id(node))
        self.done.add(id(node))

    def _step(self, child: Any, resolver: Any, where: str, roots: list[Any]) -> None:
        self.visit(child, self._inside(child, resolver), where, roots)

    def _inside(self, child: Any, resolver: Any) -> Any:
        if not isinstance(child, dict):
            return resolver
        return resolver.in_subresource(self.specification.create_resource(child))

    def _follow(
        self, node: dict[str, Any], keyword: str, resolver: Any, where: str, roots: list[Any]
    ) -> None:
        reference, here = node[keyword], f"{where}/{keyword}"
        try:
            resolved = resolver.lookup(reference)
        except (referencing.exceptions.Unresolvable, ValueError) as error:
            for cause in _causes(error):
                if isinstance(cause, HeadraceError):
                    raise ConfigError(f"unusable schema at {here}: {cause}") from error
            raise ConfigError(
                f"unusable schema at {here}: {_cut(reference)} can't be resolved; a $ref may lead into the schema "
                "itself or to a file in its own folder, never to the network"
            ) from error
        target = resolved.contents
        if id(target) in self.done or id(target) in self.open:
            if id(target) in self.open and keyword == "$ref":
                self.visit(target, resolved.resolver, here, roots)
            return
        if not isinstance(target, dict | bool):
            raise ConfigError(f"unusable schema at {here}: {_cut(reference)} is not a schema")
        self.owner._against_meta_schema(target, f"{here} -> {_cut(reference)}", self.owner.dialect)
        self.visit(target, resolved.resolver, f"{here} -> {_cut(reference)}", roots)


def escape(part: str) -> str:
    """Escapes one part of a JSON pointer (RFC 6901)."""
    return part.replace("~", "~0").replace("/", "~1")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _compile(pattern: str, where: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"unusable schema at {where}: the pattern {_cut(pattern)} is not a regular expression: {error}"
        ) from error


def _dialect(contents: Any, where: str, default: str = DEFAULT_DIALECT) -> str:
    named = contents.get("$schema", default) if isinstance(contents, dict) else default
    uri = named.removesuffix("#") if isinstance(named, str) else ""
    if uri not in DIALECTS:
        raise ConfigError(
            f"unusable schema{where} at /$schema: {_cut(str(named))} is not supported; "
            f"use one of {', '.join(DIALECTS)}"
        )
    return uri


def _plain(contents: Any) -> Json:
    """Returns a copy made of plain JSON values only."""
    copy = json.loads(json.dumps(contents, allow_nan=False))
    if not isinstance(copy, dict | bool):
        raise ValueError("a schema is a JSON object or a boolean")
    return copy


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _cut(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[:limit] + "…"
