"""Event-time windows of a stream, as a pure state machine over numbered messages: late guard, panes, firings.

One :class:`WindowShard` has all window tables on one window shard, and of each the groups that hash to it. Its watermark is a
:class:`StreamClock <headrace.transforms.stream_clock.StreamClock>` over the messages, so what it says depends on no runner.
Windows are composed of panes when they fire; a tumbling window is one pane.

State (see :mod:`shard_state <headrace.transforms.shard_state>`): the slots hold the panes (:mod:`pane_store
<headrace.transforms.pane_store>`), the cell all else (:mod:`window_state <headrace.transforms.window_state>`). In memory, for the
version that the cell names: the cell decoded, and merged partials of the slots used last.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_64_digest

from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import replace
from headrace.transforms.pane_store import PaneStore
from headrace.transforms.shard_state import ShardState
from headrace.transforms.stream_clock import END, StreamClock
from headrace.transforms.stream_message import Message
from headrace.transforms.window_definitions import PANE, Windows
from headrace.transforms.window_partials import finish, finish_windows, starts_of
from headrace.transforms.window_rows import (
    EARLY,
    FINAL,
    LATE,
    ON_TIME,
    ROWS,
    by_window,
    corrections,
    counted,
    fired_rows,
    joined,
    late_rows,
)
from headrace.transforms.window_state import (
    KEYS,
    MOST_TABLES,
    NEVER,
    WINDOWS,
    WindowState,
    starts_in,
    tables_of,
    version_of,
)

MAX_LATENESS_US = 366 * 86_400 * 1_000_000

I64 = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Accumulation = Literal["accumulating", "discarding", "retracting"]
Late = dict[int, list[tuple[Message, pa.RecordBatch]]]


@dataclass(frozen=True)
class Firing:
    """What came of one or more messages."""

    rows: dict[str, pa.Table] = field(default_factory=dict)
    """Result rows of the tables that fired: the columns of ``finish`` (window_start, window_end, groups, measures), then
    ``pane_index`` (int32, 0, 1, 2, … within window and window shard), ``timing`` (early, on_time, late or final), ``is_final``,
    ``fired_at`` (UTC), ``window_shard`` (int32)."""
    late: dict[str, pa.Table] = field(default_factory=dict)
    """By table the partial rows of windows that were final already: ``window_start``, ``window_end``, groups, measures as in a
    partial, ``rows``, and the message's ``reader``, ``shard`` (int32) and ``poll`` (int64). A row that is late for one of its
    windows may be in time for the next."""
    kept: dict[str, int] = field(default_factory=dict)
    """By table how often input rows went into windows; those in ``late`` are all others."""
    watermark: int | None = None
    """Event time in µs after these messages."""
    taken: tuple[dict[int, int], dict[int, int]] = ({}, {})
    """By reader how many of its polls had come from all shards before these messages, and after them."""
    due: int | None = None
    """The watermark at which windows fire next; None if no window is open."""
    due_at: int | None = None
    """When windows that have changed fire next, by the clock of ``read_at``; None if none waits for that."""


class WindowShard:
    """Some window tables on one window shard.

    ``receive`` adds a message's partial rows to their panes, and returns the windows that fire, each complete so far:

    - ``early``: windows that changed, every ``early_seconds`` of the messages' ``read_at`` clock, until the watermark passes the
    end;
    - ``on_time``: once, when the watermark passes the end;
    - ``late``: windows that changed after that, at most every ``late_seconds`` for all together;
    - ``final``: once, when the watermark passes the end by ``allowed_lateness_us``. It comes even if nothing changed, instead of
      ``on_time`` where the watermark passes both at once; then the window's state is dropped.

    A row is late for a window that was final *before* its message: it comes out as such and does not change it. So of all pairs
    of a row and one of its windows each is kept or late; and whatever the order of messages, a final window is the exact result
    over its rows that were not late. A shard without rows of a window has no firing for it.

    Exact under rollback of the state, replay and loss of this object: it is only a cache of the state. Not thread-safe for one
    key, which no runner needs. The outputs of a bundle that fails are the runner's to discard.

    Memory: a pane is open from its first row until the watermark is ``allowed_lateness_us`` beyond the end of its last window.
    Rows are at most 24 hours older and 5 minutes newer than their ingest time, so of a table at most (24 h + 5 min + the lateness
    + how far apart in ingest time the readers are + the size) / pane panes are open, also while the watermark is not known yet.
    Each takes 10 bytes in the cell, a window 16, and its groups in the slots: 16 bytes a distinct value. Beyond ``cache_bytes``
    the slots used least recently are kept in state only.

    Args:
        tables: name → what to aggregate; messages carry ``partial_with_rows`` of each, split by ``split_partial``, under its number
            in the order of this mapping.
        readers, shards: how many senders there are; every (reader, shard) sends every poll of the reader once.
        allowed_lateness_us: how far behind the watermark a window's end may be for the window to take rows. If it is raised for a
            saved state, windows that are final stay so.
        early_seconds: 0 turns early firings off.
        late_seconds: 0: late firings come with the message that changes the window.
        accumulation: what a firing has. ``accumulating``: all of the window's rows. ``discarding``: what came since its last
            firing, nothing if nothing did; counts and sums of a window's firings add up to the window, other measures do not.
            ``retracting``: of each group that changed the row published last, with ``retraction`` true, then the new one; at
            ``final`` of all groups.
        window_shard: number of this window shard, for the result's column.
        closed_until_us: {table: event time}; without state, windows that end there or before are final already, by a job before
            this one.
        cache_bytes: merged partials kept in memory.

    Raises:
        ConfigError: an argument out of range; a name that streams reserve; a state saved for another definition.
    """

    def __init__(
        self,
        tables: Mapping[str, Windows],
        readers: int,
        shards: int,
        allowed_lateness_us: int,
        early_seconds: float = 30.0,
        late_seconds: float = 10.0,
        *,
        accumulation: Accumulation = "accumulating",
        window_shard: int = 0,
        closed_until_us: Mapping[str, int | None] | None = None,
        cache_bytes: int = 256 << 20,
    ) -> None:
        StreamClock(readers, shards)
        lateness = allowed_lateness_us
        if (
            isinstance(lateness, bool)
            or not isinstance(lateness, int)
            or not 0 <= lateness <= MAX_LATENESS_US
        ):
            raise ConfigError(
                f"allowed_lateness_us={lateness!r}: must be a whole number of microseconds from 0 to {MAX_LATENESS_US} (a year)"
            )
        for name, seconds in (("early_seconds", early_seconds), ("late_seconds", late_seconds)):
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
                raise ConfigError(f"{name}={seconds!r}: must be a number of seconds, zero or more")
        if len(tables) > MOST_TABLES:
            raise ConfigError(f"{len(tables)} window tables: at most {MOST_TABLES}")
        if accumulation not in get_args(Accumulation):
            raise ConfigError(
                f"accumulation={accumulation!r}: must be one of {', '.join(get_args(Accumulation))}"
            )
        self._accumulation = accumulation
        self._names = list(tables)
        self._windows = list(tables.values())
        self._counted = [counted(windows) for windows in self._windows]
        self._sizes = np.array([w.size_us for w in self._windows], np.int64)
        self._readers, self._shards = readers, shards
        self._lateness = allowed_lateness_us
        self._early_us = round(early_seconds * 1_000_000)
        self._late_us = round(late_seconds * 1_000_000)
        self._window_shard = window_shard
        self._store = PaneStore(self._counted, cache_bytes)
        self._definition = xxh3_64_digest(repr((list(tables.items()), accumulation, window_shard)).encode())
        closed = closed_until_us or {}
        self._closed = [NEVER if closed.get(name) is None else int(closed[name] or 0) for name in tables]
        self._cached: WindowState | None = None

    def receive(self, message: Message, state: ShardState) -> Firing:
        """Takes in one message.

        Raises:
            ValueError: the message has come already, or its reader or shard is out of range.
            ConfigError: the state was saved for other windows or numbers of readers and shards.
            OverflowError: a sum has more than 38 digits.
        """
        return self.receive_many([message], state)

    def receive_many(self, messages: Sequence[Message], state: ShardState) -> Firing:
        """Takes in messages as one after another, but fires only once, after the last.

        Late rows, windows and final results are the same; the firings between are left out, so there are fewer ``early``,
        ``on_time`` and ``late`` ones, and what is fired may hold rows of later messages.
        """
        held = self._take(state)
        before, taken = held.clock.watermark(), held.clock.taken()
        late: Late = {}
        arrived = _Arrived()
        for message in messages:
            for number, part in message.parts:
                if part.num_rows:
                    self._sort_out(message, number, part, held.horizon, arrived, late)
            held.clock.receive(message, idle=message.idle)
            watermark = held.clock.watermark()
            if watermark is not None:
                held.horizon = max(held.horizon, watermark - self._lateness)
            held.now = max(held.now, message.read_at)
            if held.early_at == NEVER:
                held.early_at = message.read_at
        if arrived.parts:
            self._add(arrived, before, held, state)
        rows = self._fire(held, state) if self._may_fire(held) else {}
        if not held.tail:
            self._store.rewrite_grown(held, state)
            self._store.forget(held)
        self._put(held, state)
        return Firing(
            rows,
            {self._names[n]: late_rows(found, self._windows[n]) for n, found in late.items()},
            {self._names[n]: count for n, count in arrived.kept.items()},
            held.clock.watermark(),
            (taken, held.clock.taken()),
            held.due if held.due < END else None,
            self._due_at(held),
        )

    def receive_next(
        self,
        state: ShardState,
        *,
        read_at: int,
        watermark: int | None = None,
        parts: tuple[tuple[int, pa.RecordBatch], ...] = (),
    ) -> Firing:
        """Takes in what comes without a number from the only sender there is, as its next message.

        Args:
            watermark: event time in µs; None: as before.
            parts: partials with the numbers of their tables.
        """
        held = self._take(state)
        self._cached = held
        return self.receive(
            Message(0, 0, held.clock.taken()[0], watermark, None, read_at, parts=parts), state
        )

    def _take(self, state: ShardState) -> WindowState:
        """Takes the state out of the cache if it belongs to the cell's version, else decodes the cell."""
        held, self._cached = self._cached, None
        cell = state.read_cell()
        if cell is None:
            return WindowState(StreamClock(self._readers, self._shards))
        if held is not None and held.version == version_of(cell):
            return held
        held = WindowState.decode(cell, self._definition, self._readers, self._shards)
        self._note_due(held)
        return held

    def _put(self, held: WindowState, state: ShardState) -> None:
        """Writes the cell under a new version, and puts the state back into the cache."""
        held.version = os.urandom(16)
        state.write_cell(held.encode(self._definition))
        self._cached = held

    def _sort_out(
        self,
        message: Message,
        number: int,
        part: pa.RecordBatch,
        horizon: int,
        arrived: "_Arrived",
        late: Late,
    ) -> None:
        """The guard: adds rows to what has arrived for windows that are not final, and to ``late`` for the others."""
        windows = self._windows[number]
        row, starts = starts_of(part.column(PANE).to_numpy(), windows)
        is_late = starts + windows.size_us <= max(horizon, self._closed[number])
        if is_late.any():
            found = part.take(pa.array(row[is_late]))
            at = found.schema.get_field_index(PANE)
            late.setdefault(number, []).append(
                (message, found.set_column(at, PANE, pa.array(starts[is_late])))
            )
            row, starts = row[~is_late], starts[~is_late]
            if not len(row):
                return
        kept = int(part.column(ROWS).to_numpy()[row].sum())
        if (
            self._accumulation == "discarding"
        ):  # Then a window is a pane of its own, as each forgets at its own time.
            order = np.argsort(starts, kind="stable")
            part = replace(part.take(pa.array(row[order])), {PANE: pa.array(starts[order])})
        elif is_late.any():
            part = part.take(pa.array(np.unique(row)))
        arrived.add(number, part, np.unique(starts), kept)

    def _add(self, arrived: "_Arrived", before: int | None, held: WindowState, state: ShardState) -> None:
        """Adds partial rows to panes and slots, and notes the windows that change."""
        changed = np.unique(np.concatenate(arrived.windows))
        fresh = np.zeros(len(changed), WINDOWS)
        fresh["key"] = changed
        fresh = fresh[~np.isin(changed, held.windows["key"])]
        fresh["passed"] = before is not None and self._ends(fresh["key"]) <= before
        held.windows = np.concatenate([held.windows, fresh])
        held.windows.sort(order="key")
        held.windows["changed"] |= np.isin(held.windows["key"], changed)
        self._store.add(arrived.parts, held, state)
        held.tail = b""
        self._note_due(held)

    def _may_fire(self, held: WindowState) -> bool:
        """False if surely nothing fires; most messages end here."""
        watermark = held.clock.watermark()
        if watermark is not None and watermark >= held.due:
            return True
        return (held.early_waits and self._early_is_due(held)) or (
            held.late_waits and self._late_is_due(held)
        )

    def _early_is_due(self, held: WindowState) -> bool:
        return self._early_us > 0 and held.now - held.early_at >= self._early_us

    def _late_is_due(self, held: WindowState) -> bool:
        return held.now - held.late_at >= self._late_us

    def _due_at(self, held: WindowState) -> int | None:
        waits = [held.early_at + self._early_us] if held.early_waits and self._early_us else []
        waits += [held.late_at + self._late_us] if held.late_waits else []
        return min(waits, default=None)

    def _fire(self, held: WindowState, state: ShardState) -> dict[str, pa.Table]:
        """Fires the windows that are due, and drops those that are final."""
        windows = held.windows
        watermark = held.clock.watermark()
        keys = windows["key"]
        ends = self._ends(keys)
        ended = ends <= (NEVER if watermark is None else watermark)
        final = ends <= held.horizon
        timing = np.full(len(windows), -1, np.int32)
        if self._early_is_due(held):
            timing[windows["changed"] & ~ended] = EARLY
        if self._late_is_due(held):
            timing[windows["changed"] & ended & windows["passed"]] = LATE
        timing[ended & ~windows["passed"]] = ON_TIME
        timing[final] = FINAL
        at = np.flatnonzero(timing >= 0)
        rows = {}
        for number in np.unique(tables_of(keys[at])).tolist():
            mine = at[tables_of(keys[at]) == number]
            found = self._result(number, keys[mine], timing[mine] == FINAL, held, state)
            if found.num_rows:
                rows[self._names[number]] = fired_rows(
                    found,
                    starts=keys[mine] - number,
                    indexes=windows["index"][mine],
                    timings=timing[mine],
                    fired_at=held.now,
                    window_shard=self._window_shard,
                )
        if (timing == EARLY).any():
            held.early_at = held.now
        if (timing == LATE).any():
            held.late_at = held.now
        windows["index"][at] += 1
        windows["changed"][at] = False
        windows["passed"][at] |= ended[at]
        held.windows = windows[~final]
        held.tail = b""
        if final.any():
            self._store.drop(held, state)
        self._note_due(held)
        return rows

    def _result(
        self, number: int, fired: I64, final: Flags, held: WindowState, state: ShardState
    ) -> pa.Table:
        """Returns what is published of some windows of a table.

        Args:
            fired: keys of the windows.
            final: which of them fire for the last time.
        """
        windows = self._windows[number]
        if self._accumulation == "discarding":
            keys = fired[np.isin(fired, held.panes)]
            found = self._store.take(keys, held, state)
            self._store.empty(keys, held, state)
            return finish_windows(joined(found), windows) if found else pa.table({})
        keys = held.panes[held.panes % KEYS == number]
        row, of = starts_of(keys - number, windows)
        keys = keys[np.unique(row[np.isin(of, fired - number)])]
        table = finish(joined(self._store.take(keys, held, state)), windows, fired - number)
        if self._accumulation == "accumulating":
            return table
        before = self._store.published(fired, held, state)
        parts = by_window(table)
        self._store.publish({key: parts[key - number] for key in fired.tolist()}, held, state)
        return corrections(before, table, windows, set((fired[final] - number).tolist()))

    def _note_due(self, held: WindowState) -> None:
        ends = self._ends(held.windows["key"])
        changed, passed = held.windows["changed"], held.windows["passed"]
        due = np.where(passed, ends + self._lateness, ends)
        held.due = int(due.min()) if len(due) else END
        held.early_waits, held.late_waits = bool((changed & ~passed).any()), bool((changed & passed).any())

    def _ends(self, windows: I64) -> I64:
        return starts_in(windows) + self._sizes[tables_of(windows)]


class _Arrived:
    """What messages brought for windows that are not final, by the number of the table."""

    def __init__(self) -> None:
        self.parts: dict[int, list[pa.RecordBatch]] = {}
        self.windows: list[I64] = []
        """Keys of the windows that change."""
        self.kept: dict[int, int] = {}

    def add(self, number: int, part: pa.RecordBatch, starts: I64, kept: int) -> None:
        self.parts.setdefault(number, []).append(part)
        self.windows.append(starts + number)
        self.kept[number] = self.kept.get(number, 0) + kept
