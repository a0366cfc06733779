"""The pulse: signs of life of a worker process, in memory that it shares with its parent.

It holds two instants of the monotonic clock: when the process last ran, and when its loop was last ready for a message.
The parent reads them to kill a frozen process, and to touch the heartbeat file that the container's probe reads.
"""

import mmap
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shared.settings import settings
from worker.broker import waiting

ALIVE_MAX_AGE_SECONDS: Final = 5.0
CONSUMING_MAX_AGE_SECONDS: Final = 20.0  # a batch that is settled in parts keeps the loop for 15 s
TOUCH_INTERVAL_SECONDS: Final = 5.0

_INSTANT: Final = struct.Struct("d")
_ALIVE_AT, _CONSUMED_AT = 0, _INSTANT.size


class Pulse:
    """The instants of one process. Created before the fork, written by the child, read by both."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 2 * _INSTANT.size)

    def clear(self) -> None:
        """Resets both instants for a new process."""
        for place in (_ALIVE_AT, _CONSUMED_AT):
            _INSTANT.pack_into(self._memory, place, 0.0)

    def note_alive(self) -> None:
        """Records that this process runs. Its loop may be busy with a task."""
        _INSTANT.pack_into(self._memory, _ALIVE_AT, time.monotonic())

    def note_consuming(self) -> None:
        """Records that the loop of this process is ready for the next message."""
        _INSTANT.pack_into(self._memory, _CONSUMED_AT, time.monotonic())

    @property
    def alive_at(self) -> float:
        """Returns when the process last ran, on the monotonic clock."""
        return float(_INSTANT.unpack_from(self._memory, _ALIVE_AT)[0])

    @property
    def consumed_at(self) -> float:
        """Returns when its loop was last ready for a message, on the monotonic clock; 0 if never."""
        return float(_INSTANT.unpack_from(self._memory, _CONSUMED_AT)[0])

    def is_consuming(self) -> bool:
        """Returns whether the process runs and its loop was ready for a message recently."""
        now = time.monotonic()
        return now - self.alive_at < ALIVE_MAX_AGE_SECONDS and 0 < self.consumed_at > now - CONSUMING_MAX_AGE_SECONDS


class Heartbeat:
    """The file whose age the probe reads. It is recent while all processes of the worker consume."""

    def __init__(self, pulses: Sequence[Pulse]) -> None:
        self._pulses = pulses
        self._path = Path(settings().heartbeat_file) if settings().heartbeat_file else None
        self._touched_at = float("-inf")

    def remove(self) -> None:
        """Removes the files of an earlier worker, because they must not exist before this worker consumes."""
        if self._path:
            self._path.unlink(missing_ok=True)
        if waiting_file := waiting.file():
            waiting_file.unlink(missing_ok=True)

    def maintain(self) -> None:
        """Touches the file if all processes consume. Must be called every second."""
        now = time.monotonic()
        if not self._path or now - self._touched_at < TOUCH_INTERVAL_SECONDS:
            return
        if all(pulse.is_consuming() for pulse in self._pulses):
            self._path.touch()
            self._touched_at = now
