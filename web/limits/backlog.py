"""The backlog: how many transactions wait to be settled, whether the limit is reached, and when to try again."""

import math
import time
from collections import deque
from itertools import takewhile
from typing import Final

from shared.errors import Unavailable
from shared.payments import reads
from shared.payments.model import Backlog
from shared.settings import settings
from web.limits.cached_read import CachedRead

BACKLOG_MAX_AGE_SECONDS: Final = 0.5
COUNTING_SHARE: Final = 10  # counting takes at most a tenth of the time, unless the limit is near
MAX_ACCEPTED_PER_SECOND: Final = 100_000  # by all web processes together: more than one Postgres can accept
BACKLOG_RETRY_AFTER_SECONDS: Final = (1, 60)
REMEMBERED_READINGS: Final = 20  # the readings of about ten seconds
MIN_TREND_SECONDS: Final = 1.0  # the shortest time from which a speed is computed
STUCK_AFTER_SECONDS: Final = 5.0  # a full backlog that does not shrink for this long counts as stuck


class BacklogReader(CachedRead[Backlog]):
    """The cached count of the backlog. Every commit checks it, and the metrics read it.

    Counting a million rows takes a large part of a second. So the further the limit is away, the longer a slow count
    is used. The interval never allows the backlog to be over its limit, unseen, for more than half a second.
    """

    def __init__(self) -> None:
        super().__init__("how much waits", self._read_and_remember, BACKLOG_MAX_AGE_SECONDS, "read_backlog")
        self._pending: deque[tuple[float, int]] = deque(maxlen=REMEMBERED_READINGS)

    def read(self) -> Backlog:
        """Returns the backlog, at most half a second old, or older after a slow count (`backlog_max_age_seconds`).

        Raises Unavailable if it cannot be read.
        """
        return self.get(self._max_age_seconds)

    def is_full(self) -> bool:
        """Returns whether the last known backlog is at its limit.

        Waits for a new value only if the last one is old and at the limit.
        """
        backlog, age = self.latest()
        full = backlog is not None and backlog.pending >= settings().backlog_limit
        if not full or age <= BACKLOG_MAX_AGE_SECONDS:
            return full
        try:
            return self.read().pending >= settings().backlog_limit
        except Unavailable:
            return True

    def retry_seconds(self) -> int:
        """Returns the estimated seconds until there is room again, within BACKLOG_RETRY_AFTER_SECONDS.

        A full backlog accepts nothing, so it shrinks at the speed of settling. The speed is computed from the highest
        value since the backlog became full, because transactions whose commit was running are counted late.
        """
        limit, (shortest, longest) = settings().backlog_limit, BACKLOG_RETRY_AFTER_SECONDS
        full = list(takewhile(lambda reading: reading[1] >= limit, reversed([*self._pending])))
        if not full:
            return shortest
        (ended, pending), (began, before) = full[0], max(reversed(full), key=lambda reading: reading[1])
        if before == pending:
            return longest if ended - full[-1][0] >= STUCK_AFTER_SECONDS else shortest
        if ended - began < MIN_TREND_SECONDS:
            return shortest
        return max(shortest, min(longest, math.ceil((pending - limit + 1) * (ended - began) / (before - pending))))

    def _read_and_remember(self) -> Backlog:
        began = time.monotonic()
        backlog = reads.get_backlog()
        now = time.monotonic()
        self._max_age_seconds = backlog_max_age_seconds(backlog.pending, now - began)
        if self._pending and now - self._pending[-1][0] > REMEMBERED_READINGS * BACKLOG_MAX_AGE_SECONDS:
            self._pending.clear()  # too old to show a trend
        self._pending.append((now, backlog.pending))
        return backlog


def backlog_max_age_seconds(pending: int, counted_seconds: float) -> float:
    """Returns for how many seconds a count is used, from its result and the seconds that it took."""
    room_seconds = (settings().backlog_limit - pending) / MAX_ACCEPTED_PER_SECOND
    return max(BACKLOG_MAX_AGE_SECONDS, min(COUNTING_SHARE * counted_seconds, room_seconds))


backlog_reader = BacklogReader()
