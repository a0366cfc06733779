"""What was accepted settles: with the broker emptied, frozen or killed, with workers killed in mid-batch."""

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from tests.kit.database import query, row_lock
from tests.kit.http import Api, transaction
from tests.kit.processes import family
from tests.kit.service import Service
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.system

SETTLED_SECONDS = 60


def accept_deposits(api: Api, user_id: int, count: int) -> list[str]:
    """Accepted deposits of 1.00 each, by uid."""
    contents = [transaction(user_id, amount="1.00") for _ in range(count)]
    for content in contents:
        assert api.put(content).status in (200, 202)
    return [content["uid"] for content in contents]


def assert_settled(api: Api, user_id: int, uids: list[str], seconds: float = SETTLED_SECONDS) -> None:
    wait_until(
        lambda: all(api.look_up(uid).json["status"] == "COMPLETED" for uid in uids), "all are COMPLETED", seconds
    )
    assert api.balance(user_id) == f"{len(uids)}.00"


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_the_broker_may_be_emptied_at_any_time(service: Service, api: Api) -> None:
    user_id = api.add_user()
    uids: list[str] = []
    with redis.Redis.from_url(service.broker_url) as broker:
        for _ in range(30):
            uids += accept_deposits(api, user_id, 3)
            broker.flushall()
    assert_settled(api, user_id, uids)


def test_payments_settle_while_the_broker_is_frozen_throughout(service: Service, api: Api) -> None:
    with frozen(service.pid_of("broker")):
        accepted = {user_id: accept_deposits(api, user_id, 5) for user_id in [api.add_user() for _ in range(8)]}
        for user_id, uids in accepted.items():
            assert_settled(api, user_id, uids)


def test_payments_settle_when_the_broker_is_killed(service: Service, api: Api) -> None:
    user_id = api.add_user()
    os.kill(service.pid_of("broker"), signal.SIGKILL)
    assert_settled(api, user_id, accept_deposits(api, user_id, 20))


def test_payments_settle_after_all_workers_die(service: Service, api: Api) -> None:
    """Their parent starts others, whose sweeps need no broker."""
    user_id = api.add_user()
    worker = service.pid_of("worker")
    with frozen(service.pid_of("broker")):
        for pid in family(worker).keys() - {worker}:
            os.kill(pid, signal.SIGKILL)
        assert_settled(api, user_id, accept_deposits(api, user_id, 5), seconds=30)
    assert service.pid_of("worker") == worker


def test_a_worker_killed_in_mid_batch_loses_nothing(service: Service, api: Api) -> None:
    """The batch stands at the user's row, which the test holds, when all processes of the worker are killed."""
    user_id, worker = api.add_user(), family(service.pid_of("worker"))  # not later: a batch waits for two seconds
    with row_lock(service.database_url, user_id):
        uids = accept_deposits(api, user_id, 20)
        wait_until(lambda: a_batch_waits(service.database_url), "a batch waits for the user's row")
        for pid in worker:
            os.kill(pid, signal.SIGKILL)
    assert_settled(api, user_id, uids)


def a_batch_waits(database_url: str) -> bool:
    return bool(
        query(
            database_url,
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'payments-worker' AND wait_event_type = 'Lock'",
        )
    )


def test_a_frozen_process_does_not_keep_its_lane(service: Service, api: Api) -> None:
    """Frozen with the lane's lock in its hands: Postgres ends its session, and another process settles."""
    user_id, worker = api.add_user(), service.pid_of("worker")
    pool = [pid for pid in family(worker) if pid != worker]
    with row_lock(service.database_url, user_id):
        uids = accept_deposits(api, user_id, 20)
        wait_until(lambda: a_batch_waits(service.database_url), "a batch waits for the user's row")
        for pid in pool[:-1]:
            os.kill(pid, signal.SIGSTOP)
    try:
        assert_settled(api, user_id, uids)
    finally:
        for pid in pool[:-1]:
            os.kill(pid, signal.SIGCONT)


def test_a_worker_with_frozen_processes_settles_again(start_service: Callable[..., Service]) -> None:
    service = start_service(PAYMENTS_DEAF_SECONDS="2")
    api, worker = Api(service.url), service.pid_of("worker")
    user_id = api.add_user()
    for pid in family(worker).keys() - {worker}:
        os.kill(pid, signal.SIGSTOP)
    assert_settled(api, user_id, accept_deposits(api, user_id, 5))
    assert service.pid_of("worker") == worker, "its processes were replaced, not it"


def test_a_request_id_is_in_the_logs_of_web_and_worker(service: Service, api: Api) -> None:
    request_id = f"trace-{uuid.uuid4().hex}"
    content = transaction(api.add_user())
    api.put(content, **{"X-Request-ID": request_id, "Prefer": "wait=5"})
    uid = content["uid"]
    ((stored,),) = query(service.database_url, "SELECT request_id FROM transactions WHERE uid = %s", uid)
    assert stored == request_id

    def told_by_the_worker() -> list[dict[str, Any]]:
        lines = [line for line in service.log_lines() if line["process"] == "worker"]
        return [line for line in lines if [uid, "COMPLETED", request_id] in line.get("transactions", [])]

    (line,) = wait_until(told_by_the_worker, "the worker says what it settled")
    assert line["request_id"] == request_id, "the task's header carries it"
    assert line["rang"] == uid, "the task's id is the uid that rang"
