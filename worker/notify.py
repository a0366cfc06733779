"""The loop of the worker that tells webhooks: turns events into deliveries and rings for what is due.

Like the sweep it needs Postgres alone: what nobody took within two seconds, because the broker is down or a message
was lost, it delivers itself, by threads of its own.
"""

import os
import random
import threading
import time
from typing import Final

from shared import doorbell, logs
from shared.database import is_machinery
from shared.delivering import expand, find_due, prune, work
from shared.logs import get_logger
from shared.settings import settings
from worker.sweep import first_line
from worker.watchdog import Watchdog

EVERY_SECONDS: Final = 0.1
OVERDUE_SECONDS: Final = 2.0
PRUNE_EVERY_SECONDS: Final = 60.0

log = get_logger("notify")


def start() -> None:
    logs.configure()
    threading.Thread(target=_run, name="notify", daemon=True).start()


class Notifier:
    """One process's loop: which webhooks it serves itself, and when it has to prune again."""

    def __init__(self) -> None:
        self._served: set[int] = set()
        self._prunes_at = time.monotonic() + random.uniform(0, PRUNE_EVERY_SECONDS)

    def run_once(self) -> bool:
        """Whether there is more to do at once. Raises what the machinery raised: the caller waits and comes back."""
        more = expand()
        for due in find_due():
            doorbell.ring_to_notify(due.webhook_id, due.slots)
            if due.overdue_seconds > OVERDUE_SECONDS:
                self._serve(due.webhook_id)
        if time.monotonic() >= self._prunes_at:
            pruned = prune()
            self._prunes_at = time.monotonic() + (0 if pruned else PRUNE_EVERY_SECONDS)
        return more

    def _serve(self, webhook_id: int) -> None:
        if webhook_id not in self._served and len(self._served) < settings().notify_slots:
            self._served.add(webhook_id)
            threading.Thread(target=self._work, args=[webhook_id], name="spare", daemon=True).start()

    def _work(self, webhook_id: int) -> None:
        try:
            work(webhook_id)
        except Exception as error:
            _tell(error)
        finally:
            self._served.discard(webhook_id)


def _run() -> None:
    notifier, watchdog = Notifier(), Watchdog(doorbell.NOTIFY_QUEUE, os.getpid())
    while True:
        more = False
        try:
            watchdog.look()
            more = notifier.run_once()
        except Exception as error:  # whatever it was, this thread must live
            _tell(error)
            time.sleep(1)
        if not more:
            time.sleep(EVERY_SECONDS * random.uniform(0.8, 1.2))


def _tell(error: Exception) -> None:
    if is_machinery(error):
        log.warning("webhooks could not be told; it is tried again", error=first_line(error))
    else:
        log.error("telling webhooks failed; it is tried again", exc_info=error)
