"""The raw HTTP client of tests. It sends exactly what the test says, so also requests that no real client would send."""

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import urllib3

from tests.kit.waiting import wait_until

JSON = "application/json"
PROBLEM = "application/problem+json"
MEMBERS = [  # of a transaction, in order
    *("uid", "user_id", "type", "amount", "status", "reason", "timestamp"),
    *("accepted_at", "settled_at", "balance_after"),
]
FINAL_SECONDS = 60.0
ANSWER_SECONDS = 8.0  # web promises 503 within 5; a frozen one promises nothing


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
        """Asserts that this is the problem with these bad fields, and returns it."""
        assert (self.status, self.json["code"]) == (status, code), self
        assert [error["field"] for error in self.json.get("errors", [])] == list(fields), self
        return self


def get(url: str, headers: Mapping[str, str] | None = None, seconds: float = 30) -> Response | None:
    """Returns the answer to a GET on a connection of its own. None if there is no whole answer, as where nobody listens."""
    parts = urlsplit(url)
    target = parts._replace(scheme="", netloc="").geturl() or "/"
    with closing(HTTPConnection(parts.netloc, timeout=seconds)) as connection, suppress(OSError, HTTPException):
        connection.request("GET", target, headers=dict(headers or {}))
        answer = connection.getresponse()
        return Response(answer.status, answer.headers, answer.read())
    return None


def status(url: str, headers: Mapping[str, str] | None = None) -> int:
    """Returns the status of the answer to a GET. 0 if there is no whole answer."""
    answer = get(url, headers)
    return answer.status if answer else 0


class Http:
    """The service at a URL. `connections` can be in use at once. Nothing is sent a second time."""

    def __init__(self, url: str, connections: int = 250) -> None:
        self.url = url
        self._pool = urllib3.connectionpool.connection_from_url(url, maxsize=connections, block=True, retries=False)

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | urllib3.Timeout = 40,
    ) -> Response:
        """Sends a request and returns the answer: bytes are sent as they are, an iterator of bytes in chunks, all else as JSON.

        Raises urllib3's HTTPError if there is no whole answer.
        """
        sent = urllib3.HTTPHeaderDict(headers or {})
        if body is not None:
            sent.setdefault("Content-Type", JSON)
        if not isinstance(body, bytes | Iterator | None):
            body = json.dumps(body).encode()
        response = self._pool.urlopen(method, path, body=body, headers=sent, redirect=False, timeout=timeout)
        return Response(response.status, response.headers, response.data)

    def try_send(self, method: str, path: str, body: Any = None, wait: int = 0) -> Response | None:
        """Sends a request that may wait so many seconds. Returns None if no whole JSON document came back in time."""
        headers = {"Prefer": f"wait={wait}"} if wait else {}
        timeout = urllib3.Timeout(connect=2, read=ANSWER_SECONDS + wait)
        with suppress(urllib3.exceptions.HTTPError, ValueError):
            answer = self.send(method, path, body, headers, timeout)
            json.loads(answer.body)
            return answer
        return None


class Api(Http):
    """As Http, for a service that works: it always answers, and each answer is checked for what all have in common."""

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        expected: int | None = None,
    ) -> Response:
        """Sends a request and returns the checked answer. Raises AssertionError if its status is not the expected one."""
        answer = self.send(method, path, body, headers)
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
        """Polls, as a client without `Prefer` does, and returns the final transaction."""

        def final() -> dict[str, Any]:
            found = self.look_up(uid).json
            return {} if found["status"] == "PENDING" else dict(found)

        return wait_until(final, f"{uid} is final", FINAL_SECONDS, interval=0.02)

    def balance(self, user_id: int, date: str | None = None) -> str:
        """Returns the balance. `date` goes into the query as it is written."""
        query = "" if date is None else f"?date={date}"
        answer = self.ask("GET", f"/api/user/{user_id}/balance/{query}")
        assert answer.status == 200, answer
        return str(answer.json["balance"])


def transaction(user_id: int, **members: Any) -> dict[str, Any]:
    """Returns the content of a request with a uid of its own. A member that is ... is left out."""
    made = {"uid": str(uuid.uuid4()), "user_id": user_id, "type": "DEPOSIT", "amount": "100.00", **members}
    return {name: value for name, value in made.items() if value is not ...}


def check(answer: Response, method: str) -> None:
    """Asserts what is true of every answer."""
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
