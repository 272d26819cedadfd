"""From one dict an element to batches of raw records: the row-wise entry."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import apache_beam as beam
import orjson
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from headrace.schemas.columns import RAW_SCHEMA
from headrace.schemas.errors import ConfigError, InputError
from headrace.transforms.batches import conform, constant
from headrace.transforms.coders import register_coders

BATCH_ROWS = 8_192
FAULT = "unserialisable"

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_SERIALIZE_NUMPY


def encode_document(value: object) -> tuple[bytes, str | None]:
    """Returns a value as one JSON document, and the fault if it can't be written as one.

    Decimals become strings with all of their digits, datetimes RFC 3339 text (one without a zone stays without, so that its
    validation fails: the zone is not guessed), Beam timestamps likewise, UUIDs, dates, enums and numpy scalars their usual text.
    Integers beyond 64 bits are written in full. NaN and infinities are written as such, which is no JSON, so ``Decode`` rejects
    them; they don't turn into null. What can't be written at all gives its ``repr`` as the document, with the fault
    ``unserialisable``: it ends, sealed, in the quarantine.
    """
    try:
        document = orjson.dumps(value, _known, _OPTIONS)
        if b"null" not in document:
            return document, None
    except (TypeError, ValueError, RecursionError):
        document = b""
    try:
        # orjson writes NaN as null and refuses big integers; json does neither but is slow.
        return json.dumps(value, default=_known_slow, separators=(",", ":")).encode(), None
    except (TypeError, ValueError, RecursionError):
        if document:
            return document, None
    return repr(value).encode("utf-8", "backslashreplace"), FAULT
