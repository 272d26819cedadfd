"""Patterns in the rejected rows that nobody has asked for: what is new, what jumped, what burst, who is behind it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import duckdb

from headrace.connectors.read_quarantine import sql_text, sql_time
from headrace.pipelines.quarantine.changes import Counts, bursts, jump, onset
from headrace.pipelines.quarantine.clock import Clock, moment
from headrace.pipelines.quarantine.database import fetch, one
from headrace.pipelines.quarantine.deploys import first_seen_with
from headrace.pipelines.quarantine.groups import PLACE, REASON, TYPE, Group
from headrace.pipelines.quarantine.producers import concentrations, sentence

NEW, CHANGED_TYPE, JUMPED, BURST, CONCENTRATED = "new", "changed_type", "jumped", "burst", "concentrated"
MOST = 20
"""Patterns that are told, those with most rows."""
_ORDER = {NEW: 0, CHANGED_TYPE: 0, JUMPED: 1, BURST: 2, CONCENTRATED: 3}
_FAMILY = {NEW: 0, CHANGED_TYPE: 0, JUMPED: 0, BURST: 1, CONCENTRATED: 2}
_EXACT = {REASON: 0, PLACE: 1, TYPE: 2}
_COVERED = 0.8
_EXPLAINED = 0.4
"""Of the rows since a jump by a factor of two or more: what is new has to be about half of them."""
_MOST_ORIGINS = 20
_TYPES = re.compile(r"expected (.+), found (\w+)\Z")


@dataclass(frozen=True)
class Pattern:
    """One finding."""

    kind: str
    """``new``, ``changed_type``, ``jumped``, ``burst`` or ``concentrated``."""
    group: Group
    sentence: str
    rows: int
    """That ``where`` selects: those behind it."""
    where: str
    first: datetime | None = None
    last: datetime | None = None
    bins: tuple[int, int] | None = field(default=None, compare=False)
    """First and last bin of the finding."""
    values: tuple[tuple[str, str], ...] = ()
    """Of ``concentrated``: columns and their values behind the rows, the rarest among accepted events first."""
    shares: tuple[float, float] | None = field(default=None, compare=False)
    """Of ``concentrated``: the first value's part of the rows, and of the accepted events."""


def find_patterns(
    db: duckdb.DuckDBPyConnection,
    groups: Sequence[Group],
    clock: Clock | None,
    *,
    selection: str | None = None,
    accepted: int = 0,
) -> list[Pattern]:
    """Returns what stands out, most rows first within each kind; nothing where the rows are as rejections use to be.

    Args:
        groups: of :func:`read_groups`.
        selection: expression that all rows fulfil already; it becomes part of each ``where``.
        accepted: events in the lake; without any nothing can be compared with them.
    """
    found: list[Pattern] = []
    for group in groups if clock else ():
        found += _in_time(db, group, clock, selection) if clock else []
    if accepted:
        for group, told in concentrations(db, [g for g in groups if g.kind != TYPE]):
            first = told[0]
            found.append(
                Pattern(
                    CONCENTRATED,
                    group,
                    sentence(group.label, told),
                    _count(db, group.where),
                    _both(selection, group.where),
                    values=tuple((each.column, each.value) for each in told),
                    shares=(first.rows / first.of, first.accepted),
                )
            )
    return _without_echoes(found)[:MOST]


def _in_time(
    db: duckdb.DuckDBPyConnection, group: Group, clock: Clock, selection: str | None
) -> Iterable[Pattern]:
    begins = onset(group.rows, group.events)
    jumps = jump(group.rows, group.events) if begins is None else None
    if begins is not None:
        yield _new(db, group, clock, begins, selection)
    if jumps is not None:
        where = _during(db, group, clock, jumps.bin, clock.bins - 1)
        rows = _count(db, where)
        first, last = _span(db, where)
        yield Pattern(
            JUMPED,
            group,
            f"{group.label}: from {share(jumps.before)} to {share(jumps.after)} of the events{_of(group)} since "
            f"{at(first)} ({rows:,} rows){_deploy(db, group, clock, where, first)}.",
            rows,
            _both(selection, where),
            first,
            last,
            (jumps.bin, clock.bins - 1),
        )
    if group.kind == TYPE:
        return
    change = begins if begins is not None else jumps.bin if jumps is not None else None
    for burst in bursts(group.rows, group.events, change):
        where = _during(db, group, clock, burst.first, burst.last)
        rows = _count(db, where)
        first, last = _span(db, where)
        width = clock.width * (burst.last - burst.first + 1)
        usual = f"{burst.usual:,.0f} would be usual" if burst.usual >= 1 else "less than one would be usual"
        yield Pattern(
            BURST,
            group,
            f"{group.label}: a burst of {burst.rows:,} rows in the {_length(width.total_seconds())} from "
            f"{at(clock.time(burst.first))}, where {usual} for the events of that time.",
            rows,
            _both(selection, where),
            first,
            last,
            (burst.first, burst.last),
        )


def _new(
    db: duckdb.DuckDBPyConnection, group: Group, clock: Clock, begins: int, selection: str | None
) -> Pattern:
    where = _shortest(db, group)
    rows = _count(db, where)
    first, last = _span(db, where)
    before = int(group.events[:begins].sum())
    with_it = _deploy(db, group, clock, where, first)
    over = _over(group.rows, group.events)
    ended = f", the last one at {at(last)}" if over else ""
    types = _TYPES.search(group.message or "") if group.kind == TYPE else None
    if types:
        said = (
            f"{group.pointer or 'the document'} in {group.schema} changed its type: {types[2]} since {at(first)}, where the schema "
            f"has {types[1]}: {rows:,} rows{ended}; none among the {before:,} events{_of(group)} before{with_it}."
        )
    else:
        said = (
            f"{group.label} is new since {at(first)}: {rows:,} rows{ended}; none among the {before:,} events{_of(group)} "
            f"before{with_it}."
        )
    return Pattern(
        CHANGED_TYPE if types else NEW,
        group,
        said,
        rows,
        _both(selection, where),
        first,
        last,
        (begins, clock.bins - 1 if not over else int(group.rows.nonzero()[0][-1])),
    )


def _shortest(db: duckdb.DuckDBPyConnection, group: Group) -> str:
    """Returns what selects the group's rows; of a wrong type by pointer and message, if it is never a row's second failure."""
    if group.short is not None and _count(db, group.short) == _count(db, group.where):
        return group.short
    return group.where


def _over(rows: Counts, events: Counts) -> bool:
    """True if the rows ended well before the events did."""
    last = int(rows.nonzero()[0][-1])
    after = int(events[last + 1 :].sum())
    rate = float(rows.sum()) / max(int(events[rows.nonzero()[0][0] : last + 1].sum()), 1)
    return after * rate >= 20


def _deploy(
    db: duckdb.DuckDBPyConnection, group: Group, clock: Clock, where: str, first: datetime | None
) -> str:
    return first_seen_with(db, clock, where, first) if first is not None else ""


def _during(db: duckdb.DuckDBPyConnection, group: Group, clock: Clock, first: int, last: int) -> str:
    """Returns what selects the group's rows of some bins by columns of the quarantine."""
    start, end = clock.time(first), clock.time(last + 1)
    if clock.by_ingest:
        parts = [f"ingest_time >= {sql_time(start)}"] if first else []
        parts += [f"ingest_time < {sql_time(end)}"] if last < clock.bins - 1 else []
        return " AND ".join([group.where, *parts])
    low, high = ((t - moment(0)) // (moment(1) - moment(0)) for t in (start, end))
    places = fetch(
        db,
        "SELECT origin, min(origin_position), max(origin_position) FROM timed "
        f"WHERE ({group.where}) AND happened >= {low} AND happened < {high} GROUP BY origin ORDER BY origin",
    )
    if len(places) > _MOST_ORIGINS:
        return f"{group.where} AND origin IN ({', '.join(sql_text(origin) for origin, _, _ in places)})"
    ranges = [f"origin = {sql_text(o)} AND origin_position BETWEEN {a} AND {b}" for o, a, b in places]
    if len(ranges) == 1:
        return f"{group.where} AND {ranges[0]}"
    return f"{group.where} AND ({' OR '.join(f'({r})' for r in ranges)})"


def _count(db: duckdb.DuckDBPyConnection, where: str) -> int:
    return int(one(db, f"SELECT count(*) FROM picked WHERE ({where})")[0])


def _span(db: duckdb.DuckDBPyConnection, where: str) -> tuple[datetime | None, datetime | None]:
    low, high = one(db, f"SELECT min(happened), max(happened) FROM timed WHERE ({where})")
    return (moment(low), moment(high)) if low is not None else (None, None)


def _both(selection: str | None, where: str) -> str:
    if not selection:
        return where
    # The newline ends a comment.
    return f"({selection}\n) AND {where}" if "--" in selection else f"({selection}) AND {where}"


def _without_echoes(found: list[Pattern]) -> list[Pattern]:
    """Leaves one of patterns that say the same of wider and narrower groups.

    The wider one goes if a narrower one has most of its rows, or if something new in a part of it makes up what jumped in the
    whole; else the narrower ones do. A changed type always stays.
    """
    kept: list[Pattern] = []
    for pattern in sorted(found, key=lambda p: (-_EXACT[p.group.kind], -p.rows, p.where)):
        inner = [other for other in kept if _echoes(other, pattern)]
        firm = [o for o in inner if o.kind == CHANGED_TYPE or (o.kind, pattern.kind) == (NEW, JUMPED)]
        explained = _EXPLAINED if pattern.kind == JUMPED else _COVERED
        if sum(other.rows for other in firm) >= explained * pattern.rows or any(
            other.rows >= _COVERED * pattern.rows for other in inner
        ):
            continue
        kept = [other for other in kept if other in firm or other not in inner]
        kept.append(pattern)
    return sorted(kept, key=lambda p: (_ORDER[p.kind], -p.rows, p.where))


def _echoes(inner: Pattern, outer: Pattern) -> bool:
    """True if both tell the same kind of thing about overlapping times, the first one of a part of the second one's group."""
    return (
        _FAMILY[inner.kind] == _FAMILY[outer.kind]
        and _EXACT[inner.group.kind] > _EXACT[outer.group.kind]
        and _within(inner.group, outer.group)
        and (inner.kind != CONCENTRATED or bool(set(inner.values) & set(outer.values)))
        and _overlap(inner, outer)
    )


def _within(inner: Group, outer: Group) -> bool:
    if (inner.stage, inner.reason) != (outer.stage, outer.reason):
        return False
    return outer.kind == REASON or (inner.schema, inner.pointer) == (outer.schema, outer.pointer)


def _overlap(a: Pattern, b: Pattern) -> bool:
    if a.bins is None or b.bins is None:
        return True
    return a.bins[0] <= b.bins[1] and b.bins[0] <= a.bins[1]


def at(time: datetime | None) -> str:
    """Returns a time for a sentence, to the second."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if time else "an unknown time"


def share(part: float) -> str:
    """Returns a share in percent with two digits that count."""
    return f"{float(format(part * 100, '.2g')):g} %"


def _of(group: Group) -> str:
    return f" of {group.schema}" if group.schema else ""


def _length(seconds: float) -> str:
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size and seconds % size == 0:
            count = int(seconds // size)
            return f"{count} {name}" if count > 1 else name[:-1]
    return f"{seconds:.0f} seconds"
