"""How much waits to be settled, read at most twice a second, and whether that is too much to take in more."""

import threading
import time
from typing import Final

from shared import history
from shared.database import is_machinery
from shared.queries.transactions import Backlog
from shared.settings import settings

FRESH_SECONDS: Final = 0.5


class BacklogReader:
    """Caches one reading for all askers of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._last = Backlog(0, 0.0, 0)
        self._reading = False

    def read(self) -> Backlog:
        """A reading no older than half a second. Raises what the database raises."""
        with self._lock:
            if time.monotonic() - self._read_at > FRESH_SECONDS:
                self._last = history.get_backlog()
                self._read_at = time.monotonic()
            return self._last

    def is_full(self) -> bool:
        """By the last reading; never waits for a new one, but starts it."""
        if time.monotonic() - self._read_at > FRESH_SECONDS and not self._reading:
            self._reading = True
            threading.Thread(target=self._refresh, name="backlog", daemon=True).start()
        return self._last.pending >= settings().backlog_limit

    def _refresh(self) -> None:
        try:
            self.read()
        except Exception as error:
            if not is_machinery(error):
                raise
            self._read_at = time.monotonic()  # the next look is half a second away, not at every request
        finally:
            self._reading = False


reader = BacklogReader()
