"""Clients that pay all the time while what they talk to is stopped, and write down how each request went."""

import http.client
import json
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.kit.database import query
from tests.kit.http import JSON, transaction
from tests.kit.waiting import wait_until

PAYMENT_TIMEOUT_SECONDS = 30
PAUSE_SECONDS = 0.02  # they share the machine with what they test


class PayingClients:
    """A thread each. The first address that takes the connection is used; one in two asks to wait."""

    def __init__(self, ports: Sequence[int], user_ids: Sequence[int], keep_alive: bool) -> None:
        self.accepted: set[str] = set()
        self.unanswered: dict[str, str] = {}  # by uid, what came instead of a whole answer
        self.surprises: list[str] = []
        self.answers: Counter[int] = Counter()  # by client
        self.refused = 0
        self._ports = ports
        self._keep_alive = keep_alive
        self._lock = threading.Lock()
        self._stops = threading.Event()
        self._threads = [
            threading.Thread(target=self._pay, args=[number, user_id]) for number, user_id in enumerate(user_ids)
        ]

    def __enter__(self) -> "PayingClients":
        for thread in self._threads:
            thread.start()
        self.all_pay()
        return self

    def __exit__(self, *_: object) -> None:
        self._stops.set()
        for thread in self._threads:
            thread.join()

    def all_pay(self) -> None:
        """Wait until each has had another ten answers."""
        before = dict(self.answers)
        wait_until(
            lambda: all(self.answers[n] >= before.get(n, 0) + 10 for n in range(len(self._threads))),
            "all clients are answered",
            60,
        )

    def _pay(self, number: int, user_id: int) -> None:
        connection = None
        while not self._stops.wait(PAUSE_SECONDS):
            connection = connection or self._connect(number)
            if connection is None:
                continue
            content = transaction(user_id, amount="1.00")
            if not self._send(connection, content, number) or not self._keep_alive or connection.sock is None:
                connection.close()
                connection = None
        if connection:
            connection.close()

    def _connect(self, number: int) -> http.client.HTTPConnection | None:
        for port in (*self._ports[number % len(self._ports) :], *self._ports):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PAYMENT_TIMEOUT_SECONDS)
            try:
                connection.connect()
            except ConnectionRefusedError:
                continue
            return connection
        with self._lock:
            self.refused += 1
        return None

    def _send(self, connection: http.client.HTTPConnection, content: dict[str, Any], number: int) -> bool:
        headers = {"Content-Type": JSON, **({"Prefer": "wait=30"} if number % 2 else {})}
        try:
            connection.request("PUT", "/api/transaction/", json.dumps(content), headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            with self._lock:
                self.unanswered[content["uid"]] = repr(error)
            return False
        with self._lock:
            self.answers[number] += 1
            if response.status in (200, 202):
                self.accepted.add(content["uid"])
            else:
                self.surprises.append(f"{response.status} {body.decode()}")
        return True


def assert_each_settled_once(database_url: str, user_ids: Sequence[int], accepted: set[str]) -> None:
    """What was answered 2xx, and nothing else, stands in the ledger, once."""
    users = "user_id = ANY(%s)"
    wait_until(
        lambda: (
            query(database_url, f"SELECT count(*) FROM transactions WHERE status = 'PENDING' AND {users}", user_ids)
            == [(0,)]
        ),
        "all is settled",
        30,
    )
    settled = [uid for (uid,) in query(database_url, f"SELECT uid::text FROM ledger WHERE {users}", user_ids)]
    assert len(settled) == len(set(settled))
    assert set(settled) == accepted
