"""The way of workers to the broker: kombu's transport for Redis, made to outlive whatever a broker answers.

Kombu and Celery take some errors for a lost connection and try again; any other ends the worker, and its sweeps
with it: a refusal (NOREPLICAS, READONLY, OOM, NOPERM), an answer that is not Redis's, a message that is none. Here
every error of a connection is one to try again after, and junk is dropped before it is a message.
"""

from typing import Any, Final

from kombu.transport import TRANSPORT_ALIASES, redis

from shared import redis_client, transport
from worker import messages

REPAIR_TIMEOUT_SECONDS: Final = 2.0
BINDING_KEYS: Final = "_kombu.binding.*"


class Channel(transport.Channel):
    # kombu would put unacknowledged rings back by a connection that is gone, and end the worker by it.
    do_restore = False

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous)
        client.set_response_callback("BRPOP", _drop_junk)
        return client

    def _handle_message(self, client: Any, r: Any) -> dict[str, Any]:
        message: dict[str, Any] = super()._handle_message(client, r)  # type: ignore[no-untyped-call]
        if message["type"].endswith(b"message") and not messages.accept_broadcast(message["channel"], message["data"]):
            message["data"] = None  # kombu passes it over
        return message


class Transport(redis.Transport):
    Channel = Channel
    # Also ValueError, TypeError and their like: redis-py raises them where the answer is not Redis's.
    connection_errors = (Exception,)


def install() -> None:
    """Make it the transport of this process for redis:// and rediss://."""
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport"))


def _drop_junk(answer: Any, **_: Any) -> tuple[bytes, bytes] | None:
    """Returns (queue, message) as BRPOP answered; None, as for an empty queue, where the message was dropped."""
    if not answer:
        return None
    queue, message = answer
    return (queue, message) if messages.accept(queue.decode("utf-8", "replace"), message) else None


def remove_wrong_types(queues: list[str]) -> None:
    """Delete the keys of queues that hold no list, and bindings that hold no set: nothing would ever be taken again."""
    with redis_client.connect(REPAIR_TIMEOUT_SECONDS) as broker:
        expected = dict.fromkeys((queue.encode() for queue in queues), b"list")
        expected |= dict.fromkeys(broker.scan_iter(BINDING_KEYS), b"set")
        for key, kind in expected.items():
            if broker.type(key) not in (kind, b"none"):
                broker.delete(key)
                messages.drop(key.decode("utf-8", "replace"), "the key has another type")
