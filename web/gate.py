"""How many requests are at work at once: all threads of the server but a few, which are left to those who look after it.

Without this, a database that hangs would take every thread, and the process would be ended for not saying that it
lives.
"""

import threading
from typing import Final

from flask import Request, g

from shared.errors import Unavailable
from shared.settings import settings

# A client that sends no body holds a thread, and granian knows no time-out for bodies. A thread costs 50 kB.
BODY_THREADS: Final = 1024
SPARE_THREADS: Final = 32

_lock = threading.Lock()
_inside = 0


def threads() -> int:
    """Of the server: they start when they are needed."""
    return settings().web_threads + BODY_THREADS + SPARE_THREADS


def enter(http: Request) -> None:
    """Raises Unavailable. Who asks for no /api/ address always comes in."""
    global _inside
    if not http.path.startswith("/api/"):
        return
    with _lock:
        if _inside >= threads() - SPARE_THREADS:
            raise Unavailable("overloaded", "Too many requests are at work. Nothing was accepted.")
        _inside += 1
    g.inside = True


def leave(_error: BaseException | None = None) -> None:
    global _inside
    if g.pop("inside", False):
        with _lock:
            _inside -= 1
