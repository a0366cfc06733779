"""How many requests are at work at once: all threads of the server but a few, which are left to those who look after it.

Without this, a database that hangs would take every thread, and the process would be ended for not saying that it
lives.
"""

import resource
import threading
from collections.abc import Callable
from functools import cache
from typing import Final

from flask import Request, g

from shared.errors import Unavailable
from shared.settings import settings

# A client that sends no body holds a thread, and granian knows no time-out for bodies. A thread costs 50 kB.
BODY_THREADS: Final = 1024
SPARE_THREADS: Final = 32
DESCRIPTORS: Final = 16_384

_lock = threading.Lock()
_inside = 0


def threads() -> int:
    """Of the server: they start when they are needed."""
    return settings().web_threads + BODY_THREADS + SPARE_THREADS


def connections() -> int:
    """Idle ones too: granian closes none. Bounded by the descriptors that the process may have."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 4 * threads()
    return most if descriptors == resource.RLIM_INFINITY else max(256, min(most, descriptors - 128))


@cache  # each request asks
def most_inside() -> int:
    return min(threads(), connections()) - SPARE_THREADS


def raise_descriptors() -> None:
    """A thousand, the usual limit, are fewer than there are threads; what the system allows is asked for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# Who looks after the process always comes in, unless with a body: nobody needs one there.
LOOKED_AT: Final = ("/livez", "/readyz", "/metrics")


def enter(http: Request) -> None:
    """Raises Unavailable."""
    global _inside
    if http.method in ("GET", "HEAD") and http.path.rstrip("/") in LOOKED_AT:
        return
    with _lock:
        if _inside >= most_inside():
            g.turned_away = True
            raise Unavailable("overloaded", "Too many requests are at work. Nothing was accepted.")
        _inside += 1
    g.inside = True


def turned_away() -> bool:
    """Whether there was no room for this request: then its body is not waited for either."""
    return bool(g.get("turned_away"))


def stay_until_closed() -> Callable[[], None]:
    """Keep this request's place while its body is sent; returns what gives it back."""
    inside = bool(g.pop("inside", False))
    return _give_back if inside else lambda: None


def _give_back() -> None:
    global _inside
    with _lock:
        _inside -= 1


def leave(_error: BaseException | None = None) -> None:
    if g.pop("inside", False):
        _give_back()
