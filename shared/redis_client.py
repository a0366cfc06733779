"""The one way to a client of the broker that gives up at once: whoever calls it comes back by itself, or does without."""

from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.settings import settings


def connect(timeout_seconds: float, **options: Any) -> Redis:
    """Returns a client that tries each command once, for this long at most. It connects when it is first used."""
    return Redis.from_url(
        settings().broker_url,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
        **options,
    )
