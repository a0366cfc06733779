"""Functions on processes of the operating system: their end, their exit codes, and their user."""

import ctypes
import os
import pwd
import signal
import socket
import sys

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)  # loaded before a fork, because a forked child should load nothing


def die_with_parent(death_signal: int = signal.SIGKILL) -> None:
    """Asks the kernel to signal this process when the thread that created it ends, for any reason (Linux only)."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, death_signal)


def has_ended(pid: int) -> bool:
    """Returns whether a child of this process has ended and is not reaped yet. Does not reap it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:  # reaped already
        return False


def describe_exit(code: int) -> str:
    """Returns a text for an exit code. A negative code is the signal that killed the process."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def operator_name() -> str:
    """Returns user and host of the operating system, such as `ada@box`: the actor of a command."""
    uid = os.geteuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:  # in a container a user id may have no name
        user = str(uid)
    return f"{user}@{socket.gethostname()}"
