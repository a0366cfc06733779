"""A cached read: a value that a process reads once for all its requests, and again when it is too old.

A separate thread reads it, so that a database that hangs blocks no request for longer than its time-out.
"""

import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from shared import metrics
from shared.database import first_line, is_infrastructure_error
from shared.errors import Unavailable
from shared.logs import get_logger
from web.serving.loop import Wakeup, wake

READ_TIMEOUT_SECONDS: Final = 2.0
MIN_READ_INTERVAL_SECONDS: Final = 0.1  # between the starts of two reads, however many callers there are
MAX_READ_BACKOFF_SECONDS: Final = 1.0  # after a failure; callers get a 503 meanwhile

Value = TypeVar("Value")

log = get_logger("cached_read")


class CachedRead(Generic[Value]):
    """A value that is read again when a caller needs it and it is older than `max_age_seconds`.

    `what` describes the value in logs and errors. `duty` is the metric label under which failures are counted.
    After a failure the next read waits for as long as the failure took, at most a second. So a database that runs
    into time-outs gets a pause between two reads.
    """

    def __init__(self, what: str, read: Callable[[], Value], max_age_seconds: float, duty: str) -> None:
        self._what, self._duty = what, duty
        self._read = read
        self._max_age_seconds = max_age_seconds
        self._lock = threading.Lock()
        self._waiters: list[Wakeup] = []
        self._value: Value | None = None
        self._read_at = self._tried_at = float("-inf")  # the start of the last successful read, and of the last read
        self._pause_seconds = MIN_READ_INTERVAL_SECONDS
        self._reading = False

    def latest(self) -> tuple[Value | None, float]:
        """Returns the last value and its age in seconds, without waiting. The value is None before the first read."""
        with self._lock:
            age = time.monotonic() - self._read_at
            if age > self._max_age_seconds:
                self._begin()
            return self._value, age

    def get(self, max_age_seconds: float, timeout_seconds: float = READ_TIMEOUT_SECONDS) -> Value:
        """Returns a value that is at most `max_age_seconds` old, after a new read if necessary.

        Raises Unavailable if there is no such value within `timeout_seconds`.
        """
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
        """Returns the wakeup for the end of the current read; None if the caller need not or cannot wait for it."""
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
        except RuntimeError:  # the system has no thread now; the next caller tries again
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
