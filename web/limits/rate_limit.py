"""The rate limit: a token bucket per caller, in this process's memory, so that it works without database and broker.

A bucket holds the tokens of one second, and at least one token.
"""

import math
import threading
import time
from collections import OrderedDict
from typing import Final

MAX_CALLERS: Final = 10_000  # beyond it the caller that was idle longest is dropped, which fills its bucket again


class RateLimiter:
    """The token buckets of all callers of this process."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[object, tuple[float, float]] = OrderedDict()  # tokens, and the time of that count
        self._lock = threading.Lock()

    def take(self, caller: object, per_second: float) -> int:
        """Takes a token and returns 0. Without a token, returns the seconds until there is one, rounded up."""
        now = time.monotonic()
        burst = max(1.0, per_second)
        with self._lock:
            tokens, since = self._buckets.pop(caller, (burst, now))
            tokens = min(burst, tokens + (now - since) * per_second)
            allowed = tokens >= 1
            self._buckets[caller] = (tokens - allowed, now)
            if len(self._buckets) > MAX_CALLERS:
                self._buckets.popitem(last=False)
        return 0 if allowed else math.ceil((1 - tokens) / per_second)
