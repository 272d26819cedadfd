"""Rejects events that happened too long before, or too far after, they reached us."""

from collections import Counter
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columns import RAW, TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms.base import Outcome, StageTransform
from headrace.transforms.batches import column, constant, mask_of
from headrace.transforms.keys import Key
from headrace.transforms.rejects import no_rejects, rejected

MAX_AGE = timedelta(hours=24)
MAX_AHEAD = timedelta(minutes=5)

_REASONS = pa.array(["stale", "future", "no_time"])


class RejectStaleKernel:
    """The kernel of :class:`RejectStale`."""

    name = "time"

    def __init__(self, max_age: timedelta, max_ahead: timedelta, key: Key) -> None:
        self._age = pa.scalar(max_age, pa.duration("us"))
        self._ahead = pa.scalar(max_ahead, pa.duration("us"))
        self._key = key
        self._messages = pa.array(
            [
                f"event_time is more than {max_age} before ingest_time",
                f"event_time is more than {max_ahead} after ingest_time",
                "event_time or ingest_time is null, so the age of the event is not known",
            ]
        )
        self.counts: Counter[str] = Counter()

    def setup(self) -> None:
        """Nothing to build."""

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        event, ingest = _time(batch, "event_time"), _time(batch, "ingest_time")
        stale = mask_of(pc.less(event, pc.subtract_checked(ingest, self._age)))
        future = mask_of(pc.greater(event, pc.add_checked(ingest, self._ahead)))
        unknown = mask_of(pc.or_(event.is_null(), ingest.is_null()))
        bad = stale | future | unknown
        if not bad.any():
            return Outcome(batch, no_rejects())
        codes = pa.array(np.select([stale, future], [0, 1], 2)[bad])
        lost = batch.filter(pa.array(bad))
        raw = lost.schema.get_field_index(RAW)
        documents = (
            self._key.seal(lost.column(raw).to_pylist())
            if raw >= 0
            else constant(None, lost.num_rows, pa.binary())
        )
        rows = rejected(
            lost,
            self.name,
            _REASONS.take(codes),
            message=self._messages.take(codes),
            documents=documents,
            masked=raw < 0,
        )
        return Outcome(batch.filter(pa.array(~bad)), rows)


class RejectStale(StageTransform):
    """Rejects events whose event_time is too far from their ingest_time.

    Compares two columns of the same row, never a clock: a replay with the same ingest times gives the same verdicts. An event
    exactly ``max_age`` old or exactly ``max_ahead`` ahead is accepted. Accepted rows, their order and all columns are unchanged.
    Stateless; bounded or unbounded; any windowing.

    Input: batches with ``event_time`` and ``ingest_time`` (UTC, microseconds). Either before MaskPii (with ``_raw``,
    ``VALID_SCHEMA``) or after it (without, ``EVENT_SCHEMA``).
    Output: accepted, the same schema; rejected, ``QUARANTINE_SCHEMA``: stage ``time``, reason ``stale``, ``future``, or ``no_time``
    if one of the two times is null. Before MaskPii the sensitive columns are null and ``document`` holds the sealed ``_raw``;
    after it the masked columns are kept.

    Args:
        max_age: how long before its ingest time an event may have happened.
        max_ahead: how long after it.
        key: seals the documents of rejected rows; by default the key in :func:`headrace.transforms.keys.default_key_file`,
            which is made if it is missing.

    Raises:
        ConfigError: a duration is negative or no timedelta; the key can't be read.
    """

    def __init__(
        self, max_age: timedelta = MAX_AGE, max_ahead: timedelta = MAX_AHEAD, *, key: Key | None = None
    ) -> None:
        super().__init__()
        for name, value in (("max_age", max_age), ("max_ahead", max_ahead)):
            if not isinstance(value, timedelta) or value < timedelta(0):
                raise ConfigError(
                    f"RejectStale({name}={value!r}): must be a timedelta of zero or more, e.g. timedelta(hours=24)"
                )
        self._max_age, self._max_ahead = max_age, max_ahead
        self._key = Key(create=True) if key is None else key

    def kernel(self) -> RejectStaleKernel:
        return RejectStaleKernel(self._max_age, self._max_ahead, self._key)


def _time(batch: pa.RecordBatch, name: str) -> pa.Array:
    array = column(batch, name)
    return array if array.type.equals(TIME) else array.cast(TIME)
