"""`python -m web`: the HTTP front, one process. granian reads and writes HTTP, Flask answers in its threads."""

import argparse
from typing import Any

from shared import logs
from shared.processes import die_with_parent
from shared.settings import settings
from web.app import create_app

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "shared.logs.formatter"}},
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stdout"}
    },
    "loggers": {"_granian": {"handlers": ["console"], "level": "INFO", "propagate": False}},
}


def application() -> Any:
    """What granian calls in the process that serves."""
    die_with_parent()
    logs.configure()
    return create_app()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m web", description=__doc__)
    parser.add_argument("--host", default=settings().host, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=settings().port, help="port (default: %(default)s)")
    options = parser.parse_args()

    from granian import Granian
    from granian.constants import Interfaces

    Granian(
        "web.__main__:application",
        factory=True,
        address=options.host,
        port=options.port,
        interface=Interfaces.WSGI,
        blocking_threads=settings().web_threads,
        backpressure=4 * settings().web_threads,
        websockets=False,
        log_dictconfig=LOGGING,
        respawn_failed_workers=True,
        workers_kill_timeout=25,
    ).serve()


if __name__ == "__main__":
    main()
