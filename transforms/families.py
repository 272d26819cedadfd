"""Guessing each document's family from its bytes, so that it is tried by the right decoder first."""

from collections.abc import Container, Sequence

import numpy as np

from headrace.schemas.registry import DETECT_ORDER, Schema

_START_BYTES, _END_BYTES = 12, 2
"""How much of a document's ends tells its producer: the first key, mostly, and how deep the last one lies."""
_MOST_STARTS = 256


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
        self._keys = {
            s.name: [f'"{key}"'.encode() for key in _required_keys(s) or ()] for s in self._families
        }
        self._seen: dict[bytes, set[str]] = {}

    def first(self, documents: Sequence[bytes], rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns family → rows by what documents with the same first and last bytes were before; each row at most once."""
        if self._pinned:
            return {self._families[0].name: rows} if self._families and len(rows) else {}
        groups: dict[bytes, list[int]] = {}
        for row in rows.tolist():
            document = documents[row]
            groups.setdefault(document[:_START_BYTES] + document[-_END_BYTES:], []).append(row)
        found: dict[str, list[int]] = {}
        for start, members in groups.items():
            seen = self._seen.get(start)
            if seen is None:
                self._search(documents, members, found, learn=True)
            elif len(seen) == 1:
                found.setdefault(next(iter(seen)), []).extend(members)
            else:
                self._search(documents, members, found, among=seen)
        return {name: np.sort(np.array(members)) for name, members in found.items()}

    def second(self, documents: Sequence[bytes], rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns family → rows by looking for every family's keys, for rows whose first guess was wrong."""
        found: dict[str, list[int]] = {}
        if not self._pinned:
            self._search(documents, rows.tolist(), found, learn=True)
        return {name: np.sort(np.array(members)) for name, members in found.items()}

    def _search(
        self,
        documents: Sequence[bytes],
        rows: list[int],
        found: dict[str, list[int]],
        *,
        among: Container[str] | None = None,
        learn: bool = False,
    ) -> None:
        left = rows
        for name, keys in self._keys.items():
            if among is not None and name not in among:
                continue
            hits = left
            for key in keys:
                hits = [row for row in hits if key in documents[row]]
            if hits:
                taken = set(hits)
                left = [row for row in left if row not in taken]
                found.setdefault(name, []).extend(hits)
                if learn and len(self._seen) < _MOST_STARTS:
                    for start in {documents[r][:_START_BYTES] + documents[r][-_END_BYTES:] for r in hits}:
                        self._seen.setdefault(start, set()).add(name)


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
