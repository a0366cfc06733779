"""Limits concurrent requests, because each takes memory and a connection. A few connections stay free for probes."""

import resource
import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from shared.errors import Unavailable

if TYPE_CHECKING:  # the parent process imports this module, and must not import Flask
    from flask import Request

MAX_CONNECTIONS: Final = 8192
MAX_CONCURRENT_REQUESTS: Final = 5000  # each takes about 40 kB while it waits
SPARE_CONNECTIONS: Final = 32
OTHER_DESCRIPTORS: Final = 384  # for the database, logs, metrics and the pipes of statements
MAX_DESCRIPTORS: Final = 16_384

_lock = threading.Lock()
_requests_inside = 0


def connections() -> int:
    """Returns the maximum number of open connections, from the limit of descriptors.

    Idle connections count too, because granian does not close them.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(256, min(MAX_CONNECTIONS, descriptors - OTHER_DESCRIPTORS))


@cache  # each request needs it
def max_concurrent_requests() -> int:
    """Returns the maximum number of concurrent requests."""
    return min(MAX_CONCURRENT_REQUESTS, connections() - SPARE_CONNECTIONS)


def raise_descriptor_limit() -> None:
    """Increases the limit of descriptors as far as the system allows, because the usual 1,000 are too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


# Probes and /metrics bypass the limit. With another method than GET or HEAD they do not: no probe needs one.
PROBE_ROUTES: Final = ("/livez", "/readyz", "/metrics")


def enter(http: "Request", state: Any) -> None:
    """Counts a request that begins, except a probe. `state` is Flask's `g` of the request, not the proxy.

    Raises Unavailable if the limit is reached.
    """
    global _requests_inside
    if http.method in ("GET", "HEAD") and http.path.rstrip("/") in PROBE_ROUTES:
        return
    with _lock:
        if _requests_inside >= max_concurrent_requests():
            state.over_capacity = True
            raise Unavailable("overloaded", "The server handles too many requests. Nothing was accepted.")
        _requests_inside += 1
    state.inside = True


def is_over_capacity(state: Any) -> bool:
    """Returns whether `enter` refused this request. Then its body is not read either."""
    return bool(state.get("over_capacity"))


def hold_until_closed(state: Any) -> Callable[[], None]:
    """Returns a function to call when the response is sent. Until then the request counts as running."""
    inside = bool(state.pop("inside", False))
    return _give_back if inside else lambda: None


def _give_back() -> None:
    global _requests_inside
    with _lock:
        _requests_inside -= 1


def leave(state: Any) -> None:
    """Counts a request as ended, unless `hold_until_closed` keeps it until its response is sent."""
    if state.pop("inside", False):
        _give_back()
