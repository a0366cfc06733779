"""A settling process: a Celery worker without a pool, which runs each task in the thread that takes its message.

A pool would add a pipe and a second process between message and task, and would fork a process with connections.
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
    """Loads all modules of a settling process, so that the processes forked from this one share their memory."""
    app.finalize()
    app.loader.import_default_modules()
    app.amqp.queues  # noqa: B018 - created at first access
    app.Worker  # noqa: B018 - likewise


def run_settling_process(number: int, parent: int, pulse: Pulse) -> None:
    """Settles until a signal comes, then ends the process: a forked child must not return to the code of the parent."""
    code = 1
    try:
        die_with_parent()
        if os.getppid() != parent:
            return
        # Ctrl-C is for the parent, which stops its children. If the terminal closes, the parent ends too.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        guard.start(pulse, parent=parent)
        sweep.start()
        code = run(f"settle-{number}", pulse, pool="solo", concurrency=1)
    except BaseException as error:
        logs.get_logger("worker").critical("settling process failed", exc_info=error)
    finally:
        sys.stdout.flush()
        os._exit(code)
