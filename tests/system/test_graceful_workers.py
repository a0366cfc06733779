"""worker and notify are stopped under load: what is under way is finished, nothing is lost or doubled."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from api import LANES, Api, query, row_lock, transaction
from celery import Celery
from paying_clients import PayingClients, assert_each_settled_once
from running_service import ROOT, Service, assert_all_ended, environment, family, wait_until

from tests.receiver import Got, receiving

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


def test_workers_stopped_under_load_end_in_time_and_nothing_is_lost(service: Service) -> None:
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


def test_a_delivery_that_has_left_its_slot_is_finished_by_a_notifier_that_stops(
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


# A worker with a fault: a task that takes long, a guard that is impatient, or a pool whose results nobody reads.
PLANTED = """
import time
import celery.concurrency.asynpool
import worker.app, worker.tasks
from worker.__main__ import main

def a_long_task(lanes):
    print("a long task", flush=True)
    time.sleep({seconds})

worker.app.STOP_SECONDS = {patience}
worker.tasks.work_lanes = a_long_task
if {unread}:
    celery.concurrency.asynpool.ResultHandler.on_stop_not_started = lambda _: None
main([])
"""


@pytest.fixture
def start_planted(service: Service, tmp_path: Path) -> Iterator[Callable[..., "Planted"]]:
    started: list[Planted] = []

    def start(**faults: Any) -> Planted:
        started.append(Planted(service, tmp_path, faults))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


class Planted:
    """Rung for, and in its task. Its queue is in another database of the broker: the service's own worker is not rung."""

    def __init__(self, service: Service, folder: Path, faults: dict[str, Any]) -> None:
        self.output = folder / "planted.log"
        broker = service.broker_url.removesuffix("/0") + "/1"
        given = {"DATABASE_URL": service.database_url, "BROKER_URL": broker, "PAYMENTS_WORKERS": "1"}
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PLANTED.format(**faults)],
                cwd=ROOT,
                env=environment(**given),
                stdout=output,
                stderr=output,
            )
        with Celery("tests", broker=broker, set_as_current=False) as control:
            control.send_task("settle", [[0]], queue="settle", ignore_result=True)
        wait_until(lambda: "a long task" in self.said(), "the task has begun", 60)

    def said(self) -> str:
        return self.output.read_text(errors="replace")


def test_a_pool_process_whose_result_nobody_reads_does_not_hold_up_the_stop(
    start_planted: Callable[..., Planted],
) -> None:
    """It would wait half a minute, and the guard ends the worker before that, as failed."""
    planted = start_planted(seconds=1, patience=20, unread=True)
    planted.process.terminate()
    assert planted.process.wait(40) == 0, planted.said()


def test_a_warm_stop_that_takes_too_long_is_ended_and_says_where_it_stood(
    start_planted: Callable[..., Planted],
) -> None:
    planted = start_planted(seconds=50, patience=2, unread=False)
    all_of_it = family(planted.process.pid)
    planted.process.terminate()
    assert planted.process.wait(40) == 1
    said = planted.said()
    assert '"the worker ends itself"' in said
    assert '"reason": "the warm stop takes too long"' in said
    assert "in _guard" in said, "the stacks of the main process"
    assert "in a_long_task" in said, "the stacks of the pool's processes"
    assert_all_ended(all_of_it, seconds=5)


def test_a_pool_process_that_is_frozen_is_ended_too(start_planted: Callable[..., Planted]) -> None:
    planted = start_planted(seconds=50, patience=2, unread=False)
    all_of_it = family(planted.process.pid)
    for pid in all_of_it.keys() - {planted.process.pid}:
        os.kill(pid, signal.SIGSTOP)
    planted.process.terminate()
    assert planted.process.wait(40) == 1
    assert_all_ended(all_of_it, seconds=5)
