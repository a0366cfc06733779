"""Records that a process of the worker waits for its broker. Such a process is healthy and must not be restarted.

The consumer records it while it retries. The watchdog reads it in memory, and the probe of the container reads a file
beside the heartbeat file.
"""

import time
from pathlib import Path
from typing import Final

from shared.settings import settings

WAITING_MAX_AGE_SECONDS: Final = 20.0  # it is recorded every few seconds

_noted_at = float("-inf")


def note() -> None:
    """Records that this process is waiting for its broker now."""
    global _noted_at
    _noted_at = time.monotonic()
    if path := file():
        path.touch()


def is_waiting() -> bool:
    """Returns whether this process has waited for its broker within the last WAITING_MAX_AGE_SECONDS."""
    return time.monotonic() - _noted_at < WAITING_MAX_AGE_SECONDS


def file() -> Path | None:
    """Returns the file that each record touches, or None if the worker has no heartbeat file."""
    return Path(f"{settings().heartbeat_file}.waiting") if settings().heartbeat_file else None
