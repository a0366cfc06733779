"""How web stops so that nobody's request fails: a drain, a shut door, and then granian's own stop.

Told to stop, the process that started granian first tells the one that serves to drain: who waits is answered, and
every answer says `Connection: close`, so a client that keeps its connection lets go of it between two requests. Then the
door is shut: no new connection, and those that the kernel has completed are still taken in, for with the listening
socket they would be reset. Only then granian closes it, ends what is idle and lets the rest finish.
"""

import ctypes
import os
import signal
import socket
import stat
import struct
import threading
import time
from contextlib import suppress
from typing import Final

from web.waiting import room

DRAIN_SECONDS: Final = 0.5  # a connection that is in use is used within that time
DOOR_SECONDS: Final = 0.1  # for a handshake under way, and the first request after it
DRAIN: Final = signal.SIGURG  # whoever does not listen to it, ignores it
STOPS: Final = (DRAIN, signal.SIGTERM, signal.SIGINT)

_DESCRIPTORS: Final = "/proc/self/fd"  # the listening socket is granian's, and is looked for there
_SO_ATTACH_FILTER: Final = 26
_DROP_SYN: Final = (  # of the TCP header: load the flags; is it a SYN? drop it; keep all else
    (0x30, 0, 0, 13),
    (0x45, 0, 1, 0x02),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
)

_begun = threading.Event()


def has_begun() -> bool:
    return _begun.is_set()


def listen_for_the_end() -> None:
    """In the process that serves, in its main thread: begin to stop when a signal says so.

    The handlers of SIGTERM and SIGINT are granian's; Python writes the number of each signal to the wake-up descriptor
    besides. A request with `Prefer: wait=30` would otherwise hold up the end for that long.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(DRAIN, lambda *_: None)

    def watch() -> None:
        while os.read(reader, 1)[0] not in STOPS:
            pass
        _begun.set()
        room.close()
        time.sleep(DRAIN_SECONDS)
        _shut_the_door()

    threading.Thread(target=watch, name="signals", daemon=True).start()


def drain(pid: int) -> None:
    """In the process that started the serving one: let that one do all this before it is stopped."""
    with suppress(ProcessLookupError):
        os.kill(pid, DRAIN)
        time.sleep(DRAIN_SECONDS + DOOR_SECONDS)


def _shut_the_door() -> None:
    """Let the kernel drop the first packet of each new connection, as if the line were slow: it is sent again in a
    second, and refused by then. Where there are no such filters the door stays open to the end.
    """
    rules = b"".join(struct.pack("HBBI", *rule) for rule in _DROP_SYN)
    program = ctypes.create_string_buffer(rules, len(rules))
    value = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(program))
    for descriptor in map(int, os.listdir(_DESCRIPTORS) if os.path.isdir(_DESCRIPTORS) else ()):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as ours:
                    if ours.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        ours.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, value)
