"""API.md, `Prefer: wait=N`: a client of a synchronous payment API needs no change."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import urllib3

from tests.kit.database import held_lane, query
from tests.kit.http import Api, Response, transaction
from tests.kit.service import Service
from tests.kit.waiting import wait_until
from web.limits.concurrency import raise_descriptor_limit

pytestmark = pytest.mark.system

CLIENTS = 1000
OTHERS_SECONDS = 2.0  # on a machine that is busy; who waits here, waits for 30


@pytest.fixture(scope="module")
def done(api: Api) -> str:
    """The uid of a completed deposit."""
    return str(api.deposit(api.add_user()).json["uid"])


def applied(answer: Response) -> str | None:
    return answer.headers.get("Preference-Applied")


def test_put_and_get_answer_at_the_latest_after_the_seconds(api: Api, service: Service, user_id: int) -> None:
    content = transaction(user_id)
    with held_lane(service.database_url, user_id):
        for ask in (lambda: api.put(content, Prefer="wait=1"), lambda: api.look_up(content["uid"], Prefer="wait=1")):
            began = time.monotonic()
            answer = ask()
            assert 0.9 < time.monotonic() - began < 15
            assert (answer.json["status"], applied(answer)) == ("PENDING", "wait=1")
    api.wait_final(content["uid"])


def test_they_answer_as_soon_as_it_is_final(api: Api, service: Service, user_id: int) -> None:
    contents = [transaction(user_id), transaction(user_id, type="WITHDRAW", amount="500")]
    with ThreadPoolExecutor(4) as threads:
        with held_lane(service.database_url, user_id):
            puts = [threads.submit(api.put, content, Prefer="wait=30") for content in contents]
            for content in contents:
                wait_until(lambda uid=content["uid"]: api.look_up(uid).status == 200, "accepted")
            gets = [threads.submit(api.look_up, content["uid"], Prefer="wait=30") for content in contents]
            began = time.monotonic()
        assert [future.result().status for future in puts] == [200, 409]
        assert [future.result().json["status"] for future in gets] == ["COMPLETED", "REJECTED"]
        assert time.monotonic() - began < 25, "not only after the 30 seconds"
    assert {applied(future.result()) for future in puts + gets} == {"wait=30"}


@pytest.mark.parametrize(
    ("preference", "told"),
    [
        ("wait=2", "wait=2"),
        ("WAIT=2", "wait=2"),
        ('wait="2"', "wait=2"),
        ("wait = 2", "wait=2"),
        ("wait=2; why=not", "wait=2"),
        ("respond-async, wait=2", "wait=2"),
        ("wait=2, wait=3", "wait=2"),
        ('foo="a, wait=9", wait=2', "wait=2"),
        ('foo="\\", wait=9", wait=2', "wait=2"),
        ("wait=x, wait=2", "wait=2"),
        ("wait=0", "wait=0"),
        ("wait=30", "wait=30"),
        ("wait=31", "wait=30"),
        ("wait=" + "9" * 5000, "wait=30"),
        ("", None),
        ("wait", None),
        ("wait=", None),
        ("wait=x", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=1e3", None),
        ('wait="2', None),
        ("nowait=2", None),
        ("wait=2 3", None),
        ("\u00b2=\u00b2, wait=\u00b2", None),
        (",,,;;;===" + '"' * 999, None),
        ("return=minimal", None),
    ],
)
def test_prefer_follows_rfc_7240_and_is_ignored_if_invalid(
    api: Api, done: str, preference: str, told: str | None
) -> None:
    for method in ("GET", "POST"):
        answer = api.ask(method, f"/api/transaction/{done}", headers={"Prefer": preference})
        assert (answer.status, applied(answer)) == (200, told)


def test_several_header_lines_are_one(api: Api, done: str) -> None:
    headers = urllib3.HTTPHeaderDict([("Prefer", "respond-async"), ("Prefer", "wait=2")])
    assert applied(api.ask("GET", f"/api/transaction/{done}", headers=headers)) == "wait=2"


def test_without_a_preference_nothing_is_applied(api: Api, done: str) -> None:
    assert applied(api.look_up(done)) is None


def test_a_304_is_waited_for_too(api: Api, service: Service, user_id: int) -> None:
    content = transaction(user_id)
    with held_lane(service.database_url, user_id):
        tag = api.put(content).headers and api.look_up(content["uid"]).headers["ETag"]
        answer = api.look_up(content["uid"], **{"If-None-Match": tag, "Prefer": "wait=1"})
        assert (answer.status, applied(answer)) == (304, "wait=1")
    answer = api.look_up(content["uid"], **{"If-None-Match": tag, "Prefer": "wait=15"})
    assert (answer.status, answer.json["status"]) == (200, "COMPLETED")


def test_1000_clients_that_wait_keep_nobody_else_waiting(api: Api, service: Service, user_id: int) -> None:
    """Each holds a connection and a little memory. Whose lane is free is paid as quickly as ever."""
    other = api.add_user()  # of the next lane
    raise_descriptor_limit()
    with ExitStack() as opened:
        with held_lane(service.database_url, user_id):
            clients = [opened.enter_context(waiting_client(service, transaction(user_id))) for _ in range(CLIENTS)]
            wait_until(lambda: pending_of(service, user_id) == CLIENTS, "all are accepted")
            seconds = []
            for _ in range(50):
                began = time.monotonic()
                answer = api.put(transaction(other, amount="1.00"), Prefer="wait=30")
                assert (answer.status, applied(answer)) == (200, "wait=30")
                seconds.append(time.monotonic() - began)
            assert sorted(seconds)[45] < OTHERS_SECONDS, seconds
            for path in ("/livez", "/readyz", "/metrics"):
                assert api.ask("GET", path).status == 200
        answers = [read_answer(client) for client in clients]
    assert {answer[:13] for answer in answers} == {b"HTTP/1.1 200 "}
    assert all(b"preference-applied: wait=30" in answer for answer in answers)


@contextmanager
def waiting_client(service: Service, content: dict[str, Any]) -> Iterator[socket.socket]:
    parts, body = urlsplit(service.url), json.dumps(content).encode()
    head = (
        "PUT /api/transaction/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nPrefer: wait=30\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        yield connection


def read_answer(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


def pending_of(service: Service, user_id: int) -> int:
    rows = query(
        service.database_url, "SELECT count(*) FROM transactions WHERE user_id = %s AND settled_at IS NULL", user_id
    )
    return int(rows[0][0])
