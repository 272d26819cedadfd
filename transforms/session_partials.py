"""Sessions as mergeable partial tables: pure kernels over RecordBatches.

``finish(merge([partial(batch, s), …], s), s)`` has the sessions of all batches, whatever the order of rows, the cut into batches
and the shape of the merges.

A partial has one row for each run: events of one key without a pause longer than the gap. Events of other batches may lie between
them, or join two runs; then the runs overlap or lie at most a gap apart, so that merging runs by the same rule gives the sessions
of all events. A run's columns: the key's; ``session_start`` and ``session_end``, int64 microseconds since 1970; ``events``,
``page_views`` and ``purchases``, int64; ``is_bot``; ``pages``, 128-bit hashes of its distinct pages; ``revenues``, the exact sum of
each currency; ``marks``, the events that decide a column of the session by being its first or last with a value: five at most.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_128_digest

from headrace.schemas.columns import CODE, MONEY, QUARANTINE_SCHEMA, TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import as_type, encoded, mask_of, plain, replace
from headrace.transforms.channel import channels
from headrace.transforms.conditions import matches
from headrace.transforms.distinct import distinct
from headrace.transforms.hashing import int64_values, present
from headrace.transforms.session_definitions import MARKS, PAGES, RESULTS, Sessions

PAGE_VIEWS = ("page_view", "product_view")
"""Types of the events that are a view of a page."""
PURCHASES = ("purchase",)

I64 = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_PICKS = {
    "entry_page": ("page_url", False), "exit_page": ("page_url", True), "device_type": ("device_type", False),
    "country": ("country", False), "channel": ("channel", False),
}  # fmt: skip
"""Column of a session → column of the event that decides it, and whether that is the last event with a value, not the first."""
_VALUES = tuple(dict.fromkeys(name for name, _ in _PICKS.values()))
_COUNTS = ("events", "page_views", "purchases")
_WIDE = pa.decimal256(76, 9)
"""Holds the sum of 10³⁸ values of decimal128(38, 9), so that only the sum of a whole session can be too large."""


def partial(batch: pa.RecordBatch, sessions: Sessions) -> pa.RecordBatch:
    """Finds the runs of one batch; rows that ``where`` does not take are left out.

    Raises:
        ConfigError: the batch lacks a column, or one has a type that it can't have.
        ValueError: a row has no event_time, or null in all key columns.
    """
    require(batch, sessions)
    batch = batch.select(sessions.columns())
    chosen = matches(batch, sessions.where)
    batch = batch if chosen.all() else batch.filter(pa.array(chosen))
    if not (present(batch.column("event_time")) & has_key(batch, sessions)).all():
        raise ValueError("a row has no event_time, or null in all key columns; reject such rows before")
    batch = replace(batch, {"page_url": distinct(batch.column("page_url"))})
    times = int64_values(as_type(batch.column("event_time"), TIME))
    keys = [key_of(batch, name) for name in sessions.by]
    codes = _codes(keys)
    order = np.lexsort((times, codes))
    times, codes = times[order], codes[order]
    runs = _Runs(_begins(codes, times, times, sessions))
    heads = pa.array(order[runs.starts])
    kinds = pa.RecordBatch.from_arrays([batch.column("event_type")], names=["event_type"])
    bots = mask_of(as_type(batch.column("is_bot"), pa.bool_()))
    return _batch(
        {
            **{name: key.take(heads) for name, key in zip(sessions.by, keys, strict=True)},
            "session_start": times[runs.starts],
            "session_end": times[runs.ends - 1],
            "events": runs.ends - runs.starts,
            "page_views": runs.count(matches(kinds, (("event_type", PAGE_VIEWS),))[order]),
            "purchases": runs.count(matches(kinds, (("event_type", PURCHASES),))[order]),
            "is_bot": runs.count(bots[order]) > 0,
            PAGES: _pages(batch.column("page_url"), order, runs),
            "revenues": _sums(*_revenues(batch, order, runs), runs.size),
            MARKS: _kept(_events(batch, times, order, runs), runs.size),
        }
    )


def merge(partials: Sequence[pa.RecordBatch], sessions: Sessions) -> pa.RecordBatch:
    """Merges one or more partials of one definition into one."""
    if len(partials) == 1:
        return partials[0]
    table = pa.concat_tables([pa.Table.from_batches([p]) for p in partials], promote_options="default")
    arrays = {n: pa.concat_arrays(table.column(n).chunks) for n in table.column_names}
    codes = _codes([arrays[name] for name in sessions.by])
    starts, ends = (int64_values(arrays[name]) for name in ("session_start", "session_end"))
    order = np.lexsort((starts, codes))
    codes, starts, ends = codes[order], starts[order], ends[order]
    runs = _Runs(_begins(codes, starts, _latest(codes, ends), sessions))
    heads = pa.array(order[runs.starts])
    of = np.empty(len(order), np.int64)
    of[order] = runs.of
    return _batch(
        {
            **{name: arrays[name].take(heads) for name in sessions.by},
            "session_start": starts[runs.starts],
            "session_end": runs.reduce(np.maximum, ends),
            **{name: runs.reduce(np.add, int64_values(arrays[name])[order]) for name in _COUNTS},
            "is_bot": runs.count(mask_of(arrays["is_bot"])[order]) > 0,
            PAGES: _union(*_flat(arrays[PAGES], of), runs.size),
            "revenues": _sums(*_flat(arrays["revenues"], of), runs.size),
            MARKS: _kept(_marked(arrays[MARKS], of), runs.size),
        }
    )


def finish(merged: pa.RecordBatch, sessions: Sessions) -> pa.Table:
    """Returns the sessions, sorted by key (null last), then start.

    Columns: the key's, then

    - ``session_start``, ``session_end`` (UTC, µs): time of the first and of the last event; ``duration_seconds`` (float64).
    - ``events``; ``page_views``: events of :data:`PAGE_VIEWS`; ``unique_pages``: distinct ``page_url`` apart from query and
      fragment; ``purchases``: events of type purchase (int64).
    - ``entry_page``, ``exit_page`` (string): ``page_url`` of the first and of the last event that has one.
    - ``revenue`` (decimal128(38, 9)) and ``currency``, if all revenue of the session is in one currency, null being a currency of
      its own; both null if there is none, or several. ``revenues``: list of struct(currency, revenue), complete, sorted by
      currency, null last.
    - ``bounce`` (bool): exactly one page view and no purchase, whatever else happened.
    - ``device_type``, ``country``: of the first event that has one. ``channel``: of the first event that has one by
      :func:`headrace.transforms.channel.channels`, else direct.
    - ``is_bot`` (bool): whether any event is a robot's; false if none says so.

    First and last go by ``event_time``, then ``event_id`` as text (null last), then the value itself.

    Raises:
        OverflowError: the revenue of a session in one currency has more than 38 digits.
    """
    keys = [(name, "ascending") for name in (*sessions.by, "session_start")]
    merged = merged.take(pc.sort_indices(merged, sort_keys=keys))
    start, end = (int64_values(merged.column(name)) for name in ("session_start", "session_end"))
    events = _marked(merged.column(MARKS), np.arange(merged.num_rows))
    columns = dict(zip(merged.schema.names, merged.columns, strict=True)) | _exact(merged.column("revenues"))
    for name, (column, _) in _PICKS.items():
        at = _pick(events, name)
        columns[name] = events.values[column].take(_places(events.of[at], at, merged.num_rows))
    columns |= {
        "session_start": columns["session_start"].cast(TIME),
        "session_end": columns["session_end"].cast(TIME),
        "duration_seconds": pa.array((end - start).view(np.uint64) / 1e6),
        "unique_pages": pc.list_value_length(columns[PAGES]),
        "bounce": pc.and_(pc.equal(columns["page_views"], 1), pc.equal(columns["purchases"], 0)),
        "channel": as_type(pc.fill_null(columns["channel"], "direct"), CODE),
    }
    for name in (*sessions.by, "currency", "device_type", "country"):
        if name in QUARANTINE_SCHEMA.names:
            columns[name] = as_type(columns[name], QUARANTINE_SCHEMA.field(name).type)
    return pa.Table.from_batches([_batch({name: columns[name] for name in (*sessions.by, *RESULTS)})])


def require(batch: pa.RecordBatch, sessions: Sessions) -> None:
    """Raises ConfigError if the batch lacks a column that sessions are made from."""
    missing = [n for n in sessions.columns() if batch.schema.get_field_index(n) < 0]
    if missing:
        raise ConfigError(
            f"sessions need {missing}: the batches have no such column; they have {batch.schema.names}. "
            "Apply the transform that adds it (Enrich adds revenue and is_bot) before"
        )


def has_key(batch: pa.RecordBatch, sessions: Sessions) -> Flags:
    """Returns which rows have a value in at least one key column."""
    found: Flags = np.logical_or.reduce([present(batch.column(name)) for name in sessions.by])
    return found


class _Runs:
    """Sorted rows in consecutive groups; ``begins`` says which rows begin one, as the first row does."""

    def __init__(self, begins: Flags) -> None:
        self.starts: I64 = np.flatnonzero(begins)
        self.ends: I64 = np.append(self.starts, len(begins))[1:]
        self.of: I64 = np.cumsum(begins) - 1
        self.size = len(self.starts)

    def count(self, chosen: Flags) -> I64:
        return np.bincount(self.of[chosen], minlength=self.size)

    def reduce(self, function: np.ufunc, numbers: I64) -> I64:
        found: I64 = function.reduceat(numbers, self.starts) if self.size else numbers[:0]
        return found


class _Events(NamedTuple):
    """Events, sorted by run and time."""

    of: I64
    """Their runs."""
    times: I64
    ids: pa.Array
    values: dict[str, pa.Array]
    """Columns of which a session takes the first or last value, plain or dictionary-encoded without null in the dictionary."""


def _begins(codes: I64, starts: I64, latest: I64, sessions: Sessions) -> Flags:
    """Returns which rows, sorted by key and start, begin a run; ``latest`` is the latest end of the key so far.

    The pause is compared as uint64, which holds the difference of any two int64.
    """
    pause = (starts[1:] - latest[:-1]).view(np.uint64)
    longer = (starts[1:] > latest[:-1]) & (pause > np.uint64(sessions.gap_us))
    return np.append(np.ones(min(1, len(codes)), np.bool_), (codes[1:] != codes[:-1]) | longer)


def _latest(codes: I64, ends: I64) -> I64:
    """Returns the highest end up to each row within its key; rows are sorted by key. Ends are compared by their ranks."""
    ascending = np.argsort(ends)
    rank = np.empty(len(ends), np.int64)
    rank[ascending] = np.arange(len(ends))
    below = np.cumsum(np.append(codes[:1] * 0, codes[1:] != codes[:-1])) * len(ends)
    return ends[ascending[np.maximum.accumulate(below + rank) - below]]


def key_of(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Returns a key column, plain, of its declared type if it is one of ours: equal keys have one type in all batches."""
    values, is_ = plain(batch.column(name)), pa.types
    if is_.is_nested(values.type) or is_.is_floating(values.type) or is_.is_decimal(values.type):
        raise ConfigError(f"by={name!r}: the column is {values.type}; cast it to text or a whole number")
    own = pa.string() if is_.is_large_string(values.type) else values.type
    declared = QUARANTINE_SCHEMA.field(name).type if name in QUARANTINE_SCHEMA.names else own
    return as_type(values, declared.value_type if is_.is_dictionary(declared) else declared)


def _codes(keys: Sequence[pa.Array]) -> I64:
    """Returns a number for each row; equal keys have equal numbers, and null equals null."""
    code, span = np.zeros(len(keys[0]), np.int64), 1
    for key in keys:
        values = encoded(key)
        size = len(values.dictionary) + 1
        if span * size >= 1 << 62:
            found, code = np.unique(code, return_inverse=True)
            span = len(found)
        more = pc.fill_null(values.indices, size - 1).to_numpy(zero_copy_only=False)
        code, span = code * size + more, span * size
    return code


def _events(batch: pa.RecordBatch, times: I64, order: I64, runs: _Runs) -> _Events:
    rows = pa.array(order)
    columns = {name: batch.column(name) for name in _VALUES if name != "channel"}
    columns["channel"] = channels(batch)
    ids = plain(batch.column("event_id")).cast(pa.string())
    values = {name: distinct(array).take(rows) for name, array in columns.items()}
    return _Events(runs.of, times, ids.take(rows), values)


def _pick(events: _Events, name: str) -> I64:
    """Returns the event that decides a column of each run that has one, see :data:`_PICKS`."""
    column, last = _PICKS[name]
    rows = np.flatnonzero(events.values[column].is_valid().to_numpy(zero_copy_only=False))
    runs = _Runs(_changes(events.of[rows]))
    best = rows[runs.ends - 1 if last else runs.starts]
    tied = events.times[rows] == events.times[best][runs.of]
    several = runs.count(tied) > 1
    if several.any():
        rows = rows[tied & several[runs.of]]
        at = pa.array(rows)
        values = plain(events.values[column].take(at))
        table = pa.table({"run": events.of[rows], "id": events.ids.take(at), "value": values})
        order = pc.sort_indices(table, sort_keys=[(n, "ascending") for n in table.column_names])
        rows = rows[order.to_numpy()]
        equal = _Runs(_changes(events.of[rows]))
        best[several] = rows[equal.ends - 1 if last else equal.starts]
    return best


def _changes(numbers: I64) -> Flags:
    """Returns which numbers differ from the one before; the first does."""
    return np.append(np.ones(min(1, len(numbers)), np.bool_), numbers[1:] != numbers[:-1])


def _kept(events: _Events, size: int) -> pa.Array:
    """Returns for each run the events that decide something, by time."""
    rows = np.unique(np.concatenate([_pick(events, name) for name in _PICKS]))
    at = pa.array(rows)
    values = {name: plain(array.take(at)) for name, array in events.values.items()}
    columns = {"time": pa.array(events.times[rows]), "event_id": events.ids.take(at), **values}
    return _lists(events.of[rows], pa.StructArray.from_arrays(columns.values(), columns.keys()), size)


def _marked(marks: pa.Array, of: I64) -> _Events:
    """Returns the marks of runs as events; ``of`` is the run that each row now belongs to, ascending or not."""
    run, flat = _flat(marks, of)
    times = int64_values(flat.field("time"))
    order = np.lexsort((times, run))
    flat = flat.take(pa.array(order))
    values = {name: flat.field(name) for name in _VALUES}
    return _Events(run[order], times[order], flat.field("event_id"), values)


def _pages(urls: pa.DictionaryArray, order: I64, runs: _Runs) -> pa.Array:
    """Returns the hashes of the distinct pages of each run."""
    seen: dict[str, int] = {}
    bare = (url.partition("#")[0].partition("?")[0] for url in urls.dictionary.to_pylist())
    page_of = np.array([*(seen.setdefault(page, len(seen)) for page in bare), 0], np.int64)
    codes = pc.fill_null(urls.indices, len(page_of) - 1).to_numpy(zero_copy_only=False)
    size = max(1, len(seen))
    pairs = np.unique((runs.of * size + page_of[codes[order]])[mask_of(urls.is_valid())[order]])
    digests = np.frombuffer(b"".join([xxh3_128_digest(page.encode()) for page in seen]), np.uint64).reshape(
        -1, 2
    )
    return _lists(pairs // size, _hashes(digests[pairs % size]), runs.size)


def _union(of: I64, flat: pa.Array, size: int) -> pa.Array:
    """Returns the distinct hashes of each run, compared on all 128 bits."""
    if not len(flat):
        return _lists(of, flat, size)
    hashes = np.frombuffer(flat.buffers()[1], np.uint64).reshape(-1, 2)[flat.offset : flat.offset + len(flat)]
    order = np.lexsort((hashes[:, 1], hashes[:, 0], of))
    of, hashes = of[order], hashes[order]
    new = _changes(of)
    new[1:] |= (hashes[1:] != hashes[:-1]).any(axis=1)
    return _lists(of[new], _hashes(hashes[new]), size)


def _hashes(numbers: npt.NDArray[np.uint64]) -> pa.Array:
    data = pa.py_buffer(np.ascontiguousarray(numbers))
    return pa.Array.from_buffers(pa.binary(16), len(numbers), [None, data])


def _revenues(batch: pa.RecordBatch, order: I64, runs: _Runs) -> tuple[I64, pa.Array]:
    """Returns the events that have revenue: their runs, and struct(currency, revenue)."""
    revenue = batch.column("revenue")
    if not (pa.types.is_decimal(revenue.type) or pa.types.is_null(revenue.type)):
        raise ConfigError(f"the column revenue is {revenue.type}; exact sums need decimal128(38, 9)")
    of = np.empty(len(order), np.int64)
    of[order] = runs.of
    earning = revenue.is_valid()
    currency = plain(batch.column("currency").filter(earning)).cast(pa.string())
    amount = as_type(revenue.filter(earning), MONEY).cast(_WIDE)
    return of[mask_of(earning)], pa.StructArray.from_arrays([currency, amount], ["currency", "revenue"])


def _sums(of: I64, flat: pa.Array, size: int) -> pa.Array:
    """Returns for each run the sum of each currency, sorted by currency, null last."""
    table = pa.table({"run": of, "currency": flat.field("currency"), "revenue": flat.field("revenue")})
    table = table.group_by(["run", "currency"], use_threads=False).aggregate([("revenue", "sum")])
    table = table.sort_by([("run", "ascending"), ("currency", "ascending")])
    columns = [table.column(name).combine_chunks() for name in ("currency", "revenue_sum")]
    values = pa.StructArray.from_arrays(columns, ["currency", "revenue"])
    return _lists(table.column("run").to_numpy(), values, size)


def _exact(revenues: pa.Array) -> dict[str, pa.Array]:
    """Returns the columns of sessions that hold money."""
    number = pc.list_value_length(revenues).to_numpy(zero_copy_only=False)
    offsets = np.append(0, np.cumsum(number))
    currency = revenues.flatten().field("currency")
    try:
        sums = revenues.flatten().field("revenue").cast(MONEY)
    except pa.ArrowInvalid as error:
        raise OverflowError(
            "the revenue of a session has more than 38 digits, which decimal128(38, 9) can't hold"
        ) from error
    values = pa.StructArray.from_arrays([currency, sums], ["currency", "revenue"])
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
    single = np.flatnonzero(number == 1)
    at = _places(single, offsets[single], len(number))
    return {"revenue": sums.take(at), "currency": currency.take(at), "revenues": lists}


def _flat(lists: pa.Array, of: I64) -> tuple[I64, pa.Array]:
    """Returns the members of lists, each with what belongs to its list."""
    return np.repeat(of, pc.list_value_length(lists).to_numpy(zero_copy_only=False)), lists.flatten()


def _lists(of: I64, values: pa.Array, size: int) -> pa.Array:
    """Builds one list for each run; ``of`` is sorted."""
    offsets = np.searchsorted(of, np.arange(size + 1)).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def _places(rows: I64, members: I64, size: int) -> pa.Array:
    """Returns indices by which a take gives ``members`` to ``rows``, and null to all other rows."""
    found = np.zeros(size, np.int64)
    found[rows] = members
    missing = np.ones(size, np.bool_)
    missing[rows] = False
    return pa.array(found, mask=missing)


def _batch(columns: Mapping[str, pa.Array | npt.NDArray[np.generic]]) -> pa.RecordBatch:
    arrays = [c if isinstance(c, pa.Array) else pa.array(c) for c in columns.values()]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))
