"""What a ring says; and the source may fail in any way: nothing is raised, nothing waits for long, and it rests."""

import json
import socket
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import kombu.transport.redis
import pytest
from redis import Redis

from shared import metrics
from shared.errors import Unavailable
from shared.payments import doorbell
from tests.integration.bells import forget
from tests.integration.factories import accepted, deposit, new_user, states
from worker.broker.messages import accept

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def own_bell(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A source that has not rung yet, at a broker of the test's."""
    yield
    monkeypatch.undo()
    forget()


def broker_that_says(answer: bytes | None) -> Iterator[int]:
    """A port that answers anything with that; None: never."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(0.05)
        done = threading.Event()

        def serve() -> None:
            held = []
            while not done.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                held.append(connection)
                if answer is not None:
                    connection.recv(1000)
                    connection.sendall(answer)
            for connection in held:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        done.set()
        thread.join()


@pytest.mark.parametrize(
    "answer", [None, b":not a number\r\n", b"$x\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"-ERR\r\n"]
)
def test_any_broker_error_opens_the_circuit_and_raises_nothing(
    answer: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorbell, "CIRCUIT_BACKOFF_SECONDS", 60.0)  # longer than this test may take
    for port in broker_that_says(answer):
        monkeypatch.setenv("BROKER_URL", f"redis://127.0.0.1:{port}/0")
        forget()
        assert not doorbell.ring({7: doorbell.RingSource("uid")})
        rests_until = doorbell._circuit_open_until
        assert rests_until > time.monotonic()
        for _ in range(100):
            doorbell.clear_flags([7])
            assert not doorbell.publish_settled_and_find_flags([7])
        assert doorbell._circuit_open_until == rests_until, "none of these has asked the broker and failed again"


def messages(broker_url: str) -> list[list[int]]:
    """The lanes of each message in the queue, the oldest first."""
    with Redis.from_url(broker_url) as redis:
        found = [json.loads(message)["body"] for message in redis.lrange(doorbell.SETTLE_QUEUE, 0, -1)]
    return [json.loads(b64decode(body))[0][0] for body in reversed(found)]


def test_one_message_rings_for_all_lanes_without_a_flag(broker_url: str) -> None:
    source = doorbell.RingSource("0193e7a5-5bb2-7b3c-8f0a-3f2d6f1f2a10", "asked")
    assert doorbell.ring({3: source, 7: source})
    assert doorbell.ring({3: source, 7: source})
    assert messages(broker_url) == [[3, 7]]
    doorbell.clear_flags([3])
    assert doorbell.publish_settled_and_find_flags([3, 7, 9]) == {7}
    with Redis.from_url(broker_url) as redis:
        redis.delete(doorbell.SETTLE_QUEUE)  # it was taken
    assert doorbell.ring({3: source, 7: source, 9: source})
    assert messages(broker_url) == [[3, 9]]


def test_a_ring_joins_a_message_that_waits(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = doorbell.RingSource("0193e7a5-5bb2-7b3c-8f0a-3f2d6f1f2a10", "asked")
    monkeypatch.setattr(doorbell, "MAX_JOIN_SECONDS", 60.0)
    assert doorbell.ring({3: source})
    assert doorbell.ring({7: source})
    assert messages(broker_url) == [[3]], "its worker looks at both lanes"
    doorbell.ring({8: source}, own_message=True)
    doorbell.set_flags([9])
    assert doorbell.find_flagged_lanes() == {3, 7}, "not those that others look at"
    assert messages(broker_url) == [[3], [8]]
    monkeypatch.setattr(doorbell, "MAX_JOIN_SECONDS", 0.0)
    assert doorbell.ring({10: source})
    assert messages(broker_url) == [[3], [8], [10]], "a message that nobody takes is not relied on for long"


def test_whoever_takes_a_message_settles_what_joined_it(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from worker.tasks import settle

    monkeypatch.setattr(doorbell, "MAX_JOIN_SECONDS", 60.0)
    rows = [deposit(new_user(lane), 5) for lane in (3, 7, 9)]
    accepted(*rows)
    for lane in (3, 7):
        doorbell.ring({lane: doorbell.RingSource(f"uid-{lane}")})
    assert messages(broker_url) == [[3]]
    assert settle.run([3]) == "2 completed; lanes 3, 7"
    assert states(*rows) == ["COMPLETED", "COMPLETED", "PENDING"], "nobody has rung for the last one"


def test_a_ring_is_a_message_that_the_worker_takes(broker_url: str) -> None:
    source = doorbell.RingSource("0193e7a5-5bb2-7b3c-8f0a-3f2d6f1f2a10", "asked")
    assert doorbell.ring({3: source, 7: source})
    assert doorbell.ring({9: doorbell.RingSource("nothing-9")}, own_message=True)
    doorbell.invite()
    doorbell.ring_to_notify(2**40, 3)
    with Redis.from_url(broker_url) as redis:
        for queue, count in ((doorbell.SETTLE_QUEUE, 3), (doorbell.NOTIFY_QUEUE, 3)):
            found = redis.lrange(queue, 0, -1)
            assert len(found) == count
            assert all(accept(queue, text) for text in found)


def test_all_rings_are_sent_by_one_client(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after the broker was away: then by a new one."""
    make, made = kombu.transport.redis.Channel._create_client, []

    def count(channel: Any, asynchronous: bool = False) -> Any:
        client = make(channel, asynchronous)
        if not asynchronous:
            made.append(client)
        return client

    monkeypatch.setattr(kombu.transport.redis.Channel, "_create_client", count)
    for lane in range(4):
        assert doorbell.ring({lane: doorbell.RingSource("uid")}, own_message=True)
    assert len(made) == 1
    with Redis.from_url(broker_url) as redis:
        redis.client_kill_filter(_type="normal", skipme=True)
        doorbell.ring({4: doorbell.RingSource("uid")}, own_message=True)
        monkeypatch.setattr(doorbell, "_circuit_open_until", 0.0)
        assert doorbell.ring({5: doorbell.RingSource("uid")}, own_message=True)
        assert redis.llen(doorbell.SETTLE_QUEUE) >= 5


def test_rings_that_nobody_takes_are_bounded_and_counted(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell, "MAX_QUEUE_MESSAGES", 5)
    monkeypatch.setattr(doorbell, "MAX_JOIN_SECONDS", 0.0)
    before = metrics.RINGS_WITHHELD._value.get()
    for number in range(20):
        doorbell.clear_flags([3])
        assert doorbell.ring({3: doorbell.RingSource(f"uid-{number}")}), "it is no failure of the broker"
        doorbell.ring_to_notify(number + 1, 1)
    assert doorbell.queue_lengths() == {doorbell.SETTLE_QUEUE: 5, doorbell.NOTIFY_QUEUE: 5}
    assert metrics.RINGS_WITHHELD._value.get() == before + 30
    with Redis.from_url(broker_url) as redis:
        redis.delete(doorbell.SETTLE_QUEUE)  # a worker has come
    doorbell.clear_flags([3])
    assert doorbell.ring({3: doorbell.RingSource("heard")})
    assert doorbell.queue_lengths()[doorbell.SETTLE_QUEUE] == 1


def test_junk_in_a_key_of_the_doorbell_is_removed(broker_url: str) -> None:
    with Redis.from_url(broker_url) as redis:
        redis.rpush("payments:notify:7:0", "junk")
        doorbell.ring_to_notify(7, 1)
        assert doorbell.queue_lengths()[doorbell.NOTIFY_QUEUE] == 0
        doorbell.ring_to_notify(7, 1)
        assert doorbell.queue_lengths()[doorbell.NOTIFY_QUEUE] == 1
        redis.rpush("payments:lane:3", "junk")
        doorbell.clear_flags([3])  # as the sweep does within two seconds
        redis.set(doorbell.INVITATION_KEY, "junk")
        doorbell.invite()
        assert redis.type(doorbell.INVITATION_KEY) == b"none"
    assert doorbell.ring({3: doorbell.RingSource("uid")})
    assert doorbell.queue_lengths()[doorbell.SETTLE_QUEUE] == 1


def test_without_a_broker_queue_lengths_are_unknown() -> None:
    with pytest.raises(Unavailable):
        doorbell.queue_lengths()


def test_while_a_worker_drains_nobody_rings(broker_url: str) -> None:
    source = doorbell.RingSource("0193e7a5-5bb2-7b3c-8f0a-3f2d6f1f2a10")
    doorbell.set_flags(range(16))
    assert doorbell.ring({3: source, 7: source})
    assert messages(broker_url) == []
    with Redis.from_url(broker_url) as redis:
        assert 0 < redis.ttl("payments:lane:3") <= doorbell.FLAG_EXPIRY_SECONDS, "it ends, should the worker be killed"
    doorbell.clear_flags(range(16))
    assert doorbell.ring({3: source, 7: source})
    assert messages(broker_url) == [[3, 7]]


def test_one_invitation_at_a_time_waits_to_be_taken(broker_url: str) -> None:
    doorbell.invite()
    doorbell.invite()
    assert messages(broker_url) == [[]]
    doorbell.clear_invitation()
    doorbell.invite()
    assert messages(broker_url) == [[], []]
