"""How many requests are at work at once. Each takes memory, and a connection: a few are left to those who look after it."""

import resource
import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from shared.errors import Unavailable

if TYPE_CHECKING:  # the process that starts the serving one needs no Flask
    from flask import Request

MAX_CONNECTIONS: Final = 8192
MAX_CONCURRENT_REQUESTS: Final = 5000  # requests: each takes some 40 kB while it waits
SPARE_CONNECTIONS: Final = 32
OTHER_DESCRIPTORS: Final = 384  # of the process: the database, logs, metrics, pipes of statements
MAX_DESCRIPTORS: Final = 16_384

_lock = threading.Lock()
_requests_inside = 0


def connections() -> int:
    """Returns how many connections may be open, idle ones too (granian closes none), by the limit of descriptors."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(256, min(MAX_CONNECTIONS, descriptors - OTHER_DESCRIPTORS))


@cache  # each request asks
def max_concurrent_requests() -> int:
    """Returns how many requests may be at work at once."""
    return min(MAX_CONCURRENT_REQUESTS, connections() - SPARE_CONNECTIONS)


def raise_descriptor_limit() -> None:
    """Increases the limit of descriptors as far as the system allows: the usual 1,000 are fewer than the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


# Who looks after the process always comes in, unless with a body: nobody needs one there.
PROBE_ROUTES: Final = ("/livez", "/readyz", "/metrics")


def enter(http: "Request", state: Any) -> None:
    """Counts a request that begins, except a probe. `state` is Flask's `g` of the request, not the proxy.

    Raises Unavailable if too many requests are at work.
    """
    global _requests_inside
    if http.method in ("GET", "HEAD") and http.path.rstrip("/") in PROBE_ROUTES:
        return
    with _lock:
        if _requests_inside >= max_concurrent_requests():
            state.over_capacity = True
            raise Unavailable("overloaded", "Too many requests are at work. Nothing was accepted.")
        _requests_inside += 1
    state.inside = True


def is_over_capacity(state: Any) -> bool:
    """Returns whether `enter` refused this request. Its body is not waited for either."""
    return bool(state.get("over_capacity"))


def hold_until_closed(state: Any) -> Callable[[], None]:
    """Returns what to call when the body is sent: this request counts as at work until then."""
    inside = bool(state.pop("inside", False))
    return _give_back if inside else lambda: None


def _give_back() -> None:
    global _requests_inside
    with _lock:
        _requests_inside -= 1


def leave(state: Any) -> None:
    """Counts a request as ended, unless it stays until its body is sent."""
    if state.pop("inside", False):
        _give_back()
