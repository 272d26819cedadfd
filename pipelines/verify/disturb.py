"""A seeded plan that brings records out of order, delays some and repeats some, so that a stream has to do its work.

Pure: numbers in, numbers out.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.schemas.errors import ConfigError

UNTIMED = -(1 << 63)
"""Event time of a record that has none, or whose time moves no watermark."""
DELAYED_SHARE, REPEATED_SHARE = 0.25, 0.1
_THRICE = 1 / 3
"""Of the repeated records so many are sent three times, the others twice."""
_COPIES_US = 1_800_000_000
"""A copy comes at most so much event time after the record's last sending."""
_GROWN_EVERY = 3
"""Every third delivery makes the file before it longer."""
_STEPS = 4
"""So many fine deliveries cover the allowed lateness: windows that have fired are still open when rows come for them."""

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


class Delivery(NamedTuple):
    """What is put into the directory at once: places ``start`` to ``end`` of the plan, at the end of a file."""

    file: int
    start: int
    end: int


@dataclass(frozen=True)
class Disturbance:
    """What is sent, in this order."""

    record: I64
    """Number of the record, for each place."""
    copy: I32
    """0: the record's first sending; 1, 2: it is sent once more."""
    deliveries: list[Delivery]
    shuffled: int
    """Records whose first sending is not where they stood in the input."""
    delayed: int
    """Records that come behind the watermark, if every record is a poll of its own."""
    largest_disorder_us: int
    """By how much event time the first sending of a record comes after that of a later one at most; of those that wait for
    none."""
    repeated: int
    """Records that are sent more than once."""
    copies: int
    """Sendings beyond the first."""

    def places(self) -> tuple[I64, I64]:
        """Returns for each sending its file and its line there, from 1."""
        files, lines = np.empty(len(self.record), np.int64), np.empty(len(self.record), np.int64)
        following: dict[int, int] = {}
        for file, start, end in self.deliveries:
            first = following.get(file, 1)
            files[start:end], lines[start:end] = file, np.arange(first, first + end - start)
            following[file] = first + end - start
        return files, lines


def disturb(
    times: I64,
    *,
    seed: int,
    watermark_delay_us: int,
    allowed_lateness_us: int,
    repeatable: Flags,
    after: I64,
    deliveries: int,
    delayed_share: float = DELAYED_SHARE,
    repeated_share: float = REPEATED_SHARE,
) -> Disturbance:
    """Makes the plan; equal arguments give an equal plan.

    Each record *arrives* at its event time plus a random delay: less than ``watermark_delay_us`` for most, less than that plus
    ``allowed_lateness_us`` for a share of them; and they are sent in the order of arrival. So whenever a record is sent, no
    record was sent before that is later by the sum of both or more: it may be behind the watermark, and its windows may have
    fired, but none of them is final (a reader's watermark is the highest event time so far minus the delay). Records without
    time stay near those that stood before them.

    Args:
        times: event time of each record in µs, in the order of the input; ``UNTIMED`` for those that do not move the watermark.
        seed: any whole number of 0 or more.
        repeatable: which records may be sent more than once.
        after: for each record the number of one that must be sent before it, however late that makes it, or -1. A record that
            another one waits for does not wait itself.
        deliveries: into how many pieces the whole is cut, at most; every third makes a file longer, the others are new files.
            Half of them are fine: they follow one another within a quarter of the lateness, in the middle of the whole.
        delayed_share: of the records, so many are delayed beyond the watermark's delay if lateness is allowed.
        repeated_share: of the repeatable ones, so many are sent two or three times.

    Raises:
        ConfigError: a negative seed, or fewer than one delivery.
        ValueError: a record waits for one that waits.
    """
    if seed < 0:
        raise ConfigError(f"seed {seed} is negative; use 0 or more")
    if deliveries < 1:
        raise ConfigError(f"{deliveries} deliveries can't hold anything; use 1 or more")
    waiting = after >= 0
    if waiting[after[waiting]].any():
        raise ValueError("a record that others wait for waits itself")
    count = len(times)
    random = np.random.default_rng(seed)
    timed = times != UNTIMED
    delay = (random.random(count) * watermark_delay_us).astype(np.int64)
    late = (random.random(count) < delayed_share) & timed
    more = (random.random(count) * allowed_lateness_us).astype(np.int64)
    arrival = _filled(times, timed) + np.where(
        late & (allowed_lateness_us > 0), watermark_delay_us + more, delay
    )
    arrival[waiting] = np.maximum(arrival[waiting], arrival[after[waiting]] + 1)
    chosen = (random.random(count) < repeated_share) & repeatable
    twice = np.flatnonzero(chosen)
    thrice = twice[random.random(len(twice)) < _THRICE]
    second = arrival[twice] + 1 + (random.random(len(twice)) * _COPIES_US).astype(np.int64)
    third = second[np.isin(twice, thrice)] + 1 + (random.random(len(thrice)) * _COPIES_US).astype(np.int64)
    record = np.concatenate([np.arange(count), twice, thrice])
    copy = np.repeat(np.arange(3, dtype=np.int32), [count, len(twice), len(thrice)])
    moment = np.concatenate([arrival, second, third])
    order = np.lexsort((random.random(len(moment)), moment))
    record, copy = record[order], copy[order]
    first = record[copy == 0]
    sent, moves = times[first], (timed & ~waiting)[first]
    disorder = np.maximum.accumulate(np.where(moves, sent, UNTIMED))[moves] - sent[moves]
    return Disturbance(
        record=record,
        copy=copy,
        deliveries=_cut(moment[order], deliveries, allowed_lateness_us // _STEPS),
        shuffled=int((first != np.arange(count)).sum()),
        delayed=int((disorder > watermark_delay_us).sum()),
        largest_disorder_us=int(disorder.max(initial=0)),
        repeated=len(twice),
        copies=len(twice) + len(thrice),
    )


def _filled(times: I64, timed: Flags) -> I64:
    """Gives records without time that of the last one before them that has one, else of the first that has one."""
    if not timed.any():
        return np.arange(len(times), dtype=np.int64)
    places = np.where(timed, np.arange(len(times)), int(np.argmax(timed)))
    last: I64 = times[np.maximum.accumulate(places)]
    return last


def _cut(moments: I64, deliveries: int, step_us: int) -> list[Delivery]:
    """Cuts the places into pieces, none of them empty.

    Args:
        moments: of arrival, sorted.
        step_us: between fine pieces.
    """
    count = len(moments)
    coarse = np.linspace(0, count, min(deliveries - deliveries // 2, count) + 1).astype(np.int64)
    begin = coarse[len(coarse) // 2 - 1] if count and step_us else count
    steps = np.arange(1, deliveries // 2 + 1) * step_us
    fine = np.searchsorted(moments, (moments[begin] if begin < count else 0) + steps)
    bounds = np.unique(np.concatenate([coarse, fine if begin < count else coarse])).tolist()
    found: list[Delivery] = []
    for number, (start, end) in enumerate(pairwise(bounds)):
        grows = number % _GROWN_EVERY == _GROWN_EVERY - 1
        file = found[-1].file + (not grows) if found else 0
        found.append(Delivery(file, start, end))
    return found
