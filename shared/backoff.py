"""Exponential back-off by key: a key that keeps failing is tried less often, and no other key waits for it."""

import time
from typing import Final, Generic, TypeVar

MIN_BACKOFF_SECONDS: Final = 1.0

BackoffKey = TypeVar("BackoffKey", int, str)


class Backoff(Generic[BackoffKey]):
    """Stores the failures of each key, and the end of its pause: one second at first, doubled by each failure."""

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._failures: dict[BackoffKey, int] = {}
        self._pauses_until: dict[BackoffKey, float] = {}

    def is_paused(self, key: BackoffKey) -> bool:
        """Returns whether the pause of a key is not over."""
        return time.monotonic() < self._pauses_until.get(key, 0.0)

    def paused(self) -> list[BackoffKey]:
        """Returns the keys that must not be tried now."""
        return [key for key in self._pauses_until if self.is_paused(key)]

    def has_failed(self, key: BackoffKey) -> bool:
        """Returns whether the last try of a key failed."""
        return key in self._failures

    def fail(self, key: BackoffKey) -> float:
        """Records a failure. Returns the pause in seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        pause = min(self._max_seconds, MIN_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 20))
        self._pauses_until[key] = time.monotonic() + pause
        return pause

    def succeed(self, key: BackoffKey) -> None:
        """Forgets the failures of a key and ends its pause."""
        self._failures.pop(key, None)
        self._pauses_until.pop(key, None)
