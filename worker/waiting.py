"""Whether the worker waits for its broker: then it is neither deaf nor dead, and must not be restarted.

The process that consumes says so while it tries again. The sweeps in its pool read it from memory that they share
with it since the fork, the probe of its container from a file beside the heartbeat.
"""

import mmap
import struct
import time
from pathlib import Path
from typing import Final

from shared.settings import settings

WAITING_SECONDS: Final = 20.0  # it is said anew at least every few seconds

_INSTANT: Final = struct.Struct("d")
_shared = mmap.mmap(-1, _INSTANT.size)


def note() -> None:
    """Note that the worker is waiting for its broker now."""
    _INSTANT.pack_into(_shared, 0, time.monotonic())  # the same clock in all processes of a machine
    if path := file():
        path.touch()


def is_waiting() -> bool:
    """Returns whether this worker has waited for its broker within the last WAITING_SECONDS."""
    noted = _INSTANT.unpack_from(_shared)[0]
    return bool(noted) and time.monotonic() - noted < WAITING_SECONDS


def file() -> Path | None:
    """Returns the file whose age says when it was noted last; None where the worker has no heartbeat file."""
    return Path(f"{settings().heartbeat_file}.waiting") if settings().heartbeat_file else None
