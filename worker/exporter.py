"""The exporter: a small process beside the worker that serves the worker's metrics, where there is a port for it.

The process that forks the pool must have no threads that hold locks, and an HTTP server is made of them. All processes of
the worker write into one folder; the exporter only reads it, so it may be killed and started again at any time.
"""

import os
import signal
import sys
import time
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from shared import logs
from shared.processes import die_with_parent, has_ended
from shared.settings import settings

EXPORTER_RESTART_INTERVAL_SECONDS: Final = (
    2.0  # what fails at once, because the port is taken, must not take a processor
)


class Exporter:
    """The worker's side of it: starts the process, and starts it again."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._started = float("-inf")

    def maintain(self) -> None:
        """Called now and then by a thread that lives as long as the worker: the process dies with it."""
        if self._pid is not None and has_ended(self._pid):
            os.waitpid(self._pid, 0)
            self._pid = None
            logs.write_line("metrics exporter restarted", "warning")
        if (
            self._pid is None
            and settings().metrics_port
            and time.monotonic() - self._started > EXPORTER_RESTART_INTERVAL_SECONDS
        ):
            self._started = time.monotonic()
            # Not subprocess: it waits for a pipe to close that a process forked at that moment would keep open.
            self._pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "worker", "metrics"], os.environ)


def serve() -> None:
    """What the process does: serve what the folder holds, until it is killed."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, whose last numbers are still to be read
    registry = CollectorRegistry()
    MultiProcessCollector(registry, settings().metrics_dir)
    try:
        _, thread = start_http_server(settings().metrics_port, "0.0.0.0", registry)
    except OSError as error:
        sys.exit(f"metrics cannot be served on port {settings().metrics_port}: {error.strerror}")
    thread.join()
