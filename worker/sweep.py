"""The sweep: a thread in each settling process that settles payments whose ring was lost.

It needs only Postgres, so payments settle while the broker is down. Each process has one, so no scheduler can fail.
"""

import os
import random
import threading
import time
from typing import Final

from shared import metrics
from shared.backoff import Backoff
from shared.database import first_line, is_infrastructure_error
from shared.logs import get_logger
from shared.payments import doorbell
from shared.payments.parked import RetryPosition, retry_due
from shared.payments.settle import find_overdue, is_draining, work_lanes
from worker.duty import Duty
from worker.watchdog import Watchdog

SWEEP_INTERVAL_SECONDS: Final = 1.0
LANE_OVERDUE_SECONDS: Final = 1.0
RETRY_INTERVAL_SECONDS: Final = 5.0  # parked rows wait for at least a minute
MAX_LANE_PAUSE_SECONDS: Final = 60.0  # for a lane whose settlement fails
MAX_SETTLE_BACKOFF_SECONDS: Final = 2.0  # short, because clients wait
MAX_SWEEP_BACKOFF_SECONDS: Final = 60.0

log = get_logger("sweep")


def start() -> None:
    """Starts the thread."""
    threading.Thread(target=_run, name="sweep", daemon=True).start()


class Sweep:
    """The sweep of one process, with the lanes that fail in it and their pauses."""

    def __init__(self) -> None:
        self._failing: Backoff[int] = Backoff(MAX_LANE_PAUSE_SECONDS)
        self._next_retry_at = 0.0
        self._place = RetryPosition()

    def run_once(self) -> int:
        """Settles the overdue lanes. Returns the number of rows settled.

        A lane that fails does not affect the others. Raises the error of the database if the lanes cannot be read.
        """
        if is_draining():  # a drain settles overdue lanes, too
            return 0
        overdue = find_overdue(LANE_OVERDUE_SECONDS)
        # in random order, so that several processes spread over the lanes
        return sum(self._settle(lane) for lane in random.sample(overdue, len(overdue)))

    def retry_parked(self) -> None:
        """Releases due parked rows, at most every RETRY_INTERVAL_SECONDS."""
        if time.monotonic() >= self._next_retry_at:
            self._next_retry_at = time.monotonic() + RETRY_INTERVAL_SECONDS
            retry_due(self._place)

    def _settle(self, lane: int) -> int:
        if self._failing.is_paused(lane):
            return 0
        try:
            settled = work_lanes([lane]).counts.settled
        except Exception as error:
            if is_infrastructure_error(error):
                log.warning("lane not settled, retried", lane=lane, error=first_line(error))
            else:
                pause = self._failing.fail(lane)
                log.error("lane failed", lane=lane, error=repr(error), next_try_seconds=pause)
            return 0
        metrics.SETTLED_BY.labels("sweep").inc(settled)
        self._failing.succeed(lane)
        return settled


def duties() -> list[Duty]:
    """Returns the duties of the sweep's thread, in their order."""
    sweep, watchdog = Sweep(), Watchdog(doorbell.SETTLE_QUEUE, os.getpid())
    return [
        Duty("watchdog", watchdog.check, MAX_SWEEP_BACKOFF_SECONDS),
        Duty("settle_overdue", sweep.run_once, MAX_SETTLE_BACKOFF_SECONDS),
        Duty("retry_parked", sweep.retry_parked, MAX_SWEEP_BACKOFF_SECONDS),
    ]


def _run() -> None:
    """Runs the duties for ever. This thread must survive any error, because it settles when everything else is down."""
    all_duties = duties()
    while True:
        time.sleep(SWEEP_INTERVAL_SECONDS * random.uniform(0.8, 1.2))
        for duty in all_duties:
            duty.run()
