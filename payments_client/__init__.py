"""A client of the payment service: `from payments_client import Payments`.

It repeats a payment unchanged, with the same uid, until the service answers. So neither a lost connection nor a retry
moves money twice. Amounts are str or Decimal, never float. A client is thread-safe.
"""

import itertools
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID, uuid4

import urllib3
from urllib3.exceptions import HTTPError

from payments_client.answers import ServiceResponse, read_answer
from payments_client.errors import InvalidRequest, NotFound, PaymentsApiError, Rejected, UidReused, Unavailable
from payments_client.values import Balance, Event, EventPage, Payment, Result, Transaction, User, instant_of, make_uid

__all__ = [
    "Balance",
    "Event",
    "EventPage",
    "InvalidRequest",
    "NotFound",
    "Payment",
    "Payments",
    "PaymentsApiError",
    "Rejected",
    "Result",
    "Transaction",
    "UidReused",
    "Unavailable",
    "User",
    "make_uid",
]

CLIENT_CONNECT_TIMEOUT_SECONDS: Final = 3.0
MAX_SERVER_WAIT_SECONDS: Final = 30  # the service's limit for one request
CLIENT_BACKOFF_SECONDS: Final = (0.1, 5.0)  # the first and the longest pause
CLIENT_POLL_INTERVAL_SECONDS: Final = (0.05, 1.0)


class Payments:
    """The service at `url`. A call is retried for `patience` seconds; one response may take `timeout` seconds."""

    def __init__(self, url: str, key: str | None = None, patience: float = 30.0, timeout: float = 10.0) -> None:
        parts = urllib3.util.parse_url(url)
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ValueError(f"not the address of a service: {url}")
        self._url = url.rstrip("/")
        self._headers = {"Accept": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._patience = patience
        self._timeout = timeout
        self._http = urllib3.PoolManager(maxsize=16)

    def add_user(self, name: str, idempotency_key: str | None = None) -> User:
        """Creates a user, once per `idempotency_key`, and returns it.

        Without a key the client makes one, so that the retries of this call create one user.
        """
        headers = {"Idempotency-Key": idempotency_key or str(uuid4())}
        created = self._send("POST", "/api/user/", headers, {"name": name}).document
        return User(created["id"], created["name"], instant_of(created["created_at"]))

    def deposit(
        self,
        user_id: int,
        amount: str | Decimal,
        timestamp: datetime | None = None,
        uid: UUID | None = None,
        wait: float = 10.0,
    ) -> Transaction:
        """Pays in and returns the transaction: COMPLETED, or PENDING after `wait` seconds.

        **`timestamp` is for backdating: do not send it with a live payment.** Raises Rejected if the service rejects
        the payment.
        """
        return self.submit(Payment("DEPOSIT", user_id, amount, timestamp, uid or make_uid()), wait)

    def withdraw(
        self,
        user_id: int,
        amount: str | Decimal,
        timestamp: datetime | None = None,
        uid: UUID | None = None,
        wait: float = 10.0,
    ) -> Transaction:
        """Pays out and returns the transaction: COMPLETED, or PENDING after `wait` seconds.

        **`timestamp` is for backdating: do not send it with a live payment.** A live payment that is repeated after an
        outage of over a minute would be checked against the past balance. Raises Rejected if the service rejects the
        payment.
        """
        return self.submit(Payment("WITHDRAW", user_id, amount, timestamp, uid or make_uid()), wait)

    def submit(self, payment: Payment, wait: float = 0.0) -> Transaction:
        """Sends a payment, for the first time or again, and returns the transaction, PENDING or COMPLETED.

        Raises Rejected if the service rejects it.
        """
        deadline = time.monotonic() + wait
        with _naming(payment.uid):
            response = self._send("PUT", "/api/transaction/", body=payment.as_json(), wait=wait)
        accepted = Transaction.of(response.document, response.replayed)
        remaining = deadline - time.monotonic()
        if accepted.is_final or remaining <= 0:
            return accepted
        settled = self.wait_until_final(payment.uid, remaining)
        if settled.status == "REJECTED":
            raise Rejected(settled, response.request_id)
        return settled

    def submit_list(self, payments: Sequence[Payment]) -> list[Result]:
        """Sends up to 10,000 payments in one request, for the first time or again. Returns a result each, in order."""
        response = self._send("PUT", "/api/transactions/", body=[payment.as_json() for payment in payments])
        return [Result.of(p.uid, r) for p, r in zip(payments, response.document["results"], strict=True)]

    def get(self, uid: UUID, wait: float = 0.0) -> Transaction:
        """Returns the transaction in its current state. With `wait` (at most 30 s) the service waits until it is final.

        Raises NotFound if there is no such transaction.
        """
        with _naming(uid):
            return Transaction.of(self._send("GET", f"/api/transaction/{uid}", wait=wait).document)

    def wait_until_final(self, uid: UUID, seconds: float = 10.0) -> Transaction:
        """Returns the transaction when it is final, or after `seconds`. Polls if the service does not wait."""
        deadline = time.monotonic() + seconds
        for attempt in itertools.count():
            transaction = self.get(uid, max(deadline - time.monotonic(), 0.0))
            remaining = deadline - time.monotonic()
            if transaction.is_final or remaining <= 0:
                break
            time.sleep(min(_pause(attempt, *CLIENT_POLL_INTERVAL_SECONDS), remaining))
        return transaction

    def balance(self, user_id: int, at: datetime | None = None) -> Balance:
        """Returns the current balance, or the balance at an instant. Raises ValueError if `at` has no time zone."""
        if at is not None and at.tzinfo is None:
            raise ValueError("an instant needs a time zone")
        query = f"?{urlencode({'date': at.isoformat()})}" if at else ""
        document = self._send("GET", f"/api/user/{user_id}/balance/{query}").document
        return Balance(document["user_id"], Decimal(document["balance"]), instant_of(document["date"]))

    def statement(self, user_id: int, page_size: int = 500) -> Iterator[Transaction]:
        """Returns all transactions of the user, in descending order of acceptance. Reads page by page."""
        query: dict[str, Any] = {"limit": page_size}
        while True:
            page = self._send("GET", f"/api/user/{user_id}/transactions/?{urlencode(query)}").document
            yield from map(Transaction.of, page["items"])
            if not page["next"]:
                return
            query["cursor"] = page["next"]

    def events(self, after: str = "", user_id: int | None = None, page_size: int = 500) -> Iterator[EventPage]:
        """Returns the pages of events after the cursor `after`, until you are up to date.

        Process a page, store its `next`, and pass it as `after` the next time. Then you miss no event. Raises
        PaymentsApiError with the code cursor_ahead if the service was restored to an earlier point.
        """
        query: dict[str, Any] = {"limit": page_size, **({} if user_id is None else {"user_id": user_id})}
        while True:
            document = self._send("GET", f"/api/events/?{urlencode({**query, 'after': after})}").document
            page = EventPage.of(document)
            if not page.items:
                return
            yield page
            after = page.next

    def _send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        wait: float = 0.0,
    ) -> ServiceResponse:
        """Sends a request until there is a definite response, and returns it.

        Every request here can be sent twice: it only reads, or it has a uid or an idempotency key.
        """
        all_headers = {**self._headers, **(headers or {}), "X-Request-ID": uuid4().hex}
        if wait > 0:
            all_headers["Prefer"] = f"wait={min(max(round(wait), 1), MAX_SERVER_WAIT_SECONDS)}"
        deadline = time.monotonic() + self._patience + wait
        attempt = 0
        while True:
            remaining = max(deadline - time.monotonic(), 0.1)
            try:
                return self._send_once(method, path, all_headers, body, min(self._timeout + wait, remaining))
            except Unavailable as unavailable:
                pause = unavailable.retry_after + _pause(attempt, *CLIENT_BACKOFF_SECONDS)
                if time.monotonic() + pause >= deadline:
                    raise
            time.sleep(pause)
            attempt += 1

    def _send_once(
        self, method: str, path: str, headers: Mapping[str, str], body: Any, seconds: float
    ) -> ServiceResponse:
        request_id = headers["X-Request-ID"]
        timeout = urllib3.Timeout(connect=min(CLIENT_CONNECT_TIMEOUT_SECONDS, seconds), read=seconds)
        try:
            # urllib3 limits its retries by number; ours are limited by time.
            response = self._http.request(
                method, self._url + path, json=body, headers=headers, timeout=timeout, retries=False
            )
        except HTTPError as error:
            raise Unavailable("no_answer", f"No answer from {self._url}: {error}", None, request_id) from error
        return read_answer(response, response.headers.get("X-Request-ID", request_id))


def _pause(attempt: int, first: float, longest: float) -> float:
    """Returns the seconds before the next attempt: exponential back-off with jitter, which spreads the clients."""
    return random.uniform(0.5, 1.0) * min(longest, first * 2.0 ** min(attempt, 16))


@contextmanager
def _naming(uid: UUID) -> Iterator[None]:
    try:
        yield
    except Unavailable as error:
        error.uid = uid
        raise
