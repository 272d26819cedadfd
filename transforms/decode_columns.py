"""DecodeColumns: typed Arrow columns to canonical columns, without a JSON document in between where that is proven equal."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columns import RAW_SCHEMA
from headrace.schemas.registry import Registry, Schema
from headrace.transforms.assemble import Part, assemble
from headrace.transforms.base import Kernel, Outcome
from headrace.transforms.batches import as_type, column, concat, mask_of, plain, replace
from headrace.transforms.column_places import ColumnDecoder, decoder_of
from headrace.transforms.column_texts import Cells, is_text
from headrace.transforms.column_tree import Node, in_order, readable, tree
from headrace.transforms.keys import Key

Documents = Callable[[pa.RecordBatch], Iterator[tuple[bytes, str | None]]]
"""(columns) → the JSON document of each row, and the fault of a row that can't be one."""


class ColumnBatch(NamedTuple):
    """Consecutive records of one file as typed columns."""

    columns: pa.RecordBatch
    """As the file has them."""
    paths: Mapping[str, Sequence[str]]
    """Where each column goes in a document; no column is both a value and an object."""
    source: pa.RecordBatch
    """``RAW_SCHEMA``; ``raw`` and ``fault`` are null."""
    documents: Documents
    cells: Cells

    @property
    def num_rows(self) -> int:
        return int(self.columns.num_rows)

    def filter(self, keep: np.ndarray) -> "ColumnBatch":
        """Returns the rows where ``keep`` is true."""
        mask = pa.array(keep)
        return self._replace(columns=self.columns.filter(mask), source=self.source.filter(mask))

    def raw(self) -> pa.RecordBatch:
        """Returns ``RAW_SCHEMA`` rows with every document written."""
        made = list(self.documents(self.columns))
        texts = pa.array([text for text, _ in made], pa.binary())
        faults = pa.array([fault for _, fault in made], pa.string())
        fault = as_type(faults, RAW_SCHEMA.field("fault").type)
        return replace(self.source, {"raw": texts, "fault": fault}).cast(RAW_SCHEMA)


class DecodeColumnsKernel:
    """Does what ``Decode`` does to the documents of the rows, most of which are never written.

    Rows that are proven to decode and validate equally through their documents are taken from the columns; all others are
    written as documents and given to ``inner``. So the outcome is that of the documents, in the order of the input, but for
    ``_raw``, which is null in proven rows that carry an id: :func:`seal_documents` writes it for those that are rejected.

    Input: a :class:`ColumnBatch`, or ``RAW_SCHEMA`` rows, which go to ``inner``.
    Output: as ``Decode``.

    Args:
        inner: the kernel of ``Decode`` for JSON, set up.
        schema: as given to ``Decode``.
        mapped: the documents are made by a mapping, so the columns say nothing about them: every row goes to ``inner``.
    """

    name = "decode"

    def __init__(
        self,
        inner: Kernel,
        *,
        schema: str | None = None,
        registry: Registry | None = None,
        mapped: bool = False,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._inner = inner
        self._mapped = mapped
        self._registry = registry or Registry.default()
        self._pinned = self._registry.get(schema) if schema else None
        self._decoders: dict[str, ColumnDecoder | None] = {}
        self._keys = sorted({key for s in self._latest() for keys in s.detect for key in keys})
        self._families: dict[int, str | None] = {}

    def setup(self) -> None:
        """``inner`` is set up already."""

    def __call__(self, batch: ColumnBatch | pa.RecordBatch) -> Outcome:
        if isinstance(batch, pa.RecordBatch):
            return self._inner(batch)
        parts, left = self._proven(batch)
        self.counts["decoded_row_by_row"] += int(left.sum())
        if left.all():
            return self._inner(batch.raw())
        accepted = assemble(self._with_documents(batch, parts), parts)
        if not left.any():
            return Outcome(accepted, self._inner(batch.source.slice(0, 0)).rejected)
        rest = self._inner(batch.filter(left).raw())
        if not rest.accepted.num_rows:
            return Outcome(accepted, rest.rejected)
        joined = concat([accepted, rest.accepted])
        order = pc.sort_indices(joined, [("origin_position", "ascending")])
        return Outcome(joined.take(order), rest.rejected)

    def _latest(self) -> list[Schema]:
        names = self._registry.names()
        return [self._registry.get(f"{n}:{v}") for n in names for v in self._registry.versions(n)]

    def _proven(self, batch: ColumnBatch) -> tuple[list[Part], np.ndarray]:
        """Returns the rows that are proven, by schema, and true for each row that is left."""
        left = np.ones(batch.num_rows, bool)
        if self._mapped or not batch.num_rows or not all(map(readable, batch.columns.columns)):
            return [], left
        root = tree(batch.columns, batch.paths)
        parts: list[Part] = []
        for schema, rows in self._by_schema(root, batch.num_rows):
            decoder = self._decoder(schema)
            if decoder is None:
                continue
            whole = len(rows) == batch.num_rows
            columns, good = decoder(root if whole else root.take(pa.array(rows)), len(rows), batch.cells)
            part = Part.proven(rows, columns, good, schema)
            if part is not None:
                left[part.rows] = False
                parts.append(part)
        return parts, left

    def _by_schema(self, root: Node, rows: int) -> Iterator[tuple[Schema, np.ndarray]]:
        if self._pinned:
            yield self._pinned, np.arange(rows)
            return
        for name, at in self._by_family(root, rows):
            latest = self._registry.get(name)
            if not latest.detect:
                continue
            stated = latest.column("schema_version")
            node: Node | None = root
            for part in stated.path if stated else ():
                node = (node.children or {}).get(part) if node is not None else None
            if stated is None or node is None or node.array is None or node.children is not None:
                yield latest, at
                continue
            values = plain(node.array.take(pa.array(at)))
            if not is_text(values.type):
                yield latest, at
                continue
            coded = values.dictionary_encode()
            schemas = [
                self._registry.resolve(name, version) if isinstance(version, str) else latest
                for version in coded.dictionary.to_pylist()
            ]
            codes = coded.indices.fill_null(len(schemas)).to_numpy(zero_copy_only=False)
            schemas.append(latest)
            for key in sorted({schema.key for schema in schemas if schema is not None}):
                wanted = np.array([schema is not None and schema.key == key for schema in schemas])[codes]
                if wanted.any():
                    yield self._registry.get(key), at[wanted]

    def _by_family(self, root: Node, rows: int) -> Iterator[tuple[str, np.ndarray]]:
        """Finds the family of each row by the top-level members that it has."""
        assert root.children is not None
        bits = np.zeros(rows, np.int64)
        for number, key in enumerate(self._keys):
            child = root.children.get(key)
            if child is not None:
                bits |= child.mask.astype(np.int64) << number
        found: dict[str, list[int]] = {}
        for pattern in np.unique(bits).tolist():
            if pattern not in self._families:
                keys = {key: None for number, key in enumerate(self._keys) if pattern >> number & 1}
                self._families[pattern] = self._registry.detect(keys)
            family = self._families[pattern]
            if family is not None:
                found.setdefault(family, []).append(pattern)
        for family, patterns in found.items():
            yield family, np.flatnonzero(np.isin(bits, patterns))

    def _decoder(self, schema: Schema) -> ColumnDecoder | None:
        if schema.key not in self._decoders:
            self._decoders[schema.key] = decoder_of(schema)
        return self._decoders[schema.key]

    def _with_documents(self, batch: ColumnBatch, parts: list[Part]) -> pa.RecordBatch:
        """Returns ``RAW_SCHEMA`` rows in which those that get an id by their content have their document."""
        wanted = np.zeros(batch.num_rows, bool)
        for part in parts:
            ids = part.columns.get("event_id")
            wanted[part.rows if ids is None else part.rows[mask_of(ids.is_null())]] = True
        if not wanted.any():
            return batch.source
        some = batch if wanted.all() else batch.filter(wanted)
        texts = _documents(some)
        if not wanted.all():
            nothing = pa.nulls(batch.num_rows, pa.binary())
            texts = pc.replace_with_mask(nothing, pa.array(wanted), texts)
        return replace(batch.source, {"raw": texts}).cast(RAW_SCHEMA)


def seal_documents(rejects: pa.RecordBatch, batch: ColumnBatch | pa.RecordBatch, key: Key) -> pa.RecordBatch:
    """Returns the rejects of a batch with the documents that :class:`DecodeColumnsKernel` has not written, sealed."""
    if isinstance(batch, pa.RecordBatch) or not rejects.num_rows:
        return rejects
    missing = mask_of(column(rejects, "document").is_null())
    if not missing.any():
        return rejects
    positions = batch.source.column("origin_position")
    rows = pc.index_in(rejects.column("origin_position").filter(pa.array(missing)), value_set=positions)
    lost = batch._replace(columns=batch.columns.take(rows), source=batch.source.take(rows))
    sealed = key.seal(text for text, _ in lost.documents(lost.columns))
    documents = pc.replace_with_mask(column(rejects, "document"), pa.array(missing), sealed)
    return replace(rejects, {"document": documents}).cast(rejects.schema)


def _documents(batch: ColumnBatch) -> pa.Array:
    """Returns the document of every row, which is known to be one; column by column where that gives the same bytes."""
    if in_order(list(batch.paths.values())):
        texts = tree(batch.columns, batch.paths).texts(False, batch.cells)
        if texts.known is None or texts.known.all():
            return texts.json().cast(pa.binary())
    return pa.array([text for text, _ in batch.documents(batch.columns)], pa.binary())
