"""The doorbell: tells a worker that lanes have work. No payment depends on it: a ring may be lost or repeated.

Each lane has a flag in Redis. `SET flag NX EX 2` lets hundreds of payments share one Celery message, and one message
covers all lanes with work: a message costs more than settling a payment. For MAX_JOIN_SECONDS after its own message a
process sends no second one while any message waits: the worker that takes it settles all flagged lanes, in one commit.
A failure here is only counted, because the sweep settles. After a failure the circuit is open for a second, or five times
as long as the failure took if that is longer, so that an outage does not add a time-out to every payment. The queue
length is bounded.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from celery import Celery
from redis import Redis

from shared import metrics, redis_client
from shared.errors import Unavailable
from shared.kombu_transport import Transport
from shared.logs import get_logger
from shared.payments.model import LANES
from shared.settings import settings

SETTLE_QUEUE: Final = "settle"
SETTLE_TASK: Final = "settle"
INVITATION_KEY: Final = "payments:invitation"
NOTIFY_QUEUE: Final = "notify"
NOTIFY_TASK: Final = "notify"
NOTIFY_FLAG_EXPIRY_SECONDS: Final = 1
CIRCUIT_BACKOFF_SECONDS: Final = 1.0
CIRCUIT_BACKOFF_FACTOR: Final = 5  # a DNS look-up has no time-out: a slow failure opens the circuit for longer
FLAG_EXPIRY_SECONDS: Final = 2
MAX_JOIN_SECONDS: Final = 0.05
INVITATION_EXPIRY_SECONDS: Final = 10
HELD_FLAG: Final = b"held"  # value of a lane flag: the drain reads all lanes, so no ring is needed
OWN_MESSAGE_FLAG: Final = b"apart"  # value of a lane flag: the lane has its own message
SETTLED_CHANNEL: Final = "payments:settled"
HEALTH_CHECK_INTERVAL_SECONDS: Final = 5
DOORBELL_TIMEOUT_SECONDS: Final = 0.5
NO_EXPIRY: Final = -1  # the reply of TTL
MAX_QUEUE_MESSAGES: Final = 1000  # running workers never leave more than some tens

log = get_logger("doorbell")
_circuit_open_until = 0.0
_sent_at = float("-inf")


@cache
def _redis() -> Redis:
    return redis_client.connect(DOORBELL_TIMEOUT_SECONDS)


@cache
def _sender() -> Celery:
    """Returns a Celery that only sends. Its time-outs are too short for a worker's connection."""
    sender = Celery("payments-doorbell", broker=settings().broker_url, set_as_current=False)
    sender.conf.update(
        broker_transport=Transport,
        broker_connection_timeout=DOORBELL_TIMEOUT_SECONDS,
        broker_connection_retry=False,
        broker_transport_options={
            "socket_timeout": DOORBELL_TIMEOUT_SECONDS,
            "socket_connect_timeout": DOORBELL_TIMEOUT_SECONDS,
            "retry_on_timeout": False,
            "max_retries": 0,
        },
        task_ignore_result=True,
        task_publish_retry=False,
    )
    return sender


def _key(lane: int) -> str:
    return f"payments:lane:{lane}"


class RingSource(NamedTuple):
    """The origin of a ring. The uid becomes the id of the task."""

    uid: str
    request_id: str | None = None


def ring(sources: Mapping[int, RingSource], *, own_message: bool = False) -> bool:
    """Rings for lanes with PENDING rows, except lanes whose flags are set. Returns whether the broker answered.

    Sends one message for all these lanes. It sends none while messages wait and this process has sent one less than
    MAX_JOIN_SECONDS ago: the next worker settles all flagged lanes. With `own_message` it sends its own, and only
    the worker that takes that message settles these lanes. A failure of the broker raises nothing and takes no longer than
    the time-outs.
    """

    def send(redis: Redis) -> bool:
        global _sent_at
        with redis.pipeline(transaction=False) as pipeline:
            for lane, source in sources.items():
                flag = OWN_MESSAGE_FLAG if own_message else source.uid
                pipeline.set(_key(lane), flag, nx=True, ex=FLAG_EXPIRY_SECONDS)
            pipeline.llen(SETTLE_QUEUE)  # after the flags: the worker that takes a message counted here sees them
            *were_absent, waiting = pipeline.execute()
        lanes = [lane for lane, was_absent in zip(sources, were_absent, strict=True) if was_absent]
        now = time.monotonic()
        if not lanes or (waiting and not own_message and now - _sent_at < MAX_JOIN_SECONDS) or _is_full(waiting):
            return True
        _sent_at = now
        uid, request_id = sources[lanes[0]]
        try:
            _sender().send_task(
                SETTLE_TASK,
                args=[lanes],
                task_id=uid,
                queue=SETTLE_QUEUE,
                headers={"request_id": request_id},
                retry=False,
            )
        except Exception:
            redis.delete(*map(_key, lanes))
            raise
        return True

    return bool(_call_broker(send))


def _set_if_absent(redis: Redis, key: str, seconds: int, queue: str) -> bool:
    """Sets a key that expires. Returns whether it was absent and the queue has room for a message."""
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.set(key, 1, nx=True, ex=seconds)
        pipeline.ttl(key)
        pipeline.llen(queue)
        was_absent, ttl, waiting = pipeline.execute()
    if ttl == NO_EXPIRY:  # another program set it, and it would stay for ever
        redis.delete(key)
    return bool(was_absent) and not _is_full(waiting)


def _is_full(waiting: int) -> bool:
    """Returns whether the queue is so long that no worker seems to take messages. Counts each message withheld."""
    if waiting < MAX_QUEUE_MESSAGES:
        return False
    metrics.RINGS_WITHHELD.inc()
    return True


def clear_flags(lanes: Iterable[int]) -> None:
    """Deletes the flags of lanes. Callers do it before they read the lanes, so that a later commit rings again."""
    _call_broker(lambda redis: redis.delete(*map(_key, lanes)))


def find_flagged_lanes() -> set[int]:
    """Returns the lanes whose flags are set by a ring, except lanes that another worker handles."""
    values = _call_broker(lambda redis: redis.mget(list(map(_key, range(LANES)))))
    return {lane for lane, value in enumerate(values or ()) if value and value not in (HELD_FLAG, OWN_MESSAGE_FLAG)}


def publish_settled_and_find_flags(lanes: Sequence[int], settled: Collection[int] = ()) -> set[int]:
    """Publishes the settled lanes, and returns those of `lanes` whose flags were set since they were cleared.

    It does both in one round trip. The hint is for web processes that wait for a transaction (`publish_settled`).
    """

    def act(redis: Redis) -> list[bytes | None]:
        with redis.pipeline(transaction=False) as pipeline:
            if settled:
                pipeline.publish(SETTLED_CHANNEL, _write_lanes(settled))
            pipeline.mget(list(map(_key, lanes)))
            # The broker's access list may forbid the channel only. Then web polls Postgres without hints.
            *_, flags = pipeline.execute(raise_on_error=False)
        if isinstance(flags, Exception):
            raise flags
        return list(flags)

    flags = _call_broker(act)
    return {lane for lane, flag in zip(lanes, flags or (), strict=False) if flag}


def publish_settled(lanes: Collection[int]) -> None:
    """Publishes that rows of these lanes have become final, for web processes that wait. The hint may be lost."""
    _call_broker(lambda redis: redis.publish(SETTLED_CHANNEL, _write_lanes(lanes)))


def subscribe_settled() -> Iterator[set[int]]:
    """Yields the lanes of each published hint. The first set is empty and means that the subscription is active.

    Raises the error of the Redis client if the connection fails.
    """
    with (
        redis_client.connect(DOORBELL_TIMEOUT_SECONDS, health_check_interval=HEALTH_CHECK_INTERVAL_SECONDS) as redis,
        redis.pubsub() as channel,
    ):
        channel.subscribe(SETTLED_CHANNEL)
        while True:
            # After this time without a message, redis-py checks the connection.
            message = channel.get_message(timeout=HEALTH_CHECK_INTERVAL_SECONDS)
            if message and message["type"] in ("subscribe", "message"):
                yield _read_lanes(message["data"]) if message["type"] == "message" else set()


def _write_lanes(lanes: Collection[int]) -> str:
    return " ".join(map(str, sorted(lanes)))


def _read_lanes(text: bytes) -> set[int]:
    return {int(word) for word in text.split() if word.isdigit() and len(word) <= 2}


def set_flags(lanes: Iterable[int]) -> None:
    """Sets the flags of lanes, so that no process rings: a draining worker reads all lanes anyway.

    The flags expire as after a ring, in case the worker is killed.
    """

    def act(redis: Redis) -> None:
        with redis.pipeline(transaction=False) as pipeline:
            for lane in lanes:
                pipeline.set(_key(lane), HELD_FLAG, ex=FLAG_EXPIRY_SECONDS)
            pipeline.execute()

    _call_broker(act)


def invite() -> None:
    """Sends an invitation, which is a message without lanes, for one more worker to drain.

    Sends nothing while an earlier invitation is in the queue.
    """

    def send(redis: Redis) -> None:
        if _set_if_absent(redis, INVITATION_KEY, INVITATION_EXPIRY_SECONDS, SETTLE_QUEUE):
            _sender().send_task(SETTLE_TASK, args=[[]], queue=SETTLE_QUEUE, retry=False)

    _call_broker(send)


def clear_invitation() -> None:
    """Deletes the key of the invitation, so that another worker can be invited."""
    _call_broker(lambda redis: redis.delete(INVITATION_KEY))


def ring_to_notify(webhook_id: int, slots: int) -> None:
    """Requests a delivery task for each slot of a webhook, except slots whose task has not begun yet."""

    def send(redis: Redis) -> None:
        for slot in range(slots):
            if _set_if_absent(redis, _notify_key(webhook_id, slot), NOTIFY_FLAG_EXPIRY_SECONDS, NOTIFY_QUEUE):
                _sender().send_task(NOTIFY_TASK, args=[webhook_id, slot], queue=NOTIFY_QUEUE, retry=False)

    _call_broker(send)


def clear_notify_flag(webhook_id: int, slot: int) -> None:
    """Deletes the flag of a slot, so that its task can be requested again."""
    _call_broker(lambda redis: redis.delete(_notify_key(webhook_id, slot)))


def _notify_key(webhook_id: int, slot: int) -> str:
    return f"payments:notify:{webhook_id}:{slot}"


def peek(queue: str) -> bytes | None:
    """Returns the next message of a queue; None if the queue is empty or the broker does not answer."""
    message: bytes | None = _call_broker(lambda redis: redis.lindex(queue, -1))
    return message


def queue_lengths() -> dict[str, int]:
    """Returns the number of messages in each queue. Raises Unavailable if the broker does not answer."""
    try:
        if circuit_is_open():
            raise ConnectionError("the circuit is open after a failure")
        with _redis().pipeline(transaction=False) as pipeline:
            for queue in (SETTLE_QUEUE, NOTIFY_QUEUE):
                pipeline.llen(queue)
            settle, notify = pipeline.execute()
    except Exception as error:  # includes ValueError, from a reply that is not Redis
        raise Unavailable("broker_unavailable", f"The broker does not answer: {error}") from error
    return {SETTLE_QUEUE: settle, NOTIFY_QUEUE: notify}


def circuit_is_open() -> bool:
    """Returns whether this process does not call the broker, because a call has just failed."""
    return time.monotonic() < _circuit_open_until


def _call_broker(act: Any) -> Any:
    """Returns the result of the act, or None if the broker fails or the circuit is open."""
    global _circuit_open_until
    began = time.monotonic()
    if began < _circuit_open_until:
        return None
    try:
        return act(_redis())
    except Exception as error:  # includes ValueError, from a reply that is not Redis: no payment depends on a ring
        ended = time.monotonic()
        _circuit_open_until = ended + max(CIRCUIT_BACKOFF_SECONDS, CIRCUIT_BACKOFF_FACTOR * (ended - began))
        metrics.RING_FAILURES.inc()
        log.warning("broker did not answer", error=repr(error))
        return None
