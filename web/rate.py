"""How often a caller may ask: a bucket of tokens each, in this process's memory, so that it works whatever is down.

A bucket holds what a second brings, and one token at least.
"""

import math
import threading
import time
from collections import OrderedDict
from typing import Final

MAX_CALLERS: Final = 10_000  # who has not asked for longest is forgotten: his bucket is full again


class RateLimiter:
    """One per process."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[object, tuple[float, float]] = OrderedDict()  # tokens, and when that was so
        self._lock = threading.Lock()

    def take(self, caller: object, per_second: float) -> int:
        """Takes a token and returns 0; without a token, returns the whole seconds until there is one."""
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
