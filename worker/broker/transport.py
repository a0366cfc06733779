"""Kombu's transport for Redis, changed so that no response of the broker ends a worker.

Kombu and Celery retry after some errors. Any other error ends the worker and its sweep: a refusal (NOREPLICAS, READONLY,
OOM, NOPERM), a response that is not Redis's, an invalid message. With this transport the worker retries after every
error of a connection, and invalid messages are dropped before kombu parses them.
"""

from typing import Any, Final

from kombu.transport import TRANSPORT_ALIASES, redis

from shared import kombu_transport, redis_client
from worker.broker import messages

REPAIR_TIMEOUT_SECONDS: Final = 2.0
BINDING_KEYS: Final = "_kombu.binding.*"


class Channel(kombu_transport.Channel):
    """A channel that drops invalid messages."""

    # Otherwise kombu restores unacknowledged rings over the lost connection, and that error ends the worker.
    do_restore = False

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous)
        client.set_response_callback("BRPOP", _drop_junk)
        return client

    def _handle_message(self, client: Any, r: Any) -> dict[str, Any]:
        message: dict[str, Any] = super()._handle_message(client, r)  # type: ignore[no-untyped-call]
        if message["type"].endswith(b"message") and not messages.accept_broadcast(message["channel"], message["data"]):
            message["data"] = None  # kombu ignores it
        return message


class Transport(redis.Transport):
    """A transport that retries after any error."""

    Channel = Channel
    # All errors, because redis-py raises ValueError, TypeError and others if the response is not Redis's.
    connection_errors = (Exception,)


def install() -> None:
    """Registers this transport in this process for redis:// and rediss://."""
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport"))


def _drop_junk(response: Any, **_: Any) -> tuple[bytes, bytes] | None:
    """Returns (queue, message) of a BRPOP response, or None, as for an empty queue, if the message is dropped."""
    if not response:
        return None
    queue, message = response
    return (queue, message) if messages.accept(queue.decode("utf-8", "replace"), message) else None


def remove_wrong_types(queues: list[str]) -> None:
    """Deletes queues that are not lists and bindings that are not sets, because they block all messages."""
    with redis_client.connect(REPAIR_TIMEOUT_SECONDS) as broker:
        expected = dict.fromkeys((queue.encode() for queue in queues), b"list")
        expected |= dict.fromkeys(broker.scan_iter(BINDING_KEYS), b"set")
        for key, kind in expected.items():
            if broker.type(key) not in (kind, b"none"):
                broker.delete(key)
                messages.drop(key.decode("utf-8", "replace"), "the key has another type")
