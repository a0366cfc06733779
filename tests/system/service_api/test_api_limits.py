"""API.md, what is not taken in now: a backlog over the limit, a database that is away or hangs."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.kit.database import count_rows, held_lane
from tests.kit.http import PROBLEM, Api, Response, transaction
from tests.kit.processes import family
from tests.kit.service import Service
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.system

LIMIT = 5


@pytest.fixture
def limited(start_service: Callable[..., Service]) -> Service:
    return start_service(PAYMENTS_BACKLOG_LIMIT=str(LIMIT))


def test_over_the_backlog_limit_only_new_requests_get_429(limited: Service) -> None:
    api = Api(limited.url)
    user_id = api.add_user()
    sent = []
    with held_lane(limited.database_url, user_id):

        def full() -> bool:
            sent.append(transaction(user_id, amount="1"))
            answer = api.put(sent[-1])
            assert answer.status in (202, 429), answer
            return answer.status == 429

        wait_until(full, "the limit is noticed")
        assert len(sent) > LIMIT
        before = count_rows(limited.database_url)
        for content in (sent[-1], transaction(user_id), transaction(2**63 - 1)):
            answer = api.put(content, Prefer="wait=5").refused(429, "backlog_full")
            assert int(answer.headers["Retry-After"]) >= 1
        for content in sent[:-1]:
            answer = api.put(content)
            assert (answer.status, answer.headers["Idempotency-Replayed"]) == (202, "true")
        api.put({**sent[0], "amount": "2"}).refused(422, "uid_reused", "amount")
        assert count_rows(limited.database_url) == before
    for content in sent[:-1]:
        assert api.wait_final(content["uid"])["status"] == "COMPLETED"
    time.sleep(1.0)  # no condition to wait for: what was read before must be old, and not believed
    assert api.put(sent[-1]).status in (200, 202)


@pytest.fixture
def hanging(start_service: Callable[..., Service]) -> Iterator[Service]:
    """A service whose Postgres is stopped in the middle of things, all its processes."""
    service = start_service()
    Api(service.url).add_user()
    stopped = family(service.pid_of("postgres"))
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    yield service
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    wait_until(service.answers, "ready again")


def unavailable(api: Api, method: str, path: str, body: object = None) -> Response:
    answer = api.ask(method, path, body, expected=503)
    assert (answer.media, answer.json["code"]) == (PROBLEM, "database_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    return answer


def test_a_hanging_database_is_503_in_time(hanging: Service) -> None:
    api = Api(hanging.url)
    began = time.monotonic()
    detail = unavailable(api, "PUT", "/api/transaction/", transaction(1)).json["detail"]
    assert "not known" in detail
    unavailable(api, "GET", "/readyz")
    assert time.monotonic() - began < 25, "Postgres never answers"
    assert api.ask("GET", "/livez").status == 200
    numbers = api.ask("GET", "/metrics").body.decode()
    assert "http_request_duration_seconds" in numbers
    assert "payments_pending_transactions" not in numbers


def test_without_a_database_it_is_503_and_repeats_succeed(
    start_service: Callable[..., Service],
) -> None:
    service = start_service()
    api = Api(service.url)
    known, new = (transaction(api.add_user(), amount="1") for _ in range(2))
    api.put(known)
    os.kill(service.pid_of("up"), signal.SIGSTOP)  # or Postgres would be back before we look
    try:
        for pid in family(service.pid_of("postgres")):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        for content in (known, new):
            unavailable(api, "PUT", "/api/transaction/", content)
        unavailable(api, "POST", "/api/user/", {"name": "Ada"})
        for path in ("/api/user/1/", "/api/user/1/balance", f"/api/transaction/{known['uid']}", "/readyz"):
            unavailable(api, "GET", path)
        assert api.ask("GET", "/livez").status == 200
        assert time.monotonic() - began < 25
    finally:
        os.kill(service.pid, signal.SIGCONT)
    wait_until(service.answers, "ready again")
    for content in (known, new):
        assert api.put(content, Prefer="wait=15").json["status"] == "COMPLETED"
        assert api.balance(content["user_id"]) == "1.00"
