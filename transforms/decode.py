"""Decode: raw records to canonical columns."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.compile_decoder import compile_decoder
from headrace.schemas.errors import ConfigError
from headrace.schemas.failures import Failure
from headrace.schemas.json_text import MalformedJsonError, parse
from headrace.schemas.registry import Registry, Schema
from headrace.schemas.typed_decoder import TypedDecoder
from headrace.transforms.assemble import Part, assemble
from headrace.transforms.base import Kernel, Outcome, StageTransform
from headrace.transforms.batches import column
from headrace.transforms.decode_weblog import WeblogKernel
from headrace.transforms.families import FamilyGuess
from headrace.transforms.keys import Key
from headrace.transforms.raw_records import first_invalid, invalid_utf8, reject_records, without_faults
from headrace.transforms.rejects import all_rejects

FORMATS = ("json", "weblog")


class Decode(StageTransform):
    """Parses raw records and maps them onto the canonical columns.

    The family of each JSON document is found by its top-level keys, its version by ``metadata.version`` (exact, else the highest
    known one of the same major version). Rows whose validity is not proven while parsing are marked pending; ``Validate``
    decides them, so it must follow. Stateless; bounded or unbounded; any windowing; a replay gives the same output.

    Input: ``RAW_SCHEMA``, n >= 0 rows; ``raw`` is one JSON document (RFC 8259) or one access-log line.
    Output: ``DECODED_SCHEMA`` in the order of the input; typed columns are null in pending rows. Events without an id get a
    UUIDv8 from origin and content (occurrence 0; ``Deduplicate`` numbers the later ones).
    Rejected, stage ``decode``: ``malformed_json``, ``nesting_too_deep``, ``invalid_utf8``, ``malformed_line`` (weblog),
    ``unknown_schema``, and the faults that the source marked. The raw record is sealed with ``key``.

    Args:
        schema: ``NAME`` or ``NAME:VERSION``: take every document as this one instead of finding out.
        format: ``json`` or ``weblog`` (Combined or Common Log Format).
        key: seals rejected records; default :class:`Key` of the default key file, made if missing.
        registry: default: the packaged families.

    Raises:
        ConfigError: unknown format or schema.

    Example::

        events = dicts | FromDicts(ingest_time=now) | Decode(key=key)
        events.accepted | Validate(key=key)
    """

    def __init__(
        self,
        schema: str | None = None,
        *,
        format: str = "json",
        key: Key | None = None,
        registry: Registry | None = None,
    ) -> None:
        super().__init__()
        if format not in FORMATS:
            raise ConfigError(f"format={format!r} is not one of {', '.join(FORMATS)}")
        self._registry = registry or Registry.default()
        if schema is not None:
            self._registry.get(schema)
        self._schema = schema
        self._format = format
        self._key = key or Key(create=True)

    def kernel(self) -> Kernel:
        if self._format == "weblog":
            return WeblogKernel(self._key, self._registry.get(self._schema or "weblog"))
        return DecodeKernel(self._key, schema=self._schema, registry=self._registry)


class DecodeKernel:
    """The kernel of ``Decode`` for JSON documents."""

    name = "decode"

    def __init__(self, key: Key, *, schema: str | None = None, registry: Registry | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self._key = key
        self._registry = registry or Registry.default()
        self._pinned = self._registry.get(schema) if schema else None

    def setup(self) -> None:
        names = [self._pinned.name] if self._pinned else self._registry.names()
        schemas = [self._pinned or self._registry.get(name) for name in names]
        self._decoders: dict[str, TypedDecoder] = {}
        for schema in schemas:
            decoder = compile_decoder(schema) if schema.detect or self._pinned else None
            if decoder:
                self._decoders[schema.name] = decoder
        self._guess = FamilyGuess(
            [d.schema for d in self._decoders.values()], pinned=self._pinned is not None
        )

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        batch, rejects = without_faults(batch, self._key)
        if not batch.num_rows:
            return Outcome(assemble(batch, []), all_rejects(rejects))
        raw = pc.fill_null(column(batch, "raw"), b"")
        undecodable = invalid_utf8(raw)
        documents = raw.to_pylist()
        parts, left = self._fast(documents, undecodable)
        pending, bad = self._slow(documents, left, undecodable)
        parts += pending
        accepted = assemble(batch, parts)
        if bad:
            at, failures = [row for row, _ in bad], [failure for _, failure in bad]
            lost = batch.take(pa.array(at))
            rejects.append(reject_records(lost, failures, (documents[row] for row in at), self._key))
        return Outcome(accepted, all_rejects(rejects))

    def _fast(self, documents: list[bytes], undecodable: np.ndarray) -> tuple[list[Part], np.ndarray]:
        """Decodes what is proven valid; returns it and the rows that are left."""
        left = ~undecodable
        tried = np.full(len(documents), "", dtype=object)
        parts: list[Part] = []
        for guess in (self._guess.first, self._guess.second):
            for name, guessed in guess(documents, np.flatnonzero(left)).items():
                rows = guessed[tried[guessed] != name]  # The second guess may be the first again.
                tried[rows] = name
                part = self._proven(name, documents, rows) if len(rows) else None
                if part is not None:
                    left[part.rows] = False
                    parts.append(part)
        return parts, np.flatnonzero(left)

    def _proven(self, name: str, documents: list[bytes], rows: np.ndarray) -> Part | None:
        """Decodes these rows as this family and returns those that are surely valid."""
        decoder = self._decoders[name]
        decoded = decoder(documents if len(rows) == len(documents) else [documents[row] for row in rows])
        proven = decoded.proven & self._same_version(decoder.schema, decoded.columns, len(decoded.rows))
        return Part.proven(rows[decoded.rows], decoded.columns, proven, decoder.schema)

    def _same_version(self, schema: Schema, columns: dict[str, pa.Array], rows: int) -> np.ndarray:
        """True where the version that the event states resolves to the decoder's schema."""
        if self._pinned or "schema_version" not in columns:
            return np.ones(rows, bool)
        coded = columns["schema_version"]
        same = [
            self._registry.resolve(schema.name, version) == schema for version in coded.dictionary.to_pylist()
        ]
        if all(same):
            return np.ones(rows, bool)
        return np.array([*same, True])[coded.indices.fill_null(len(same)).to_numpy()]

    def _slow(
        self, documents: list[bytes], rows: np.ndarray, undecodable: np.ndarray
    ) -> tuple[list[Part], list[tuple[int, Failure]]]:
        """Finds the schema of what the fast path left, or why there is none."""
        pending: dict[str, list[int]] = {}
        bad = [
            (int(row), Failure("invalid_utf8", "", f"not UTF-8 at byte {first_invalid(documents[row])}"))
            for row in np.flatnonzero(undecodable)
        ]
        schemas: dict[str, Schema] = {}
        for row in rows.tolist():
            try:
                schema = self._schema_of(parse(documents[row]))
            except MalformedJsonError as error:
                bad.append((row, error.failure))
                continue
            if isinstance(schema, Failure):
                bad.append((row, schema))
            else:
                schemas[schema.key] = schema
                pending.setdefault(schema.key, []).append(row)
        bad.sort(key=lambda item: item[0])
        return [Part(np.array(at), {}, schemas[key], pending=True) for key, at in pending.items()], bad

    def _schema_of(self, document: object) -> Schema | Failure:
        if self._pinned:
            return self._pinned
        if not isinstance(document, dict):
            return Failure("unknown_schema", "", "not a JSON object; an event is one")
        name = self._registry.detect(document)
        if name is None:
            known = ", ".join(n for n in self._registry.names() if self._registry.get(n).detect)
            return Failure("unknown_schema", "", f"its top-level keys match none of the families {known}")
        latest = self._registry.get(name)
        stated = latest.column("schema_version")
        version = _at(document, stated.path) if stated else None
        if not isinstance(version, str):
            return latest
        schema = self._registry.resolve(name, version)
        if schema is None and _is_semver(version):
            known = ", ".join(self._registry.versions(name))
            return Failure("unknown_schema", "", f"no schema {name} of that major version; known: {known}")
        return schema or latest


def _at(document: object, path: Sequence[str]) -> object:
    for name in path:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def _is_semver(version: str) -> bool:
    numbers = version.split(".")
    return len(numbers) == 3 and all(n.isascii() and n.isdigit() and len(n) <= 9 for n in numbers)
