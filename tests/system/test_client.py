"""The client against the real service, on good lines and on bad ones: one uid, one payment, whatever the line does."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.message import Message
from http.client import parse_headers
from typing import Any
from uuid import UUID

import pytest
import urllib3

from payments_client import (
    InvalidRequest,
    NotFound,
    Payment,
    Payments,
    PaymentsApiError,
    Rejected,
    UidReused,
    Unavailable,
    make_uid,
)
from tests.kit.database import held_lane
from tests.kit.service import Service

pytestmark = pytest.mark.system

SPOILT = ["cut before", "cut after", "cut in the answer", "503", "500", "429", "a page"]


class BadLine:
    """Stands before the service, one connection per request, and spoils the first ones as the words say."""

    def __init__(self, url: str, spoils: Sequence[str]) -> None:
        self._service = urllib3.connection_from_url(url, retries=False)
        self._spoils = list(spoils)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.seen: list[tuple[Message, Any]] = []  # headers and JSON of each request
        self.times: list[float] = []

    def serve(self) -> None:
        """Until a connection brings no request."""
        while True:
            connection, _ = self._server.accept()
            with connection, connection.makefile("rb") as file:
                line = file.readline().decode()
                if not line:
                    return
                headers = parse_headers(file)
                body = file.read(int(headers.get("Content-Length", 0)))
                self.times.append(time.monotonic())
                self.seen.append((headers, json.loads(body) if body else None))
                connection.sendall(self._answer(line, headers, body, self._spoils.pop(0) if self._spoils else ""))

    def _answer(self, line: str, headers: Message, body: bytes, spoil: str) -> bytes:
        if spoil == "cut before":
            return b""
        if spoil.isdecimal():
            return _http(int(spoil), {"Retry-After": "1"}, b'{"code": "busy", "detail": "Not now."}')
        method, path, _ = line.split()
        passed_on = {name: value for name, value in headers.items() if spoil != "no wait" or name != "Prefer"}
        answer = self._service.request(method, path, body=body or None, headers=passed_on)
        if spoil == "cut after":
            return b""
        if spoil == "a page":
            return _http(200, {}, b"<html>a proxy says hello</html>")
        written = _http(answer.status, answer.headers, answer.data)
        return written[: -len(answer.data) // 2] if spoil == "cut in the answer" else written

    def close(self) -> None:
        socket.create_connection(self._server.getsockname()).close()

    def clean_up(self) -> None:
        self._server.close()
        self._service.close()


def _http(status: int, headers: Mapping[str, str], body: bytes) -> bytes:
    own = {"Content-Length": str(len(body)), "Connection": "close"}
    kept = {name: value for name, value in headers.items() if name.title() not in own}
    lines = [f"HTTP/1.1 {status} Answer", *(f"{name}: {value}" for name, value in {**kept, **own}.items()), "", ""]
    return "\r\n".join(lines).encode() + body


@contextmanager
def bad_line(service: Service, *spoils: str) -> Iterator[BadLine]:
    line = BadLine(service.url, spoils)
    thread = threading.Thread(target=line.serve)
    thread.start()
    try:
        yield line
    finally:
        line.close()
        thread.join()
        line.clean_up()


@pytest.fixture(scope="module")
def payments(service: Service) -> Payments:
    return Payments(service.url)


def test_a_first_payment(payments: Payments) -> None:
    user = payments.add_user("Ada")
    before = datetime.now(UTC)
    paid = payments.deposit(user.id, "100.10")
    assert (paid.user_id, paid.type, paid.status, paid.reason) == (user.id, "DEPOSIT", "COMPLETED", None)
    assert (paid.amount, paid.balance_after) == (Decimal("100.10"), Decimal("100.10"))
    assert paid.settled_at is not None
    assert before - timedelta(seconds=1) < paid.accepted_at <= paid.settled_at
    assert paid.accepted_at.utcoffset() == timedelta(0)
    assert payments.withdraw(user.id, Decimal("0.10")).balance_after == Decimal(100)
    assert payments.balance(user.id).balance == Decimal(100)
    assert payments.get(paid.uid) == paid


def test_a_repeat_is_recognised_and_the_same(payments: Payments) -> None:
    user = payments.add_user("Ada")
    payment = Payment("DEPOSIT", user.id, "5")
    first = payments.submit(payment, wait=10)
    again = payments.submit(payment)
    assert (first.replayed, again.replayed) == (False, True)
    assert first == again
    assert payments.deposit(user.id, Decimal("5.00"), uid=payment.uid) == first


def test_a_key_finds_the_same_user_again(payments: Payments) -> None:
    key = str(make_uid())
    assert payments.add_user("Ada", key) == payments.add_user("Ada", key)
    assert payments.add_user("Ada") != payments.add_user("Ada")
    with pytest.raises(InvalidRequest) as raised:
        payments.add_user("Bob", key)
    assert raised.value.code == "key_reused"


def test_balances_are_asked_for_at_instants(payments: Payments) -> None:
    user = payments.add_user("Ada")
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    payments.deposit(user.id, "7", noon)
    for at, balance in ((noon - timedelta(microseconds=1), "0.00"), (noon, "7.00"), (None, "7.00")):
        found = payments.balance(user.id, at)
        assert found.balance == Decimal(balance)
        assert at is None or found.date == at


def test_a_statement_is_read_over_all_its_pages(payments: Payments) -> None:
    user = payments.add_user("Ada")
    uids = [payments.submit(Payment("DEPOSIT", user.id, "1")).uid for _ in range(7)]
    for page_size in (1, 3, 7, 500):
        assert [t.uid for t in payments.statement(user.id, page_size)] == uids[::-1]
    assert list(payments.statement(payments.add_user("Bob").id)) == []


def test_a_rejection_is_raised_at_every_repeat(payments: Payments) -> None:
    user = payments.add_user("Ada")
    payment = Payment("WITHDRAW", user.id, "1")
    for wait in (10, 0):
        with pytest.raises(Rejected) as raised:
            payments.submit(payment, wait)
        error = raised.value
        assert (error.code, error.status) == ("insufficient_funds", 409)
        assert (error.transaction.uid, error.transaction.status) == (payment.uid, "REJECTED")
    assert payments.get(payment.uid) == error.transaction


def test_a_list_of_payments_is_told_how_each_stands(payments: Payments) -> None:
    user = payments.add_user("Ada")
    paid, poor = Payment("DEPOSIT", user.id, "5"), Payment("WITHDRAW", user.id, "9")
    bad = Payment("DEPOSIT", user.id, "0.001")
    sent = payments.submit_list([paid, bad, poor])
    assert [(result.uid, result.status in ("INVALID", "REJECTED")) for result in sent[:2]] == [
        *((paid.uid, False), (bad.uid, True))
    ]
    assert (sent[1].code, bool(sent[1].detail)) == ("invalid_request", True)
    payments.wait_until_final(poor.uid)
    again = payments.submit_list([paid, poor])
    assert [(result.status, result.code) for result in again] == [
        *(("COMPLETED", None), ("REJECTED", "insufficient_funds"))
    ]
    assert payments.submit_list([]) == []


def test_a_bad_line_makes_it_send_a_list_again_as_it_was(service: Service, payments: Payments) -> None:
    user = payments.add_user("Ada")
    with bad_line(service, *SPOILT) as line:
        sent = Payments(line.url).submit_list([Payment("DEPOSIT", user.id, "1") for _ in range(10)])
    assert {payments.wait_until_final(result.uid).status for result in sent} == {"COMPLETED"}
    assert payments.balance(user.id).balance == 10


@pytest.mark.parametrize(
    ("act", "kind", "code", "status"),
    [
        (lambda p, user: p.deposit(user, "1.001"), InvalidRequest, "invalid_request", 422),
        (lambda p, user: p.deposit(user, "-1"), InvalidRequest, "invalid_request", 422),
        (lambda p, user: p.add_user(""), InvalidRequest, "invalid_request", 422),
        (lambda p, user: p.deposit(2**62, "1"), NotFound, "user_not_found", 404),
        (lambda p, user: p.balance(2**62), NotFound, "user_not_found", 404),
        (lambda p, user: list(p.statement(2**62)), NotFound, "user_not_found", 404),
        (lambda p, user: p.get(make_uid()), NotFound, "transaction_not_found", 404),
        (lambda p, user: p.deposit(user, "2", uid=p.deposit(user, "1").uid), UidReused, "uid_reused", 422),
    ],
)
def test_each_error_has_its_kind(
    payments: Payments,
    act: Callable[[Payments, int], object],
    kind: type[PaymentsApiError],
    code: str,
    status: int,
) -> None:
    with pytest.raises(PaymentsApiError) as raised:
        act(payments, payments.add_user("Ada").id)
    error = raised.value
    assert (type(error), error.code, error.status) == (kind, code, status)
    assert error.request_id
    assert error.detail in str(error)


def test_an_unsettled_payment_is_pending_and_can_be_awaited(service: Service, payments: Payments) -> None:
    user = payments.add_user("Ada")
    with held_lane(service.database_url, user.id):
        began = time.monotonic()
        paid = payments.deposit(user.id, "1", wait=1)
        assert (paid.status, paid.is_final) == ("PENDING", False)
        assert 1 <= time.monotonic() - began < 10
        assert payments.wait_until_final(paid.uid, 0.0) == paid
    assert payments.wait_until_final(paid.uid).status == "COMPLETED"


def test_it_polls_where_the_service_does_not_let_it_wait(service: Service, payments: Payments) -> None:
    user = payments.add_user("Ada")
    with bad_line(service, *["no wait"] * 100) as line:
        with held_lane(service.database_url, user.id):
            assert Payments(line.url).deposit(user.id, "1", wait=1).status == "PENDING"
        assert len(line.seen) > 3
        assert Payments(line.url).deposit(user.id, "1").status == "COMPLETED"
        with pytest.raises(Rejected):
            Payments(line.url).withdraw(user.id, "100")


@pytest.mark.parametrize("spoils", [[spoil] for spoil in SPOILT] + [SPOILT], ids=", ".join)
def test_a_bad_line_makes_it_send_again_under_the_same_uid(
    spoils: list[str], service: Service, payments: Payments
) -> None:
    user = payments.add_user("Ada")
    with bad_line(service, *spoils) as line:
        paid = Payments(line.url).deposit(user.id, "3.00")
    assert paid.status == "COMPLETED"
    assert len(line.seen) == len(spoils) + 1
    assert {sent["uid"] for _, sent in line.seen} == {str(paid.uid)}
    assert len({json.dumps(sent) for _, sent in line.seen}) == 1
    assert paid.replayed == any(spoil in ("cut after", "cut in the answer", "a page") for spoil in spoils)
    assert payments.balance(user.id).balance == Decimal("3.00")
    assert [t.uid for t in payments.statement(user.id)] == [paid.uid]


def test_a_bad_line_makes_one_user_not_two(service: Service, payments: Payments) -> None:
    with bad_line(service, "cut after", "cut in the answer") as line:
        user = Payments(line.url).add_user("Ada")
    (key,) = {headers["Idempotency-Key"] for headers, _ in line.seen}
    assert len(line.seen) == 3
    assert payments.add_user("Ada", key) == user


def test_it_waits_as_long_as_the_service_asks(service: Service, payments: Payments) -> None:
    user = payments.add_user("Ada")
    with bad_line(service, "503", "429") as line:
        Payments(line.url).deposit(user.id, "1")
    pauses = [later - earlier for earlier, later in zip(line.times, line.times[1:], strict=False)]
    assert all(1 <= pause < 10 for pause in pauses), pauses


def test_after_the_timeout_the_error_has_the_uid(service: Service, payments: Payments) -> None:
    user = payments.add_user("Ada")
    with bad_line(service, *["cut after"] * 100) as line:
        began = time.monotonic()
        with pytest.raises(Unavailable) as raised:
            Payments(line.url, patience=1.0).deposit(user.id, "4", wait=0)
        assert time.monotonic() - began < 10
    error = raised.value
    assert (error.code, error.status) == ("no_answer", None)
    assert error.request_id == line.seen[0][0]["X-Request-ID"]
    assert isinstance(error.uid, UUID)
    assert payments.deposit(user.id, "4", uid=error.uid).replayed
    assert payments.balance(user.id).balance == Decimal(4)


def test_where_nobody_listens_it_gives_up_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(Unavailable):
        Payments("http://127.0.0.1:1", patience=0.5).deposit(1, "1", wait=0)
    assert time.monotonic() - began < 10


def test_retries_send_the_same_key_and_request_id(service: Service) -> None:
    with bad_line(service, "503") as line:
        Payments(line.url, key="secret").add_user("Ada")
    assert [headers["Authorization"] for headers, _ in line.seen] == ["Bearer secret"] * 2
    first, second = (headers["X-Request-ID"] for headers, _ in line.seen)
    assert first == second
