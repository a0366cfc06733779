"""The watchdog: notices a worker that has gone deaf, and ends it so that its supervisor starts another.

A worker is deaf when it no longer takes messages though the broker answers, and does not wait for a broker that
refuses it either: such a broker still shows what is in the queue. The sweep hides that from clients (their
payments settle within seconds) and the notifier's own loop from receivers, so nobody would ever notice. Asked by the
sweep's thread of each settling process, which has a consumer of its own, and by the notifier's loop. A process that is
frozen as a whole cannot ask: its parent sees that (worker/parent.py).
"""

import os
import signal
import time
from typing import Final

from shared import doorbell
from shared.logs import get_logger
from shared.settings import settings
from worker import waiting

TERMINATE_GRACE_SECONDS: Final = 10.0

log = get_logger("watchdog")


class Watchdog:
    """Watches the message that is next in the queue: while anybody takes messages, it changes."""

    def __init__(self, queue: str, worker: int) -> None:
        """`worker` is the pid of the process that takes messages from the queue."""
        self._queue, self._worker = queue, worker
        self._next: bytes | None = None
        self._since = 0.0
        self._terminated_at = 0.0

    def check(self) -> None:
        """End the worker if the same message has been next for too long: SIGTERM, then SIGKILL."""
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
