"""Attribution: credits the revenue of each conversion to the touches that led to it, to the last unit of money."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from headrace.schemas.columns import CODE, MONEY, STRING, TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms.base import Outcome, Results
from headrace.transforms.batches import as_type, column, replace
from headrace.transforms.channel import channels
from headrace.transforms.conditions import Conditions, columns_of, conditions, matches
from headrace.transforms.funnel_definitions import check_columns, check_duration
from headrace.transforms.group_by_user import (
    BATCH_ROWS,
    GroupByUser,
    check_shards,
    joined,
    names_of,
    ordered,
    plain_columns,
    require,
    sorted_by,
    split_rows,
)
from headrace.transforms.hashing import decimal_limbs, present

STAGE = "attribute"
DIRECT = "direct"
"""Channel of a conversion without a touch."""
MODELS = ("last", "first", "linear", "position", "time_decay")
MOST_TOUCHES = 10_000

CREDITS = pa.schema(
    [
        pa.field("event_id", STRING),
        pa.field("event_time", TIME),
        pa.field("order_id", STRING),
        pa.field("currency", CODE),
        pa.field("touch_id", STRING),
        pa.field("touch_time", TIME),
        pa.field("channel", CODE),
        pa.field("weight", pa.float64()),
        pa.field("revenue", MONEY),
    ]
)
"""One row for each conversion and touch that is credited: the conversion's id, time, order and currency; the touch's id, time and
channel; the touch's part, and what it is of the conversion's revenue."""

_CHANNEL = "_channel"
"""Column of narrowed rows: the channel, null in rows that are no touch."""
_DIGIT = np.uint64(0xFFFF)
_WEIGHT_BITS = 33
"""A touch that gets the most has a weight of 2³³ at most; 10,000 of them add up to less than 2⁴⁷."""
_LN2 = 0.6931471805599453

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Model = Literal["last", "first", "linear", "position", "time_decay"]


@dataclass(frozen=True)
class Attribution:
    """Which touches a conversion is credited to, and how.

    A *conversion* is a row with revenue. A *touch* is a row with a ``channel`` that fulfils ``touches``. A conversion is credited
    to the touches of its user that are not after it in the order of (``event_time``, ``event_id``), itself included, and not older
    than ``lookback``; exactly so old still counts. A refund is a conversion of negative revenue, credited by the same rule at its
    own time, which need not be to the touches of the purchase. A conversion without touches, or without a key, is credited to the
    channel ``direct``. The models:

    - ``last``, ``first``: all to the last or the first touch.
    - ``linear``: equal parts.
    - ``position``: 40 % to the first, 40 % to the last, 20 % in equal parts to those between; of two, half to each.
    - ``time_decay``: in proportion to 2^(−age / ``half_life``).

    Source: Google Ads API, AttributionModelEnum (position: 40 % each to the first and the last; time decay: half-life of one week),
    https://developers.google.com/google-ads/api/reference/rpc/v17/AttributionModelEnum.AttributionModel; half to each of two is
    what is left of position where nothing is between.

    Args:
        model: one of these.
        lookback: how old a touch may be.
        half_life: in which time a touch loses half of its weight; for ``time_decay``.
        touches: conditions on columns (:func:`headrace.transforms.conditions.conditions`), as a mapping; None: any row with a
            channel but ``direct``, so that a visit without a source takes no credit from the ones before it.
        by: key columns, whose values name the user.
        max_touches: 1 to 10,000: a conversion with more touches is credited to this many newest, as if the others were too old.
            ``last`` and ``first`` have no need of it.

    Raises:
        ConfigError: an argument that is none of these.
    """

    model: Model = "last"
    lookback: timedelta = timedelta(days=30)
    half_life: timedelta = timedelta(days=7)
    touches: Mapping[str, object] | None = None
    by: tuple[str, ...] = ("user_id",)
    max_touches: int = 1000
    conditions: Conditions = field(init=False)
    """The conditions of ``touches``, read."""

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ConfigError(f"model={self.model!r}: must be one of {', '.join(MODELS)}")
        check_duration("lookback", self.lookback)
        check_duration("half_life", self.half_life)
        if self.touches is not None and not self.touches:
            raise ConfigError(
                f"touches={self.touches!r}: name at least one condition; None takes any row with a channel"
            )
        check_columns("by", self.by, least=1)
        most = self.max_touches
        if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= MOST_TOUCHES:
            raise ConfigError(f"max_touches={most!r}: must be a whole number from 1 to {MOST_TOUCHES}")
        object.__setattr__(self, "conditions", conditions(self.touches, "touches"))


def attribute(batch: pa.RecordBatch, definition: Attribution) -> pa.Table:
    """Returns the credits of all conversions, sorted by the conversion's time and id, then in the order of touches.

    The credits of a conversion add up exactly to its revenue: parts are rounded down (towards zero) to 1e-9, and the units that
    are left go one each to the largest remainders, to the earlier touch where they are equal (method of the largest remainder, or
    Hamilton's). Weights are whole numbers and credits whole units, so a result does not depend on the order of rows, on batches or
    on the machine; ``time_decay`` rounds the weights to 2⁻³³ of the newest touch's, so that a touch 34 half-lives older has none.

    Args:
        batch: all rows of some users, with ``revenue``, and ``channel`` or what it is derived from.

    Returns:
        a table of :data:`CREDITS`; ``weight`` is the touch's part (those of a conversion add up to 1 but for rounding), 1.0 for
        ``direct``, whose touch columns are null.

    Raises:
        ConfigError: the batch lacks a column, or revenue is neither decimal nor integer.
        ValueError: a row has no event_time.
    """
    if column(batch, "event_time").null_count:
        raise ValueError("a row has no event_time; take such rows out before")
    return _credits(_narrow(batch, definition), definition)


def _split(batch: pa.RecordBatch, definition: Attribution) -> Outcome:
    """Rejects rows without time, and without key unless they are conversions, whose revenue must not be lost."""
    require(batch, ["revenue"], "attribution")
    return split_rows(batch, STAGE, definition.by, keyless=present(batch.column("revenue")))


def _narrow(batch: pa.RecordBatch, definition: Attribution) -> pa.RecordBatch:
    """Returns conversions and touches; only in touches the channel is not null."""
    if batch.schema.get_field_index("channel") < 0:
        require(batch, ["page_url", "referrer"], "attribution")
        batch = replace(batch, {"channel": channels(batch)})
    require(batch, ["revenue", *definition.by, *columns_of(definition.conditions)], "attribution")
    type_ = batch.column("revenue").type
    if not (pa.types.is_decimal(type_) or pa.types.is_integer(type_) or pa.types.is_null(type_)):
        raise ConfigError(f"attribution: revenue is {type_}; it must be decimal or integer, never a float")
    touch = matches(batch, definition.conditions) & present(batch.column("channel"))
    if definition.touches is None:
        touch &= ~matches(batch, (("channel", (DIRECT,)),))
    touch &= np.any([present(batch.column(n)) for n in definition.by], axis=0)
    names = ["event_time", "event_id", "order_id", "currency", "revenue"]
    rows = plain_columns(batch, dict.fromkeys([*definition.by, *names]))
    channel = pc.if_else(pa.array(touch), plain_columns(batch, ["channel"]).column(0).cast(STRING), None)
    rows = rows.append_column(_CHANNEL, channel)
    return rows.filter(pa.array(touch | present(rows.column("revenue"))))


def _credits(rows: pa.RecordBatch, definition: Attribution) -> pa.Table:
    users, times, order = ordered(rows, definition.by)
    rows = rows.take(pa.array(order))
    touches = np.flatnonzero(present(rows.column(_CHANNEL)))
    buys = np.flatnonzero(present(rows.column("revenue")))
    others = [n for n in rows.schema.names if n not in ("event_time", "event_id")]
    bought = rows.select(["event_time", "event_id", *others]).take(pa.array(buys))
    in_time = sorted_by(bought.columns)
    buys, bought = buys[in_time.to_numpy()], bought.take(in_time)
    low, high = _touches_of(buys, touches, users, times, definition)
    counts = np.maximum(high - low, 1)
    starts = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(len(buys)), counts)
    nth = np.arange(len(owner)) - starts[owner]
    direct = (high == low)[owner]
    touch = np.zeros(len(owner), np.int64)
    touch[~direct] = touches[(low[owner] + nth)[~direct]]
    weights = np.ones(len(owner), np.int64)
    if definition.model == "position":
        weights = _by_position(nth, counts[owner])
    elif definition.model == "time_decay":
        newest = times[touch[starts + counts - 1]]
        weights = _by_age(newest[owner] - times[touch], definition.half_life)
    totals = _sums(weights, starts)
    at, of = pa.array(touch, mask=direct), pa.array(owner)
    columns = {n: bought.column(n).take(of) for n in ("event_id", "event_time", "order_id", "currency")}
    columns["touch_id"] = rows.column("event_id").take(at)
    columns["touch_time"] = rows.column("event_time").take(at)
    columns["channel"] = pc.fill_null(rows.column(_CHANNEL).take(at), DIRECT)
    columns["weight"] = pa.array(weights / totals[owner])
    columns["revenue"] = _apportion(bought.column("revenue"), weights, totals, owner, starts)
    return pa.table([as_type(columns[f.name], f.type) for f in CREDITS], schema=CREDITS)


def _touches_of(buys: I64, touches: I64, users: I64, times: I64, definition: Attribution) -> tuple[I64, I64]:
    """Returns where the touches of each conversion begin and end, as indexes into ``touches``; rows are in order of users."""
    since = times[buys] - definition.lookback // timedelta(microseconds=1)
    moments = np.unique(np.concatenate([times[touches], since]))
    keys = users[touches] * len(moments) + np.searchsorted(moments, times[touches])
    low = np.searchsorted(keys, users[buys] * len(moments) + np.searchsorted(moments, since))
    high = np.searchsorted(touches, buys, side="right")
    if definition.model == "first":
        return low, np.minimum(high, low + 1)
    return np.maximum(low, high - (1 if definition.model == "last" else definition.max_touches)), high


def _by_position(nth: I64, count: I64) -> I64:
    """Weights of 40, 20 and 40 %: with m between, 2m to the first and to the last, 1 to each of m."""
    end = (nth == 0) | (nth == count - 1)
    return np.where(end, np.maximum(2 * (count - 2), 1), 1)


def _by_age(ages: I64, half_life: timedelta) -> I64:
    """Returns 2³³ · 2^(−age / half_life), rounded.

    Halves are shifts; the rest is e^x by its Taylor series in sums, products and quotients, which IEEE 754 defines to the last
    bit, unlike the exponential functions of libraries.
    """
    halves, rest = np.divmod(ages, half_life // timedelta(microseconds=1))
    x = rest / (half_life // timedelta(microseconds=1)) * -_LN2
    power = np.ones(len(ages))
    for n in range(20, 0, -1):
        power = 1 + power * x / n
    return np.rint(power * 2**_WEIGHT_BITS).astype(np.int64) >> np.minimum(halves, 63)


def _apportion(revenue: pa.Array, weights: I64, totals: I64, owner: I64, starts: I64) -> pa.Array:
    """Divides each conversion's revenue in proportion to weights, exactly.

    |revenue| · weight / total is worked out by long multiplication and division in digits of 16 bits: with weights up to 2³³ and
    totals below 2⁴⁷ no intermediate result has more than 63 bits.
    """
    limbs = decimal_limbs(revenue)
    negative = limbs[:, 1] >> np.uint64(63) != 0
    low, high = _negated(limbs[:, 0], limbs[:, 1], negative)
    digits = [(part >> np.uint64(16 * i) & _DIGIT).astype(np.int64) for part in (low, high) for i in range(4)]
    while len(digits) > 1 and not digits[-1].any():
        digits.pop()
    product, carry = [], np.zeros(len(owner), np.int64)
    for digit in digits:
        carry = carry + digit[owner] * weights
        product.append(carry & 0xFFFF)
        carry = carry >> 16
    product += [carry & 0xFFFF, carry >> 16 & 0xFFFF, carry >> 32]
    rest, divisor = np.zeros(len(owner), np.int64), totals[owner]
    parts = np.zeros((2, len(owner)), np.uint64)
    for i in range(len(product) - 1, -1, -1):
        rest = (rest << 16) + product[i]
        quotient = rest // divisor
        rest -= quotient * divisor
        if i < 8:
            parts[i // 4] |= quotient.astype(np.uint64) << np.uint64(16 * (i % 4))
    left = _sums(rest, starts) // totals
    by_rest = np.lexsort((-rest, owner))
    more = np.zeros(len(owner), np.uint64)
    more[by_rest] = np.arange(len(owner)) - starts[owner] < left[owner]
    low = parts[0] + more
    high = parts[1] + (low < more)
    units = np.column_stack(_negated(low, high, negative[owner]))
    return pa.Array.from_buffers(MONEY, len(owner), [None, pa.py_buffer(units)])


def _negated(low: U64, high: U64, where: npt.NDArray[np.bool_]) -> tuple[U64, U64]:
    """Negates 128-bit two's complement numbers, some of them."""
    minus = ~low + np.uint64(1)
    return np.where(where, minus, low), np.where(where, ~high + (minus == 0), high)


def _sums(numbers: I64, starts: I64) -> I64:
    """Sums consecutive groups of one number at least."""
    return np.add.reduceat(numbers, starts) if len(starts) else numbers[:0]


class Attribute(beam.PTransform):
    """Credits the revenue of each conversion to the touches before it, exactly.

    What is a touch and a conversion, and the models, are said at :class:`Attribution`; how money is divided at :func:`attribute`.
    The credits of all accepted rows add up to their revenue. The result does not depend on the order of rows or on how they are
    cut into batches; a replay gives the same output. Ids must be unique, so deduplicate before.

    Bounded input in the GlobalWindow, or any in FixedWindows; then a conversion is credited to touches of its own window. Rows are
    in the windows of their own ``event_time``, whatever windows the batches are in. The input's trigger and allowed lateness are
    not kept: there is one pane, when the watermark passes the window's end; Beam drops what comes later. Only conversions and
    touches are shuffled, and of them only what is credited and the key; those of one shard are in memory together.

    Input: batches with ``event_time`` (UTC, microseconds), ``event_id``, ``order_id``, ``currency``, ``revenue``, ``channel``, or
    ``page_url`` and ``referrer`` from which it is derived (:func:`channels <headrace.transforms.channel.channels>`), and the
    columns that are named; masked, as they may be shuffled.
    Output: accepted, batches of :data:`CREDITS`, in order within a shard; a batch's timestamp is its first ``event_time``.
    Rejected, ``QUARANTINE_SCHEMA``, stage ``attribute``: ``no_time`` for a null ``event_time``; ``no_key`` if all ``by`` columns
    are null, unless the row has revenue: that is credited to ``direct``.

    Args:
        model: ``last``, ``first``, ``linear``, ``position`` or ``time_decay``.
        lookback: how old a touch may be.
        half_life: in which time a touch loses half of its weight.
        touches: conditions on columns; None: any row with a channel but ``direct``.
        by: key columns, whose values name the user.
        max_touches: of how many touches, the newest, a conversion is credited to at most.
        shards: over how many keys users are spread.

    Raises:
        ConfigError: an argument as described in its message; unbounded input in the GlobalWindow, or input in other windows than
            those above; a batch lacks a column.

    Example:
        >>> attribution = Attribute("time_decay", lookback=timedelta(days=14))
    """

    def __init__(
        self,
        model: Model = "last",
        *,
        lookback: timedelta = timedelta(days=30),
        half_life: timedelta = timedelta(days=7),
        touches: Mapping[str, object] | None = None,
        by: Iterable[str] = ("user_id",),
        max_touches: int = 1000,
        shards: int = 16,
    ) -> None:
        super().__init__()
        self._definition = Attribution(model, lookback, half_life, touches, names_of(by), max_touches)
        self._shards = check_shards("Attribute", shards)

    @beam.typehints.no_annotations
    def expand(self, batches: PCollection) -> Results:
        own = self._definition
        split, prepare = partial(_split, definition=own), partial(_narrow, definition=own)
        by_user = GroupByUser("Attribute", STAGE, own.by, self._shards, split, prepare)
        grouped, rejects = batches | "ByUser" >> by_user
        credited = grouped | "Credit" >> beam.ParDo(_CreditFn(own)).with_output_types(pa.RecordBatch)
        return Results(credited, rejects)


class _CreditFn(beam.DoFn):
    """Credits the conversions of one shard."""

    def __init__(self, definition: Attribution) -> None:
        self._definition = definition

    def process(
        self,
        group: tuple[int, Iterable[pa.RecordBatch]],
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterator[TimestampedValue]:
        for batch in _credits(joined(group[1]), self._definition).to_batches(max_chunksize=BATCH_ROWS):
            first = Timestamp(micros=batch.column("event_time")[0].cast(pa.int64()).as_py())
            yield TimestampedValue(batch, min(window.max_timestamp(), max(timestamp, first)))
