"""How much waits to be settled, read at most twice a second, and whether that is too much to take in more.

A thread of its own reads: a database that hangs must keep neither the numbers nor a commit.
"""

import threading
import time
from typing import Final

from shared import history
from shared.database import is_machinery
from shared.errors import Unavailable
from shared.logs import get_logger
from shared.queries.lanes import Backlog
from shared.settings import settings

FRESH_SECONDS: Final = 0.5
PATIENCE_SECONDS: Final = 2.0

log = get_logger("backlog")


class BacklogReader:
    """Caches one reading for all askers of a process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._last = Backlog(0, 0.0, 0)
        self._read_at = self._tried_at = float("-inf")
        self._reading = False

    def read(self) -> Backlog:
        """A reading no older than half a second. Raises Unavailable where there is none in time."""
        with self._changed:
            self._begin_if_old()
            self._changed.wait_for(lambda: not self._reading, PATIENCE_SECONDS)
            if self._is_old(self._read_at):
                raise Unavailable("database_unavailable", "The database did not say how much waits.")
            return self._last

    def is_full(self) -> bool:
        """By the last reading. Waits for a new one only where an old one says so: it may be long over."""
        with self._changed:
            full = self._last.pending >= settings().backlog_limit
            if not (full and self._is_old(self._read_at)):
                self._begin_if_old()
                return full
        try:
            return self.read().pending >= settings().backlog_limit
        except Unavailable:
            return True

    def _is_old(self, since: float) -> bool:
        return time.monotonic() - since > FRESH_SECONDS

    def _begin_if_old(self) -> None:
        if not self._reading and self._is_old(max(self._read_at, self._tried_at)):
            self._reading = True
            threading.Thread(target=self._read, name="backlog", daemon=True).start()

    def _read(self) -> None:
        last = None
        try:
            last = history.get_backlog()
        except Exception as error:
            if is_machinery(error):
                log.warning("the backlog cannot be read", error=str(error).splitlines()[0])
            else:
                log.exception("reading the backlog failed")
        with self._changed:
            self._tried_at = time.monotonic()
            if last:
                self._last, self._read_at = last, self._tried_at
            self._reading = False
            self._changed.notify_all()


reader = BacklogReader()
