"""A small client of the API for tests: it sends what is written, and every answer is checked for what all have."""

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import psycopg2  # type: ignore[import-untyped]
import urllib3

JSON = "application/json"
PROBLEM = "application/problem+json"
MEMBERS = [  # of a transaction, in order
    *("uid", "user_id", "type", "amount", "status", "reason", "timestamp"),
    *("accepted_at", "settled_at", "balance_after"),
]
FINAL_SECONDS = 60.0
LANES = 16


class Response(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def media(self) -> str:
        return self.headers.get("Content-Type", "").partition(";")[0]

    def refused(self, status: int, code: str, *fields: str) -> "Response":
        """Asserts that this is the problem, with these bad fields."""
        assert (self.status, self.json["code"]) == (status, code), self
        assert [error["field"] for error in self.json.get("errors", [])] == list(fields), self
        return self


class Api:
    """The service at a URL. `connections` can be in use at once."""

    def __init__(self, url: str, connections: int = 250) -> None:
        self.url = url
        self._pool = urllib3.connectionpool.connection_from_url(
            url, maxsize=connections, block=True, retries=False, timeout=40
        )

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        expected: int | None = None,
    ) -> Response:
        """Send a request: bytes as they are, an iterator of bytes in chunks, all else as JSON."""
        sent = urllib3.HTTPHeaderDict(headers or {})
        if body is not None:
            sent.setdefault("Content-Type", JSON)
        if not isinstance(body, bytes | Iterator | None):
            body = json.dumps(body).encode()
        response = self._pool.urlopen(method, path, body=body, headers=sent, redirect=False)
        answer = Response(response.status, response.headers, response.data)
        assert answer.status == expected if expected else answer.status < 500, answer
        check(answer, method)
        return answer

    def add_user(self, name: str = "Ada", **headers: str) -> int:
        answer = self.ask("POST", "/api/user/", {"name": name}, headers)
        assert answer.status == 201, answer
        return int(answer.json["id"])

    def put(self, content: Mapping[str, Any], **headers: str) -> Response:
        return self.ask("PUT", "/api/transaction/", content, headers)

    def deposit(self, user_id: int, amount: str = "100.00", **members: Any) -> Response:
        return self.put(transaction(user_id, amount=amount, **members), Prefer="wait=30")

    def look_up(self, uid: str, **headers: str) -> Response:
        return self.ask("GET", f"/api/transaction/{uid}", headers=headers)

    def wait_final(self, uid: str) -> dict[str, Any]:
        """Poll, as a client without `Prefer` does."""
        deadline = time.monotonic() + FINAL_SECONDS
        while (found := self.look_up(uid).json)["status"] == "PENDING":
            assert time.monotonic() < deadline, f"not final: {found}"
            time.sleep(0.02)
        return dict(found)

    def balance(self, user_id: int, date: str | None = None) -> str:
        """`date` goes into the query as it is written."""
        query = "" if date is None else f"?date={date}"
        answer = self.ask("GET", f"/api/user/{user_id}/balance/{query}")
        assert answer.status == 200, answer
        return str(answer.json["balance"])


def transaction(user_id: int, **members: Any) -> dict[str, Any]:
    """The content of a request with a uid of its own; a member that is ... is left out."""
    made = {"uid": str(uuid.uuid4()), "user_id": user_id, "type": "DEPOSIT", "amount": "100.00", **members}
    return {name: value for name, value in made.items() if value is not ...}


def check(answer: Response, method: str) -> None:
    """What every answer keeps to, whatever was asked."""
    request_id = answer.headers["X-Request-ID"]
    assert 1 <= len(request_id) <= 128
    if answer.status < 400 or method == "HEAD":
        return
    assert answer.media == PROBLEM, answer
    problem = answer.json
    assert {"type", "title", "status", "detail", "code", "request_id"} <= problem.keys()
    assert (problem["status"], problem["request_id"]) == (answer.status, request_id)
    assert problem["code"].isascii()
    assert problem["code"].replace("_", "").islower()
    assert all(error.keys() == {"field", "message"} for error in problem.get("errors", []))


def query(database_url: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement, values)
        return list(cursor.fetchall())


def count_rows(database_url: str) -> tuple[Any, ...]:
    """Of users and of transactions. Not of entries: those of earlier tests' transactions may still be coming."""
    return query(database_url, "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM transactions)")[0]


@contextmanager
def held_lane(database_url: str, user_id: int) -> Iterator[None]:
    """Nothing of the user's lane is settled meanwhile: we have the lock that a worker takes for that."""
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(7411, %s)", [user_id % LANES])
        yield


@contextmanager
def row_lock(database_url: str, user_id: int) -> Iterator[None]:
    """A batch with this user's payments gets as far as the user's row, and waits there."""
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("SELECT FROM users WHERE id = %s FOR UPDATE", [user_id])
        yield
