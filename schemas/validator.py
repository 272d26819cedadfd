"""The row validator: is one document valid under a JSON Schema, and if not, what is wrong with it?"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs
from jsonschema.exceptions import _WrappedReferencingError

from headrace.schemas.failures import Failure
from headrace.schemas.fast_schema import translate
from headrace.schemas.reasons import from_fast, from_reference, unchecked
from headrace.schemas.references import CheckedSchema, Json

FAST_DEPTH = 64
"""Documents nested deeper are left to jsonschema: the native engine's stack is not guarded."""

_DRAFTS = {"draft-04": 4, "draft-06": 6, "draft-07": 7, "2019-09": 2019, "2020-12": 2020}
_FAST: dict[int, Any] = {
    4: jsonschema_rs.Draft4Validator,
    6: jsonschema_rs.Draft6Validator,
    7: jsonschema_rs.Draft7Validator,
    2019: jsonschema_rs.Draft201909Validator,
    2020: jsonschema_rs.Draft202012Validator,
}
_NO_VERDICT = (ArithmeticError, TypeError, ValueError, RecursionError, re.error)


class RowValidator:
    """Judges documents one by one; its verdict is that of ``jsonschema`` with the draft's own format checker.

    ``format`` is asserted. jsonschema-rs does the work for schemas on which it agrees with jsonschema
    (``headrace.schemas.fast_schema``), jsonschema itself for all others and for documents that are nested deeper than
    ``FAST_DEPTH``, hold non-finite floats or lone surrogates. Where jsonschema gives no verdict but an exception (nested
    beyond Python's recursion limit, ``multipleOf`` on a number beyond floats) the document is invalid, with the code
    ``nesting`` or ``uncheckable``.

    Stateless and deterministic, so a replay gives the same; picklable (the files that it refers to travel with it).

    Args:
        schema: a JSON Schema of draft 4, 6, 7, 2019-09 or 2020-12, as ``$schema`` says; 2020-12 if it says nothing.
        folder: where a relative ``$ref`` is looked up; None: only inside of the schema. Never the network.

    Raises:
        ConfigError: the schema can't be used; the message says why and where (JSON pointer).

    Example::

        validator = RowValidator({"type": "object", "required": ["id"]})
        validator.failures({})  # [{'code': 'required', 'pointer': '', 'message': 'property "id" is missing'}]
    """

    def __init__(self, schema: Mapping[str, Any] | bool, *, folder: Path | None = None) -> None:
        self._build(CheckedSchema(schema, folder=folder))

    @classmethod
    def from_checked(cls, checked: CheckedSchema) -> "RowValidator":
        """Returns the validator for a schema that has been checked, and read, before."""
        validator = cls.__new__(cls)
        validator._build(checked)
        return validator

    def _build(self, checked: CheckedSchema) -> None:
        self._checked = checked
        self._reference = checked.validator
        self._fast: Any = None
        draft = next(number for name, number in _DRAFTS.items() if name in checked.dialect)
        translated = translate(checked.document, draft, self._reference.format_checker)
        if translated is not None:
            schema, formats = translated
            try:
                self._fast = _FAST[draft](schema, validate_formats=True, formats=formats)
            except (ValueError, TypeError):  # for example a lone surrogate in the schema: jsonschema takes it
                self._fast = None

    @property
    def is_fast(self) -> bool:
        """Whether jsonschema-rs does the work."""
        return self._fast is not None

    def is_valid(self, document: Any) -> bool:
        """Returns the verdict on a document of plain JSON values (dict, list, str, int, float, bool, None)."""
        if self._fast is not None and _is_tame(document):
            try:
                return bool(self._fast.is_valid(document))
            except _NO_VERDICT:  # for example a lone surrogate: jsonschema decides
                pass
        try:
            return bool(self._reference.is_valid(document))
        except (*_NO_VERDICT, _WrappedReferencingError):
            return False

    def failures(self, document: Any) -> list[Failure]:
        """Returns everything that is wrong with the document, ordered by pointer and code; empty if it is valid.

        Codes are the schema's keywords in snake case (``additional_properties``). For ``required`` the pointer leads to the
        object and the message names the missing property.
        """
        if self._fast is not None and _is_tame(document):
            try:
                errors = list(self._fast.iter_errors(document))
                if not errors or not _has_odd_names(document):
                    return from_fast(errors, document)
            except _NO_VERDICT:  # as above
                pass
        try:
            return from_reference(self._reference.iter_errors(document))
        except RecursionError:
            return unchecked("nesting", "nested too deeply to be checked")
        except (*_NO_VERDICT, _WrappedReferencingError) as error:
            return unchecked("uncheckable", f"can't be checked: {type(error).__name__}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._checked.document, self._checked.resources)


def _rebuild(schema: Json, resources: dict[str, Json]) -> RowValidator:
    return RowValidator.from_checked(CheckedSchema(schema, resources=resources))


_ODD = "+0123456789"


def _is_tame(document: Any) -> bool:
    """Whether the document is nested at most ``FAST_DEPTH`` deep and all its floats are finite."""
    level = [document]
    for _ in range(FAST_DEPTH):
        below: list[Any] = []
        for value in level:
            kind = type(value)
            if kind is dict:
                below += value.values()
            elif kind is list:
                below += value
            elif kind is float and value - value != 0:
                return False
        if not below:
            return True
        level = below
    return False


def _has_odd_names(document: Any) -> bool:
    """Whether a property's name is empty or begins like a number; jsonschema-rs confuses those in its paths."""
    values = [document]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            for name in value:
                if name[:1] in _ODD:  # "" is in every string.
                    return True
            values += value.values()
        elif isinstance(value, list):
            values += value
    return False
