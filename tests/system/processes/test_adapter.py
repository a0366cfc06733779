"""The adapter between granian's loop and a WSGI application, on real connections."""

import http.client
import json
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from local.stack.ports import free_port
from tests.kit.http import get
from tests.kit.processes import ROOT, start_python
from tests.kit.waiting import wait_until
from tests.system.processes.wsgi_probe import PIECE, PIECES

pytestmark = pytest.mark.system

CHUNKS = b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"
REQUESTS = {
    "lines and signs": b"GET /a%20b/%C3%A9//x?q=%C3%A9+1&z HTTP/1.1\r\nHost: x:1\r\nX-A: 1\r\nX-A: 2\r\nCookie: a=1\r\n"
    b"Cookie: b=2\r\nX-Empty:\r\nX-Empty: 1\r\nX-Spaces:  a  b \r\n",
    "an underscore before": b"GET / HTTP/1.1\r\nHost: x\r\nIdempotency_Key: u\r\nIdempotency-Key: a\r\n",
    "an underscore after": b"GET / HTTP/1.1\r\nHost: x\r\nIdempotency-Key: a\r\nIdempotency_Key: u\r\n",
    "not ASCII": b"GET / HTTP/1.1\r\nHost: x\r\nX-Bin: \xe9\r\nContent-Type: \xe9\r\n",
    "HTTP/1.0": b"PUT /p HTTP/1.0\r\nContent-Type: text/x\r\nContent-Type: text/y\r\nContent-Length: 2\r\n\r\nhi",
    "absolute": b"GET http://host.example/abs?x=1 HTTP/1.1\r\nHost: other\r\n",
    "chunked": b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: a\r\nHost: b\r\n\r\n" + CHUNKS,
    "expecting": b"POST /c HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
    "options": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n",
    "a method of its own": b"FOO /x HTTP/1.1\r\n",
}


@contextmanager
def serving(command: Callable[[int], list[str]], folder: Path) -> Iterator[int]:
    port = free_port()
    process = start_python(*command(port), output=folder / f"{port}.log", PYTHONPATH=str(ROOT))
    try:
        wait_until(lambda: get(f"http://127.0.0.1:{port}/count"), "it answers", 60)
        yield port
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with serving(
        lambda port: ["-m", "tests.system.processes.wsgi_probe", str(port)], tmp_path_factory.mktemp("probe")
    ) as port:
        yield port


@pytest.fixture(scope="module")
def granian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The same application on granian's own WSGI."""
    options = ["--interface", "wsgi", "--http", "1", "--factory"]
    with serving(
        lambda port: ["-m", "granian", *options, "--port", str(port), "tests.system.processes.wsgi_probe:application"],
        tmp_path_factory.mktemp("granian"),
    ) as port:
        yield port


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def seen(port: int, request: bytes) -> Any:
    """The environment that the application sees, but for the port."""
    head, body = request.split(b"\r\n\r\n", 1) if b"\r\n\r\n" in request else (request.rstrip(b"\r\n"), b"")
    with connect(port) as connection:
        connection.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    environ = json.loads(received.rpartition(b"\r\n\r\n")[2])
    environ["SERVER_PORT"] = environ["SERVER_PORT"].replace(str(port), "PORT")
    return environ


@pytest.mark.parametrize("name", REQUESTS)
def test_an_application_sees_what_it_sees_on_granians_own_wsgi(probe: int, granian: int, name: str) -> None:
    assert seen(probe, REQUESTS[name]) == seen(granian, REQUESTS[name])


def head_of_answer(port: int, method: str, path: str) -> tuple[int, set[str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path)
    response = connection.getresponse()
    names = {name.lower() for name in response.headers}
    connection.close()
    return response.status, names


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT"])
@pytest.mark.parametrize("path", ["/count", "/stream", "/empty"])
def test_response_headers_equal_those_of_granians_wsgi(probe: int, granian: int, method: str, path: str) -> None:
    assert head_of_answer(probe, method, path) == head_of_answer(granian, method, path)


def ask(port: int, path: str) -> tuple[int, bytes]:
    answer = get(f"http://127.0.0.1:{port}{path}")
    assert answer, "no whole answer"
    return answer.status, answer.body


def counts(port: int) -> tuple[int, bool, int, int]:
    return tuple(json.loads(ask(port, "/count")[1]))


def test_300_waiting_requests_take_no_thread(probe: int) -> None:
    threads = counts(probe)[3]
    with ExitStack() as opened:
        connections = [opened.enter_context(connect(probe)) for _ in range(300)]
        for connection in connections:
            connection.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: counts(probe)[2] == 300, "all wait")
        assert counts(probe)[3] <= threads + 2
        assert ask(probe, "/wake") == (200, b"300")
        for connection in connections:
            received = b""
            while not received.endswith(b"woken"):
                received += connection.recv(65536)
            assert received.startswith(b"HTTP/1.1 200 ")


def test_who_goes_while_it_waits_harms_nobody(probe: int) -> None:
    with connect(probe) as connection:
        connection.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: counts(probe)[2] == 1, "it waits")
    assert ask(probe, "/wake") == (200, b"1")
    assert ask(probe, "/count")[0] == 200


def test_an_application_error_is_500_and_affects_no_other(probe: int) -> None:
    assert ask(probe, "/fail")[0] == 500
    assert ask(probe, "/count")[0] == 200


def test_a_body_is_read_whole_where_no_size_is_given(probe: int) -> None:
    body = bytes(range(256)) * 1000
    connection = http.client.HTTPConnection("127.0.0.1", probe, timeout=30)
    connection.request("PUT", "/all", body)
    assert connection.getresponse().read() == body + b"|"
    connection.close()


def test_slow_bodies_block_nobody(probe: int) -> None:
    head = b"PUT /body HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 6\r\n\r\n"
    with ExitStack() as opened:
        silent = [opened.enter_context(connect(probe)) for _ in range(100)]
        for connection in silent:
            connection.sendall(head)
        slow = opened.enter_context(connect(probe))
        for piece in (head, b"ab", b"cd"):
            slow.sendall(piece)
            assert ask(probe, "/count")[0] == 200
        slow.sendall(b"ef")
        received = b""
        while piece := slow.recv(65536):
            received += piece
        assert json.loads(received.rpartition(b"\r\n\r\n")[2])["body"] == "b'abcdef'"
    assert ask(probe, "/count")[0] == 200


def test_a_stream_is_whole_and_made_no_faster_than_it_is_read(probe: int) -> None:
    before = counts(probe)[0]
    with connect(probe) as connection:
        connection.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = connection.recv(100)
        ahead = [-1, counts(probe)[0]]
        while ahead[-1] != ahead[-2]:  # until it stands still
            ahead.append(counts(probe)[0])
        assert ahead[-1] - before < PIECES / 2
        assert not counts(probe)[1]
        size = len(received)
        while piece := connection.recv(1 << 20):
            size += len(piece)
    assert size > PIECES * len(PIECE)
    assert counts(probe)[0] - before == PIECES
    wait_until(lambda: counts(probe)[1], "it is closed")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stream has no bound")
def test_a_stream_whose_client_goes_is_closed(probe: int) -> None:
    before = counts(probe)[0]
    with connect(probe) as connection:
        connection.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.recv(100)
        wait_until(lambda: counts(probe)[0] > before, "it is being made")
    wait_until(lambda: counts(probe)[1], "it is closed")
    assert counts(probe)[0] - before < PIECES
