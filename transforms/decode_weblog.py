"""Web server access logs (Combined and Common Log Format) to canonical columns.

Source of the format: Apache HTTP Server, "Log Files", section "Combined Log Format":
``%h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-agent}i"``. Quotes and backslashes inside of a quoted part are escaped with a
backslash; ``-`` stands for no value.
"""

import re
from collections import Counter
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columns import TIME
from headrace.schemas.failures import Failure
from headrace.schemas.registry import Schema
from headrace.schemas.rfc3339 import days_from_civil, valid_dates
from headrace.transforms.assemble import Part, assemble
from headrace.transforms.base import Outcome
from headrace.transforms.batches import column, mask_of
from headrace.transforms.keys import Key
from headrace.transforms.raw_records import invalid_utf8, reject_records, without_faults
from headrace.transforms.rejects import all_rejects

_LINE = (
    r"^(?P<host>\S+) (?P<ident>\S+) (?P<user>\S+|\"[^\"]*\") \[(?P<time>[^\]]+)\] "
    r'"(?P<request>(?:[^"\\]|\\.)*)" (?P<status>[0-9]{3}) (?P<bytes>[0-9]{1,18}|-)'
    r'(?: "(?P<referrer>(?:[^"\\]|\\.)*)" "(?P<agent>(?:[^"\\]|\\.)*)")?\s*$'
)
_REQUEST = r"^(?P<method>[A-Z]{3,20}) (?P<target>\S+)(?: (?P<protocol>HTTP/[0-9.]+))?$"
_LINE_RE = re.compile(_LINE)
_REQUEST_RE = re.compile(_REQUEST)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_TIME_RE = re.compile(r"(\d{2})/(\w{3})/(\d{4}):(\d\d):(\d\d):(\d\d) ([+-]\d\d)(\d\d)", re.ASCII)
_ASSET = r"(?i)\.(css|js|mjs|map|png|jpe?g|gif|svg|webp|avif|ico|bmp|woff2?|ttf|eot|otf|mp[34]|webm|ogg|wav)([?#]|$)"
_EXPECTED = (
    'not in Common or Combined Log Format: host ident user [time] "request" status bytes "referrer" "agent"'
)


class WeblogKernel:
    """The kernel of ``Decode(format="weblog")``: see there."""

    name = "decode"

    def __init__(self, key: Key, schema: Schema) -> None:
        self.counts: Counter[str] = Counter()
        self._key = key
        self._schema = schema

    def setup(self) -> None:
        """Nothing to build: RE2 patterns are compiled by each call."""

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        batch, rejects = without_faults(batch, self._key)
        raw = pc.fill_null(column(batch, "raw"), b"")
        # Old servers write Latin-1 into request lines: a line that is not UTF-8 is still split, and judged row by row.
        foreign = invalid_utf8(raw)
        text = raw if not foreign.any() else pc.if_else(pa.array(foreign), pa.scalar(None, pa.binary()), raw)
        fields = pc.extract_regex(text.cast(pa.string()), _LINE)
        matched = mask_of(fields.is_valid())
        columns, proven = _columns(fields.filter(pa.array(matched)))
        at = np.flatnonzero(matched)
        part = Part.proven(at, columns, proven, self._schema)
        parts = [part] if part is not None else []
        documents: list[bytes | None] = [None] * batch.num_rows
        left = np.ones(batch.num_rows, bool)
        left[at[proven]] = False
        pending: list[int] = []
        bad: list[int] = []
        for row in np.flatnonzero(left).tolist():
            documents[row] = raw[row].as_py()
            (pending if record_of(documents[row] or b"") else bad).append(row)
        if pending:
            parts.append(Part(np.array(pending), {}, self._schema, pending=True))
        if bad:
            failures = [Failure("malformed_line", "", _EXPECTED)] * len(bad)
            lost = batch.take(pa.array(bad))
            rejects.append(reject_records(lost, failures, (documents[row] for row in bad), self._key))
        return Outcome(assemble(batch, parts), all_rejects(rejects))


def record_of(line: bytes) -> dict[str, Any] | None:
    """Returns the record of the weblog schema that a line holds, or None if it is no access-log line.

    Bytes that are not UTF-8 are read as Latin-1. A time that can't be read is kept as it stands, for the validator to name.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError:
        text = line.decode("latin-1")
    match = _LINE_RE.match(text)
    if not match:
        return None
    request = _REQUEST_RE.match(match["request"])
    record = {
        "remote_host": match["host"],
        "ident": _value(match["ident"]),
        "user": _value(match["user"]),
        "timestamp": _rfc3339(match["time"]),
        "method": request["method"] if request else None,
        "target": request["target"] if request else match["request"],
        "protocol": request["protocol"] if request else None,
        "status": int(match["status"]),
        "response_bytes": None if match["bytes"] == "-" else int(match["bytes"]),
        "referrer": _value(match["referrer"]),
        "user_agent": _value(match["agent"]),
    }
    return record


def _value(text: str | None) -> str | None:
    return None if text in (None, "", "-") else text


def _rfc3339(text: str) -> str:
    match = _TIME_RE.fullmatch(text)
    if not match or match[2] not in _MONTHS:
        return text
    month = _MONTHS.index(match[2]) + 1
    return f"{match[3]}-{month:02d}-{match[1]}T{match[4]}:{match[5]}:{match[6]}{match[7]}:{match[8]}"


def _columns(fields: pa.StructArray) -> tuple[dict[str, pa.Array], np.ndarray]:
    """The columns of the lines that match, and which of them are proven valid."""
    names = [field.name for field in fields.type]
    parts = dict(zip(names, fields.flatten(), strict=True))
    proven, micros = _times(parts["time"])
    request = pc.extract_regex(parts["request"], _REQUEST)
    is_request = request.is_valid()
    method, target, protocol = request.flatten()
    status = parts["status"].cast(pa.int32())
    proven &= mask_of(pc.and_(pc.greater_equal(status, 100), pc.less_equal(status, 999)))
    size = parts["bytes"]
    columns = {
        "ip_address": parts["host"],
        "user_id": _missing(parts["user"]),
        "event_time": pa.array(micros, pa.int64()).cast(TIME),
        "http_method": _missing(method),
        "page_url": pc.if_else(is_request, target, parts["request"]),
        "http_status": status,
        "response_bytes": pc.if_else(pc.equal(size, "-"), None, size).cast(pa.int64()),
        "referrer": _missing(parts["referrer"]),
        "user_agent": _missing(parts["agent"]),
        "properties": _properties(_missing(parts["ident"]), _missing(protocol)),
    }
    columns["event_type"] = event_types(columns["http_method"], columns["page_url"], status)
    return columns, proven


def event_types(methods: pa.Array, targets: pa.Array, statuses: pa.Array) -> pa.Array:
    """What each request was: ``http_error`` (status 400 and above), ``asset`` (style, script, font, image, media or icon by its
    name), ``page_view`` (any other GET), else ``request``."""
    asset = pc.match_substring_regex(targets, _ASSET)
    view = pc.fill_null(pc.equal(methods, "GET"), False)
    kind = pc.if_else(asset, "asset", pc.if_else(view, "page_view", "request"))
    return pc.if_else(pc.greater_equal(statuses, 400), "http_error", kind)


def _missing(values: pa.Array) -> pa.Array:
    absent = pc.is_in(values, pa.array(["", "-"]))
    return pc.if_else(absent, pa.scalar(None, pa.string()), values)


def _properties(ident: pa.Array, protocol: pa.Array) -> pa.Array:
    """``{"ident": …, "protocol": …}`` as canonical JSON, built per distinct pair; null where both are missing."""
    pairs = pc.binary_join_element_wise(
        ident, protocol, "\n", null_handling="replace", null_replacement=""
    ).dictionary_encode()
    texts = []
    for pair in pairs.dictionary.to_pylist():
        values = dict(zip(("ident", "protocol"), pair.split("\n"), strict=True))
        present = {name: value for name, value in values.items() if value}
        texts.append(orjson.dumps(present).decode() if present else None)
    return pa.array(texts, pa.string()).take(pairs.indices)


def _times(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """``17/May/2015:10:05:03 +0000`` to (proven, microseconds); other shapes are for the row-wise parser."""
    rows = len(texts)
    shaped = pc.match_substring_regex(
        texts, r"^[0-9]{2}/[A-Z][a-z]{2}/[0-9]{4}:[0-9]{2}:[0-9]{2}:[0-9]{2} [+-][0-9]{4}$"
    )
    proven = mask_of(shaped)
    if not rows or not proven.any():
        return proven, np.zeros(rows, np.int64)
    fixed = pc.if_else(shaped, texts, "01/Jan/1970:00:00:00 +0000")
    data = np.frombuffer(fixed.buffers()[2], np.uint8)
    start = np.frombuffer(fixed.buffers()[1], np.int32, 1, fixed.offset * 4)[0]
    text = data[start : start + rows * 26].reshape(rows, 26)
    digit = text.astype(np.int64) - 48

    def two(at: int) -> np.ndarray:
        return digit[:, at] * 10 + digit[:, at + 1]

    month = np.zeros(rows, np.int64)
    for number, name in enumerate(_MONTHS, 1):
        month[(text[:, 3:6] == np.frombuffer(name.encode(), np.uint8)).all(1)] = number
    day, year = two(0), two(7) * 100 + two(9)
    hour, minute, second = two(12), two(15), two(18)
    proven &= valid_dates(year, month, day) & (hour < 24) & (minute < 60) & (second < 60)
    proven &= (two(22) < 24) & (two(24) < 60) & (year > 1) & (year < 9999)
    shift = (two(22) * 3600 + two(24) * 60) * np.where(text[:, 21] == ord("+"), 1, -1)
    seconds = days_from_civil(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - shift
    return proven, np.where(proven, seconds * 1_000_000, 0)
