"""What one process owes another, and who runs it."""

import ctypes
import os
import pwd
import signal
import socket
import sys

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)  # loaded before a fork, because a child may only do little


def die_with_parent(death_signal: int = signal.SIGKILL) -> None:
    """Asks the kernel to signal this process when the thread that made it ends, however that ends (Linux only)."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, death_signal)


def has_ended(pid: int) -> bool:
    """Whether a child of this process has ended and is still to be reaped. Leaves that to whom it belongs."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:  # reaped already
        return False


def describe_exit(code: int) -> str:
    """Returns how a process ended, by its exit code or the signal that killed it (a negative code)."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def operator_name() -> str:
    """Returns the operating system's user and host, `ada@box`: the actor of what a command does."""
    uid = os.geteuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:  # in a container an id may have no name
        user = str(uid)
    return f"{user}@{socket.gethostname()}"
