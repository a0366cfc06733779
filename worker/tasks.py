"""The Celery tasks. The work is in shared/; Flower shows their results."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from structlog.contextvars import bound_contextvars

from shared import metrics
from shared.database import first_line, is_infrastructure_error
from shared.logs import get_logger
from shared.payments import doorbell
from shared.payments.model import LANES
from shared.payments.settle import work_lanes
from shared.webhooks.deliver import deliver_webhook
from worker.app import app

LOG_INTERVAL_SECONDS: Final = 1.0

log = get_logger("tasks")


class NotDone(Exception):
    """The database failed. The ring is not repeated, because the sweep or a duty of notify repeats the work within seconds."""


@app.task(name=doorbell.SETTLE_TASK, bind=True, throws=(NotDone,))
def settle(self: Any, lanes: list[int]) -> str:
    """Settles these lanes and all lanes with a flag, whose rings sent no message because this one was waiting.

    Without lanes the message is an invitation to drain all lanes. The id of the task is usually the uid of the payment
    that rang. For a lane that was handed back, it also has the number of the lane; for an invitation it is random.
    Returns the result as text for Flower. Raises NotDone if the database fails.
    """
    if not lanes:
        doorbell.clear_invitation()
    with bound_contextvars(request_id=self.request.get("request_id"), rang=self.request.id), _without_traceback():
        result = work_lanes(sorted(doorbell.find_flagged_lanes().union(lanes)) if lanes else range(LANES))
        metrics.SETTLED_BY.labels("ring").inc(result.counts.settled)
        return str(result)


@app.task(name=doorbell.NOTIFY_TASK, throws=(NotDone,))
def notify(webhook_id: int, slot: int) -> str:
    """Makes the due deliveries of a webhook, in one of its slots. Returns the result as text for Flower.

    Raises NotDone if the database fails.
    """
    doorbell.clear_notify_flag(webhook_id, slot)
    with _without_traceback():
        return str(deliver_webhook(webhook_id))


@contextmanager
def _without_traceback() -> Iterator[None]:
    """Raises NotDone, without a traceback, if the database or the network fails in the block.

    Flower shows the task as failed, with the error. Celery does not log it, because the task declares it in `throws`.
    """
    try:
        yield
    except Exception as error:
        if not is_infrastructure_error(error):
            raise
        _failures.log(error)
        raise NotDone(first_line(error)) from None


class _Failures:
    """Logs failed tasks, at most one per second and process, because hundreds of rings can fail at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # notify runs its tasks in threads
        self._logged_at = float("-inf")
        self._unlogged = 0

    def log(self, error: Exception) -> None:
        """Logs an error, or counts it if another one was logged within the last second."""
        with self._lock:
            now = time.monotonic()
            if now - self._logged_at < LOG_INTERVAL_SECONDS:
                self._unlogged += 1
                return
            unlogged, self._unlogged, self._logged_at = self._unlogged, 0, now
        log.warning("task failed", error=first_line(error), unlogged=unlogged)


_failures = _Failures()
