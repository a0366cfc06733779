"""How much waits to be settled, whether that is too much to take in more, and when there may be room again."""

import math
import time
from collections import deque
from itertools import takewhile
from typing import Final

from shared import health
from shared.errors import Unavailable
from shared.model import Backlog
from shared.settings import settings
from web.readings import CachedRead

BACKLOG_MAX_AGE_SECONDS: Final = 0.5
COUNTING_SHARE: Final = 10  # a tenth of the time goes into counting, where nothing asks for more
MAX_ACCEPTED_PER_SECOND: Final = 100_000  # by all web processes together: more than one Postgres takes
BACKLOG_RETRY_AFTER_SECONDS: Final = (1, 60)
REMEMBERED_READINGS: Final = 20  # readings: ten seconds at the most
MIN_TREND_SECONDS: Final = 1.0  # of shrinking, to tell how fast it is
STUCK_AFTER_SECONDS: Final = 5.0  # of being full without shrinking


class BacklogReader(CachedRead[Backlog]):
    """One reading for all: the limit is asked for at each commit, the metrics now and then.

    Counting a million rows takes a good part of a second. So a long count is repeated the more rarely the further the
    limit is away: never so rarely that the limit could be reached half a second before it is seen.
    """

    def __init__(self) -> None:
        super().__init__("how much waits", self._read_and_remember, BACKLOG_MAX_AGE_SECONDS, "read_backlog")
        self._pending: deque[tuple[float, int]] = deque(maxlen=REMEMBERED_READINGS)

    def read(self) -> Backlog:
        """Returns the backlog, at most half a second old, or as old as `max_age_seconds` allows. Raises Unavailable."""
        return self.get(self._max_age_seconds)

    def is_full(self) -> bool:
        """Returns whether the backlog is at its limit, by the last value.

        Waits for a new value only if an old one is at the limit, because that may be over.
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
        """Returns the seconds until there may be room again.

        A full backlog takes in nothing, so it shrinks by what is settled. The speed comes from the values since it last became
        full, from the highest on: transactions whose commit was under way are counted late.
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
        backlog = health.get_backlog()
        now = time.monotonic()
        self._max_age_seconds = backlog_max_age_seconds(backlog.pending, now - began)
        if self._pending and now - self._pending[-1][0] > REMEMBERED_READINGS * BACKLOG_MAX_AGE_SECONDS:
            self._pending.clear()  # of another hour
        self._pending.append((now, backlog.pending))
        return backlog


def backlog_max_age_seconds(pending: int, counted_seconds: float) -> float:
    """Returns for how many seconds a count is used that took `counted_seconds`."""
    room_seconds = (settings().backlog_limit - pending) / MAX_ACCEPTED_PER_SECOND
    return max(BACKLOG_MAX_AGE_SECONDS, min(COUNTING_SHARE * counted_seconds, room_seconds))


reader = BacklogReader()
