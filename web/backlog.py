"""How much waits to be settled, whether that is too much to take in more, and when there may be room again."""

import math
import time
from collections import deque
from itertools import takewhile
from typing import Final

from shared import history
from shared.errors import Unavailable
from shared.queries.lanes import Backlog
from shared.settings import settings
from web.readings import Reading

FRESH_SECONDS: Final = 0.5
RETRY_SECONDS: Final = (1, 60)
REMEMBERED: Final = 20  # readings: ten seconds at the most
JUDGED_SECONDS: Final = 1.0  # of shrinking, to tell how fast it is
STUCK_SECONDS: Final = 5.0  # of being full without shrinking


class BacklogReader(Reading[Backlog]):
    """One reading for all: the limit is asked for at each commit, the metrics now and then."""

    def __init__(self) -> None:
        super().__init__("how much waits", self._read_and_remember, FRESH_SECONDS, "read_backlog")
        self._pending: deque[tuple[float, int]] = deque(maxlen=REMEMBERED)

    def read(self) -> Backlog:
        """As it was half a second ago at most. Raises Unavailable."""
        return self.get(FRESH_SECONDS)

    def is_full(self) -> bool:
        """By the last reading. Waits for a new one only where an old one says so: it may be long over."""
        backlog, age = self.latest()
        full = backlog is not None and backlog.pending >= settings().backlog_limit
        if not full or age <= FRESH_SECONDS:
            return full
        try:
            return self.read().pending >= settings().backlog_limit
        except Unavailable:
            return True

    def retry_seconds(self) -> int:
        """When there may be room again: while it is full nothing comes in, so what it shrinks by is what is settled.

        By the readings since it last became full, from the highest on: what was committed just then came late.
        """
        limit, (least, most) = settings().backlog_limit, RETRY_SECONDS
        full = list(takewhile(lambda reading: reading[1] >= limit, reversed([*self._pending])))
        if not full:
            return least
        (ended, pending), (began, before) = full[0], max(reversed(full), key=lambda reading: reading[1])
        if before == pending:
            return most if ended - full[-1][0] >= STUCK_SECONDS else least
        if ended - began < JUDGED_SECONDS:
            return least
        return max(least, min(most, math.ceil((pending - limit + 1) * (ended - began) / (before - pending))))

    def _read_and_remember(self) -> Backlog:
        backlog = history.get_backlog()
        now = time.monotonic()
        if self._pending and now - self._pending[-1][0] > REMEMBERED * FRESH_SECONDS:
            self._pending.clear()  # of another hour
        self._pending.append((now, backlog.pending))
        return backlog


reader = BacklogReader()
