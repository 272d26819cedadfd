"""CSV cells to JSON values by the types of a JSON Schema."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_TRUTH = {"true": True, "false": False}
_LINE_BREAKS = bytes.maketrans(b"\r\n", b"  ")

Cast = Callable[[str], Any]


def cast_for(schema: Mapping[str, Any] | None, path: Sequence[str]) -> Cast | None:
    """Returns the function that casts the cells of the column at ``path``, or None: they stay strings.

    A cell becomes a number (its digits as they stand), boolean or object only if the schema does not allow a string there;
    a decimal (``x-decimal``) that may be a string stays one, so that no digit is lost. A cell that is no such value stays a
    string, so that validation gives the reason.
    """
    node = _resolve(schema, schema) if schema is not None else None
    for part in path:
        if node is None:
            return None
        node = _resolve(node.get("properties", {}).get(part), schema)
    if node is None:
        return None
    kinds = node.get("type", ())
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    if not kinds or "string" in kinds:
        return None
    casts: list[Cast] = []
    if kinds & {"integer", "number"}:
        casts.append(_number)
    if "boolean" in kinds:
        casts.append(_boolean)
    for kind, opening in (("object", "{"), ("array", "[")):
        if kind in kinds:
            casts.append(_JsonCell(opening))
    return _First(casts) if len(casts) > 1 else (casts[0] if casts else None)


def _resolve(node: Any, root: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Follows ``$ref`` inside the document."""
    for _ in range(16):
        if not isinstance(node, Mapping):
            return None
        ref = node.get("$ref")
        if not isinstance(ref, str) or not ref.startswith("#/"):
            return node
        node = root
        for part in ref[2:].split("/"):
            node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, Mapping) else None
    return None


def _number(cell: str) -> Any:
    return orjson.Fragment(cell.encode()) if _NUMBER.fullmatch(cell) else cell


def _boolean(cell: str) -> Any:
    return _TRUTH.get(cell.lower(), cell)


class _JsonCell:
    """A cell that holds the text of an object or array."""

    def __init__(self, opening: str) -> None:
        self._opening = opening

    def __call__(self, cell: str) -> Any:
        if not cell.lstrip().startswith(self._opening):
            return cell
        text = cell.encode()
        try:
            orjson.loads(text)
        except orjson.JSONDecodeError:
            return cell
        return orjson.Fragment(text.translate(_LINE_BREAKS))


class _First:
    """The first cast that takes the cell."""

    def __init__(self, casts: Sequence[Cast]) -> None:
        self._casts = casts

    def __call__(self, cell: str) -> Any:
        for cast in self._casts:
            value = cast(cell)
            if value is not cell:
                return value
        return cell
