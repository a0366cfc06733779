"""The watchdog ends a deaf worker, so that its supervisor starts another one.

A worker is deaf if it takes no messages although the broker answers, and does not wait for a broker that refuses it.
Clients would not notice, because the sweep still settles payments and the notify worker still delivers. The sweep thread
of each settling process and a duty of the notify worker run the check. A frozen process is found by its parent
(worker/parent.py).
"""

import os
import signal
import time
from typing import Final

from shared.logs import get_logger
from shared.payments import doorbell
from shared.settings import settings
from worker.broker import waiting

TERMINATE_GRACE_SECONDS: Final = 10.0

log = get_logger("watchdog")


class Watchdog:
    """Watches the next message of a queue, which changes while any worker takes messages."""

    def __init__(self, queue: str, worker: int) -> None:
        """Takes the queue and the pid of the process that consumes it."""
        self._queue, self._worker = queue, worker
        self._next: bytes | None = None
        self._since = 0.0
        self._terminated_at = 0.0

    def check(self) -> None:
        """Ends the worker if the next message has not changed for too long: first by SIGTERM, then by SIGKILL."""
        next_message = None if waiting.is_waiting() else doorbell.peek(self._queue)
        now = time.monotonic()
        if next_message is None or next_message != self._next:
            self._next, self._since = next_message, now
            return
        if now - self._since < settings().deaf_seconds:
            return
        if not self._terminated_at:
            self._terminated_at = now
            log.error("deaf worker terminated", seconds=round(now - self._since, 1))
            os.kill(self._worker, signal.SIGTERM)
        elif now - self._terminated_at > TERMINATE_GRACE_SECONDS:
            os.kill(self._worker, signal.SIGKILL)
