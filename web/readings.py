"""A reading of the database's state for all askers of a process.

A thread of its own reads: a database that hangs must keep neither the value nor who asks for it.
"""

import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from shared import metrics
from shared.database import first_line, is_machinery
from shared.errors import Unavailable
from shared.logs import get_logger
from web.loop import Wakeup, wake

PATIENCE_SECONDS: Final = 2.0
REST_SECONDS: Final = 0.1  # between the beginnings of two readings, whoever asks and however often
MAX_PAUSE_SECONDS: Final = 1.0  # after a failure: whoever asks gets a 503 meanwhile

Value = TypeVar("Value")

log = get_logger("readings")


class Reading(Generic[Value]):
    """`what` is read, in the words of a log line; anew when it is older than `fresh_seconds` and somebody asks.

    `duty` is the name under which failures are counted. After one nobody reads for as long as the failure took,
    up to a second: a time-out of the database is not met again and again without a pause.
    """

    def __init__(self, what: str, read: Callable[[], Value], fresh_seconds: float, duty: str) -> None:
        self._what, self._duty = what, duty
        self._read = read
        self._fresh_seconds = fresh_seconds
        self._lock = threading.Lock()
        self._askers: list[Wakeup] = []
        self._value: Value | None = None
        self._read_at = self._tried_at = float("-inf")  # when it was begun
        self._pause_seconds = REST_SECONDS
        self._reading = False

    def latest(self) -> tuple[Value | None, float]:
        """Returns the last value, None if there is none yet, and its age in seconds. Does not wait."""
        with self._lock:
            age = time.monotonic() - self._read_at
            if age > self._fresh_seconds:
                self._begin()
            return self._value, age

    def get(self, most_seconds: float, timeout_seconds: float = PATIENCE_SECONDS) -> Value:
        """Returns a value that is at most `most_seconds` old, and reads it first if necessary. Raises Unavailable."""
        value, age = self.latest()
        if value is not None and age <= most_seconds:
            return value
        asked_at = time.monotonic()
        while (ended := self._await_end(asked_at - most_seconds, asked_at)) and (
            left := asked_at + timeout_seconds - time.monotonic()
        ) > 0:
            ended.wait(left)
        with self._lock:
            if self._value is None or self._read_at < asked_at - most_seconds:
                raise Unavailable("database_unavailable", f"The database did not say {self._what}.")
            return self._value

    def _await_end(self, begun_since: float, asked_at: float) -> Wakeup | None:
        """What wakes at the end of the reading under way; None where it need not, or would not, help to wait for it."""
        with self._lock:
            if self._read_at >= begun_since:
                return None
            if self._tried_at < asked_at:
                self._begin()
            if not self._reading:
                return None
            self._askers.append(ended := Wakeup())
            return ended

    def _begin(self) -> None:
        if self._reading:
            return
        try:
            threading.Thread(target=self._run, name="reading", daemon=True).start()
            self._reading = True
        except RuntimeError:  # no thread is to be had now: whoever asks next tries again
            self._tried_at = time.monotonic()
            log.warning("the state cannot be read", of=self._what, error="no thread can be started")

    def _run(self) -> None:
        time.sleep(max(0.0, self._tried_at + self._pause_seconds - time.monotonic()))
        began = time.monotonic()
        value = None
        try:
            value = self._read()
        except Exception as error:
            metrics.DUTY_FAILURES.labels(self._duty).inc()
            if is_machinery(error):
                log.warning("the state cannot be read", of=self._what, error=first_line(error))
            else:
                log.exception("reading the state failed", of=self._what)
        finally:
            with self._lock:
                self._tried_at = began
                self._pause_seconds = REST_SECONDS
                if value is not None:
                    self._value, self._read_at = value, began
                else:
                    took = time.monotonic() - began
                    self._pause_seconds += took + min(took, MAX_PAUSE_SECONDS)
                self._reading = False
                askers, self._askers = self._askers, []
            wake(askers)
