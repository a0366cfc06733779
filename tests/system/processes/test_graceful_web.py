"""web is stopped and replaced under load: no request that it took fails, and none is lost or doubled."""

import http.client
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from local.stack.ports import free_port
from tests.kit.database import held_lane
from tests.kit.http import JSON, Api, Response, get, transaction
from tests.kit.processes import start_python, started_at
from tests.kit.service import Service
from tests.kit.waiting import wait_until
from tests.system.paying_clients import PayingClients, assert_each_settled_once
from web.shutdown import _refuse_connections

pytestmark = pytest.mark.system

CLIENTS = 16

kept_and_fresh = pytest.mark.parametrize("keep_alive", [True, False], ids=["kept", "fresh"])


class Web:
    """`python -m web`, alone, beside a service whose servers it uses."""

    def __init__(self, service: Service, folder: Path, port: int) -> None:
        self.port = port
        self.process = start_python(
            *("-m", "web", "--port", str(port)),
            output=folder / f"web.{port}.{time.monotonic_ns()}.log",
            DATABASE_URL=service.database_url,
            BROKER_URL=service.broker_url,
        )
        wait_until(lambda: self.get("/readyz"), "web answers", 60)

    def get(self, path: str) -> Response | None:
        return get(f"http://127.0.0.1:{self.port}{path}")

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0


@pytest.fixture
def start_web(service: Service, tmp_path: Path) -> Iterator[Callable[..., Web]]:
    started: list[Web] = []

    def start(port: int = 0) -> Web:
        started.append(Web(service, tmp_path, port or free_port()))
        return started[-1]

    yield start
    for web in started:
        web.process.kill()
        web.process.wait()


@contextmanager
def paying(service: Service, ports: list[int], keep_alive: bool) -> Iterator[PayingClients]:
    """The clients. At the end: what had no answer had left nothing, and is accepted when it is sent again."""
    api = Api(service.url)
    user_ids = [api.add_user() for _ in range(CLIENTS)]
    with PayingClients(ports, user_ids, keep_alive) as clients:
        yield clients
    assert clients.surprises == []
    if not keep_alive:
        assert clients.unanswered == {}, "who was let in is answered"
    # A connection may be closed between two requests just as the next one is on its way. Then it was not read.
    for uid in clients.unanswered:
        assert api.look_up(uid).status == 404, clients.unanswered[uid]
    assert_each_settled_once(service.database_url, user_ids, clients.accepted)


@kept_and_fresh
def test_a_stop_under_load_fails_nobody_who_was_let_in(
    service: Service, start_web: Callable[..., Web], keep_alive: bool
) -> None:
    web = start_web()
    with paying(service, [web.port], keep_alive) as clients:
        web.stop()
        wait_until(lambda: clients.refused, "connections are refused")


@kept_and_fresh
def test_under_up_a_stop_fails_nobody_either_and_web_comes_back(service: Service, keep_alive: bool) -> None:
    old = service.pid_of("web")
    with paying(service, [urlsplit(service.url).port or 0], keep_alive) as clients:
        os.kill(old, signal.SIGTERM)
        wait_until(lambda: started_at(old) is None, "the end of the process")
        wait_until(service.answers, "web is started again", 60)
        clients.all_pay()
    ended = [line for line in service.log_lines() if line["event"] == "process ended" and line["role"] == "web"]
    assert ended[-1]["how"] == "exit code 0"


@kept_and_fresh
def test_while_one_of_two_is_replaced_nobody_is_even_refused(
    service: Service, start_web: Callable[..., Web], keep_alive: bool
) -> None:
    webs = [start_web(), start_web()]
    with paying(service, [web.port for web in webs], keep_alive) as clients:
        for web in webs:
            web.stop()
            clients.all_pay()
            start_web(web.port)
            clients.all_pay()
    assert clients.refused == 0


def test_a_list_under_way_is_accepted_during_shutdown(service: Service, start_web: Callable[..., Web]) -> None:
    web, user_id = start_web(), Api(service.url).add_user()
    contents = [transaction(user_id, amount="1.00") for _ in range(5000)]
    body = json.dumps(contents).encode()
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=30)
    connection.putrequest("PUT", "/api/transactions/")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[: len(body) // 2])
    web.process.terminate()
    wait_until(lambda: web.get("/livez") is None, "connections are refused")
    connection.send(body[len(body) // 2 :])
    response = connection.getresponse()
    results = json.loads(response.read())["results"]
    connection.close()
    assert response.status == 202
    assert [result["uid"] for result in results] == [content["uid"] for content in contents]
    assert web.process.wait(30) == 0
    assert_each_settled_once(service.database_url, [user_id], {content["uid"] for content in contents})


def test_a_stopping_web_closes_kept_connections_politely(service: Service, start_web: Callable[..., Web]) -> None:
    """That the stop has begun is seen by one who waits: that one is answered."""
    web, user_id = start_web(), Api(service.url).add_user()
    kept, waits = (http.client.HTTPConnection("127.0.0.1", web.port, timeout=30) for _ in range(2))
    kept.request("GET", "/livez")
    answer = kept.getresponse()
    assert "Connection" not in answer.headers
    answer.read()
    with held_lane(service.database_url, user_id):
        content = transaction(user_id)
        waits.request("PUT", "/api/transaction/", json.dumps(content), {"Content-Type": JSON, "Prefer": "wait=30"})
        wait_until(lambda: web.get(f"/api/transaction/{content['uid']}/").status == 200, "accepted")  # type: ignore[union-attr]
        web.process.terminate()
        assert waits.getresponse().status == 202
    kept.request("GET", "/livez")
    answer = kept.getresponse()
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    assert web.process.wait(30) == 0
    kept.close()
    waits.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the socket option is Linux's")
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1"])
def test_a_shut_door_lets_nobody_in_and_keeps_who_is_inside(address: str) -> None:
    with (
        listening_on(address) as listener,
        socket.socket(listener.family) as early,
        socket.socket(listener.family) as late,
    ):
        early.connect(listener.getsockname())
        _refuse_connections()
        with pytest.raises(ConnectionRefusedError):
            late.connect(listener.getsockname())
        inside, _ = listener.accept()
        with inside:
            inside.sendall(b"welcome")
            assert early.recv(7) == b"welcome"
            early.sendall(b"thanks")
            assert inside.recv(6) == b"thanks"


def listening_on(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, 0), family=family)
    except OSError as error:
        pytest.skip(f"{address}: {error.strerror}")
