"""The bell may fail in any way: nothing is raised, nothing waits for long, and it rests."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from shared import doorbell
from shared.settings import settings

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def own_bell(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bell that has not rung yet, at a broker of the test's."""
    yield
    monkeypatch.undo()
    forget()


def forget() -> None:
    settings.cache_clear()
    doorbell._redis.cache_clear()
    doorbell._sender.cache_clear()
    doorbell._rests_until = 0.0


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
def test_whatever_the_broker_answers_the_bell_raises_nothing_and_rests(
    answer: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for port in broker_that_says(answer):
        monkeypatch.setenv("BROKER_URL", f"redis://127.0.0.1:{port}/0")
        forget()
        began = time.monotonic()
        assert not doorbell.ring(7, "uid", None)
        assert time.monotonic() - began < 2.5
        rested = time.monotonic()
        for _ in range(100):
            doorbell.hush(7)
            assert not doorbell.rung(7)
        assert time.monotonic() - rested < 0.3, "an outage costs one time-out, not one a payment"
