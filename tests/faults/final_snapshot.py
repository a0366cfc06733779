"""The end of a run: everything the API says, and the rows, gathered for the checker."""

from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import redis

from tests.faults.history import Books, Document, Row
from tests.faults.stack import Stack
from tests.kit.http import Http
from tests.kit.processes import family
from tests.kit.receiver import Receiver
from tests.kit.service import payments
from tests.kit.waiting import wait_until

ROWS = """
    SELECT t.uid::text, t.user_id, t.status, t.accept_order,
           (SELECT count(*) FROM ledger WHERE ledger.uid = t.uid), entry.seq, entry.amount / 100.0,
           entry.balance_after / 100.0, entry.effective_at, entry.recorded_at,
           (SELECT count(*) FROM events WHERE events.uid = t.uid), event.user_seq
    FROM transactions t LEFT JOIN ledger entry USING (uid) LEFT JOIN events event USING (uid)
    ORDER BY t.accept_order
"""
IDLE_IN_TRANSACTION = """
    SELECT application_name, state, query FROM pg_stat_activity
    WHERE application_name LIKE 'payments-%' AND xact_start < clock_timestamp() - interval '10 seconds'
"""
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'payments-%'"
ALL_SESSIONS = 16 * 6  # web, the workers' processes, and room for those being replaced
DELIVERED_TIMEOUT_SECONDS = 40.0


def gather(stack: Stack, http: Http, users: list[int], receiver: Receiver) -> Books:
    statements = {user_id: list(_statement(http, user_id)) for user_id in users}
    balances = {user_id: Decimal(_get(http, f"/api/user/{user_id}/balance/")["balance"]) for user_id in users}
    with stack.session() as cursor:
        cursor.execute(ROWS)
        rows = [Row(*row) for row in cursor.fetchall()]
    verified = payments("verify", "--data", stack.service.data)
    return Books(
        statements,
        balances,
        rows,
        verified.returncode,
        _queued(stack),
        _told(receiver, {(row.user_id, row.user_seq) for row in rows if row.user_seq is not None}),
        list(_leaks(stack)),
    )


def _told(receiver: Receiver, wanted: set[tuple[int, int]]) -> dict[int, list[int]]:
    """What the receiver of all outcomes heard. A delivery that a killed notifier had in hand is free after 20 s."""

    def heard() -> list[tuple[int, int]]:
        return [(got.json["data"]["user_id"], got.json["data"]["user_seq"]) for got in list(receiver.got)]

    with suppress(AssertionError):
        wait_until(lambda: wanted <= set(heard()), "all outcomes are told", DELIVERED_TIMEOUT_SECONDS)
    told: dict[int, list[int]] = {}
    for user_id, user_seq in heard():
        told.setdefault(user_id, []).append(user_seq)
    return told


def _statement(http: Http, user_id: int) -> Iterator[Document]:
    path = f"/api/user/{user_id}/transactions/?limit=500"
    cursor = ""
    while True:
        page = _get(http, f"{path}&cursor={cursor}" if cursor else path)
        yield from page["items"]
        cursor = page["next"]
        if not cursor:
            return


def _get(http: Http, path: str) -> Any:
    answer = http.try_send("GET", path)
    assert answer, f"no answer to {path}"
    assert answer.status == 200, (path, answer)
    return answer.json


def _queued(stack: Stack) -> int:
    """Rings that a worker which consumes would have taken: one that went deaf is found here."""
    with stack.redis() as broker:
        with suppress(AssertionError, redis.RedisError):
            wait_until(lambda: not broker.llen("settle"), "the queue is empty", 10)
        return int(broker.llen("settle"))


def _leaks(stack: Stack) -> Iterator[str]:
    with stack.session() as cursor:
        cursor.execute(IDLE_IN_TRANSACTION)
        yield from (f"a transaction is open for long: {row}" for row in cursor.fetchall())
        cursor.execute(SESSIONS)
        ((sessions,),) = cursor.fetchall()
        if sessions > ALL_SESSIONS:
            yield f"{sessions} sessions are open"
    wanted = stack.workers + 1
    if len(family(stack.pid_of("worker"))) != wanted:
        yield f"the worker has {len(family(stack.pid_of('worker')))} processes and not {wanted}"
