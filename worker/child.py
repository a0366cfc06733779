"""A settling process: one Celery worker without a pool, which runs each task in the thread that took its message.

So nothing stands between the message and the task: no pipe, no second process, no fork of a process with connections.
"""

import os
import signal
import sys

from shared import logs
from shared.processes import die_with_parent
from worker import guard, sweep
from worker.app import app, run
from worker.pulse import Pulse


def prepare() -> None:
    """Load all that a settling process needs, so that those that are forked from this one share it."""
    app.finalize()
    app.loader.import_default_modules()
    app.amqp.queues  # noqa: B018 - made when it is asked for
    app.Worker  # noqa: B018 - likewise


def settle(number: int, parent: int, pulse: Pulse) -> None:
    """Settle until a signal comes. Ends the process: what called the fork is the parent's."""
    code = 1
    try:
        die_with_parent()
        if os.getppid() != parent:
            return
        # Ctrl-C is for the parent, which stops its children; a terminal that goes ends the parent.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        guard.start(pulse, parent=parent)
        sweep.start()
        code = run(f"settle-{number}", pulse, pool="solo", concurrency=1)
    except BaseException as error:
        logs.get_logger("worker").critical("settling process failed", exc_info=error)
    finally:
        sys.stdout.flush()
        os._exit(code)
