"""The tasks. What they do is in shared/; what they return is what Flower shows."""

from typing import Any

from structlog.contextvars import bound_contextvars

from shared import doorbell
from shared.delivering import work
from shared.parking import work_lanes
from shared.status import LANES
from worker.app import app


@app.task(name=doorbell.TASK, bind=True)
def settle(self: Any, lanes: list[int]) -> str:
    """Settle the lanes that were rung for; without lanes it is an invitation to drain all. The task's id is the uid that rang."""
    if not lanes:
        doorbell.take_invitation()
    with bound_contextvars(request_id=self.request.get("request_id"), rang=self.request.id):
        return str(work_lanes(lanes or range(LANES)))


@app.task(name=doorbell.NOTIFY_TASK)
def notify(webhook_id: int, slot: int) -> str:
    """Make what is due of a webhook's deliveries, in one of its slots."""
    doorbell.notify_begins(webhook_id, slot)
    return str(work(webhook_id))
