"""worker and notify are stopped under load: what is under way is finished, nothing is lost or doubled."""

import os
import signal
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from tests.kit.database import LANES, query, row_lock
from tests.kit.http import Api, transaction
from tests.kit.receiver import Got, receiving
from tests.kit.service import Service
from tests.kit.waiting import wait_until
from tests.system.paying_clients import PayingClients, assert_each_settled_once

pytestmark = pytest.mark.system

DONE = "transaction.completed"


def stop(service: Service, role: str) -> None:
    """SIGTERM, and wait for the next process of the role."""
    old = service.pid_of(role)
    os.kill(old, signal.SIGTERM)
    wait_until(lambda: [p for p in service.ps() if p["role"] == role and p["pid"] != old], f"another {role}", 60)


def ends(service: Service, role: str) -> list[str]:
    """How the processes of a role have ended so far."""
    return [
        line["how"] for line in service.log_lines() if line["event"] == "process ended" and line.get("role") == role
    ]


def test_workers_stopped_under_load_lose_nothing(service: Service) -> None:
    api, before = Api(service.url), len(ends(service, "worker"))
    user_ids = [api.add_user() for _ in range(8)]
    with PayingClients([urlsplit(service.url).port or 0], user_ids, keep_alive=True) as clients:
        for _ in range(3):
            stop(service, "worker")
            clients.all_pay()  # half of them wait until it is settled
    assert ends(service, "worker")[before:] == ["exit code 0"] * 3
    assert (clients.surprises, clients.unanswered) == ([], {})
    assert_each_settled_once(service.database_url, user_ids, clients.accepted)


def test_a_worker_that_is_stopped_finishes_its_batch(service: Service) -> None:
    """The batch has locked one user and stands at the other, whom the test holds, when SIGTERM comes."""
    api, before = Api(service.url), len(ends(service, "worker"))
    first, *_, second = [api.add_user() for _ in range(LANES + 1)]  # of one lane, so that one batch has both
    api.deposit(first)  # there is a worker
    old = service.pid_of("worker")  # not later: a batch waits for a lock for two seconds, then it is settled in parts
    contents = [transaction(user_id) for user_id in (first, second)]
    waiting = "SELECT backend_xid FROM pg_stat_activity WHERE application_name = 'payments-worker'"
    with row_lock(service.database_url, second):
        api.ask("PUT", "/api/transactions/", contents, expected=202)
        ((batch,),) = wait_until(
            lambda: query(service.database_url, f"{waiting} AND wait_event_type = 'Lock' AND backend_xid IS NOT NULL"),
            "a batch waits for the user's row",
        )
        os.kill(old, signal.SIGTERM)
    for content in contents:
        assert api.wait_final(content["uid"])["status"] == "COMPLETED"
    wait_until(lambda: len(ends(service, "worker")) > before, "the end of the worker", 60)
    assert ends(service, "worker")[before:] == ["exit code 0"]
    uids = [content["uid"] for content in contents]
    written_by = query(service.database_url, "SELECT DISTINCT xmin FROM ledger WHERE uid = ANY(%s::uuid[])", uids)
    assert written_by == [(batch,)], "by the very transaction that was under way"
    wait_until(lambda: "worker" in {process["role"] for process in service.ps()}, "another worker")


def test_a_notifier_that_is_stopped_finishes_its_deliveries(start_service: Callable[..., Service]) -> None:
    service = start_service(WEBHOOK_ALLOW_PRIVATE="1")
    api = Api(service.url)
    users = [api.add_user() for _ in range(8)]

    def slowly(_: Got) -> int:
        time.sleep(0.2)  # so that some are under way when the signal comes
        return 200

    with receiving() as receiver:
        receiver.answer = slowly
        api.ask("POST", "/api/webhook/", {"url": receiver.url, "events": [DONE]}, expected=201)
        for stops in range(1, 4):
            api.ask("PUT", "/api/transactions/", [transaction(user) for user in users for _ in range(4)], expected=202)
            wait_until(lambda: receiver.at_once, "deliveries are under way")
            stop(service, "notify")
            assert ends(service, "notify") == ["exit code 0"] * stops
        whole = [(seq, DONE) for seq in range(1, 13)]
        wait_until(lambda: all(list(dict.fromkeys(receiver.told(user))) == whole for user in users), "all in order", 60)
        bodies = {(got.id, got.body) for got in receiver.got}
    assert len(bodies) == len({got.id for got in receiver.got}) == len(whole) * len(users), "a repeat is the same"


def test_a_stopping_notifier_finishes_slow_deliveries(
    start_service: Callable[..., Service],
) -> None:
    service = start_service(WEBHOOK_ALLOW_PRIVATE="1")
    api, go = Api(service.url), threading.Event()

    def answer(_: Got) -> int:
        go.wait(9)
        return 200

    with receiving() as receiver:
        receiver.answer = answer
        api.ask("POST", "/api/webhook/", {"url": receiver.url, "events": [DONE]}, expected=201)
        api.put(transaction(api.add_user()))
        wait_until(lambda: receiver.got, "a delivery is under way")
        long = "SELECT FROM deliveries WHERE claimed_until < now() + interval '19 seconds'"  # of the twenty of a claim
        wait_until(lambda: query(service.database_url, long), "it has left its slot")
        old = service.pid_of("notify")
        os.kill(old, signal.SIGTERM)
        stops = "worker: Warm shutdown (MainProcess)"
        wait_until(
            lambda: [one for one in service.log_lines() if (one["event"], one["process"]) == (stops, "notify")],
            "it stops",
        )
        go.set()
        wait_until(lambda: [p for p in service.ps() if p["role"] == "notify" and p["pid"] != old], "another one", 40)
        assert ends(service, "notify") == ["exit code 0"]
        assert query(service.database_url, "SELECT attempts FROM deliveries WHERE delivered_at IS NOT NULL") == [(1,)]
    assert len(receiver.got) == 1
