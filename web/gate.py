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
MAX_INSIDE: Final = 5000  # requests: each takes some 40 kB while it waits
SPARE_CONNECTIONS: Final = 32
OTHER_DESCRIPTORS: Final = 384  # of the process: the database, logs, metrics, pipes of statements
DESCRIPTORS: Final = 16_384

_lock = threading.Lock()
_inside = 0


def connections() -> int:
    """Returns how many connections may be open, idle ones too (granian closes none), by the limit of descriptors."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(256, min(MAX_CONNECTIONS, descriptors - OTHER_DESCRIPTORS))


@cache  # each request asks
def most_inside() -> int:
    """Returns how many requests may be at work at once."""
    return min(MAX_INSIDE, connections() - SPARE_CONNECTIONS)


def raise_descriptors() -> None:
    """Increases the limit of descriptors as far as the system allows: the usual 1,000 are fewer than the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# Who looks after the process always comes in, unless with a body: nobody needs one there.
LOOKED_AT: Final = ("/livez", "/readyz", "/metrics")


def enter(http: "Request", state: Any) -> None:
    """Counts a request that begins, except a probe. `state` is Flask's `g` of the request, not the proxy.

    Raises Unavailable if too many requests are at work.
    """
    global _inside
    if http.method in ("GET", "HEAD") and http.path.rstrip("/") in LOOKED_AT:
        return
    with _lock:
        if _inside >= most_inside():
            state.turned_away = True
            raise Unavailable("overloaded", "Too many requests are at work. Nothing was accepted.")
        _inside += 1
    state.inside = True


def turned_away(state: Any) -> bool:
    """Returns whether `enter` refused this request. Its body is not waited for either."""
    return bool(state.get("turned_away"))


def stay_until_closed(state: Any) -> Callable[[], None]:
    """Returns what to call when the body is sent: this request counts as at work until then."""
    inside = bool(state.pop("inside", False))
    return _give_back if inside else lambda: None


def _give_back() -> None:
    global _inside
    with _lock:
        _inside -= 1


def leave(state: Any) -> None:
    """Counts a request as ended, unless it stays until its body is sent."""
    if state.pop("inside", False):
        _give_back()
