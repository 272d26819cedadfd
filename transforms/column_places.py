"""Compiles a schema for typed columns: the tree of a batch's columns to canonical columns, with what is proven of each row."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columns import JSON_COLUMNS
from headrace.schemas.compile_decoder import compile_decoder
from headrace.schemas.json_text import pointer
from headrace.schemas.registry import Field, Schema
from headrace.schemas.typed_decoder import Leaf
from headrace.transforms.batches import mask_of
from headrace.transforms.column_proofs import prove
from headrace.transforms.column_texts import Cells, Texts, object_texts
from headrace.transforms.column_tree import Mask, Node


def decoder_of(schema: Schema) -> "ColumnDecoder | None":
    """Returns the decoder of a schema; None if it holds a keyword that can't be proven in columns."""
    return None if compile_decoder(schema) is None else ColumnDecoder(schema)


class ColumnDecoder:
    """Maps rows of one schema, given as columns, onto the canonical columns.

    The schema holds only keywords that ``compile_decoder`` knows. What ``Flattener`` does to one document is done here to
    columns: a named member goes to its column, the rest of an object with ``x-rest`` to that JSON column, every other
    member to ``extra`` under its JSON pointer.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._fields = {field.path: field for field in schema.fields}
        self._conditions = [
            (
                next(iter(rule["if"]["properties"])),
                next(iter(rule["if"]["properties"].values()))["const"],
                rule["then"]["required"],
            )
            for rule in schema.document.get("allOf", ())
        ]

    def __call__(self, root: Node, rows: int, cells: Cells) -> tuple[dict[str, pa.Array], Mask]:
        """Returns the columns that the rows have, and which rows are proven.

        Args:
            root: the rows' columns as a tree.
            cells: writes the JSON of values that have no columnar writer.
        """
        found = _Found(rows, cells)
        self._place(self.schema.document, (), root, None, found)
        for member, constant, required in self._conditions:
            values = found.columns.get(self._fields[(member,)].column)
            if values is not None:
                wanted = mask_of(pc.equal(values.cast(pa.string()), constant))
                for name in required:
                    found.good &= ~wanted | _mask(root, name, rows)
        return found.finish(), found.good

    def _place(
        self,
        node: Mapping[str, Any],
        path: tuple[str, ...],
        place: Node,
        present: Mask | None,
        found: "_Found",
    ) -> None:
        members = place.children or {}
        for name in node.get("required", ()):
            here = _mask(place, name, found.rows)
            found.good &= here if present is None else here | ~present
        for name, member in members.items():
            child = node["properties"].get(name)
            if child is None:
                self._unknown(node, path, name, member, found)
            elif "properties" not in child:
                self._leaf(child, self._fields[(*path, name)], member, found)
            elif member.children is None:
                found.good &= ~member.mask
            else:
                self._place(child, (*path, name), member, member.mask, found)

    def _unknown(
        self, node: Mapping[str, Any], path: tuple[str, ...], name: str, member: Node, found: "_Found"
    ) -> None:
        here = member.mask
        if not here.any():
            return
        if node.get("additionalProperties", True) is False:
            found.good &= ~here
            return
        column, key = node.get("x-rest"), name
        if not column:
            column, key = "extra", pointer((*path, name))
        found.member(column, key, member.texts(True, found.cells))

    def _leaf(self, node: Mapping[str, Any], field: Field, member: Node, found: "_Found") -> None:
        here = member.mask
        if not here.any():
            return
        column, _, name = field.column.partition("/")
        leaf = _kind(node, field)
        if leaf.kind == "json":
            types = node.get("type", ())
            if types and member.children is None and not pa.types.is_map(_type(member)):
                found.good &= ~here
                return
            found.json(column, member.texts(True, found.cells))
            return
        proven = None if member.children is not None or member.array is None else prove(leaf, member.array)
        if proven is None or (name and leaf.kind == "time"):
            found.good &= ~here
            return
        if proven.good is not None:
            found.good &= proven.good
        if name:
            found.member(column, name, member.texts(True, found.cells))
        else:
            found.columns[column] = proven.values


class _Found:
    """What is gathered of some rows."""

    def __init__(self, rows: int, cells: Cells) -> None:
        self.rows, self.cells = rows, cells
        self.good = np.ones(rows, bool)
        self.columns: dict[str, pa.Array] = {}
        self._whole: dict[str, Texts] = {}
        self._members: dict[str, list[tuple[str, Texts]]] = {}

    def json(self, column: str, texts: Texts) -> None:
        """Takes a JSON column that is one value of the documents."""
        self._whole[column] = self._known(texts)

    def member(self, column: str, name: str, texts: Texts) -> None:
        """Takes a member of a JSON column; a name that comes twice is for the row path to settle."""
        members = self._members.setdefault(column, [])
        for known, before in members:
            if known == name:
                self.good &= ~mask_of(pc.and_(before.values.is_valid(), texts.values.is_valid()))
        members.append((name, self._known(texts)))

    def finish(self) -> dict[str, pa.Array]:
        """Returns all columns."""
        for column, members in self._members.items():
            present = members[0][1].values.is_valid()
            for _, texts in members[1:]:
                present = pc.or_(present, texts.values.is_valid())
            objects = object_texts(members, present, True).values
            whole = self._whole.pop(column, None)
            if whole is not None:
                self.good &= ~mask_of(pc.and_(whole.values.is_valid(), present))
                objects = pc.coalesce(objects, whole.json())
            self.columns[column] = objects
        self.columns.update({column: texts.json() for column, texts in self._whole.items()})
        return self.columns

    def _known(self, texts: Texts) -> Texts:
        if texts.known is not None:
            self.good &= texts.known
        return texts


def _mask(place: Node, name: str, rows: int) -> Mask:
    member = (place.children or {}).get(name)
    return np.zeros(rows, bool) if member is None else member.mask


def _type(node: Node) -> pa.DataType:
    return pa.null() if node.array is None else node.array.type


def _kind(node: Mapping[str, Any], field: Field) -> Leaf:
    """How a leaf is read; ``compile_decoder`` has refused every other shape."""
    types = node.get("type", ())
    types = {types} if isinstance(types, str) else set(types)
    if field.column in JSON_COLUMNS:
        return Leaf(field, "json")
    if node.get("x-decimal"):
        return Leaf(field, "money")
    if types <= {"integer", "null"}:
        return Leaf(field, "integer")
    return Leaf(field, {None: "string", "uuid": "uuid", "date-time": "time"}[node.get("format")])
