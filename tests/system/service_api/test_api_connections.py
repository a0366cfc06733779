"""What HTTP itself may bring: bodies in every form, pipelines, silent and slow clients, and a stop while some wait."""

import http.client
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import pytest

from tests.kit.database import held_lane
from tests.kit.http import Api, transaction
from tests.kit.processes import started_at
from tests.kit.service import Service
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.system

POST = b"POST /api/user/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
NAME = b'{"name": "Raw"}'
AT_ONCE_SECONDS = 10.0  # on a machine that is busy; who waits here, waits for 30


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        yield connection


def statuses(url: str, sent: bytes, count: int) -> list[int]:
    """The statuses of the first answers."""
    received = b""
    with connected(url) as connection:
        connection.sendall(sent)
        while len(found := re.findall(rb"HTTP/1\.[01] (\d{3}) ", received)) < count:
            piece = connection.recv(65536)
            assert piece, received
            received += piece
    return [int(status) for status in found]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (POST + b"Content-Length: 15\r\n\r\n" + NAME, [201]),
        (
            POST + b"Transfer-Encoding: chunked\r\n\r\n7\r\n" + NAME[:7] + b"\r\n8\r\n" + NAME[7:] + b"\r\n0\r\n\r\n",
            [201],
        ),
        (POST + b"\r\n", [400]),
        (POST.replace(b"/1.1", b"/1.0") + b"\r\n" + NAME, [400]),
        (POST + b"Content-Length: 0\r\n\r\n", [400]),
        (POST + b"Content-Length: -1\r\n\r\n" + NAME, [400]),
        (POST + b"Content-Length: 15\r\nContent-Length: 16\r\n\r\n" + NAME, [400]),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + NAME, [400]),
        (POST + b"X-Long: " + b"x" * 1_000_000 + b"\r\n\r\n", [431]),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", [400]),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", [414]),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 3, [200, 200, 200]),
        ((POST + b"Content-Length: 15\r\n\r\n" + NAME) * 3, [201, 201, 201]),
        (POST + b"Content-Length: 1\r\n\r\n{" + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", [400, 200]),
    ],
    ids=range(14),
)
def test_a_request_as_it_stands_on_the_wire(service: Service, sent: bytes, expected: list[int]) -> None:
    assert statuses(service.url, sent, len(expected)) == expected


def test_a_body_that_ends_early_is_refused(service: Service) -> None:
    with connected(service.url) as connection:
        connection.sendall(POST + b"Content-Length: 16\r\n\r\n" + NAME)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_who_expects_100_continue_gets_it_or_the_refusal(service: Service) -> None:
    with connected(service.url) as connection:
        connection.sendall(POST + b"Expect: 100-continue\r\nContent-Length: 15\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(NAME)
        assert connection.recv(100).startswith(b"HTTP/1.1 201 ")
    with connected(service.url) as connection:
        connection.sendall(POST + b"Expect: 100-continue\r\nContent-Length: 5000000\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("path", "status"), [("/api/user/", 413), ("/nowhere", 404), ("/livez", 405)])
def test_who_still_sends_5_mb_gets_the_answer_no_reset(service: Service, path: str, status: int, chunked: bool) -> None:
    connection = http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=30)
    body = iter([b" " * 50_000] * 100) if chunked else b" " * 5_000_000
    connection.request("POST", path, body, {"Content-Type": "application/json"}, encode_chunked=chunked)
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["status"]) == (status, status)
    connection.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /livez HTTP/1.1\r\nHo",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        POST + b"Content-Length: 15\r\n\r\n{",
    ],
    ids=["silent", "half a head", "idle", "half a body"],
)
def test_600_clients_that_send_nothing_more_keep_nobody_waiting(api: Api, service: Service, sent: bytes) -> None:
    with ExitStack() as open_:
        for _ in range(600):
            open_.enter_context(connected(service.url)).sendall(sent)
        for _ in range(20):
            began = time.monotonic()
            assert api.ask("GET", "/livez").status == 200
            assert api.ask("GET", "/readyz").status == 200
            assert time.monotonic() - began < AT_ONCE_SECONDS
            api.add_user()


def test_a_stop_answers_those_who_wait(start_service: Callable[..., Service]) -> None:
    service = start_service()
    api = Api(service.url)
    content = transaction(api.add_user())
    with ThreadPoolExecutor(10) as threads, held_lane(service.database_url, content["user_id"]):
        waiting = [threads.submit(api.put, content, Prefer="wait=30") for _ in range(10)]
        wait_until(lambda: api.look_up(content["uid"]).status == 200, "accepted")
        web = service.pid_of("web")
        began = time.monotonic()
        os.kill(web, signal.SIGTERM)
        answers = [future.result() for future in waiting]
        assert time.monotonic() - began < AT_ONCE_SECONDS
        wait_until(lambda: started_at(web) is None, "the end of the process")
    assert {answer.status for answer in answers} == {202}
    assert all("Preference-Applied" not in answer.headers for answer in answers)
    wait_until(service.answers, "web is started again")
