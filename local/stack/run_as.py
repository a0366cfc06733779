"""The user that Postgres runs as. Postgres refuses to run as root, so root needs another identity for it.

In a user namespace our uid is mapped to nobody. Then the files stay ours, and no folder needs wider permissions. If
namespaces are blocked, Postgres runs as the real user nobody, with one capability (CAP_DAC_OVERRIDE, "ambient"). With
it Postgres reaches its data and binaries in folders that only root may enter.
"""

import ctypes
import os
import pwd
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from local.command import CommandError

CLONE_NEWUSER = 0x10000000
PR_SET_KEEPCAPS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 8, 47, 2
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Identity:
    """The identity of Postgres: a function to call in its process before exec, and the owner of its files."""

    assume: Callable[[], None]
    uid: int
    gid: int


def identity() -> Identity:
    """Returns the identity for Postgres on this machine. Raises CommandError if there is none."""
    uid, gid = os.geteuid(), os.getegid()
    if sys.platform != "linux" or (uid != 0 and _has_name(uid)):
        return Identity(lambda: None, uid, gid)
    name = _other_user()
    in_namespace = Identity(lambda: _enter_namespace(name, uid, gid), uid, gid)
    if uid != 0 or _works(in_namespace.assume):
        return in_namespace
    as_nobody = Identity(lambda: _become(name), name.pw_uid, name.pw_gid)
    if not _works(as_nobody.assume):
        raise CommandError("Postgres does not run as root, and nothing else is allowed here: run this as a user")
    return as_nobody


def take_ownership(folder: Path, owner: Identity) -> None:
    """Changes the owner of a cluster to the current identity, if another identity created it."""
    if folder.stat().st_uid == owner.uid:
        return
    for parent, _, files in os.walk(folder):
        for path in (parent, *(os.path.join(parent, name) for name in files)):
            os.chown(path, owner.uid, owner.gid, follow_symlinks=False)


def _enter_namespace(name: pwd.struct_passwd, uid: int, gid: int) -> None:
    _check(_libc.unshare(CLONE_NEWUSER))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{name.pw_uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{name.pw_gid} {gid} 1")


def _become(name: pwd.struct_passwd) -> None:
    _check(_libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setresgid(name.pw_gid, name.pw_gid, name.pw_gid)
    os.setresuid(name.pw_uid, name.pw_uid, name.pw_uid)
    mask = 1 << CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)(mask, mask, mask)))  # effective, permitted, inheritable
    _check(_libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0))


def _works(assume: Callable[[], None]) -> bool:
    """Returns whether the identity works. Tries it in a child process, because the change cannot be undone."""
    pid = os.fork()
    if pid == 0:
        try:
            assume()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _has_name(uid: int) -> bool:
    try:
        return bool(pwd.getpwuid(uid))
    except KeyError:
        return False


def _other_user() -> pwd.struct_passwd:
    """Returns an existing user other than root and ours, nobody if possible. initdb needs the name of the user."""
    others = [entry for entry in pwd.getpwall() if entry.pw_uid not in (0, os.geteuid())]
    named = [entry for entry in others if entry.pw_name == "nobody"]
    if not others:
        raise CommandError("Postgres does not run as root, and there is no other user: run this as a user")
    return (named or others)[0]
