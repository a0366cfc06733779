"""The pulse: what a worker's process says about itself, in memory that it shares with its parent.

Two instants, each on the machine's monotonic clock: the process ran, and its loop took messages. The parent reads them
to end a process that is frozen, and to touch the heartbeat file that the container's probe looks at.
"""

import mmap
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shared.settings import settings
from worker import waiting

ALIVE_MAX_AGE_SECONDS: Final = 5.0
CONSUMING_MAX_AGE_SECONDS: Final = 20.0  # a batch that is settled in parts keeps the loop for 15 s
TOUCH_INTERVAL_SECONDS: Final = 5.0

_INSTANT: Final = struct.Struct("d")
_ALIVE_AT, _CONSUMED_AT = 0, _INSTANT.size


class Pulse:
    """One process's instants. Made before the fork, written by the child, read by both."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 2 * _INSTANT.size)

    def clear(self) -> None:
        """Forget the last process that wrote it."""
        for place in (_ALIVE_AT, _CONSUMED_AT):
            _INSTANT.pack_into(self._memory, place, 0.0)

    def note_alive(self) -> None:
        """Note that this process runs; its loop may be busy with a task."""
        _INSTANT.pack_into(self._memory, _ALIVE_AT, time.monotonic())

    def note_consuming(self) -> None:
        """Note that this process's loop is ready for the next message."""
        _INSTANT.pack_into(self._memory, _CONSUMED_AT, time.monotonic())

    @property
    def alive_at(self) -> float:
        return float(_INSTANT.unpack_from(self._memory, _ALIVE_AT)[0])

    @property
    def consumed_at(self) -> float:
        return float(_INSTANT.unpack_from(self._memory, _CONSUMED_AT)[0])

    def is_consuming(self) -> bool:
        """Returns whether the process runs, and its loop was ready for a message a short while ago."""
        now = time.monotonic()
        return now - self.alive_at < ALIVE_MAX_AGE_SECONDS and 0 < self.consumed_at > now - CONSUMING_MAX_AGE_SECONDS


class Heartbeat:
    """The file whose age the probe reads. It is fresh while all processes of the worker consume."""

    def __init__(self, pulses: Sequence[Pulse]) -> None:
        self._pulses = pulses
        self._path = Path(settings().heartbeat_file) if settings().heartbeat_file else None
        self._touched_at = float("-inf")

    def remove(self) -> None:
        """Remove what an earlier worker left: the file must not exist until this worker consumes."""
        if self._path:
            self._path.unlink(missing_ok=True)
        if waited := waiting.file():
            waited.unlink(missing_ok=True)

    def maintain(self) -> None:
        """Touch the file if all consume. Called every second."""
        now = time.monotonic()
        if not self._path or now - self._touched_at < TOUCH_INTERVAL_SECONDS:
            return
        if all(pulse.is_consuming() for pulse in self._pulses):
            self._path.touch()
            self._touched_at = now
