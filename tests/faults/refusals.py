"""A broker that answers and is of no use: it refuses commands, or its queues hold no messages of ours.

Each refusal is a context manager: while its block runs the broker refuses, afterwards it is well again.
"""

import json
import random
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.faults.line_faults import Fault
from tests.faults.stack import Stack
from tests.kit.waiting import wait_until

Refusal = Callable[[Stack], AbstractContextManager[None]]

QUEUES: Final = ("settle", "notify")
NOT_A_PORT: Final = 1  # nobody listens there


@contextmanager
def _configured(stack: Stack, undo: dict[str, str], **options: str) -> Iterator[None]:
    with stack.redis() as broker:
        for name, value in options.items():
            broker.config_set(name.replace("_", "-"), value)
        try:
            yield
        finally:
            for name, value in undo.items():
                broker.config_set(name.replace("_", "-"), value)


def no_replicas(stack: Stack) -> AbstractContextManager[None]:
    """NOREPLICAS: too few replicas follow, so nothing may be written. Reading goes on."""
    return _configured(stack, {"min_replicas_to_write": "0"}, min_replicas_to_write="5")


def full(stack: Stack) -> AbstractContextManager[None]:
    """OOM: nothing more may be stored. Messages can still be taken."""
    return _configured(stack, {"maxmemory": "0"}, maxmemory="1")


@contextmanager
def replica(stack: Stack, stale: str = "yes") -> Iterator[None]:
    """READONLY after a failover; and MASTERDOWN where a replica may not show what is stale."""
    with stack.redis() as broker:
        broker.config_set("replica-serve-stale-data", stale)
        broker.replicaof("127.0.0.1", NOT_A_PORT)
        try:
            yield
        finally:
            broker.replicaof("NO", "ONE")
            broker.config_set("replica-serve-stale-data", "yes")


@contextmanager
def cannot_save(stack: Stack) -> Iterator[None]:
    """MISCONF: the last snapshot could not be written, because a folder has its name."""
    snapshot = stack.service.data / "broker" / "dump.rdb"
    snapshot.unlink(missing_ok=True)
    snapshot.mkdir()
    with _configured(stack, {"save": ""}, save="3600 1000000"), stack.redis() as broker:
        try:
            broker.bgsave()
            wait_until(lambda: broker.info("persistence")["rdb_last_bgsave_status"] == "err", "the snapshot fails", 20)
            yield
        finally:
            snapshot.rmdir()
            broker.bgsave()
            wait_until(lambda: broker.info("persistence")["rdb_last_bgsave_status"] == "ok", "a snapshot", 20)


@contextmanager
def other_password(stack: Stack) -> Iterator[None]:
    """WRONGPASS: somebody has changed the password, and every connection is new."""
    with stack.redis() as broker:
        password = broker.config_get("requirepass")["requirepass"]
        broker.config_set("requirepass", "another")
        broker.client_kill_filter(_type="normal", skipme=True)
        broker.client_kill_filter(_type="pubsub", skipme=True)
        try:
            yield
        finally:
            broker.config_set("requirepass", password)


@contextmanager
def no_permission(stack: Stack) -> Iterator[None]:
    """NOPERM: our user may do nothing but connect."""
    with stack.redis() as broker:
        broker.execute_command("ACL", "SETUSER", "default", "-@all", "+@connection", "+acl", "+ping", "+info")
        try:
            yield
        finally:
            broker.execute_command("ACL", "SETUSER", "default", "+@all")


@contextmanager
def no_channels(stack: Stack) -> Iterator[None]:
    """NOPERM for channels alone, as users have it whom nobody gave any; those that listen are cut off."""
    with stack.redis() as broker:
        broker.execute_command("ACL", "SETUSER", "default", "resetchannels")
        broker.client_kill_filter(_type="normal", skipme=True)
        try:
            yield
        finally:
            broker.execute_command("ACL", "SETUSER", "default", "allchannels")


@contextmanager
def _says(stack: Stack, answer: bytes) -> Iterator[None]:
    """The line answers every command with this."""
    stack.broker.says = answer
    stack.broker.reset()
    try:
        yield
    finally:
        stack.broker.heal()


def loading(stack: Stack) -> AbstractContextManager[None]:
    return _says(stack, b"-LOADING server is loading the dataset in memory\r\n")


def no_redis(stack: Stack) -> AbstractContextManager[None]:
    return _says(stack, b"HTTP/1.1 400 Bad Request\r\n\r\n")


def no_number(stack: Stack) -> AbstractContextManager[None]:
    return _says(stack, b":not a number\r\n")


REFUSALS: Final[dict[str, Refusal]] = {
    "broker without replicas (NOREPLICAS)": no_replicas,
    "broker is a replica (READONLY)": replica,
    "broker is a stale replica (MASTERDOWN)": lambda stack: replica(stack, "no"),
    "broker full (OOM)": full,
    "broker cannot save (MISCONF)": cannot_save,
    "broker has another password (WRONGPASS)": other_password,
    "broker permits nothing (NOPERM)": no_permission,
    "broker permits no channels (NOPERM)": no_channels,
    "broker loads its data (LOADING)": loading,
    "broker speaks HTTP": no_redis,
    "broker answers nonsense": no_number,
}


def message(
    task: object = "settle", body: object = ([[3]], {}, {"callbacks": None}), **headers: object
) -> dict[str, Any]:
    """A message as kombu writes it."""
    return {
        "body": b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": task, "id": "junk", "retries": 0, "eta": None, "expires": None, **headers},
        "properties": {
            "correlation_id": "junk",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "settle"},
            "delivery_tag": "junk",
            "body_encoding": "base64",
        },
    }


def _without(name: str) -> bytes:
    return json.dumps({key: value for key, value in message().items() if key != name}).encode()


def _as_bytes(**changes: Any) -> bytes:
    return json.dumps(message(**changes)).encode()


# Each is what somebody else's program, an operator's command or a bug may leave in a queue.
JUNK: Final[dict[str, bytes]] = {
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "nothing": b"",
    "broken JSON": b'{"body": "',
    "bytes": b"\xff\x00\xfe",
    "an empty object": b"{}",
    "nested deeply": b"[" * 100_000,
    "a gigantic text": b'"' + b"x" * (8 << 20) + b'"',
    "a gigantic message": _as_bytes(padding="x" * (8 << 20)),
    "no body": _without("body"),
    "no headers": _without("headers"),
    "no properties": _without("properties"),
    "headers null": json.dumps({**message(), "headers": None}).encode(),
    "properties null": json.dumps({**message(), "properties": None}).encode(),
    "a body that is not base64": json.dumps({**message(), "body": "%%%"}).encode(),
    "a body of another kind": json.dumps({**message(), "content-type": "application/x-python-serialize"}).encode(),
    "a foreign task": _as_bytes(task="foreign.task"),
    "a task that is no name": _as_bytes(task=["settle"]),
    "no arguments": _as_bytes(body=[[], {}, {}]),
    "too many arguments": _as_bytes(body=[[[3], 4, 5], {}, {}]),
    "a lane that is none": _as_bytes(body=[[[99]], {}, {}]),
    "lanes that are none": _as_bytes(body=[["all"], {}, {}]),
    "a webhook that is none": _as_bytes(task="notify", body=[["all", -1], {}, {}]),
    "an answer wanted": _as_bytes(body=[[[3]], {}, {"callbacks": [{"task": "foreign"}]}]),
    "not before next year": _as_bytes(eta="2999-01-01T00:00:00Z"),
    "over long ago": _as_bytes(expires="1999-01-01T00:00:00Z"),
    "a time limit that is none": _as_bytes(timelimit="soon"),
}


def put_junk(broker: Redis) -> int:
    """All of it into each queue; how many messages that were."""
    for queue in QUEUES:
        for junk in JUNK.values():
            broker.lpush(queue, junk)
    return len(QUEUES) * len(JUNK)


def await_junk_taken(broker: Redis, seconds: float = 20) -> None:
    """Wait until the last of it has been taken; rings may come meanwhile."""
    last = [*JUNK.values()][-1]
    wait_until(lambda: all(broker.lpos(queue, last) is None for queue in QUEUES), "junk is taken", seconds)


def put_junk_beside(broker: Redis) -> None:
    """Junk where kombu keeps what was not acknowledged, on the channels of control, and in the doorbell's keys."""
    broker.hset("unacked", "junk", "null")
    broker.zadd("unacked_index", {"junk": 1})
    for text in ("null", "[]", "{}", "{", json.dumps({**message(), "body": "%%%"}), "\xff"):
        broker.publish("/0.celery.pidbox", text)
    for lane in range(16):
        broker.delete(f"payments:lane:{lane}")
        broker.rpush(f"payments:lane:{lane}", "junk")


def put_wrong_types(broker: Redis) -> None:
    """A text where each queue should be a list, and where kombu keeps a set."""
    for queue in QUEUES:
        broker.set(queue, "junk")
        broker.set(f"_kombu.binding.{queue}", "junk")


def refuse(refusal: Refusal) -> Fault:
    def fault(stack: Stack, draw: random.Random) -> None:
        with refusal(stack):
            time.sleep(draw.uniform(2, 4))

    return fault


def junk_in_the_queues(stack: Stack, _draw: random.Random) -> None:
    with stack.redis() as broker:
        put_junk_beside(broker)
        put_junk(broker)
        await_junk_taken(broker)


def wrong_types(stack: Stack, _draw: random.Random) -> None:
    with stack.redis() as broker:
        put_wrong_types(broker)
        wait_until(lambda: _types(broker) <= {b"list", b"none"}, "the queues are lists again", 20)


def _types(broker: Redis) -> set[bytes]:
    try:
        return {broker.type(queue) for queue in QUEUES}
    except RedisConnectionError:
        return {b"unknown"}


REFUSING: Final[dict[str, Fault]] = {name: refuse(refusal) for name, refusal in REFUSALS.items()} | {
    "junk in the queues": junk_in_the_queues,
    "queues of the wrong type": wrong_types,
}
