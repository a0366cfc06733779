"""Payments in few words, for tests that break one thing at a time."""

import uuid
from typing import Any

from tests.faults.stack import Stack
from tests.kit.http import Http, Response
from tests.kit.waiting import wait_until

STATE = """
    SELECT t.status, t.attempts, t.parked_at IS NOT NULL, (SELECT count(*) FROM ledger WHERE ledger.uid = t.uid),
           (SELECT count(*) FROM events WHERE events.uid = t.uid)
    FROM transactions t WHERE t.uid = %s
"""
COMPLETED_ONCE = ("COMPLETED", 0, False, 1, 1)  # never parked, one entry, one event


def add_user(http: Http, balance: str = "") -> int:
    answer = http.try_send("POST", "/api/user/", {"name": "Ada"})
    assert answer
    user_id = int(answer.json["id"])
    if balance:
        paid = put(http, payment(user_id, balance), wait=10)
        assert paid
        assert paid.status == 200, paid
    return user_id


def payment(user_id: int, amount: str, type_: str = "DEPOSIT") -> dict[str, Any]:
    return {"uid": str(uuid.uuid4()), "user_id": user_id, "type": type_, "amount": amount}


def put(http: Http, content: dict[str, Any], wait: int = 0) -> Response | None:
    return http.try_send("PUT", "/api/transaction/", content, wait)


def balance(http: Http, user_id: int) -> str:
    answer = http.try_send("GET", f"/api/user/{user_id}/balance/")
    assert answer
    return str(answer.json["balance"])


def state(stack: Stack, uid: str) -> tuple[Any, ...] | None:
    """(status, attempts, parked, entries, events) from the row, straight from Postgres; None without a row."""
    with stack.session() as cursor:
        cursor.execute(STATE, [uid])
        found = cursor.fetchone()
        return tuple(found) if found else None


def wait_final(stack: Stack, uid: str, seconds: float = 10) -> tuple[Any, ...]:
    def final() -> tuple[Any, ...]:
        found = state(stack, uid)
        return found if found and found[0] != "PENDING" else ()

    return wait_until(final, f"{uid} is final", seconds)
