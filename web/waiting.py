"""Prefer: wait. One poller per process asks Postgres for all waited-for transactions in one query.

Polling, not NOTIFY: a NOTIFY's commit lock is global to the database and would stand in every payment's way.
"""

import threading
import time
from typing import Final
from uuid import UUID

from shared.database import autocommit, is_machinery
from shared.logs import get_logger
from shared.queries.transactions import Transaction, find_final
from shared.settings import settings

MOST_SECONDS: Final = 30
LEAST_PLACES: Final = 64  # as the contract has it
SHORTEST_POLL_SECONDS: Final = 0.001
LONGEST_POLL_SECONDS: Final = 0.25
LONGEST_REST_SECONDS: Final = 0.015
CROWD: Final = 16  # so many rest for as long as the question took

log = get_logger("waiting")


class _Waiter:
    """As in web.intake, a bare lock: an Event costs several times as much."""

    __slots__ = ("_called", "since", "transaction", "uid")

    def __init__(self, uid: UUID) -> None:
        self.uid = uid
        self.since = time.monotonic()
        self.transaction: Transaction | None = None
        self._called = threading.Lock()
        self._called.acquire()

    def wait(self, seconds: float) -> None:
        self._called.acquire(timeout=seconds)

    def call(self, transaction: Transaction | None) -> None:
        """To be called once, by who has taken the waiter from the room."""
        self.transaction = transaction
        self._called.release()


def most_waiters() -> int:
    """So that waiting cannot use up the threads that answer: an eighth may be for lists."""
    return max(LEAST_PLACES, settings().web_threads // 4)


class WaitingRoom:
    """One per process; its thread starts with the first waiter and ends with the last."""

    def __init__(self) -> None:
        self._waiters: set[_Waiter] = set()
        self._lock = threading.Lock()
        self._polling = False
        self._closed = False

    def close(self) -> None:
        """The process ends: answer all who wait, and keep nobody from now on."""
        with self._lock:
            self._closed = True
            while self._waiters:
                self._waiters.pop().call(None)

    def wait(self, uid: UUID, seconds: float) -> tuple[bool, Transaction | None]:
        """Wait for a transaction to become final. Whether it was waited for, and the transaction if it did."""
        waiter = _Waiter(uid)
        with self._lock:
            if self._closed or len(self._waiters) >= most_waiters():
                return False, None
            self._waiters.add(waiter)
            if not self._polling:
                self._polling = True
                threading.Thread(target=self._poll, name="waiting", daemon=True).start()
        try:
            waiter.wait(seconds)
        finally:
            with self._lock:
                self._waiters.discard(waiter)
        return waiter.transaction is not None or not self._closed, waiter.transaction

    def _poll(self) -> None:
        asked_seconds = 0.0
        while True:
            with self._lock:
                waiters = list(self._waiters)
                if not waiters:
                    self._polling = False
                    return
            # Soon for who has just come, ever more rarely for who has waited long; and the more wait, the longer the
            # rest after a question: asking must not take the interpreter from those who answer.
            youngest = time.monotonic() - max(waiter.since for waiter in waiters)
            rest = min(LONGEST_REST_SECONDS, asked_seconds * len(waiters) / CROWD)
            pause = max(SHORTEST_POLL_SECONDS, youngest / 8, rest)
            time.sleep(min(LONGEST_POLL_SECONDS, pause))
            began = time.monotonic()
            self._release(waiters)
            asked_seconds = time.monotonic() - began

    def _release(self, waiters: list[_Waiter]) -> None:
        try:
            with autocommit() as connection:
                final = find_final(connection, {waiter.uid for waiter in waiters})
        except Exception as error:
            if not is_machinery(error):
                log.exception("waiting failed")
            time.sleep(LONGEST_POLL_SECONDS)
            return
        for waiter in waiters:
            if waiter.uid in final and self._take_out(waiter):
                waiter.call(final[waiter.uid])

    def _take_out(self, waiter: _Waiter) -> bool:
        with self._lock:
            taken = waiter in self._waiters
            self._waiters.discard(waiter)
            return taken


room = WaitingRoom()


def wait_if_preferred(current: Transaction, seconds: int | None) -> tuple[Transaction, bool]:
    """The transaction, final if it became so within the seconds, and whether the preference was honoured."""
    if seconds is None:
        return current, False
    if current.settled_at is not None or seconds == 0:
        return current, True
    waited, final = room.wait(current.uid, seconds)
    return final or current, waited
