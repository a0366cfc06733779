"""`up` as it is, but its processes reach the servers through our proxies, and load the hook that FAULTS_HOOK names.

`python -m tests.faults.launch up ...`, with the proxies' ports in FAULTS_POSTGRES_PORT and FAULTS_BROKER_PORT.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from local import main as command_line
from local.commands import up
from local.stack import servers

SITE = Path(__file__).parent / "site"


def main() -> int:
    servers._start_postgres = _through(
        "FAULTS_POSTGRES_PORT", "sslmode=disable&gssencmode=disable", servers._start_postgres
    )
    servers.start_broker = _through("FAULTS_BROKER_PORT", "", servers.start_broker)
    plain = up._environment

    def hooked(*arguments: Any) -> dict[str, str]:
        environment = plain(*arguments)
        return {**environment, "PYTHONPATH": f"{environment['PYTHONPATH']}{os.pathsep}{SITE}"}

    vars(up)["_environment"] = hooked
    return command_line.main(sys.argv[1:])


def _through(variable: str, query: str, start: Callable[..., str]) -> Callable[..., str]:
    def start_behind_proxy(*arguments: Any) -> str:
        parts = urlsplit(start(*arguments))
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{os.environ[variable]}", query=query))

    return start_behind_proxy


if __name__ == "__main__":
    sys.exit(main())
