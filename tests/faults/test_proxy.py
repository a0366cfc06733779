"""The proxy breaks what it is told to break, and nothing else."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from tests.faults.proxy import Proxy

pytestmark = pytest.mark.unit

NOT_SOON = 0.2


class Echo:
    """A server that sends back what it gets."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.heard = b""
        self.ended = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._echo, args=[connection], daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(1000):
                self.heard += data
                connection.sendall(data)
        self.ended.set()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.listener.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    made = Proxy(echo.listener.getsockname)
    yield made
    made.close()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with closing(socket.create_connection(("127.0.0.1", proxy.port), timeout=5)) as connection:
        connection.sendall(b"before")
        assert connection.recv(100) == b"before"
        yield connection


def assert_silent(client: socket.socket) -> None:
    client.settimeout(NOT_SOON)
    with pytest.raises(TimeoutError):
        client.recv(100)
    client.settimeout(5)


def test_a_held_line_loses_nothing(proxy: Proxy, client: socket.socket) -> None:
    proxy.hold()
    client.sendall(b"later")
    assert_silent(client)
    proxy.heal()
    assert client.recv(100) == b"later"


def test_a_black_hole_swallows_and_the_line_never_works_again(proxy: Proxy, client: socket.socket, echo: Echo) -> None:
    proxy.swallow()
    client.sendall(b"lost")
    assert_silent(client)
    proxy.heal()
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    assert echo.heard == b"before"


def test_a_half_open_line_is_closed_for_the_server_only(proxy: Proxy, client: socket.socket, echo: Echo) -> None:
    proxy.half_open()
    assert echo.ended.wait(5)
    client.sendall(b"lost")
    assert_silent(client)
    assert echo.heard == b"before"


def test_a_reset_line_is_reset_and_a_new_one_works(proxy: Proxy, client: socket.socket) -> None:
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    with closing(socket.create_connection(("127.0.0.1", proxy.port), timeout=5)) as other:
        other.sendall(b"again")
        assert other.recv(100) == b"again"


def test_a_refused_connection_is_reset(proxy: Proxy) -> None:
    proxy.refuses = True
    refused = socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
    with closing(refused), pytest.raises(ConnectionResetError):
        refused.recv(100)
