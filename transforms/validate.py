"""Validate: exact verdicts for the rows that decoding could not prove valid."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columns import EVENT_SCHEMA, PENDING, RAW, TIME, VALID_SCHEMA
from headrace.schemas.failures import Failure
from headrace.schemas.flatten import Flattener, FlattenError
from headrace.schemas.json_text import parse, parse_exact
from headrace.schemas.registry import Registry, Schema
from headrace.schemas.validator import RowValidator
from headrace.transforms.assemble import with_derived
from headrace.transforms.base import Kernel, Outcome, StageTransform
from headrace.transforms.batches import concat, conform, constant, drop, mask_of, plain
from headrace.transforms.decode_weblog import event_types, record_of
from headrace.transforms.keys import Key
from headrace.transforms.rejects import no_rejects, rejected

_KEPT = ("schema", "origin", "origin_position", "ingest_time", RAW)


class Validate(StageTransform):
    """Gives every event the verdict of its family's JSON Schema, with all reasons.

    Rows that ``Decode`` proved valid pass; every other row goes through the row validator, whose verdicts are those of
    ``jsonschema`` with format assertion. A valid row that the fast path left is mapped onto the columns here. Stateless;
    bounded or unbounded; any windowing; row order is unchanged; a replay gives the same output.

    Input: ``DECODED_SCHEMA``, n >= 0 rows, as ``Decode`` returns it.
    Output: ``VALID_SCHEMA``: ``event_id``, ``event_time``, ``event_date`` and ``schema`` are never null.
    Rejected, stage ``validate``: the reason is the first failure's code (the JSON Schema keyword, or ``decimal_out_of_range``,
    ``integer_out_of_range``, ``time_out_of_range``); ``errors`` has all failures; the record is sealed with ``key``.

    Args:
        key: seals rejected records; default :class:`Key` of the default key file, made if missing.
        registry: default: the packaged families; the same as given to ``Decode``.

    Example::

        valid = decoded.accepted | Validate(key=key)
    """

    def __init__(self, *, key: Key | None = None, registry: Registry | None = None) -> None:
        super().__init__()
        self._key = key or Key(create=True)
        self._registry = registry or Registry.default()

    def kernel(self) -> Kernel:
        return ValidateKernel(self._key, registry=self._registry)


class ValidateKernel:
    """The kernel of ``Validate``."""

    name = "validate"

    def __init__(self, key: Key, *, registry: Registry | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self._key = key
        self._registry = registry or Registry.default()

    def setup(self) -> None:
        self._judges: dict[str, _Judge] = {}

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        pending = mask_of(batch.column(batch.schema.get_field_index(PENDING)))
        if not pending.any():
            return Outcome(drop(batch, PENDING).cast(VALID_SCHEMA), no_rejects())
        self.counts["judged_row_by_row"] += int(pending.sum())
        rows = batch.filter(pa.array(pending)).select(list(_KEPT))
        documents = rows.column(rows.schema.get_field_index(RAW)).to_pylist()
        keys = plain(rows.column(0)).to_pylist()
        verdicts = [self._judge(key)(document) for key, document in zip(keys, documents, strict=True)]
        good = np.array([isinstance(verdict, dict) for verdict in verdicts])
        rejects = no_rejects()
        if not good.all():
            bad = [verdict for verdict in verdicts if not isinstance(verdict, dict)]
            rejects = rejected(
                drop(rows.filter(pa.array(~good)), RAW),
                self.name,
                pa.array([failures[0]["code"] for failures in bad]),
                failures=bad,
                documents=self._key.seal(d for d, ok in zip(documents, good, strict=True) if not ok),
            )
        judged = _columns(rows.filter(pa.array(good)), [v for v in verdicts if isinstance(v, dict)])
        proven = drop(batch.filter(pa.array(~pending)), PENDING).cast(VALID_SCHEMA)
        at = np.concatenate([np.flatnonzero(~pending), np.flatnonzero(pending)[good]])
        return Outcome(concat([proven, judged]).take(pa.array(np.argsort(at, kind="stable"))), rejects)

    def _judge(self, key: str) -> "_Judge":
        judge = self._judges.get(key)
        if judge is None:
            judge = self._judges[key] = _Judge(self._registry.get(key))
        return judge


class _Judge:
    """One schema's row validator and mapping: a raw record to its columns, or to its failures."""

    def __init__(self, schema: Schema) -> None:
        self._validator = RowValidator(schema.document)
        self._flatten = Flattener(schema)
        self._weblog = schema.name == "weblog"

    def __call__(self, document: bytes) -> dict[str, Any] | list[Failure]:
        value: Any = record_of(document) if self._weblog else parse(document)
        if not self._validator.is_valid(value):
            return self._validator.failures(value)
        try:
            return self._flatten(value if self._weblog else parse_exact(document))
        except FlattenError as error:
            return [error.failure]


def _columns(rows: pa.RecordBatch, values: list[dict[str, Any]]) -> pa.RecordBatch:
    """Builds ``VALID_SCHEMA`` rows from what the flattener returned."""
    columns: dict[str, pa.Array] = {}
    for name in {name for value in values for name in value}:
        type_ = EVENT_SCHEMA.field(name).type
        cells = [value.get(name) for value in values]
        if pa.types.is_timestamp(type_):
            columns[name] = pa.array(cells, pa.int64()).cast(TIME)
        else:
            columns[name] = pa.array(cells, type_.value_type if pa.types.is_dictionary(type_) else type_)
    for name in _KEPT:
        columns[name] = rows.column(rows.schema.get_field_index(name))
    weblog = pc.starts_with(plain(columns["schema"]), "weblog:")
    if pc.any(weblog).as_py():
        missing = pa.nulls(len(values), pa.string())
        method, target = columns.get("http_method", missing), columns.get("page_url", missing)
        made = event_types(method, target, columns["http_status"])
        columns["event_type"] = pc.if_else(weblog, made, columns.get("event_type", missing))
    if not values:
        columns["event_time"] = constant(None, 0, TIME)
    return conform(with_derived(columns, rows.num_rows), VALID_SCHEMA, rows.num_rows)
