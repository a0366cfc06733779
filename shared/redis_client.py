"""Creates Redis clients that never retry: each caller has its own retry, or works without the broker."""

from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.settings import settings


def connect(timeout_seconds: float, **options: Any) -> Redis:
    """Returns a client that tries each command once, with this time-out. It connects at its first command."""
    return Redis.from_url(
        settings().broker_url,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
        **options,
    )
