"""`python -m web`: runs the HTTP service. granian reads and writes HTTP; Flask runs on its event loop in one process.

A parent process starts and supervises the serving process. It imports nothing of the service, which saves 40 MB.
"""

import argparse
import os
from importlib import import_module
from typing import Any

from shared import logs
from shared.processes import die_with_parent
from shared.settings import settings
from web import shutdown
from web.limits import concurrency

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "shared.logs.formatter"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stdout"}},
    "loggers": {"_granian": {"handlers": ["console"], "level": "INFO", "propagate": False}},
}


def application() -> Any:
    """Returns the service's Flask application."""
    from web.app import create_app

    die_with_parent()
    logs.configure(in_batches=True)
    return create_app()


def load(factory: str) -> Any:
    """Returns the factory's application, adapted to granian's loop. granian calls this in the serving process."""
    from web.adapter import Adapter

    module, _, name = factory.partition(":")
    return Adapter(getattr(import_module(module), name)())


def serve(factory: str, host: str, port: int) -> None:
    """Serves a WSGI application until a signal stops it. The serving process calls `factory`, a module:function."""
    from granian.constants import HTTPModes, Interfaces, Loops
    from granian.server.mp import MPServer

    concurrency.raise_descriptor_limit()

    class Server(MPServer):
        def shutdown(self, exit_code: int = 0) -> None:
            for worker in self.wrks:
                shutdown.drain(worker.inner.pid)
            super().shutdown(exit_code)  # type: ignore[no-untyped-call]

    Server(
        factory,
        address=host,
        port=port,
        interface=Interfaces.RSGI,
        loop=Loops.uvloop,
        http=HTTPModes.http1,
        backpressure=concurrency.connections(),
        websockets=False,
        log_dictconfig=LOGGING,
        respawn_failed_workers=True,
        workers_kill_timeout=25,
    ).serve(target_loader=load)


def main() -> None:
    """Reads the command line and serves until a signal stops it."""
    parser = argparse.ArgumentParser(prog="python -m web", description=__doc__)
    parser.add_argument("--host", default=settings().host, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=settings().port, help="port (default: %(default)s)")
    options = parser.parse_args()
    # The serving process reads PAYMENTS_HOST to decide whether it needs API keys: it must be the real address.
    os.environ["PAYMENTS_HOST"] = options.host
    settings.cache_clear()
    serve("web.__main__:application", options.host, options.port)


if __name__ == "__main__":
    main()
