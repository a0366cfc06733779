"""The exporter: a small process beside the worker that serves the worker's metrics, if PAYMENTS_METRICS_PORT is set.

It is a process of its own because an HTTP server needs threads, and the process that forks must have none. The exporter
only reads the folder that all processes of the worker write to, so it can be restarted at any time.
"""

import os
import signal
import sys
import time
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server

from shared import logs
from shared.metrics_folder import FolderCollector
from shared.processes import die_with_parent, has_ended
from shared.settings import settings

EXPORTER_RESTART_INTERVAL_SECONDS: Final = 2.0  # limits the CPU time if each start fails, because the port is taken


class Exporter:
    """The exporter as its worker sees it: a process that is started, and restarted after it ends."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._started = float("-inf")

    def maintain(self) -> None:
        """Starts the process if it does not run.

        The caller is a thread that lives as long as the worker, because the process dies with that thread.
        """
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
            # Not subprocess, which waits for a pipe to close. A process forked at that moment would keep it open.
            self._pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "worker", "metrics"], os.environ)


def serve() -> None:
    """Serves the metrics of the folder until the process is killed. Ends the process if the port is taken."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, whose last values must stay readable
    registry = CollectorRegistry()
    FolderCollector(registry, settings().metrics_dir)
    try:
        _, thread = start_http_server(settings().metrics_port, "0.0.0.0", registry)
    except OSError as error:
        sys.exit(f"metrics cannot be served on port {settings().metrics_port}: {error.strerror}")
    thread.join()
