"""Reading a subscription with requests that stay open between polls."""

import json
import queue
import secrets
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

import grpc
import pyarrow as pa

from headrace.connectors.pubsub_connection import MOST_IDS, PubsubConnection, passes, refused
from headrace.connectors.pubsub_leases import LeaseKeeper, Leases, register
from headrace.connectors.pubsub_messages import Pull, identity_of, raw_batch
from headrace.connectors.pubsub_options import PubsubSourceOptions
from headrace.connectors.stream_source import Poll, Read
from headrace.schemas.columns import RAW_SCHEMA
from headrace.schemas.errors import InputError

ROLE = "roles/pubsub.subscriber and roles/pubsub.viewer"
_LINGER_SECONDS = 0.05
"""How long a poll that has messages waits for more."""
_EMPTY_SECONDS = 0.5
"""A pull that is open for so long says that nothing waits."""
_OPEN_SECONDS = 60.0
_LEAST_DEADLINE = 10
_MOST_BYTES = 64 << 20
_MOST_REMEMBERED = 1_000_000


class PubsubReader:
    """Reads a subscription together with other readers of it. Used by one thread.

    Pulls stay open between polls: ending them early would lose sight of messages that are on their way until their lease is over.
    What they bring is held, and leased, until the next poll.
    """

    def __init__(
        self,
        options: PubsubSourceOptions,
        position: str,
        connection: PubsubConnection,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._connection = connection
        self._clock = clock
        self._reader, self._polls = _unpacked(position)
        self._session = secrets.token_hex(8)
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._open: dict[Any, float] = {}
        self._held: deque[Pull] = deque()
        self._seen: dict[Hashable, None] = {}
        self._pulled = 0
        self._last_empty = False
        self._pause = 0.0
        self._paused_until = float("-inf")
        self._deadline = self._ack_deadline()
        self._leases = LeaseKeeper(
            connection, options.path, Leases(options.lease_seconds, options.max_lease_seconds), clock=clock
        )
        register(self._session, self._leases)
        weakref.finalize(self, self._leases.close)

    def poll(self, max_rows: int, timeout_seconds: float) -> Poll:
        """Returns the messages that are there, or that come within the time.

        A message that this reader has returned before is not returned again; the receipt acknowledges it once more.

        Raises:
            InputError: there is no such subscription, access is denied, or it can't be pulled from.
        """
        end = self._clock() + timeout_seconds
        fresh: list[Pull] = []
        receipt: list[tuple[int, list[str]]] = []
        rows = size = 0
        while True:
            while self._held and rows < max_rows and size < _MOST_BYTES:
                pull = self._held.popleft()
                if len(pull) > max_rows - rows:
                    pull, rest = pull.cut(max_rows - rows)
                    self._held.appendleft(rest)
                receipt.append((pull.number, pull.ack_ids))
                pull = self._unseen(pull)
                fresh.append(pull)
                rows += len(pull)
                size += sum(map(len, pull.data))
            self._pull(max_rows)
            if rows >= max_rows or size >= _MOST_BYTES:
                break
            left = max(end - self._clock(), 0.0)
            answered = self._await(min(left, _LINGER_SECONDS) if rows else left)
            if not answered and (rows or self._clock() >= end):
                break
        if receipt:
            self._polls += 1
        batch = (
            raw_batch(fresh, self._options.origin, self._options.max_record_bytes)
            if rows
            else pa.RecordBatch.from_pylist([], RAW_SCHEMA)
        )
        return Poll(
            batch,
            packed(*self._reader, self._polls, self._session),
            self._reads(batch),
            {self._options.origin: self._behind()},
            packed_receipt(self._session, receipt),
        )

    def close(self) -> None:
        """Ends the pulls and the leases, and gives back what no poll has returned."""
        self._leases.close()
        for pull in self._open:
            pull.cancel()
        self._open.clear()
        ack_ids = [ack_id for pull in self._held for ack_id in pull.ack_ids]
        self._held.clear()
        for i in range(0, len(ack_ids), MOST_IDS):
            try:
                self._connection.modify(self._options.path, ack_ids[i : i + MOST_IDS], 0, 5)
            except grpc.RpcError:
                break  # They are delivered again when their lease is over.

    def _ack_deadline(self) -> float:
        """Returns for how long the subscription lends messages; the shortest time that there is if it does not say."""
        try:
            found = self._connection.subscription(self._options.path, 5)
        except grpc.RpcError:
            return _LEAST_DEADLINE
        return float(max(found.ack_deadline_seconds, _LEAST_DEADLINE))

    def _pull(self, max_rows: int) -> None:
        """Opens as many pulls as are allowed and needed."""
        now = self._clock()
        most = min(MOST_IDS, max(max_rows, 1))
        held = sum(map(len, self._held))
        while (
            now >= self._paused_until
            and len(self._open) < self._options.pulls
            and held + most * len(self._open) < max_rows
        ):
            pull = self._connection.pull(self._options.path, most, _OPEN_SECONDS)
            self._open[pull] = now
            pull.add_done_callback(self._answers.put)

    def _await(self, seconds: float) -> bool:
        """Waits for an answer; true if one came, or was there already."""
        if not self._open:
            seconds = min(seconds, max(self._paused_until - self._clock(), 0.001))
        try:
            pull = self._answers.get(seconds > 0, seconds or None)
        except queue.Empty:
            return False
        self._take(pull)
        while not self._answers.empty():
            self._take(self._answers.get())
        return True

    def _take(self, pull: Any) -> None:
        if self._open.pop(pull, None) is None:
            return
        error = pull.exception()
        if error is not None:
            if not passes(error):
                raise refused(error, f"subscription {self._options.origin}", ROLE)
            self._last_empty = True
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                self._pause = min(max(2 * self._pause, 0.1), 5.0)
                self._paused_until = self._clock() + self._pause
            return
        self._pause = 0.0
        received = pull.result().received_messages
        self._last_empty = not received
        if received:
            self._pulled += 1
            messages = Pull.of(self._pulled, received)
            self._leases.add(messages.number, messages.ack_ids, self._deadline)
            self._held.append(messages)

    def _unseen(self, pull: Pull) -> Pull:
        """Returns the messages that were not returned before, and remembers them."""
        fresh: list[int] = []
        for i, message_id in enumerate(pull.ids):
            identity = identity_of(message_id)
            if identity not in self._seen:
                self._seen[identity] = None
                fresh.append(i)
        while len(self._seen) > _MOST_REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return pull if len(fresh) == len(pull) else pull.take(fresh)

    def _reads(self, batch: pa.RecordBatch) -> tuple[Read, ...]:
        if not batch.num_rows:
            return ()
        positions = batch.column("origin_position").to_numpy()
        first, last = int(positions.min()), int(positions.max())
        return (Read(self._options.origin, first, last + 1, batch.num_rows),)

    def _behind(self) -> int:
        held = sum(map(len, self._held))
        oldest = min(self._open.values(), default=float("inf"))
        empty = self._last_empty or self._clock() - oldest >= _EMPTY_SECONDS
        return held or (0 if empty else 1)


def packed(reader: int, readers: int, polls: int, session: str) -> str:
    """Returns a position: it holds nothing of the subscription, which keeps itself what is acknowledged."""
    return json.dumps({"v": 1, "pubsub": [reader, readers], "polls": polls, "session": session})


def _unpacked(position: str) -> tuple[tuple[int, int], int]:
    try:
        value = json.loads(position)
        if value["v"] != 1:
            raise ValueError("version")
        reader, readers = value["pubsub"]
        return (int(reader), int(readers)), int(value["polls"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "a position in a Pub/Sub subscription can't be read: it was saved by another kind of source or a later version; resume "
            "with the source and version that wrote it, or start a new stream"
        ) from error


def packed_receipt(session: str, pulls: list[tuple[int, list[str]]]) -> str:
    """Returns the receipt for these pulls; empty if there are none."""
    if not pulls:
        return ""
    return json.dumps([session, pulls], separators=(",", ":"))


def unpacked_receipt(receipt: str) -> tuple[str, list[tuple[int, list[str]]]]:
    """Reads what :func:`packed_receipt` wrote."""
    session, pulls = json.loads(receipt)
    return session, [(number, ack_ids) for number, ack_ids in pulls]
