"""The server of web, for what is compared with web."""

import argparse

from web.__main__ import serve as serve_as_web


def port_of_command_line() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    return int(parser.parse_args().port)


def serve(factory: str) -> None:
    """`factory` is module:function; it is called in the process that serves."""
    serve_as_web(factory, "127.0.0.1", port_of_command_line())
