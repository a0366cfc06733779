"""What clients meet while a server is away, and that all is well afterwards without a restart."""

import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

import pytest

from tests.faults.paying import COMPLETED_ONCE, add_user, balance, payment, put, wait_final
from tests.faults.proxy import Proxy
from tests.faults.stack import Stack
from tests.kit.http import Http
from tests.kit.processes import started_at
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.system

UNAVAILABLE_SECONDS = 5.0
SETTLED_SECONDS = 5.0
GIVEN_UP_SECONDS = 15.0  # a statement's 5 s, and 3 s for the answer; then another connection


def refuse(proxy: Proxy) -> None:
    proxy.refuses = True
    proxy.reset()


@pytest.mark.parametrize("break_it", [refuse, Proxy.hold, Proxy.swallow, Proxy.half_open])
def test_without_postgres_it_is_503_and_recovers_by_itself(
    stack: Stack, http: Http, break_it: Callable[[Proxy], None]
) -> None:
    user_id = add_user(http, balance="1.00")
    web, threads = stack.family_of("web"), count_threads(stack)
    contents = [payment(user_id, "1.00") for _ in range(20)]

    def try_it(content: dict[str, Any]) -> tuple[int | None, str | None, float]:
        began = time.monotonic()
        answer = put(http, content)
        return answer and answer.status, answer and answer.headers.get("Retry-After"), time.monotonic() - began

    break_it(stack.postgres)
    with ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(try_it, contents))
    if break_it is not Proxy.half_open:  # a new connection works there, as soon as the old one is given up
        assert {(status, retry) for status, retry, _ in answers} == {(503, "1")}, answers
    assert max(seconds for _, _, seconds in answers) < UNAVAILABLE_SECONDS + 0.5, answers
    stack.postgres.heal()
    for content in contents:
        wait_until(partial(is_accepted, http, content), "it is accepted", 10)
    assert {wait_final(stack, str(content["uid"])) for content in contents} == {COMPLETED_ONCE}
    assert balance(http, user_id) == "21.00"
    assert stack.family_of("web") == web, "it was not restarted"
    wait_until(lambda: count_threads(stack) <= threads + 25, "no thread is stuck", 15)


def test_a_line_that_never_answers_again_is_given_up(stack: Stack, http: Http) -> None:
    """Its packets are still acknowledged, so neither TCP nor any time-out of the server ends the wait."""
    user_id = add_user(http, balance="1.00")
    families = stack.family_of("web"), stack.family_of("worker")
    content = payment(user_id, "1.00")
    stack.postgres.swallow()
    put(http, content)
    time.sleep(2)  # every sweep has asked something meanwhile
    stack.postgres.heal(leaves_dead=True)
    wait_until(partial(is_accepted, http, content), "it is accepted", GIVEN_UP_SECONDS)
    assert wait_final(stack, content["uid"], GIVEN_UP_SECONDS) == COMPLETED_ONCE
    assert balance(http, user_id) == "2.00"
    assert (stack.family_of("web"), stack.family_of("worker")) == families, "nothing was restarted"


def test_a_worker_that_cannot_stop_is_ended(stack: Stack, http: Http) -> None:
    """It waits for a settling process that is frozen; whoever told it to stop wants another one."""
    user_id = add_user(http)
    main, frozen, *_ = stack.family_of("worker")
    os.kill(frozen, signal.SIGSTOP)
    os.kill(main, signal.SIGTERM)
    stack.await_restart("worker", main)
    stack.await_ready()
    wait_until(lambda: started_at(frozen) is None, "its processes are gone")
    content = payment(user_id, "1.00")
    assert put(http, content)
    assert wait_final(stack, content["uid"]) == COMPLETED_ONCE


def is_accepted(http: Http, content: dict[str, Any]) -> bool:
    answer = put(http, content)
    return answer is not None and answer.status in (200, 202)


def count_threads(stack: Stack) -> int:
    return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in stack.family_of("web"))


def test_without_a_broker_everything_settles_in_time(stack: Stack, http: Http) -> None:
    user_ids = [add_user(http) for _ in range(8)]
    uids = []
    stack.signal("broker", signal.SIGSTOP)
    try:
        for number in range(400):
            content = payment(user_ids[number % 8], "1.00")
            answer = put(http, content)
            assert answer
            assert answer.status == 202, answer
            uids.append(content["uid"])
            time.sleep(0.05)  # twenty a second, so that the broker is away for long
        assert [wait_final(stack, uid) for uid in uids] == [COMPLETED_ONCE] * len(uids)
        seconds = seconds_to_final(stack, uids)
    finally:
        stack.signal("broker", signal.SIGCONT)
    p50, p99 = (quantiles(seconds, n=100, method="inclusive")[at] for at in (49, 98))
    sys.stdout.write(f"broker stopped: {len(seconds)} payments, to final p50 {p50:.2f} s, p99 {p99:.2f} s")
    assert p99 < SETTLED_SECONDS, sorted(seconds)[-10:]


def seconds_to_final(stack: Stack, uids: list[str]) -> list[float]:
    """From acceptance to the final state, of each."""
    with stack.session() as cursor:
        cursor.execute(
            "SELECT extract(epoch FROM settled_at - accepted_at)::float FROM transactions"
            " WHERE uid = ANY(CAST(%s AS uuid[])) AND settled_at IS NOT NULL",
            [uids],
        )
        found = [seconds for (seconds,) in cursor.fetchall()]
    assert len(found) == len(uids)
    return found


def test_the_worker_outlives_the_loss_of_its_broker_in_mid_task(stack: Stack, http: Http) -> None:
    """A task is under way, its ring not yet acknowledged, when the line ends, again and again."""
    user_id = add_user(http)
    worker = stack.pid_of("worker")
    for _ in range(3):
        with stack.session() as cursor:
            cursor.execute("SELECT FROM users WHERE id = %s FOR UPDATE", [user_id])
            content = payment(user_id, "1.00")
            assert put(http, content)
            wait_until(lambda: a_batch_waits(stack), "a batch waits for the user's row")
            stack.broker.refuses = True
            stack.broker.reset()
            time.sleep(1)  # it tries to connect meanwhile
            stack.broker.heal()
        assert wait_final(stack, content["uid"]) == COMPLETED_ONCE
    assert stack.pid_of("worker") == worker, "it ended, and its sweep with it"


def a_batch_waits(stack: Stack) -> bool:
    with stack.session() as cursor:
        cursor.execute(
            "SELECT FROM pg_stat_activity WHERE application_name = 'payments-worker' AND wait_event_type = 'Lock'"
        )
        return bool(cursor.fetchall())
