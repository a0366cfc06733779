"""The doorbell: tells a worker that lanes have work. It carries no money, so it may be lost or rung twice.

`SET lane NX EX 2` makes hundreds of payments ride on one Celery message, and one message rings for all the lanes
that have work at that moment: a message costs more than settling a payment does. While a message waits to be taken no
other is sent: the worker that takes it settles all lanes whose keys are set, in one commit. Whatever fails here is counted and
left: the sweep settles. After a failure the bell rests for a second, so that an outage does not cost every
payment its time-out. Where nobody takes messages their number stays bounded.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from celery import Celery
from redis import Redis

from shared import metrics, redis_client
from shared.errors import Unavailable
from shared.logs import get_logger
from shared.model import LANES
from shared.settings import settings
from shared.transport import Transport

SETTLE_QUEUE: Final = "settle"
SETTLE_TASK: Final = "settle"
INVITATION_KEY: Final = "payments:invitation"
NOTIFY_QUEUE: Final = "notify"
NOTIFY_TASK: Final = "notify"
NOTIFY_FLAG_EXPIRY_SECONDS: Final = 1
CIRCUIT_BACKOFF_SECONDS: Final = 1.0
CIRCUIT_BACKOFF_FACTOR: Final = 5  # looking a name up has no time-out: what was slow to fail is left alone for longer
FLAG_EXPIRY_SECONDS: Final = 2
MAX_JOIN_SECONDS: Final = 0.05
INVITATION_EXPIRY_SECONDS: Final = 10
HELD_FLAG: Final = b"held"  # value of the key of a lane that a worker looks at by itself
OWN_MESSAGE_FLAG: Final = b"apart"  # of a lane that has a message of its own
SETTLED_CHANNEL: Final = "payments:settled"
HEALTH_CHECK_INTERVAL_SECONDS: Final = 5
DOORBELL_TIMEOUT_SECONDS: Final = 0.5
NO_EXPIRY: Final = -1  # as TTL answers
MAX_QUEUE_MESSAGES: Final = 1000  # workers that take messages never leave more than some tens

log = get_logger("doorbell")
_circuit_open_until = 0.0
_sent_at = float("-inf")


@cache
def _redis() -> Redis:
    return redis_client.connect(DOORBELL_TIMEOUT_SECONDS)


@cache
def _sender() -> Celery:
    """A Celery that only sends, with time-outs that a worker's connection could not live with."""
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


class Bell(NamedTuple):
    """What a ring tells of who rang: the uid becomes the task's id."""

    uid: str
    request_id: str | None = None


def ring(bells: Mapping[int, Bell], *, apart: bool = False) -> bool:
    """Rings for lanes with PENDING rows, but for those that have been rung for: one message for them all, or none where
    one waits to be taken (its worker looks at all lanes). `apart`: a message for these lanes alone, in any case.

    False where the broker did not take it; never raises for a broker's fault, never takes longer than its
    time-outs.
    """

    def send(redis: Redis) -> bool:
        global _sent_at
        with redis.pipeline(transaction=False) as pipeline:
            for lane, bell in bells.items():
                pipeline.set(_key(lane), OWN_MESSAGE_FLAG if apart else bell.uid, nx=True, ex=FLAG_EXPIRY_SECONDS)
            pipeline.llen(SETTLE_QUEUE)  # after the keys: whoever takes a message that is counted here sees them
            *are_first, waiting = pipeline.execute()
        lanes = [lane for lane, is_first in zip(bells, are_first, strict=True) if is_first]
        now = time.monotonic()
        if not lanes or (waiting and not apart and now - _sent_at < MAX_JOIN_SECONDS) or _is_full(waiting):
            return True
        _sent_at = now
        uid, request_id = bells[lanes[0]]
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
    """Sets a key that expires; returns whether nobody had set it and the queue has room for a message."""
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.set(key, 1, nx=True, ex=seconds)
        pipeline.ttl(key)
        pipeline.llen(queue)
        is_first, ttl, waiting = pipeline.execute()
    if ttl == NO_EXPIRY:  # it is not ours, and would stay for ever
        redis.delete(key)
    return bool(is_first) and not _is_full(waiting)


def _is_full(waiting: int) -> bool:
    """Returns whether so many messages wait that another one would be heard by nobody; counts it."""
    if waiting < MAX_QUEUE_MESSAGES:
        return False
    metrics.RINGS_WITHHELD.inc()
    return True


def clear_flags(lanes: Iterable[int]) -> None:
    """Delete the lanes' keys: who commits after this rings again. Called before the lanes are read."""
    _call_broker(lambda redis: redis.delete(*map(_key, lanes)))


def find_flagged_lanes() -> set[int]:
    """Returns the lanes that have been rung for, but for those that others look at."""
    values = _call_broker(lambda redis: redis.mget(list(map(_key, range(LANES)))))
    return {lane for lane, value in enumerate(values or ()) if value and value not in (HELD_FLAG, OWN_MESSAGE_FLAG)}


def flagged_lanes(lanes: Sequence[int], settled: Collection[int] = ()) -> set[int]:
    """Returns the lanes that somebody rang for since they were hushed.

    Tells those who wait for a transaction, by the same message, that rows of the settled lanes have become final.
    """

    def act(redis: Redis) -> list[bytes | None]:
        with redis.pipeline(transaction=False) as pipeline:
            if settled:
                pipeline.publish(SETTLED_CHANNEL, _write_lanes(settled))
            pipeline.mget(list(map(_key, lanes)))
            # A broker may refuse the first alone (its access list names channels): then web asks Postgres without hints.
            *_, flags = pipeline.execute(raise_on_error=False)
        if isinstance(flags, Exception):
            raise flags
        return list(flags)

    flags = _call_broker(act)
    return {lane for lane, uid in zip(lanes, flags or (), strict=False) if uid}


def publish_settled(lanes: Collection[int]) -> None:
    """Tells those who wait for a transaction that rows of these lanes have become final. The hint may be lost."""
    _call_broker(lambda redis: redis.publish(SETTLED_CHANNEL, _write_lanes(lanes)))


def subscribe_settled() -> Iterator[set[int]]:
    """Yields the lanes of each such hint as it comes; no lanes, first, once it listens. Raises what the broker fails with."""
    with (
        redis_client.connect(DOORBELL_TIMEOUT_SECONDS, health_check_interval=HEALTH_CHECK_INTERVAL_SECONDS) as redis,
        redis.pubsub() as channel,
    ):
        channel.subscribe(SETTLED_CHANNEL)
        while True:
            # When it is over without a message, redis-py asks whether the line still works.
            message = channel.get_message(timeout=HEALTH_CHECK_INTERVAL_SECONDS)
            if message and message["type"] in ("subscribe", "message"):
                yield _read_lanes(message["data"]) if message["type"] == "message" else set()


def _write_lanes(lanes: Collection[int]) -> str:
    return " ".join(map(str, sorted(lanes)))


def _read_lanes(text: bytes) -> set[int]:
    return {int(word) for word in text.split() if word.isdigit() and len(word) <= 2}


def set_flags(lanes: Iterable[int]) -> None:
    """Sets the lanes' keys, so that nobody rings: a worker that drains looks at all lanes by itself.

    They expire as after a ring, should that worker be killed.
    """

    def act(redis: Redis) -> None:
        with redis.pipeline(transaction=False) as pipeline:
            for lane in lanes:
                pipeline.set(_key(lane), HELD_FLAG, ex=FLAG_EXPIRY_SECONDS)
            pipeline.execute()

    _call_broker(act)


def invite() -> None:
    """Asks for one more worker to drain, unless an earlier invitation has not been taken. It is a message without lanes."""

    def send(redis: Redis) -> None:
        if _set_if_absent(redis, INVITATION_KEY, INVITATION_EXPIRY_SECONDS, SETTLE_QUEUE):
            _sender().send_task(SETTLE_TASK, args=[[]], queue=SETTLE_QUEUE, retry=False)

    _call_broker(send)


def clear_invitation() -> None:
    """From now on another worker may be invited."""
    _call_broker(lambda redis: redis.delete(INVITATION_KEY))


def ring_to_notify(webhook_id: int, slots: int) -> None:
    """Ask for so many tasks to deliver to a webhook, but for those that have been asked for and have not begun."""

    def send(redis: Redis) -> None:
        for slot in range(slots):
            if _set_if_absent(redis, _notify_key(webhook_id, slot), NOTIFY_FLAG_EXPIRY_SECONDS, NOTIFY_QUEUE):
                _sender().send_task(NOTIFY_TASK, args=[webhook_id, slot], queue=NOTIFY_QUEUE, retry=False)

    _call_broker(send)


def clear_notify_flag(webhook_id: int, slot: int) -> None:
    """From now on it may be asked for again."""
    _call_broker(lambda redis: redis.delete(_notify_key(webhook_id, slot)))


def _notify_key(webhook_id: int, slot: int) -> str:
    return f"payments:notify:{webhook_id}:{slot}"


def peek(queue: str) -> bytes | None:
    """The message that will be taken next; None where there is none, or the broker does not answer."""
    message: bytes | None = _call_broker(lambda redis: redis.lindex(queue, -1))
    return message


def queue_lengths() -> dict[str, int]:
    """Returns how many messages wait in each queue. Raises Unavailable where the broker does not say."""
    try:
        if circuit_is_open():
            raise ConnectionError("it has just failed")
        with _redis().pipeline(transaction=False) as pipeline:
            for queue in (SETTLE_QUEUE, NOTIFY_QUEUE):
                pipeline.llen(queue)
            settle, notify = pipeline.execute()
    except Exception as error:  # also a ValueError, from what is no answer of Redis
        raise Unavailable("broker_unavailable", f"The broker does not answer: {error}") from error
    return {SETTLE_QUEUE: settle, NOTIFY_QUEUE: notify}


def circuit_is_open() -> bool:
    """Whether the bell of this process rests from a failure."""
    return time.monotonic() < _circuit_open_until


def _call_broker(act: Any) -> Any:
    """What the act returns, or None where the broker fails or the bell rests from a failure."""
    global _circuit_open_until
    began = time.monotonic()
    if began < _circuit_open_until:
        return None
    try:
        return act(_redis())
    except Exception as error:  # also a ValueError, from what is no answer of Redis: no payment stands on a bell
        ended = time.monotonic()
        _circuit_open_until = ended + max(CIRCUIT_BACKOFF_SECONDS, CIRCUIT_BACKOFF_FACTOR * (ended - began))
        metrics.RING_FAILURES.inc()
        log.warning("broker did not answer", error=repr(error))
        return None
