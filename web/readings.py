"""A reading of the database's state, taken at most twice a second, for all askers of a process.

A thread of its own reads: a database that hangs must keep neither the numbers nor a commit.
"""

import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from shared.database import is_machinery
from shared.errors import Unavailable
from shared.logs import get_logger

FRESH_SECONDS: Final = 0.5
PATIENCE_SECONDS: Final = 2.0

Value = TypeVar("Value")

log = get_logger("readings")


class Reading(Generic[Value]):
    """Caches one value. `name` is what is read, in the words of a log line."""

    def __init__(self, name: str, take: Callable[[], Value]) -> None:
        self._name, self._take = name, take
        self._changed = threading.Condition()
        self._last: Value | None = None
        self._read_at = self._tried_at = float("-inf")
        self._reading = False

    def read(self) -> Value:
        """A value no older than half a second. Raises Unavailable where there is none in time."""
        with self._changed:
            self._begin_if_old()
            self._changed.wait_for(lambda: not self._reading, PATIENCE_SECONDS)
            if self._last is None or self._is_old():
                raise Unavailable("database_unavailable", f"The database did not say {self._name}.")
            return self._last

    def glance(self) -> tuple[Value | None, bool]:
        """The last value, without waiting, and whether it is an old one: then a new one is on its way."""
        with self._changed:
            self._begin_if_old()
            return self._last, self._is_old()

    def _is_old(self) -> bool:
        return time.monotonic() - self._read_at > FRESH_SECONDS

    def _begin_if_old(self) -> None:
        if not self._reading and time.monotonic() - max(self._read_at, self._tried_at) > FRESH_SECONDS:
            self._reading = True
            threading.Thread(target=self._read, name="reading", daemon=True).start()

    def _read(self) -> None:
        value = None
        try:
            value = self._take()
        except Exception as error:
            if is_machinery(error):
                log.warning("the state cannot be read", of=self._name, error=str(error).splitlines()[0])
            else:
                log.exception("reading the state failed", of=self._name)
        with self._changed:
            self._tried_at = time.monotonic()
            if value is not None:
                self._last, self._read_at = value, self._tried_at
            self._reading = False
            self._changed.notify_all()
