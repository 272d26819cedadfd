"""Requests to Google Pub/Sub, or to its emulator, without the client library's own threads and wrappers.

Source: google/pubsub/v1/pubsub.proto; limits of https://cloud.google.com/pubsub/quotas ("Resource limits").
"""

import os
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from google.api_core import grpc_helpers
from google.auth.exceptions import GoogleAuthError
from google.protobuf import empty_pb2
from google.pubsub_v1 import types

from headrace.schemas.errors import ConfigError, InputError

ENDPOINT = "pubsub.googleapis.com:443"
MOST_IDS = 1000
"""Most messages of one pull, and ack ids of one request."""
_MOST_ID_BYTES = 400_000
"""Requests about ack ids may have 512 KiB."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._~+%:-]{2,254}", re.ASCII)
_SCOPES = ("https://www.googleapis.com/auth/pubsub",)
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
]
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}

PullRequest: Any = types.PullRequest.pb()
PullResponse: Any = types.PullResponse.pb()
PubsubMessage: Any = types.PubsubMessage.pb()
PublishRequest: Any = types.PublishRequest.pb()
_PublishResponse: Any = types.PublishResponse.pb()
_AcknowledgeRequest: Any = types.AcknowledgeRequest.pb()
_ModifyRequest: Any = types.ModifyAckDeadlineRequest.pb()
_GetSubscription: Any = types.GetSubscriptionRequest.pb()
_Subscription: Any = types.Subscription.pb()
_GetTopic: Any = types.GetTopicRequest.pb()
_Topic: Any = types.Topic.pb()

_connections: dict[tuple[int, str, str], "PubsubConnection"] = {}
_lock = threading.Lock()


class PubsubConnection:
    """A connection, with one method a request; may be shared by threads.

    Every method raises ``grpc.RpcError``; :func:`passes` and :func:`refused` tell what it means.
    """

    def __init__(self, emulator: str, endpoint: str) -> None:
        if emulator:
            self._channel = grpc.insecure_channel(emulator, options=_CHANNEL_OPTIONS)
        else:
            try:
                self._channel = grpc_helpers.create_channel(
                    endpoint or ENDPOINT, default_scopes=_SCOPES, options=_CHANNEL_OPTIONS
                )
            except GoogleAuthError as error:
                raise InputError(
                    "no credentials for Google Cloud: run 'gcloud auth application-default login', or name a key file in "
                    "GOOGLE_APPLICATION_CREDENTIALS; for the emulator set PUBSUB_EMULATOR_HOST"
                ) from error
        self._pull = self._method("Subscriber/Pull", PullRequest, PullResponse)
        self._acknowledge = self._method("Subscriber/Acknowledge", _AcknowledgeRequest, empty_pb2.Empty)
        self._modify = self._method("Subscriber/ModifyAckDeadline", _ModifyRequest, empty_pb2.Empty)
        self._subscription = self._method("Subscriber/GetSubscription", _GetSubscription, _Subscription)
        self._topic = self._method("Publisher/GetTopic", _GetTopic, _Topic)
        self._publish = self._method("Publisher/Publish", PublishRequest, _PublishResponse)

    def _method(self, name: str, request: Any, response: Any) -> Any:
        return self._channel.unary_unary(
            f"/google.pubsub.v1.{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )

    def pull(self, subscription: str, most: int, timeout_seconds: float) -> Any:
        """Asks for up to ``most`` messages, and returns a future of the response; it comes when there are some."""
        request = PullRequest(subscription=subscription, max_messages=most)
        return self._pull.future(
            request, timeout=timeout_seconds, metadata=_route("subscription", subscription)
        )

    def acknowledge(self, subscription: str, ack_ids: Sequence[str], timeout_seconds: float = 30) -> None:
        """Acknowledges what fits into one request; see :func:`in_requests`."""
        request = _AcknowledgeRequest(subscription=subscription, ack_ids=ack_ids)
        self._acknowledge(request, timeout=timeout_seconds, metadata=_route("subscription", subscription))

    def modify(
        self, subscription: str, ack_ids: Sequence[str], seconds: int, timeout_seconds: float = 30
    ) -> None:
        """Sets the ack deadline of what fits into one request to ``seconds`` from now."""
        request = _ModifyRequest(subscription=subscription, ack_ids=ack_ids, ack_deadline_seconds=seconds)
        self._modify(request, timeout=timeout_seconds, metadata=_route("subscription", subscription))

    def subscription(self, subscription: str, timeout_seconds: float = 30) -> Any:
        """Returns what the subscription is like."""
        request = _GetSubscription(subscription=subscription)
        return self._subscription(
            request, timeout=timeout_seconds, metadata=_route("subscription", subscription)
        )

    def topic(self, topic: str, timeout_seconds: float = 30) -> None:
        """Succeeds if there is such a topic."""
        self._topic(_GetTopic(topic=topic), timeout=timeout_seconds, metadata=_route("topic", topic))

    def publish(self, topic: str, messages: Sequence[Any], timeout_seconds: float = 60) -> Any:
        """Publishes, and returns a future."""
        request = PublishRequest(topic=topic, messages=messages)
        return self._publish.future(request, timeout=timeout_seconds, metadata=_route("topic", topic))

    def close(self) -> None:
        """Ends all requests."""
        self._channel.close()


def connected(emulator: str, endpoint: str) -> PubsubConnection:
    """Returns this process's connection.

    Raises:
        InputError: there are no credentials.
    """
    key = (os.getpid(), emulator, endpoint)
    with _lock:
        found = _connections.get(key)
        if found is None:
            found = _connections[key] = PubsubConnection(emulator, endpoint)
        return found


def emulator_host() -> str:
    """Returns the emulator that the environment names; empty for the real service."""
    return os.environ.get("PUBSUB_EMULATOR_HOST", "").strip()


def in_requests(ack_ids: Sequence[str]) -> Iterator[list[str]]:
    """Cuts ack ids into what one request may hold."""
    part: list[str] = []
    size = 0
    for ack_id in ack_ids:
        if part and (len(part) == MOST_IDS or size + len(ack_id) > _MOST_ID_BYTES):
            yield part
            part, size = [], 0
        part.append(ack_id)
        size += len(ack_id) + 4
    if part:
        yield part


def passes(error: grpc.RpcError) -> bool:
    """Tells whether a request may succeed later as it is."""
    return error.code() in _PASSING


def refused(error: grpc.RpcError, name: str, role: str) -> InputError:
    """Returns what to raise for an error that does not pass.

    Args:
        name: what was asked for: ``subscription p/s``.
        role: the role that its user needs.
    """
    code = error.code()
    if code == grpc.StatusCode.NOT_FOUND:
        return InputError(f"Pub/Sub has no {name}; check the project and the name, or create it")
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return InputError(
            f"Pub/Sub denies access to {name}; grant {role} to the account in use, or log in as another one"
        )
    return InputError(f"Pub/Sub refuses {name}: {code.name.lower()}: {error.details()}")


def checked_name(kind: str, text: str) -> str:
    """Returns a project's or resource's name.

    Raises:
        ConfigError: it can't be one.
    """
    if not _NAME.fullmatch(text):
        raise ConfigError(
            f"Pub/Sub {kind} {text!r} is no valid name: a letter, then letters, digits, '-', '_', '.', '~', '+' and '%', "
            "3 to 255 in all"
        )
    return text


def _route(field: str, name: str) -> tuple[tuple[str, str], ...]:
    return (("x-goog-request-params", f"{field}={name}"),)
