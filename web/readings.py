"""A reading of the database's state for all askers of a process.

A thread of its own reads: a database that hangs must keep neither the value nor who asks for it.
"""

import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from shared import metrics
from shared.database import first_line, is_infrastructure_error
from shared.errors import Unavailable
from shared.logs import get_logger
from web.loop import Wakeup, wake

READ_TIMEOUT_SECONDS: Final = 2.0
MIN_READ_INTERVAL_SECONDS: Final = 0.1  # between the beginnings of two readings, whoever asks and however often
MAX_READ_BACKOFF_SECONDS: Final = 1.0  # after a failure: whoever asks gets a 503 meanwhile

Value = TypeVar("Value")

log = get_logger("readings")


class CachedRead(Generic[Value]):
    """`what` is read, in the words of a log line; anew when it is older than `max_age_seconds` and somebody asks.

    `duty` is the name under which failures are counted. After one nobody reads for as long as the failure took,
    up to a second: a time-out of the database is not met again and again without a pause.
    """

    def __init__(self, what: str, read: Callable[[], Value], max_age_seconds: float, duty: str) -> None:
        self._what, self._duty = what, duty
        self._read = read
        self._max_age_seconds = max_age_seconds
        self._lock = threading.Lock()
        self._waiters: list[Wakeup] = []
        self._value: Value | None = None
        self._read_at = self._tried_at = float("-inf")  # when it was begun
        self._pause_seconds = MIN_READ_INTERVAL_SECONDS
        self._reading = False

    def latest(self) -> tuple[Value | None, float]:
        """Returns the last value, None if there is none yet, and its age in seconds. Does not wait."""
        with self._lock:
            age = time.monotonic() - self._read_at
            if age > self._max_age_seconds:
                self._begin()
            return self._value, age

    def get(self, max_age_seconds: float, timeout_seconds: float = READ_TIMEOUT_SECONDS) -> Value:
        """Returns a value that is at most `max_age_seconds` old, and reads it first if necessary. Raises Unavailable."""
        value, age = self.latest()
        if value is not None and age <= max_age_seconds:
            return value
        requested_at = time.monotonic()
        while (wakeup := self._await_end(requested_at - max_age_seconds, requested_at)) and (
            remaining := requested_at + timeout_seconds - time.monotonic()
        ) > 0:
            wakeup.wait(remaining)
        with self._lock:
            if self._value is None or self._read_at < requested_at - max_age_seconds:
                raise Unavailable("database_unavailable", f"The database did not say {self._what}.")
            return self._value

    def _await_end(self, not_before: float, requested_at: float) -> Wakeup | None:
        """What wakes at the end of the reading under way; None where it need not, or would not, help to wait for it."""
        with self._lock:
            if self._read_at >= not_before:
                return None
            if self._tried_at < requested_at:
                self._begin()
            if not self._reading:
                return None
            self._waiters.append(wakeup := Wakeup())
            return wakeup

    def _begin(self) -> None:
        if self._reading:
            return
        try:
            threading.Thread(target=self._run, name="reading", daemon=True).start()
            self._reading = True
        except RuntimeError:  # no thread is to be had now: whoever asks next tries again
            self._tried_at = time.monotonic()
            log.warning("cached read failed", of=self._what, error="no thread can be started")

    def _run(self) -> None:
        time.sleep(max(0.0, self._tried_at + self._pause_seconds - time.monotonic()))
        began = time.monotonic()
        value = None
        try:
            value = self._read()
        except Exception as error:
            metrics.DUTY_FAILURES.labels(self._duty).inc()
            if is_infrastructure_error(error):
                log.warning("cached read failed", of=self._what, error=first_line(error))
            else:
                log.exception("cached read failed", of=self._what)
        finally:
            with self._lock:
                self._tried_at = began
                self._pause_seconds = MIN_READ_INTERVAL_SECONDS
                if value is not None:
                    self._value, self._read_at = value, began
                else:
                    elapsed = time.monotonic() - began
                    self._pause_seconds += elapsed + min(elapsed, MAX_READ_BACKOFF_SECONDS)
                self._reading = False
                waiters, self._waiters = self._waiters, []
            wake(waiters)
