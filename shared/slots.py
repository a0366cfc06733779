"""Slots: how many deliveries a process makes at once, and who may begin another.

A receiver that hangs holds its attempt for ten seconds, and a hundred of them would hold every slot. So:
- An attempt holds a slot for MAX_SLOT_SECONDS at most. One that lasts longer goes on outside of the slots.
- Attempts that are in trouble take at most half of the slots: those to a receiver that fails, and those to a receiver
  that has an attempt under way for longer than HANGING_AFTER_SECONDS. The latter is not known as failing before it times out.
"""

import threading
import time
from dataclasses import dataclass
from typing import Final

MAX_SLOT_SECONDS: Final = 0.5
HANGING_AFTER_SECONDS: Final = 1.0
MAX_ATTEMPTS_OUTSIDE_SLOTS: Final = (
    256  # attempts that go on outside of the slots; each holds a thread, and no connection to Postgres
)


@dataclass(frozen=True, eq=False)
class Attempt:
    """A delivery under way."""

    webhook_id: int
    fails: bool
    began: float

    def is_in_trouble(self, now: float) -> bool:
        return self.fails or now - self.began > HANGING_AFTER_SECONDS


class Slots:
    """The attempts under way in this process. May be used by several threads."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._changed = threading.Condition()
        self._attempts: set[Attempt] = set()
        self._closed = False

    def begin(self, webhook_id: int, *, fails: bool) -> Attempt | None:
        """An attempt that has a slot, for the caller to end; None where there is none free for this webhook, or closed."""
        with self._changed:
            now = time.monotonic()
            if fails or self._is_hanging(webhook_id, now):
                free = self._free_for_failing(now)
            else:
                within = sum(now - attempt.began <= MAX_SLOT_SECONDS for attempt in self._attempts)
                free = min(self._count - within, self.limit - len(self._attempts))
            if free <= 0 or self._closed:
                return None
            attempt = Attempt(webhook_id, fails, now)
            self._attempts.add(attempt)
            return attempt

    def end(self, attempt: Attempt) -> None:
        with self._changed:
            self._attempts.discard(attempt)
            self._changed.notify_all()

    @property
    def limit(self) -> int:
        """How many attempts can be under way at once, within and outside of the slots."""
        return self._count + MAX_ATTEMPTS_OUTSIDE_SLOTS

    def free_for_failing(self) -> int:
        """How many more attempts may be begun to receivers that fail or hang."""
        with self._changed:
            return max(0, self._free_for_failing(time.monotonic()))

    def is_hanging(self, webhook_id: int) -> bool:
        """Whether a webhook has an attempt under way here for so long that its receiver seems to hang."""
        with self._changed:
            return self._is_hanging(webhook_id, time.monotonic())

    def count(self, webhook_id: int) -> int:
        """How many attempts to a webhook's receiver are under way here."""
        with self._changed:
            return sum(attempt.webhook_id == webhook_id for attempt in self._attempts)

    def close(self) -> None:
        """Let no more attempts begin: the process stops."""
        with self._changed:
            self._closed = True

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait for the attempts under way to end; whether they did in that time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._attempts, seconds)

    def _free_for_failing(self, now: float) -> int:
        return self._count // 2 - sum(attempt.is_in_trouble(now) for attempt in self._attempts)

    def _is_hanging(self, webhook_id: int, now: float) -> bool:
        return any(a.webhook_id == webhook_id and now - a.began > HANGING_AFTER_SECONDS for a in self._attempts)
