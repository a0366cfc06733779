"""Long poll (`Prefer: wait`). One poller per process reads all awaited transactions in one query.

It reads when a worker's hint says, through the broker, that transactions became final. A hint can be lost, like a ring,
so the poller also reads at intervals. NOTIFY is not used, because its global commit lock would delay every payment.
"""

import threading
import time
from typing import Final

from shared.database import is_infrastructure_error
from shared.logs import get_logger
from shared.payments import doorbell
from shared.payments.model import Transaction
from shared.payments.reads import find_final
from web.serving.loop import Wakeup, wake

MAX_WAITERS: Final = 4000  # of the requests that the process handles (web/limits/concurrency)
MIN_POLL_INTERVAL_SECONDS: Final = 0.001
MAX_POLL_INTERVAL_SECONDS: Final = 0.25
# The interval while hints come: there is no second hint for a transaction that was settled before its waiter came.
HINTED_POLL_INTERVAL_SECONDS: Final = 0.02
MAX_POLL_PAUSE_SECONDS: Final = 0.015
CROWD_WAITERS: Final = 16  # with this many waiters the pause after a query is as long as the query
RESUBSCRIBE_DELAY_SECONDS: Final = 1.0
log = get_logger("long_poll")


class _Waiter:
    __slots__ = ("called", "lane", "since", "transaction", "uid")

    def __init__(self, pending: Transaction) -> None:
        self.uid = pending.uid
        self.lane = pending.lane
        self.since = time.monotonic()
        self.transaction: Transaction | None = None
        self.called = Wakeup()


class LongPoll:
    """The poller of a process. Its threads start with the first waiter, because threads do not survive the fork."""

    def __init__(self) -> None:
        self._waiters: set[_Waiter] = set()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # notified when the first waiter or a hint comes
        self._hinted: set[int] = set()  # lanes of waiters for which a hint has come since the last query
        self._is_subscribed = False
        self._started = False
        self._closed = False

    def close(self) -> None:
        """Ends all waits and refuses new ones, because the process is about to stop."""
        with self._lock:
            self._closed = True
            waiters = list(self._waiters)
            self._waiters.clear()
        wake(waiter.called for waiter in waiters)

    def wait(self, pending: Transaction, seconds: float) -> tuple[bool, Transaction | None]:
        """Waits until a transaction is final. Returns whether it waited, and the transaction if it is final."""
        waiter = _Waiter(pending)
        with self._lock:
            if self._closed or len(self._waiters) >= MAX_WAITERS:
                return False, None
            self._waiters.add(waiter)
            if not self._started:
                self._started = True
                threading.Thread(target=self._poll, name="waiting", daemon=True).start()
                threading.Thread(target=self._subscribe, name="hints", daemon=True).start()
            if len(self._waiters) == 1:
                self._changed.notify()
        try:
            waiter.called.wait(seconds)
        finally:
            with self._lock:
                self._waiters.discard(waiter)
        return waiter.transaction is not None or not self._closed, waiter.transaction

    def _subscribe(self) -> None:
        """Passes hints to the poller, in an endless loop. Without a broker the poller reads more often."""
        while True:
            try:
                for lanes in doorbell.subscribe_settled():
                    with self._lock:
                        self._is_subscribed = True
                        self._hinted |= {waiter.lane for waiter in self._waiters if waiter.lane in lanes}
                        if self._hinted:
                            self._changed.notify()
            except Exception as error:  # the service works without hints, so no error of the broker may end the loop
                if self._is_subscribed:
                    log.warning("no hints, polling more often", error=repr(error))
                self._is_subscribed = False
                time.sleep(RESUBSCRIBE_DELAY_SECONDS)

    def _poll(self) -> None:
        query_seconds = 0.0
        while True:
            with self._lock:
                while not self._waiters:
                    self._changed.wait()
                if not self._hinted:
                    self._changed.wait(self._pause())
                hinted, self._hinted = self._hinted, set()
                waiters = [waiter for waiter in self._waiters if not hinted or waiter.lane in hinted]
            if not waiters:
                continue
            began = time.monotonic()
            self._release(waiters)
            query_seconds = time.monotonic() - began
            # The more waiters, the longer the pause: the poller must leave the interpreter to the requests.
            time.sleep(min(MAX_POLL_PAUSE_SECONDS, query_seconds * len(waiters) / CROWD_WAITERS))

    def _pause(self) -> float:
        """Returns the seconds until the next query. The interval grows with the wait of the newest waiter."""
        newest_wait_seconds = time.monotonic() - max(waiter.since for waiter in self._waiters)
        min_interval = HINTED_POLL_INTERVAL_SECONDS if self._is_subscribed else MIN_POLL_INTERVAL_SECONDS
        return min(MAX_POLL_INTERVAL_SECONDS, max(min_interval, newest_wait_seconds / 8))

    def _release(self, waiters: list[_Waiter]) -> None:
        try:
            final = find_final({waiter.uid for waiter in waiters})
        except Exception as error:
            if not is_infrastructure_error(error):
                log.exception("long poll failed")
            time.sleep(MAX_POLL_INTERVAL_SECONDS)
            return
        with self._lock:
            released = [waiter for waiter in waiters if waiter.uid in final and waiter in self._waiters]
            self._waiters.difference_update(released)
        for waiter in released:
            waiter.transaction = final[waiter.uid]
        wake(waiter.called for waiter in released)


long_poll = LongPoll()


def wait_if_preferred(current: Transaction, seconds: int | None) -> tuple[Transaction, bool]:
    """Returns the transaction, final if it became final within the seconds, and whether the preference was applied."""
    if seconds is None:
        return current, False
    if current.settled_at is not None or seconds == 0:
        return current, True
    waited, final = long_poll.wait(current, seconds)
    return final or current, waited
