"""Guessing each document's family from its bytes, so that it is tried by the right decoder first."""

from collections.abc import Iterator, Sequence

import numpy as np

from headrace.schemas.registry import DETECT_ORDER, Schema


class FamilyGuess:
    """Groups documents by the family that they probably are.

    Only a guess: a decoder refuses unknown top-level fields, so what it accepts can't be an event that another family would
    have claimed. :func:`certain` is the proof of that for a set of families; those for which it fails are never guessed.
    """

    def __init__(self, schemas: Sequence[Schema], *, pinned: bool = False) -> None:
        order = {name: place for place, name in enumerate(DETECT_ORDER)}
        ranked = sorted(schemas, key=lambda s: (order.get(s.name, len(order)), s.name))
        self._families = ranked if pinned else [s for i, s in enumerate(ranked) if certain(s, ranked[:i])]
        self._pinned = pinned
        self._keys = [[f'"{key}"'.encode() for key in _required_keys(s) or ()] for s in self._families]

    def __call__(self, documents: Sequence[bytes], chosen: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (family, rows); each chosen row at most once."""
        rows = np.flatnonzero(chosen)
        if self._pinned and len(rows) and self._families:
            yield self._families[0].name, rows
            return
        left = rows.tolist()
        for schema, keys in zip(self._families, self._keys, strict=True):
            found = left
            for key in keys:
                found = [row for row in found if key in documents[row]]
            if found:
                taken = set(found)
                left = [row for row in left if row not in taken]
                yield schema.name, np.array(found)


def certain(schema: Schema, earlier: Sequence[Schema]) -> bool:
    """Tells whether a document with no other top-level keys than the schema's is surely claimed by it.

    No family that claims events before it may be recognised by keys that this one allows, and one of its own key sets must be
    required by it.
    """
    named = set(schema.document["properties"])
    if any(set(keys) <= named for other in earlier for keys in other.detect):
        return False
    return _required_keys(schema) is not None


def _required_keys(schema: Schema) -> tuple[str, ...] | None:
    required = set(schema.document.get("required", ()))
    return next((keys for keys in schema.detect if set(keys) <= required), None)
