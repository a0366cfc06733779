"""granian with the very options of web, for what is compared with web."""

import argparse

from granian import Granian
from granian.constants import HTTPModes, Interfaces

from shared.settings import settings
from web.__main__ import LOGGING, _most_connections


def port_of_command_line() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    return int(parser.parse_args().port)


def serve(factory: str) -> None:
    """`factory` is module:function; it is called in the process that serves."""
    Granian(
        factory,
        factory=True,
        address="127.0.0.1",
        port=port_of_command_line(),
        interface=Interfaces.WSGI,
        http=HTTPModes.http1,
        blocking_threads=settings().web_threads,
        backpressure=_most_connections(),
        websockets=False,
        log_dictconfig=LOGGING,
        respawn_failed_workers=True,
        workers_kill_timeout=25,
    ).serve()
