"""A Pub/Sub in memory behind the methods of ``PubsubConnection``; time is a number that tests set."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import grpc


class FakeError(grpc.RpcError):
    """What gRPC raises."""

    def __init__(self, code: grpc.StatusCode, details: str = "why") -> None:
        super().__init__(code.name)
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


class FakeFuture:
    """An answer that is there, or comes later."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.error: Exception | None = None
        self.done = False
        self.cancelled = False
        self._callbacks: list[Callable[[Any], None]] = []

    def set(self, answer: Any = None, error: Exception | None = None) -> "FakeFuture":
        self.answer, self.error, self.done = answer, error, True
        for callback in self._callbacks:
            callback(self)
        return self

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)
        if self.done:
            callback(self)

    def exception(self) -> Exception | None:
        return self.error

    def result(self, timeout: float | None = None) -> Any:
        if not self.done:
            raise grpc.FutureTimeoutError
        if self.error:
            raise self.error
        return self.answer

    def cancel(self) -> None:
        self.cancelled = True


class FakePubsub:
    """One subscription and one topic."""

    def __init__(self) -> None:
        self.waiting: list[SimpleNamespace] = []
        self.pulls: list[FakeFuture] = []
        self.acknowledged: list[list[str]] = []
        self.modified: list[tuple[list[str], int]] = []
        self.published: list[Any] = []
        self.futures: list[FakeFuture] = []
        self.errors: dict[str, list[Exception]] = {}
        self.info = SimpleNamespace(
            ack_deadline_seconds=10,
            push_config=SimpleNamespace(push_endpoint=""),
            detached=False,
            HasField=lambda name: False,
        )
        self._next_ack = 0

    def fail(self, method: str, *errors: Exception) -> None:
        """The next calls of the method fail with these."""
        self.errors.setdefault(method, []).extend(errors)

    def add(self, *messages: tuple[str, bytes], seconds: int = 1_767_607_200) -> None:
        """Lets messages (id, data) wait; answers the pulls that are open."""
        for message_id, data in messages:
            self._next_ack += 1
            time = SimpleNamespace(seconds=seconds, nanos=5_000)
            message = SimpleNamespace(data=data, message_id=message_id, publish_time=time)
            self.waiting.append(SimpleNamespace(ack_id=f"ack-{self._next_ack}", message=message))
        for pull in self.pulls:
            if not pull.done and not pull.cancelled and self.waiting:
                self._answer(pull, 1000)

    def _answer(self, pull: FakeFuture, most: int) -> None:
        taken, self.waiting = self.waiting[:most], self.waiting[most:]
        pull.set(SimpleNamespace(received_messages=taken))

    def _raise(self, method: str) -> None:
        if self.errors.get(method):
            raise self.errors[method].pop(0)

    def pull(self, subscription: str, most: int, timeout_seconds: float) -> FakeFuture:
        pull = FakeFuture()
        self.pulls.append(pull)
        if self.errors.get("pull"):
            return pull.set(error=self.errors["pull"].pop(0))
        if self.waiting:
            self._answer(pull, most)
        return pull

    def acknowledge(self, subscription: str, ack_ids: Sequence[str], timeout_seconds: float = 30) -> None:
        self._raise("acknowledge")
        self.acknowledged.append(list(ack_ids))

    def modify(
        self, subscription: str, ack_ids: Sequence[str], seconds: int, timeout_seconds: float = 30
    ) -> None:
        self._raise("modify")
        self.modified.append((list(ack_ids), seconds))

    def subscription(self, subscription: str, timeout_seconds: float = 30) -> Any:
        self._raise("subscription")
        return self.info

    def topic(self, topic: str, timeout_seconds: float = 30) -> None:
        self._raise("topic")

    def publish(self, topic: str, messages: Sequence[Any], timeout_seconds: float = 60) -> FakeFuture:
        self.published.append((topic, list(messages)))
        future = FakeFuture()
        self.futures.append(future)
        if self.errors.get("publish"):
            return future.set(error=self.errors["publish"].pop(0))
        return future.set(SimpleNamespace(message_ids=["1"] * len(messages)))
