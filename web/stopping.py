"""How web stops so that nobody's request fails: a drain, a shut door, and then granian's own stop.

Told to stop, the process that started granian first tells the one that serves to drain: who waits is answered, and
every answer says `Connection: close`, so a client that keeps its connection lets go of it between two requests. Then the
door is shut: the kernel refuses new connections, and granian still accepts those that the kernel has completed, which
would be reset together with the listening socket. Only then granian closes it, ends what is idle and lets the rest finish.
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

DRAIN_SECONDS: Final = 0.5  # a connection that is in use is used within that time
HANDSHAKE_SECONDS: Final = 0.5  # for a handshake under way, and the first request after it
DRAIN_SIGNAL: Final = signal.SIGURG  # whoever does not listen to it, ignores it
WEB_STOP_SIGNALS: Final = (DRAIN_SIGNAL, signal.SIGTERM, signal.SIGINT)

_DESCRIPTORS: Final = "/proc/self/fd"  # the listening socket is granian's, and is looked for there
_SO_BINDTOIFINDEX: Final = 62
_NO_INTERFACE: Final = 2**31 - 1  # the highest index; Linux counts interfaces from 1

_stopping = threading.Event()


def is_stopping() -> bool:
    """Returns whether the process has begun to stop."""
    return _stopping.is_set()


def listen_for_stop_signals(loop: asyncio.AbstractEventLoop, close: Callable[[], None]) -> None:
    """Makes the process that serves begin to stop when a signal says so; called in its main thread. `close` ends all waits.

    The loop has handlers of SIGTERM and SIGINT already, granian's. It learns of a signal by a descriptor that Python
    writes to whatever the handler here is: so both are called. Without this a request with `Prefer: wait=30` would delay
    the end for that long.
    """
    for number in WEB_STOP_SIGNALS:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(_begin, loop, close))


def _begin(loop: asyncio.AbstractEventLoop, close: Callable[[], None]) -> None:
    if not is_stopping():
        _stopping.set()
        close()
        loop.call_later(DRAIN_SECONDS, _refuse_connections)


def drain(pid: int) -> None:
    """Makes the serving process drain, and waits until it has. Called in the process that started it, before it is stopped."""
    with suppress(ProcessLookupError):
        os.kill(pid, DRAIN_SIGNAL)
        time.sleep(DRAIN_SECONDS + HANDSHAKE_SECONDS)


def _refuse_connections() -> None:
    """Binds the listening sockets to a network interface that does not exist, so that the kernel refuses new connections.

    Connections that are complete or in their handshake are not affected. It needs Linux 5.7 and no privilege (a packet
    filter on a TCP socket needs CAP_NET_ADMIN). Where there is no such option the sockets stay open until granian closes
    them, and connections that nobody has accepted by then are reset, unread.
    """
    for descriptor in map(int, os.listdir(_DESCRIPTORS) if os.path.isdir(_DESCRIPTORS) else ()):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as ours:
                    if ours.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        ours.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _NO_INTERFACE)
