"""Flower with limits on its memory, because it runs for months, and with a periodic update of the workers' queues.

Flower itself reads the queues only when it starts. Its page of queues would not show workers that a rollout adds later.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final

from flower import command
from flower.app import Flower
from tornado.ioloop import PeriodicCallback

from worker.app import app

WORKERS_UPDATE_INTERVAL_SECONDS: Final = 10
FLOWER_OPTIONS: Final = (
    *("--logging=warning", "--persistent=False", "--max_tasks=10000", "--purge_offline_workers=60"),
    "--tasks_columns=name,uuid,state,result,received,runtime,worker",  # the result is the number of settled rows, as text
)


class _Flower(Flower):
    def start(self) -> None:
        PeriodicCallback(self.update_workers, 1000 * WORKERS_UPDATE_INTERVAL_SECONDS).start()
        try:
            super().start()
        except (KeyboardInterrupt, SystemExit):  # a signal
            # Python would wait for the threads that query the workers, which retry for ever while the broker is down.
            sys.stdout.flush()
            os._exit(0)


def run(options: Sequence[str]) -> None:
    """Serves until a signal comes. `options` are passed to Flower."""
    command.Flower = _Flower
    app.start(["flower", *FLOWER_OPTIONS, *options])
