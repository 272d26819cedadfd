"""The simulation: slots of the traffic's schedule, each filled with the next event of some session, or with a fault."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from heapq import heappop, heappush
from random import Random
from typing import NamedTuple

from headrace.simulator import faults, weblog
from headrace.simulator.durations import instant, milliseconds
from headrace.simulator.history import History, Line
from headrace.simulator.pacing import Pacer
from headrace.simulator.people import DECLINED, PURCHASE, REFUND, Population, Session
from headrace.simulator.summary import SimulationSummary
from headrace.simulator.traffic import DAY_MS, MINUTE_MS, Anomaly, Step, schedule
from headrace.simulator.writers import Writers

_CHUNK_LINES = 1000
_CHUNK_SECONDS = 0.1
_ACTIVE = 20_000
"""Most sessions that are open at once, for flat memory; with more traffic than they make, they hurry."""
_ABANDONED_MS = 90_000
"""A session that could not go on for so long, for lack of traffic, is given up."""
_TICKS = 0.04
_WITHOUT_ID = ("clickstream", "weblog")
_UUID_MASK = ((1 << 128) - 1) ^ (0xF << 76 | 0x3 << 62)
_UUID_BITS = 0x4 << 76 | 0x2 << 62
_DELAYS = (
    *range(150),
    *range(150, 2150, 25),
    *range(2000, 22_000, 1000),
    30_000,
    45_000,
    60_000,
    90_000,
    150_000,
    240_000,
)
"""256 times from an event to its arrival in ms, equally likely: 0.15 s for most, minutes for a few."""


class Settings(NamedTuple):
    """What a simulation depends on; checked by :func:`headrace.simulator.simulate.simulate`."""

    events: int
    seed: int
    start: datetime
    span: timedelta
    anomalies: Sequence[Anomaly]
    families: tuple[str, ...]
    fault_rate: float


class Simulation:
    """Iterates over chunks of whole lines (bytes, UTF-8, each line ended by a newline); once. See :func:`simulate`."""

    def __init__(self, settings: Settings, pacer: Pacer | None = None) -> None:
        events, seed, start, span, anomalies, families, fault_rate = settings
        self._events, self._fault_rate, self._anomalies, self._pacer = events, fault_rate, anomalies, pacer
        self._start, self._end = milliseconds(start), milliseconds(start + span)
        now = -(-self._end // 1000) * 1000
        self._now = now
        self.summary = SimulationSummary(seed, start, instant(now))
        rng = self._rng = Random(seed)
        self._random, self._bits = rng.random, rng.getrandbits
        self._population = Population(rng, seed, max(20, events // 20), families)
        writers = Writers(rng, self._population)
        self._writer = dict(writers.of)
        self._ticking = "financial" in families
        self._writers: Writers | weblog.WeblogWriter = writers
        if "weblog" in families:
            self._writers = self._writer["weblog"] = weblog.WeblogWriter(rng, writers)
        self._tick = writers.tick
        self._active: list[tuple[int, int, Session]] = []
        self._started = 0
        self._crawlers: list[Session] = []
        self._thieves: list[Session] = []
        self._history = History(rng, self.summary, now - DAY_MS)
        self._faults = _fault_table(families)
        self._step = Step(self._start, self._end, 0, False, frozenset())
        self._lines = self._run()

    def __iter__(self) -> Iterator[bytes]:
        return self._lines

    def __next__(self) -> bytes:
        return next(self._lines)

    def _run(self) -> Iterator[bytes]:
        """Fills the slots in order and hands out chunks; paced, a chunk leaves when its last slot is due."""
        random, fault_rate, pacer, table = self._random, self._fault_rate, self._pacer, self._faults
        ticks = _TICKS if self._ticking else 0.0
        accept, start = self._history.accept, self._start
        lines: list[str] = []
        chunk_ms = int(_CHUNK_SECONDS / pacer.seconds_per_ms) if pacer else self._end - self._start
        began = last = start
        for step in schedule(self._events, self._start, self._end, self._anomalies):
            self._step = step
            slots, first, length = step.events, step.start, step.end - step.start
            for slot in range(slots):
                at = first + (slot * length + int(random() * length)) // slots
                if lines and (len(lines) >= _CHUNK_LINES or at - began >= chunk_ms):
                    yield self._chunk(lines, last)
                    began = at
                last = at
                draw = random()
                if draw < fault_rate:
                    fault, families = table[int(draw / fault_rate * len(table))]
                    lines.append(self._faulty(fault.kind, families, at))
                elif draw > 1.0 - ticks:
                    lines.append(accept(self._market(at)))
                else:
                    session = self._session(at)
                    line = self._write(session, max(at - _DELAYS[int(random() * 256)], start))
                    self._go_on(session, at)
                    lines.append(accept(line))
        if lines:
            yield self._chunk(lines, last)

    def _chunk(self, lines: list[str], due: int) -> bytes:
        self._history.settle()
        lines.append("")
        data = "\n".join(lines).encode("utf-8", "surrogateescape")
        lines.clear()
        if self._pacer:
            self._pacer.wait(due - self._start)
        return data

    def _session(self, at: int) -> Session:
        """Returns the session whose turn it is; a new one if none is due."""
        anomalies = self._step.anomalies
        if anomalies:
            if "bot_flood" in anomalies and self._random() < 2 / 3:
                return self._pooled(self._crawlers, self._population.crawler, 12)
            if "fraud_burst" in anomalies and self._random() < 0.25:
                return self._pooled(self._thieves, self._population.thief, 8)
        active = self._active
        while active and (active[0][0] <= at or len(active) >= _ACTIVE):
            due, _, session = heappop(active)
            failed = session.kind == "payment" and "payment_outage" in anomalies
            if at - due <= _ABANDONED_MS and not failed:
                return session
        elapsed = at - self._start
        midway = elapsed < 10 * MINUTE_MS and self._random() * 10 * MINUTE_MS > elapsed
        return self._population.visit(sale=self._step.sale, midway=midway)

    def _session_of(self, families: Sequence[str], at: int) -> Session:
        """Returns the session whose turn it is if it is of one of the families, else a new one that is."""
        session = self._session(at)
        if session.family in families:
            return session
        if session.pool is None:
            self._push(session, at)
        return self._population.visit(families[int(self._random() * len(families))])

    def _pooled(self, pool: list[Session], make: Callable[[], Session], size: int) -> Session:
        if len(pool) < size:
            session = make()
            session.pool = pool
            pool.append(session)
            return session
        return pool[int(self._random() * size)]

    def _go_on(self, session: Session, at: int) -> None:
        """Plans the session's next event; a purchase may also be followed by its payment."""
        population = self._population
        if (
            session.step == PURCHASE
            and self._ticking
            and session.family != "clickstream"
            and self._random() < 0.6
        ):
            self._push(population.payment(session), at + 500 + int(self._random() * 4000))
        gap = population.advance(session)
        if session.pool is None:
            if gap:
                self._push(session, at + gap)
        elif not gap:
            session.pool.remove(session)

    def _push(self, session: Session, due: int) -> None:
        if len(self._active) < _ACTIVE:
            self._started += 1
            heappush(self._active, (due, self._started, session))

    def _happened(self, at: int) -> int:
        """Returns the time of an event that arrives at ``at``."""
        return max(at - _DELAYS[int(self._random() * 256)], self._start)

    def _write(self, session: Session, ms: int, event_id: str | None = None) -> Line:
        """Writes the session's step; makes an event id unless one is given."""
        family, step = session.family, session.step
        if step == PURCHASE and "payment_outage" in self._step.anomalies:
            session.step = step = DECLINED
        if event_id is None:
            event_id = ""
            if family not in _WITHOUT_ID and (family != "financial" or self._random() < 0.8):
                event_id = self._new_id()
        text = self._writer[family](session, ms, event_id)
        cents = self._writers.cents if step in (PURCHASE, REFUND) else 0
        return text, family, event_id, self._writers.event_type, ms, session.currency, cents

    def _new_id(self) -> str:
        """Returns a random UUID (version 4, RFC 9562)."""
        text = f"{self._bits(128) & _UUID_MASK | _UUID_BITS:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def _market(self, at: int) -> Line:
        ms = self._happened(at)
        return self._tick(ms), "financial", "", "tick", ms, "", 0

    def _faulty(self, kind: str, families: Sequence[str], at: int) -> str:
        """Returns a line with a fault; a sound one while there is nothing yet to copy."""
        if kind == "unknown_family":
            self.summary.faults[kind] += 1
            return self._history.reject("unknown_schema", "none", faults.unknown_family(at, self._bits(20)))
        if kind in ("duplicate", "conflict", "repeat", "copy_of_rejected"):
            text = self._copied(kind, at)
            if text is not None:
                self.summary.faults[kind] += 1
                return text
        ms = self._happened(at)
        if kind == "stale":
            ms = self._start - DAY_MS - MINUTE_MS - int(self._random() * 30 * DAY_MS)
        elif kind == "future":
            ms = self._now + 6 * MINUTE_MS + int(self._random() * 3 * DAY_MS)
        session = self._session_of(families, at)
        line = self._write(session, ms)
        self._go_on(session, at)
        return self._spoiled(kind, line)

    def _spoiled(self, kind: str, line: Line) -> str:
        """Applies the fault to the line and counts it; a copy that found nothing to copy leaves it sound."""
        text, family, *_ = line
        verdict = faults.VERDICTS[kind]
        if kind in ("duplicate", "conflict", "repeat", "copy_of_rejected"):
            return self._history.accept(line)
        if kind not in ("stale", "future"):
            spoil = weblog.spoil if family == "weblog" else faults.spoil
            kind, text = spoil(kind, family, text, self._rng)
        self.summary.faults[kind] += 1
        if verdict == "accepted":
            return self._history.accept((text, *line[1:]))
        return self._history.reject(verdict, family, text)

    def _copied(self, kind: str, at: int) -> str | None:
        """Returns a copy of an earlier line, or another event with its id; None if there is no such line."""
        history = self._history
        if kind == "copy_of_rejected":
            rejected = history.rejected()
            return history.reject(*rejected) if rejected else None
        line = history.without_id() if kind == "repeat" else history.with_id()
        if line is None:
            return None
        if kind == "repeat":
            return history.accept(line)
        text, family, event_id, _, ms, *_ = line
        if kind == "conflict":
            other = self._population.visit(family)
            text = self._write(other, max(self._happened(at), ms), event_id)[0]
        return history.reject("duplicate" if text == line[0] else "conflict", family, text)


def _fault_table(families: Sequence[str]) -> list[tuple[faults.Fault, tuple[str, ...]]]:
    """Returns each fault that these families can have, as often as its weight says, with those families."""
    table = []
    for fault in faults.FAULTS:
        fitting = tuple(family for family in families if family in faults.FAMILIES[fault.kind])
        if fitting:
            table += [(fault, fitting)] * fault.weight
    return table
