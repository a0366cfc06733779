"""Graceful shutdown of web: it drains, refuses new connections, and then granian stops. No request fails.

1. The parent process signals the serving process to drain. All long polls end, and every response has
   `Connection: close`, so that clients leave their kept connections between two requests.
2. The kernel refuses new connections. granian still accepts the connections that the kernel has completed: closing
   the listening socket would reset them.
3. granian closes the listening socket, ends idle connections and lets the running requests finish.
"""

import asyncio
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

DRAIN_SECONDS: Final = 0.5  # an active client sends its next request within that time
HANDSHAKE_SECONDS: Final = 0.5  # for a handshake that has begun, and the first request after it
DRAIN_SIGNAL: Final = signal.SIGURG  # a process without a handler ignores it
WEB_STOP_SIGNALS: Final = (DRAIN_SIGNAL, signal.SIGTERM, signal.SIGINT)

_DESCRIPTORS: Final = "/proc/self/fd"  # granian owns the listening socket and does not pass it on
_SO_BINDTOIFINDEX: Final = 62
_NO_INTERFACE: Final = 2**31 - 1  # the highest index; Linux counts interfaces from 1

_stopping = threading.Event()


def is_stopping() -> bool:
    """Returns whether the process has begun to stop."""
    return _stopping.is_set()


def listen_for_stop_signals(loop: asyncio.AbstractEventLoop, close: Callable[[], None]) -> None:
    """Makes the serving process begin to stop at a signal. Call it in the main thread. `close` ends all waits.

    granian has its own handlers of SIGTERM and SIGINT on the loop. Both are called, because the loop reads signals from
    a descriptor to which Python writes with any handler. Without this a request with `Prefer: wait=30` would delay
    the shutdown by 30 s.
    """
    for number in WEB_STOP_SIGNALS:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(_begin, loop, close))


def _begin(loop: asyncio.AbstractEventLoop, close: Callable[[], None]) -> None:
    if not is_stopping():
        _stopping.set()
        close()
        loop.call_later(DRAIN_SECONDS, _refuse_connections)


def drain(pid: int) -> None:
    """Makes the serving process drain, and waits until it has. The parent process calls this before it stops it."""
    with suppress(ProcessLookupError):
        os.kill(pid, DRAIN_SIGNAL)
        time.sleep(DRAIN_SECONDS + HANDSHAKE_SECONDS)


def _refuse_connections() -> None:
    """Binds the listening sockets to a network interface that does not exist. So the kernel refuses new connections.

    Connections that are complete or in their handshake are not affected. It needs Linux 5.7 and no privilege (a packet
    filter on a TCP socket needs CAP_NET_ADMIN). Without this option the sockets stay open until granian closes them.
    Then the kernel resets the connections that granian has not accepted yet.
    """
    for descriptor in map(int, os.listdir(_DESCRIPTORS) if os.path.isdir(_DESCRIPTORS) else ()):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as ours:
                    if ours.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        ours.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _NO_INTERFACE)
