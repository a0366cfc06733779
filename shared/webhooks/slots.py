"""Slots: a limit on the concurrent deliveries of a process, that keeps slow receivers from delaying the others.

An attempt to a receiver that hangs lasts ten seconds, and a hundred of these would hold every slot. So:
- An attempt holds a slot for MAX_SLOT_SECONDS at most. A longer attempt continues outside of the slots.
- Attempts in trouble get at most half of the slots. An attempt is in trouble if its receiver fails, or if its receiver
  hangs: it has an attempt under way for longer than HANGING_AFTER_SECONDS, which has not timed out yet.
"""

import threading
import time
from dataclasses import dataclass
from typing import Final

MAX_SLOT_SECONDS: Final = 0.5
HANGING_AFTER_SECONDS: Final = 1.0
MAX_ATTEMPTS_OUTSIDE_SLOTS: Final = 256  # each holds a thread, but no connection to Postgres


@dataclass(frozen=True, eq=False)
class Attempt:
    """A delivery under way. `began` is an instant of the monotonic clock."""

    webhook_id: int
    is_failing: bool
    began: float

    def is_in_trouble(self, now: float) -> bool:
        """Returns whether the receiver fails or the attempt hangs."""
        return self.is_failing or now - self.began > HANGING_AFTER_SECONDS


class Slots:
    """The attempts under way in this process. Safe to use from several threads."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._changed = threading.Condition()
        self._attempts: set[Attempt] = set()
        self._closed = False

    def begin(self, webhook_id: int, *, is_failing: bool) -> Attempt | None:
        """Returns an attempt that holds a slot, or None if no slot is free for this webhook, or after close().

        The caller must pass the attempt to end().
        """
        with self._changed:
            now = time.monotonic()
            if is_failing or self._is_hanging(webhook_id, now):
                free = self._free_for_failing(now)
            else:
                within = sum(now - attempt.began <= MAX_SLOT_SECONDS for attempt in self._attempts)
                free = min(self._count - within, self.limit - len(self._attempts))
            if free <= 0 or self._closed:
                return None
            attempt = Attempt(webhook_id, is_failing, now)
            self._attempts.add(attempt)
            return attempt

    def end(self, attempt: Attempt) -> None:
        """Frees the slot of an attempt."""
        with self._changed:
            self._attempts.discard(attempt)
            self._changed.notify_all()

    @property
    def limit(self) -> int:
        """Returns the maximum number of attempts under way, inside and outside of the slots."""
        return self._count + MAX_ATTEMPTS_OUTSIDE_SLOTS

    def free_for_failing(self) -> int:
        """Returns how many more attempts to failing or hanging receivers may begin."""
        with self._changed:
            return max(0, self._free_for_failing(time.monotonic()))

    def is_hanging(self, webhook_id: int) -> bool:
        """Returns whether an attempt to this webhook is under way for longer than HANGING_AFTER_SECONDS."""
        with self._changed:
            return self._is_hanging(webhook_id, time.monotonic())

    def count(self, webhook_id: int) -> int:
        """Returns how many attempts to a webhook are under way in this process."""
        with self._changed:
            return sum(attempt.webhook_id == webhook_id for attempt in self._attempts)

    def close(self) -> None:
        """Refuses new attempts, because the process stops."""
        with self._changed:
            self._closed = True

    def wait_until_idle(self, seconds: float) -> bool:
        """Waits until no attempt is under way, at most `seconds`. Returns whether all have ended."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._attempts, seconds)

    def _free_for_failing(self, now: float) -> int:
        return self._count // 2 - sum(attempt.is_in_trouble(now) for attempt in self._attempts)

    def _is_hanging(self, webhook_id: int, now: float) -> bool:
        return any(a.webhook_id == webhook_id and now - a.began > HANGING_AFTER_SECONDS for a in self._attempts)
