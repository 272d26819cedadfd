"""Keeping pulled messages from being delivered again until they are acknowledged."""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc

from headrace.connectors.pubsub_connection import in_requests, passes

LOG = logging.getLogger("headrace.pubsub")
_EARLY = 0.5
"""A lease is renewed when this part of it is over."""
_AGAIN_SECONDS = 1.0
_MOST_SECONDS = 600
"""Longest deadline that Pub/Sub takes."""


class _Extends(Protocol):
    def modify(
        self, subscription: str, ack_ids: Sequence[str], seconds: int, timeout_seconds: float = 30
    ) -> None: ...


@dataclass
class _Lease:
    ack_ids: Sequence[str]
    left: int
    pulled: float
    due: float


class Leases:
    """The messages that wait for their acknowledgement, by pull. Pure: time is an argument.

    A lease is renewed for ``lease_seconds``, and for as long as it has lasted when that is longer: a message that waits for ten
    minutes is renewed seven times at most, and a crash delays it at most by the time that it had waited already.
    """

    def __init__(self, lease_seconds: int, max_lease_seconds: int) -> None:
        self._lease = lease_seconds
        self._most = max_lease_seconds
        self._leases: dict[int, _Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def add(self, pull: int, ack_ids: Sequence[str], now: float, deadline_seconds: float) -> None:
        """Notes the messages of one pull, which the subscription lends for ``deadline_seconds``."""
        self._leases[pull] = _Lease(ack_ids, len(ack_ids), now, now + _EARLY * deadline_seconds)

    def release(self, pull: int, messages: int) -> None:
        """Notes that so many messages of the pull were acknowledged."""
        lease = self._leases.get(pull)
        if lease is not None:
            lease.left -= messages
            if lease.left <= 0:
                del self._leases[pull]

    def due(self, now: float) -> list[tuple[int, int, Sequence[str]]]:
        """Returns (pull, seconds, ack ids) of what has to be renewed now, and forgets what has lasted too long."""
        for pull in [p for p, lease in self._leases.items() if now - lease.pulled >= self._most]:
            LOG.warning(
                "%d messages were not acknowledged within %d s and will be delivered again",
                self._leases.pop(pull).left,
                self._most,
            )
        found = []
        for pull, lease in self._leases.items():
            if lease.due <= now:
                age = now - lease.pulled
                seconds = int(min(max(self._lease, age), self._most - age + 1, _MOST_SECONDS))
                last = age + seconds >= self._most
                lease.due = float("inf") if last else now + _EARLY * seconds
                found.append((pull, seconds, lease.ack_ids))
        return found

    def postpone(self, pull: int, now: float) -> None:
        """Lets a renewal that failed be tried again soon."""
        if pull in self._leases:
            self._leases[pull].due = now + _AGAIN_SECONDS

    def next_due(self) -> float | None:
        """Returns when something has to be done next."""
        return min((min(o.due, o.pulled + self._most) for o in self._leases.values()), default=None)


class LeaseKeeper:
    """Renews leases in a thread of its own until it is closed.

    Acknowledgements of this process reach it; those of another process don't, and it goes on renewing in vain, which
    does no harm but costs requests: seven at most for each thousand messages.
    """

    def __init__(
        self,
        connection: _Extends,
        subscription: str,
        leases: Leases,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._subscription = subscription
        self._leases = leases
        self._clock = clock
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="pubsub-leases", daemon=True)
        self._thread.start()

    def add(self, pull: int, ack_ids: Sequence[str], deadline_seconds: float) -> None:
        """See :meth:`Leases.add`."""
        with self._changed:
            self._leases.add(pull, ack_ids, self._clock(), deadline_seconds)
            self._changed.notify()

    def release(self, pulls: Iterable[tuple[int, int]]) -> None:
        """Notes (pull, messages) that were acknowledged."""
        with self._changed:
            for pull, messages in pulls:
                self._leases.release(pull, messages)

    def close(self) -> None:
        """Stops; what is not acknowledged is delivered again when its lease is over."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                due = self._leases.next_due()
                if self._closed:
                    return
                self._changed.wait(None if due is None else max(due - self._clock(), 0.01))
                work = [] if self._closed else self._leases.due(self._clock())
            self._renew(work)

    def _renew(self, work: list[tuple[int, int, Sequence[str]]]) -> None:
        by_seconds: dict[int, list[tuple[int, Sequence[str]]]] = {}
        for pull, seconds, ack_ids in work:
            by_seconds.setdefault(seconds, []).append((pull, ack_ids))
        for seconds, pulls in by_seconds.items():
            for pull, ack_ids in pulls:
                try:
                    for part in in_requests(ack_ids):
                        self._connection.modify(self._subscription, part, seconds)
                except grpc.RpcError as error:
                    if passes(error):
                        with self._changed:
                            self._leases.postpone(pull, self._clock())
                    else:
                        LOG.warning(
                            "the lease of %d messages of %s can't be renewed: %s; they may be delivered again",
                            len(ack_ids),
                            self._subscription,
                            error.code().name,
                        )


_keepers: "weakref.WeakValueDictionary[str, LeaseKeeper]" = weakref.WeakValueDictionary()
"""By session; how acknowledgements reach the reader of the same process."""


def register(session: str, keeper: LeaseKeeper) -> None:
    """Lets acknowledgements for the session's pulls reach its keeper."""
    _keepers[session] = keeper


def released(session: str, pulls: Iterable[tuple[int, int]]) -> None:
    """Tells the session's keeper, if it is in this process, what was acknowledged."""
    keeper = _keepers.get(session)
    if keeper is not None:
        keeper.release(pulls)
