"""The notify worker and its duties: expand events into deliveries, ring for due deliveries, delete old rows.

Like the sweep, the duties need only Postgres. If the broker is down or a message is lost, deliveries that are two seconds
overdue are made by threads of this process. Each duty has its own thread, so that none waits for another.
"""

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from shared.backoff import Backoff
from shared.payments import doorbell
from shared.settings import settings
from shared.webhooks.deliver import (
    MAX_EXPAND_BACKOFF_SECONDS,
    deliver_webhook,
    expand,
    find_due,
    prune_deleted,
    prune_delivered,
    prune_events,
    prune_secrets,
    slots,
)
from worker import app, guard
from worker.duty import Duty
from worker.metrics_exporter import Exporter
from worker.pulse import Heartbeat, Pulse
from worker.watchdog import Watchdog

NOTIFY_INTERVAL_SECONDS: Final = 0.1
PRUNE_INTERVAL_SECONDS: Final = 60.0
PRUNE_PAUSE_SECONDS: Final = 0.05  # after each commit, so that pruning does not slow Postgres down
DELIVERY_OVERDUE_SECONDS: Final = 2.0
MAX_NOTIFY_BACKOFF_SECONDS: Final = 5.0  # short, because receivers wait
MAX_PRUNE_BACKOFF_SECONDS: Final = 300.0


def run() -> int:
    """Delivers to webhooks until a signal comes. Returns the exit code."""
    pulse = Pulse()
    heartbeat = Heartbeat([pulse])
    heartbeat.remove()
    for interval_seconds, duty in Notifier().duties():
        duty.run_for_ever(interval_seconds)
    guard.start(pulse, duties=[Exporter().maintain, heartbeat.maintain])
    try:
        return app.run(
            "notify", pulse, pool="threads", concurrency=settings().notify_slots, queues=[doorbell.NOTIFY_QUEUE]
        )
    finally:  # long deliveries can go on after their tasks have ended
        slots().close()
        slots().wait_until_idle(guard.STOP_TIMEOUT_SECONDS)


class Notifier:
    """The duties of one process, and the webhooks that it serves without the broker."""

    def __init__(self) -> None:
        self._served: set[int] = set()

    def duties(self) -> list[tuple[float, Duty]]:
        """Returns the duties, each with its interval in seconds."""
        watchdog = Watchdog(doorbell.NOTIFY_QUEUE, os.getpid())
        failing: Backoff[int] = Backoff(MAX_EXPAND_BACKOFF_SECONDS)
        frequent: dict[str, Callable[[], object]] = {
            "watchdog": watchdog.check,
            "expand": partial(expand, failing),
            "deliver": self.deliver,
        }
        rare = {
            "prune_deleted": partial(_prune, prune_deleted),
            "prune_delivered": partial(_prune, prune_delivered),
            "prune_events": partial(_prune, prune_events),
            "prune_secrets": partial(_prune, prune_secrets),
        }
        return [
            *((NOTIFY_INTERVAL_SECONDS, Duty(name, act, MAX_NOTIFY_BACKOFF_SECONDS)) for name, act in frequent.items()),
            *((PRUNE_INTERVAL_SECONDS, Duty(name, act, MAX_PRUNE_BACKOFF_SECONDS)) for name, act in rare.items()),
        ]

    def deliver(self) -> None:
        """Rings for the webhooks with due deliveries. Serves those that are overdue by DELIVERY_OVERDUE_SECONDS."""
        for due in find_due():
            doorbell.ring_to_notify(due.webhook_id, due.slots)
            if due.overdue_seconds > DELIVERY_OVERDUE_SECONDS:
                self._serve(due.webhook_id)

    def _serve(self, webhook_id: int) -> None:
        if webhook_id not in self._served and len(self._served) < settings().notify_slots:
            self._served.add(webhook_id)
            threading.Thread(target=self._work, args=[webhook_id], name="spare", daemon=True).start()

    def _work(self, webhook_id: int) -> None:
        try:
            Duty("deliver", partial(deliver_webhook, webhook_id), 0).run()
        finally:
            self._served.discard(webhook_id)


def _prune(prune: Callable[[], int]) -> int:
    """Deletes some rows and returns their number. Pauses after each commit that deleted any."""
    count = prune()
    if count:
        time.sleep(PRUNE_PAUSE_SECONDS)
    return count
