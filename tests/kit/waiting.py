"""The one way in which tests wait for something."""

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def wait_until(
    condition: Callable[[], Answer], description: str, seconds: float = 60, interval: float = 0.05
) -> Answer:
    """Calls the condition until its answer is true, and returns that answer.

    Raises AssertionError with the description if this takes longer than the seconds.
    """
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {description}"
        time.sleep(interval)
    return answer
