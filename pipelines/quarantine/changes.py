"""When a rate changed: the first rows of something new, a jump that stays, a burst that passes.

All of them hold rows against the events of the same time, so that more traffic is no finding. Equal arguments give equal results.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

CHANCE = 1e-9
"""How likely a finding may be where nothing changed; small, because hundreds of groups are looked at."""
NEW_ROWS = 20
JUMP_ROWS = BURST_ROWS = 30
EVENTS_BEFORE = 200
JUMP_FACTOR = 2.0
BURST_FACTOR = 3.0
DEVIATIONS = 6.0
"""A burst is so many robust standard deviations (1.4826 × MAD, at least those of chance) above the median."""

_LIKELIHOOD = 25.0
_BURST_BINS = 8
_MAD = 1.4826


@dataclass(frozen=True)
class Jump:
    """From ``bin`` on the share of events is another one."""

    bin: int
    before: float
    after: float


@dataclass(frozen=True)
class Burst:
    """Bins ``first`` to ``last`` (included) hold ``rows``, where ``usual`` would be the median's share of their events."""

    first: int
    last: int
    rows: int
    usual: float


def onset(rows: Counts, events: Counts) -> int | None:
    """Returns the bin in which something begins that did not occur before; None if it may have been there all the time.

    The chance that none of ``n`` rows falls on the first part ``f`` of the events is ``(1 - f) ** n``. What is over after one or
    two bins is a burst, unless the data end with it.

    Args:
        rows: of the group, by bin.
        events: accepted and rejected, by bin; those among which the rows could have been.
    """
    active = np.flatnonzero(rows)
    total, count = int(events.sum()), int(rows.sum())
    if count < NEW_ROWS:
        return None
    first, last = int(active[0]), int(active[-1])
    before = int(events[:first].sum())
    if before < EVENTS_BEFORE or before >= total:
        return None
    if count * math.log1p(-before / total) > math.log(CHANCE):
        return None
    end = int(np.flatnonzero(events)[-1])
    return None if len(active) <= 2 and last < end - 1 else first


def jump(rows: Counts, events: Counts) -> Jump | None:
    """Returns the most likely bin from which the share is at least :data:`JUMP_FACTOR` times what it was, and stays so; or None.

    Likelihood ratio of two binomial shares against one. It stays if each third of the events after it has at least one and a
    half times the share before it, over three bins or more.
    """
    done, seen = np.cumsum(rows), np.cumsum(events)
    x0, n0 = done[:-1].astype(float), seen[:-1].astype(float)
    x1, n1 = done[-1] - x0, seen[-1] - n0
    possible = (x0 > 0) & (n0 >= EVENTS_BEFORE) & (x1 >= JUMP_ROWS) & (n1 > 0)
    if not possible.any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        p0, p1, p = x0 / n0, x1 / n1, done[-1] / seen[-1]
        gain = _log_likelihood(x0, n0, p0) + _log_likelihood(x1, n1, p1)
        gain -= _log_likelihood(x0, n0, p) + _log_likelihood(x1, n1, p)
    gain = np.where(possible & (p1 >= JUMP_FACTOR * p0), gain, -np.inf)
    best = int(np.argmax(gain))
    if not gain[best] >= _LIKELIHOOD:
        return None
    found = Jump(best + 1, float(p0[best]), float(p1[best]))
    after, among = rows[found.bin :], events[found.bin :]
    if np.count_nonzero(among) < 3:
        return None
    thirds = np.minimum((np.cumsum(among) - among / 2) * 3 // max(int(among.sum()), 1), 2).astype(int)
    for third in range(3):
        inside = thirds == third
        if after[inside].sum() < 1.5 * found.before * among[inside].sum() or not after[inside].sum():
            return None
    return found


def bursts(rows: Counts, events: Counts, change: int | None = None) -> list[Burst]:
    """Returns runs of bins with far more rows than the median bin, both in number and as a share of their events.

    Args:
        change: bin of an onset or a jump; what is before it and what is after it have medians of their own.
    """
    parts = [(0, len(rows))] if change is None else [(0, change), (change, len(rows))]
    return [burst for start, end in parts for burst in _bursts(rows[start:end], events[start:end], start)]


def _bursts(rows: Counts, events: Counts, offset: int) -> Iterator[Burst]:
    alive = events > 0
    if np.count_nonzero(alive) < _BURST_BINS:
        return
    share = np.where(alive, rows / np.maximum(events, 1), 0.0)
    middle = float(np.median(share[alive]))
    spread = _MAD * float(np.median(np.abs(share[alive] - middle)))
    chance = np.sqrt(np.maximum(middle * events, 1.0)) / np.maximum(events, 1)
    usual = float(np.median(rows[alive]))
    high = (rows >= BURST_ROWS) & (share >= BURST_FACTOR * middle) & (rows >= BURST_FACTOR * usual)
    high &= share - middle >= DEVIATIONS * np.maximum(spread, chance)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], high.astype(np.int8), [0]])))
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        expected = middle * float(events[start:end].sum())
        yield Burst(offset + start, offset + end - 1, int(rows[start:end].sum()), expected)


def _log_likelihood(
    hits: npt.NDArray[np.float64], of: npt.NDArray[np.float64], share: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Returns the logarithm of the binomial likelihood, without the part that cancels out."""
    yes = np.where(hits > 0, hits * np.log(share), 0.0)
    no = np.where(of > hits, (of - hits) * np.log1p(-share), 0.0)
    return yes + no
