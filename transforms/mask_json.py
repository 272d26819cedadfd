"""Masks JSON columns: every string, key and long number is scanned, and tagged members get their own operator."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.json_text import MAX_DEPTH, depth
from headrace.transforms.batches import mask_of
from headrace.transforms.pii_patterns import REDACTED, SUSPICIOUS, PatternScanner

Operator = Callable[[pa.Array], pa.Array]
"""Strings → masked strings of equal length, null where nothing may be kept."""
Leaf = Callable[[str, Operator | None], str | None]

_SHORTEST_CARD = 13
_REDACTED_JSON = orjson.dumps(REDACTED).decode()
_NOT_JSON = object()


class JsonMasker:
    """Rewrites the cells of one JSON column that hold something sensitive; all others stay as they are, byte for byte.

    Every string value and every key is scrubbed like plain text. A number of 13 digits or more is scanned too, and one that is a
    card becomes the string ``"[card]"``. Keys that become equal are told apart by a number: ``"[email]"``, ``"[email] 2"``.
    A rewritten cell is canonical JSON; its other numbers keep their digits. A cell that is not JSON is scrubbed as text if no
    member is tagged, else redacted.

    Args:
        scanner: set up by the caller.
        members: path of each tagged member → operator. A number or boolean is masked as its text; the values of a tagged array or
            object are masked one by one; null stays null.
        counts: to add ``masked_cells`` (cells changed) and ``redacted_cells`` (those with a part lost as a whole) to.
    """

    def __init__(
        self, scanner: PatternScanner, members: Mapping[tuple[str, ...], Operator], counts: Counter[str]
    ) -> None:
        self._scanner = scanner
        self._members: dict[str, Any] = {}
        for path, operator in members.items():
            node = self._members
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = operator
        self._counts = counts
        names = "|".join(sorted({_name(path[-1]) for path in members}))
        self._scanned = rf"{SUSPICIOUS}|\\u"
        self._tagged = rf"(?:{names})\s*:\s*[^n\s]" if members else None
        self._spot = re.compile(rf'({names})\s*:(?:"([^"\\]*)")?')
        self._flat_members = (
            {orjson.dumps(path[0]).decode(): operator for path, operator in members.items()}
            if all(len(path) == 1 for path in members)
            else {}
        )

    def scrub(self, array: pa.Array) -> pa.Array:
        """Returns the JSON texts with all findings replaced; null stays null."""
        scanned = mask_of(pc.match_substring_regex(array, self._scanned))
        flags = scanned
        if self._tagged is not None:
            flags = scanned | mask_of(pc.match_substring_regex(array, self._tagged))
        if not flags.any():
            return array
        texts = array.filter(pa.array(flags)).to_pylist()
        masked = self._masked(texts, scanned[flags].tolist())
        changed = sum(old != new for old, new in zip(texts, masked, strict=True))
        if not changed:
            return array
        self._counts["masked_cells"] += changed
        return pc.replace_with_mask(array, pa.array(flags), pa.array(masked, array.type))

    def _masked(self, texts: list[str], scanned: list[bool]) -> list[str]:
        documents = [
            _parsed(text) if scan or (spots := self._spots(text)) is None else spots
            for text, scan in zip(texts, scanned, strict=True)
        ]
        seen: dict[Operator | None, dict[str, None]] = {None: {}}

        def note(text: str, operator: Operator | None) -> str:
            seen.setdefault(operator, {})[text] = None
            return text

        for text, document in zip(texts, documents, strict=True):
            if isinstance(document, _Spots):
                for start, end, operator in document:
                    note(text[start:end], operator)
            elif document is not _NOT_JSON:
                _walk(document, self._members, note)
            elif not self._members:
                note(text, None)
        known = {
            operator: dict(zip(values, self._apply(operator, list(values)), strict=True))
            for operator, values in seen.items()
        }
        return [
            self._rewritten(text, document, known) for text, document in zip(texts, documents, strict=True)
        ]

    def _spots(self, text: str) -> "_Spots | None":
        """Returns where the tagged strings of a flat object stand in its text; null where only a parser can tell."""
        if not self._flat_members or text.count("{") != 1 or "[" in text:
            return None
        spots = _Spots()
        for match in self._spot.finditer(text):
            start, end = match.span(2)
            if start < 0:
                return None
            spots.append((start, end, self._flat_members[match[1]]))
        return spots

    def _apply(self, operator: Operator | None, values: list[str]) -> list[str | None]:
        if operator is None:
            return list(self._scanner.scrub_values(values))
        return operator(pa.array(values, pa.string())).to_pylist()

    def _rewritten(
        self, text: str, document: Any, known: Mapping[Operator | None, Mapping[str, str | None]]
    ) -> str:
        if document is _NOT_JSON:
            clean = _REDACTED_JSON if self._members else str(known[None][text])
            if clean in (REDACTED, _REDACTED_JSON):
                self._counts["redacted_cells"] += 1
            return clean
        if isinstance(document, _Spots):
            for start, end, operator in reversed(document):
                masked = known[operator][text[start:end]]
                text = text[: start - 1] + orjson.dumps(masked).decode() + text[end + 1 :]
            return text
        changed = redacted = False

        def replace(value: str, operator: Operator | None) -> str | None:
            nonlocal changed, redacted
            masked = known[operator][value]
            changed = changed or masked != value
            redacted = redacted or (masked == REDACTED and value != REDACTED)
            return masked

        clean = _walk(document, self._members, replace)
        if redacted:
            self._counts["redacted_cells"] += 1
        return orjson.dumps(clean, option=orjson.OPT_SORT_KEYS).decode() if changed else text


class _Spots(list[tuple[int, int, Operator]]):
    """Start, end (inside the quotes) and operator of each tagged string in a flat object's text."""


class _Number(str):
    """A number's own digits."""

    __slots__ = ()


def _name(key: str) -> str:
    return re.escape(orjson.dumps(key).decode())


def _parsed(text: str) -> Any:
    data = text.encode("utf-8")
    if depth(data) > MAX_DEPTH:
        return _NOT_JSON
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return _NOT_JSON
    return json.loads(text, parse_int=_Number, parse_float=_Number)


def _walk(value: Any, node: Any, leaf: Leaf) -> Any:
    """Returns the value with each leaf replaced. ``node`` is what is tagged below: a dict of members, an operator or None."""
    operator = node if callable(node) else None
    if isinstance(value, _Number):
        if operator is None and len(value) < _SHORTEST_CARD:
            return orjson.Fragment(str(value))
        masked = leaf(str(value), operator)
        return orjson.Fragment(str(value)) if masked == value else masked
    if isinstance(value, str):
        return leaf(value, operator)
    if isinstance(value, dict):
        clean: dict[str, Any] = {}
        for key in sorted(value):
            below = node.get(key) if isinstance(node, dict) else operator
            clean[_free(str(leaf(key, None)), clean)] = _walk(value[key], below, leaf)
        return clean
    if isinstance(value, list):
        return [_walk(item, node, leaf) for item in value]
    if value is None or operator is None:
        return value
    return leaf("true" if value else "false", operator)


def _free(key: str, taken: Mapping[str, Any]) -> str:
    """Returns the key, numbered if an object has it already."""
    free, number = key, 1
    while free in taken:
        number += 1
        free = f"{key} {number}"
    return free
