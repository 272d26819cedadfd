"""A batch's columns as the documents that its rows would be: a tree of objects and values."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.transforms.batches import mask_of
from headrace.transforms.column_texts import (
    Cells,
    Texts,
    coded,
    has_plain_names,
    is_text,
    json_texts,
    object_texts,
)

Mask = np.ndarray


class Node:
    """One place in the documents: an object with members, or a column of values.

    Args:
        array: the values; None for an object that dotted column names make.
        children: the members, in the order in which a document has them; None for a value.
    """

    def __init__(self, array: pa.Array | None, children: "dict[str, Node] | None" = None) -> None:
        self.array = array
        if (
            children is None
            and array is not None
            and pa.types.is_struct(array.type)
            and has_plain_names(array.type)
        ):
            parts = zip(array.type, array.flatten(), strict=True)
            children = {field.name: Node(coded(part)) for field, part in parts}
        self.children = children
        self._present: pa.Array | None = None

    @property
    def present(self) -> pa.Array:
        """boolean without nulls: true where a document has it."""
        if self._present is None:
            if self.array is not None:
                self._present = self.array.is_valid()
                if pa.types.is_dictionary(self.array.type) and self.array.dictionary.null_count:
                    self._present = self.array.dictionary_decode().is_valid()
            else:
                masks = [child.present for child in (self.children or {}).values()]
                for mask in masks[1:]:
                    masks[0] = pc.or_(masks[0], mask)
                self._present = masks[0]
        return self._present

    @property
    def mask(self) -> Mask:
        """:attr:`present` as numpy."""
        return mask_of(self.present)

    @property
    def rows(self) -> int:
        return len(self.present)

    def texts(self, canonical: bool, cells: Cells) -> Texts:
        """Returns the JSON text of each value."""
        if self.children is None:
            assert self.array is not None
            return json_texts(self.array, canonical, cells)
        members = [(name, child.texts(canonical, cells)) for name, child in self.children.items()]
        return object_texts(members, self.present, canonical)

    def take(self, rows: pa.Array) -> "Node":
        """Returns the node of some rows, given by number."""
        if self.array is not None:
            return Node(self.array.take(rows))
        return Node(None, {name: child.take(rows) for name, child in (self.children or {}).items()})


def tree(batch: pa.RecordBatch, paths: Mapping[str, Sequence[str]]) -> Node:
    """Returns the root: dotted names make objects.

    Args:
        paths: where each column goes in the document; no column is both a value and an object.
    """
    root: dict[str, Node] = {}
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        place = root
        path = paths[name]
        for part in path[:-1]:
            inner = place.setdefault(part, Node(None, {})).children
            assert inner is not None
            place = inner
        place[path[-1]] = Node(coded(array))
    return Node(None, root)


def in_order(names: Sequence[Sequence[str]]) -> bool:
    """Tells whether the members of every object stand side by side: then all rows have their members in one order."""
    seen: set[tuple[str, ...]] = set()
    before: tuple[str, ...] = ()
    for name in names:
        path = tuple(name)
        for length in range(1, len(path)):
            if path[:length] in seen and before[:length] != path[:length]:
                return False
            seen.add(path[:length])
        before = path
    return True


def readable(array: pa.Array) -> bool:
    """Tells whether every text of the column, however deep, is UTF-8, and its parts fit together."""
    if not _holds_text(array.type):
        return True
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _holds_text(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        return _holds_text(type_.value_type)
    if is_text(type_):
        return True
    if pa.types.is_nested(type_):
        return any(_holds_text(type_.field(i).type) for i in range(type_.num_fields))
    return pa.types.is_string_view(type_)
