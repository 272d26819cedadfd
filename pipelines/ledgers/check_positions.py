"""Ids and positions of an output: nothing twice, and nothing that was read and is in no table."""

from collections.abc import Iterator, Mapping, Sequence

from headrace.connectors.removals import Step
from headrace.pipelines.ledgers.accounts import BACKFILL, Account
from headrace.pipelines.ledgers.findings import (
    DUPLICATE,
    POSITION_EXCESS,
    POSITION_HOLE,
    POSITION_TWICE,
    Finding,
)
from headrace.pipelines.ledgers.held_rows import HeldRows

Ranges = Mapping[str, Sequence[tuple[int, int]]]


def check_copies(held: HeldRows, account: Account, limit: int) -> Iterator[Finding]:
    """Yields a finding for each id that the lake has twice within the horizon of dedupe."""
    surplus, copies = held.copies(limit, within=account.within, by_day=account.kind == BACKFILL)
    for each in copies:
        text = f"events: id {each.event_id} is there {each.rows:,} times, for example at {each.places}"
        yield Finding(DUPLICATE, text, each.rows - 1, "events")
    more = surplus - sum(each.rows - 1 for each in copies)
    if more > 0:
        yield Finding(
            DUPLICATE, f"events: {more:,} further rows have an id that another one has", more, "events"
        )


def check_positions(
    held: HeldRows, account: Account, gone: Mapping[str, Sequence[Step]], unplaced: int, limit: int
) -> Iterator[Finding]:
    """Yields findings about positions: read and in neither table, in several rows, or in a table and never read.

    A source may leave numbers out (blank lines; a log's own records). How many it left out is what was read less what was counted;
    only gaps beyond that number are holes.
    """
    yield from _twice(held, limit)
    have = {each.origin: each for each in held.positions()}
    distinct = sum(each.distinct for each in have.values())
    went = _went(gone)
    by_policy = sum(step.rows for steps in gone.values() for step in steps)
    if account.ranges is None:
        missing = account.records - distinct - by_policy - unplaced
        ranges: Ranges = {origin: [(each.first, each.last + 1)] for origin, each in have.items()}
        seen = {*have, *went}
        silent = [origin for origin, size in account.inputs.items() if size and origin not in seen]
        yield from _holes(held, ranges, missing, limit, silent=silent, exact=not by_policy)
        return
    beyond = held.beyond(account.ranges)
    if beyond and account.drained:
        text = f"{beyond:,} rows of the tables lie at positions that the ledger does not have as read"
        yield Finding(POSITION_EXCESS, text, beyond)
    inside = held.distinct_within(account.ranges) if beyond else distinct
    missing = account.records - inside - by_policy - unplaced
    span = sum(next_ - first for each in account.ranges.values() for first, next_ in each)
    left_out = max(0, span - account.records)
    yield from _holes(
        held, account.ranges, missing, limit, left_out=left_out, exact=not by_policy and not left_out
    )


def _twice(held: HeldRows, limit: int) -> Iterator[Finding]:
    surplus, shown = held.twice(limit)
    for each in shown:
        where = [
            f"{n:,} × in {name}"
            for name, n in (("events", each.events), ("quarantine", each.quarantine))
            if n
        ]
        text = f"{each.origin}:{each.position} was read once and is there {' and '.join(where)}"
        rows = each.events + each.quarantine - 1
        yield Finding(POSITION_TWICE, text, rows, origin=each.origin, position=each.position)
    more = surplus - sum(each.events + each.quarantine - 1 for each in shown)
    if more > 0:
        yield Finding(POSITION_TWICE, f"{more:,} further rows are at a position that another row has", more)


def _holes(
    held: HeldRows,
    ranges: Ranges,
    missing: int,
    limit: int,
    *,
    silent: Sequence[str] = (),
    left_out: int = 0,
    exact: bool,
) -> Iterator[Finding]:
    """Names the stretches that no row has: each as a finding if they are the missing rows for certain, else in one finding.

    Args:
        exact: every number that no row has is a record that is missing, as far as the ranges go.
    """
    if missing <= 0:
        return
    gaps = list(_gaps(held, ranges, limit + 1))
    if exact and len(gaps) <= limit and sum(stop - first for _, first, stop in gaps) == missing:
        for origin, first, stop in gaps:
            at = f"position {first}" if stop == first + 1 else f"positions {first} to {stop - 1}"
            text = f"{origin}: {at} was read and is in neither table"
            yield Finding(POSITION_HOLE, text, stop - first, origin=origin, position=first)
        return
    text = f"{missing:,} record{'s were' if missing > 1 else ' was'} read and {'are' if missing > 1 else 'is'} in neither table"
    named = [f"{o}:{a}" + (f" to {b - 1}" if b > a + 1 else "") for o, a, b in gaps[:limit]]
    if named:
        text += f"; no row is at {', '.join(named)}{' and at further places' if len(gaps) > limit else ''}"
    if silent:
        text += f"; of {', '.join(silent[:limit])} there is no row at all"
    if not named and not silent:
        text += ", after the last position that an input has a row of"
    if left_out:
        text += f" (the source itself left {left_out:,} numbers out)"
    yield Finding(POSITION_HOLE, text, missing)


def _gaps(held: HeldRows, ranges: Ranges, limit: int) -> Iterator[tuple[str, int, int]]:
    found = 0
    for origin, stretches in ranges.items():
        for first, stop in stretches:
            for low, high in held.gaps(origin, first, stop, limit - found):
                yield origin, low, high
                found += 1
            if found >= limit:
                return


def _went(gone: Mapping[str, Sequence[Step]]) -> dict[str, int]:
    """Returns by origin how many rows with a position went by policy."""
    found: dict[str, int] = {}
    for steps in gone.values():
        for step in steps:
            for origin in step.origins:
                found[origin.origin] = found.get(origin.origin, 0) + origin.rows
    return found
