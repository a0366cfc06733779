"""Where the threads of a worker's processes are, as a log line: said when a warm stop takes too long."""

import faulthandler
import os
import signal
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Final

from shared import logs

MAX_BYTES: Final = 100_000
DUMP_SECONDS: Final = 1.0


@cache
def _dumps() -> int:
    descriptor, path = tempfile.mkstemp()
    os.unlink(path)
    return descriptor


def open_file() -> None:
    """Open the file that all processes of the worker share. Called before it forks."""
    _dumps()


def listen() -> None:
    """Let SIGUSR2 write the stacks of this process to the file, whatever its threads are doing."""
    faulthandler.register(signal.SIGUSR2, _dumps())


def log(pids: Iterable[int]) -> None:
    """Log the stacks of this process and of those that listen."""
    faulthandler.dump_traceback(_dumps())
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR2)
    time.sleep(DUMP_SECONDS)
    text = os.pread(_dumps(), MAX_BYTES, 0).decode("utf-8", "replace")
    logs.write_line("stacks of the worker's processes", "error", stacks=text)
