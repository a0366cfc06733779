"""The tasks. What they do is in shared/; what they return is what Flower shows."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from structlog.contextvars import bound_contextvars

from shared import doorbell, metrics
from shared.database import first_line, is_infrastructure_error
from shared.delivering import deliver_webhook
from shared.logs import get_logger
from shared.model import LANES
from shared.settle import work_lanes
from worker.app import app

LOG_INTERVAL_SECONDS: Final = 1.0

log = get_logger("tasks")


class NotDone(Exception):
    """The database failed. The ring is not repeated: the sweep, or notify's loop, comes by within two seconds."""


@app.task(name=doorbell.SETTLE_TASK, bind=True, throws=(NotDone,))
def settle(self: Any, lanes: list[int]) -> str:
    """Settle the lanes that were rung for, also by those who sent no message because this one waited to be taken.

    Without lanes it is an invitation to drain all. The task's id is the uid that rang.
    """
    if not lanes:
        doorbell.clear_invitation()
    with bound_contextvars(request_id=self.request.get("request_id"), rang=self.request.id), _without_traceback():
        done = work_lanes(sorted(doorbell.find_flagged_lanes().union(lanes)) if lanes else range(LANES))
        metrics.SETTLED_BY.labels("ring").inc(done.counts.settled)
        return str(done)


@app.task(name=doorbell.NOTIFY_TASK, throws=(NotDone,))
def notify(webhook_id: int, slot: int) -> str:
    """Make what is due of a webhook's deliveries, in one of its slots."""
    doorbell.clear_notify_flag(webhook_id, slot)
    with _without_traceback():
        return str(deliver_webhook(webhook_id))


@contextmanager
def _without_traceback() -> Iterator[None]:
    """Let a task fail with one line where database or network failed, not our code. Raises NotDone.

    Flower shows the task as failed, with the error; Celery logs nothing of it, because the task declares that it
    throws this.
    """
    try:
        yield
    except Exception as error:
        if not is_infrastructure_error(error):
            raise
        _failures.log(error)
        raise NotDone(first_line(error)) from None


class _Failures:
    """Logs failed tasks, at most one a second in each process: rings may come by the hundred."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # notify runs its tasks in threads
        self._logged_at = float("-inf")
        self._unlogged = 0

    def log(self, error: Exception) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._logged_at < LOG_INTERVAL_SECONDS:
                self._unlogged += 1
                return
            unlogged, self._unlogged, self._logged_at = self._unlogged, 0, now
        log.warning("task failed", error=first_line(error), unlogged=unlogged)


_failures = _Failures()
