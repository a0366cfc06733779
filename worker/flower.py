"""Flower with bounds on what it remembers, for it runs for months, and with a look for queues now and then.

By itself it asks for the workers' queues when it starts and never again: of those that came later, with a rollout,
its page of queues would show nothing.
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
    "--tasks_columns=name,uuid,state,result,received,runtime,worker",  # the result says what was settled
)


class _Flower(Flower):
    def start(self) -> None:
        PeriodicCallback(self.update_workers, 1000 * WORKERS_UPDATE_INTERVAL_SECONDS).start()
        try:
            super().start()
        except (KeyboardInterrupt, SystemExit):  # a signal
            # Python would wait for the threads that ask the workers, and those try a broker that is away for ever.
            sys.stdout.flush()
            os._exit(0)


def run(options: Sequence[str]) -> None:
    """Serve until a signal comes. `options` are Flower's own."""
    command.Flower = _Flower
    app.start(["flower", *FLOWER_OPTIONS, *options])
