"""Whether a process of the worker waits for its broker: then it is neither deaf nor dead, and must not be restarted.

Its consumer says so while it tries again. Its watchdog reads it here, the probe of its container from a file beside the
heartbeat.
"""

import time
from pathlib import Path
from typing import Final

from shared.settings import settings

WAITING_MAX_AGE_SECONDS: Final = 20.0  # it is said anew at least every few seconds

_noted_at = float("-inf")


def note() -> None:
    """Note that this process is waiting for its broker now."""
    global _noted_at
    _noted_at = time.monotonic()
    if path := file():
        path.touch()


def is_waiting() -> bool:
    """Returns whether this process has waited for its broker within the last WAITING_MAX_AGE_SECONDS."""
    return time.monotonic() - _noted_at < WAITING_MAX_AGE_SECONDS


def file() -> Path | None:
    """Returns the file whose age says when it was noted last; None where the worker has no heartbeat file."""
    return Path(f"{settings().heartbeat_file}.waiting") if settings().heartbeat_file else None
