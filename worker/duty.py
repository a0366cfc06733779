"""Duties: periodic work of a process. A failure of one duty does not affect the others.

A failure is logged and counted under the name of the duty. The next try waits for one second, then twice as long each
time, up to a limit.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

from shared import metrics
from shared.backoff import Backoff
from shared.database import first_line, is_infrastructure_error
from shared.logs import get_logger

log = get_logger("duty")


class Duty:
    """Periodic work with a name. `work` returns whether more work is waiting; only `run_for_ever` uses that."""

    def __init__(self, name: str, work: Callable[[], Any], max_pause_seconds: float) -> None:
        self.name, self._work = name, work
        self._backoff: Backoff[str] = Backoff(max_pause_seconds)

    def run(self) -> Any:
        """Does the work and returns its result. Returns None after a failure, and during the pause that follows."""
        if self._backoff.is_paused(self.name):
            return None
        try:
            result = self._work()
        except Exception as error:
            self._note(error)
            return None
        self._backoff.succeed(self.name)
        return result

    def run_for_ever(self, interval_seconds: float) -> threading.Thread:
        """Runs the duty in a new thread at this interval, or at once while more work is waiting. Returns the thread."""

        def loop() -> None:
            time.sleep(interval_seconds * random.random())  # spreads processes that start together
            while True:
                if not self.run():
                    time.sleep(interval_seconds * random.uniform(0.8, 1.2))

        thread = threading.Thread(target=loop, name=self.name, daemon=True)
        thread.start()
        return thread

    def _note(self, error: Exception) -> None:
        pause = self._backoff.fail(self.name)
        metrics.DUTY_FAILURES.labels(self.name).inc()
        if is_infrastructure_error(error):
            log.warning("duty failed", duty=self.name, error=first_line(error), next_try_seconds=pause)
        else:
            log.error("duty failed", duty=self.name, next_try_seconds=pause, exc_info=error)
