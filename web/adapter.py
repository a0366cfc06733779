"""Runs a WSGI application (Flask) on granian's event loop, through granian's interface RSGI.

The WSGI environment is the one of granian's own WSGI server, but without the process's environment variables.
"""

import asyncio
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any, Final

from web import shutdown
from web.commit.long_poll import long_poll
from web.serving.loop import is_on_loop, run, switch
from web.serving.pipes import send_stream

WsgiApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

MAX_CHUNK_BYTES: Final = 64 << 10

_SAME_FOR_ALL: Final[dict[str, Any]] = {
    "GATEWAY_INTERFACE": "CGI/1.1",
    "SCRIPT_NAME": "",
    "SERVER_SOFTWARE": "Granian",
    "HTTP_HOST": "",
    "wsgi.errors": sys.stderr,
    "wsgi.input_terminated": True,
    "wsgi.multiprocess": False,
    "wsgi.multithread": True,
    "wsgi.run_once": False,
    "wsgi.version": (1, 0),
}


class Body:
    """The request's body, `wsgi.input`. It can be read on the loop or in a thread."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._has_started = self._has_ended = False

    def read(self, size: int = -1) -> bytes:
        """Returns at most `size` bytes, as soon as some have arrived; none at the end or if the client has gone.

        Without a size it returns the rest of the body: frameworks call it in that way.
        """
        if size < 0:
            return b"".join(iter(lambda: self.read(MAX_CHUNK_BYTES), b""))
        if not self._buffer and not self._has_ended:
            if is_on_loop():
                self._buffer = switch(self._next_piece())
            else:
                self._buffer = asyncio.run_coroutine_threadsafe(self._next_piece(), self._loop).result()
            self._has_ended = not self._buffer
        piece, self._buffer = self._buffer[:size], self._buffer[size:]
        return piece

    async def _next_piece(self) -> bytes:
        if not self._has_started:
            self._has_started = True
            self._protocol.__aiter__()
        try:
            return bytes(await self._protocol.__anext__())
        except StopAsyncIteration:
            return b""


def make_environ(scope: Any, body: Body) -> dict[str, Any]:
    """Returns the WSGI environment of a request."""
    server_name, _, server_port = scope.server.rpartition(":")
    environ = {
        **_SAME_FOR_ALL,
        "SERVER_NAME": server_name.strip("[]"),
        "SERVER_PORT": server_port,
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "REMOTE_ADDR": scope.client.rpartition(":")[0].strip("[]"),
        "REQUEST_METHOD": scope.method,
        "PATH_INFO": scope.path.encode().decode("latin-1"),
        "QUERY_STRING": scope.query_string,
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": body,
    }
    _add_headers(environ, scope.headers)
    return environ


def _add_headers(environ: dict[str, Any], headers: Any) -> None:
    """Adds the headers. Several lines of a header are joined with commas, cookies with semicolons.

    Of several Content-Type lines the first counts.
    """
    values: dict[str, str] = {}
    for name, value in headers.items():
        if name not in values:
            values[name] = value
        elif name != "content-type":
            values[name] += f"{';' if name == 'cookie' else ','}{value}"
    for name in headers.keys():  # noqa: SIM118 - it is not a mapping
        environ[_variable(name)] = values.get(name, "")  # `items` leaves out a value that is not ASCII


@lru_cache(1024)
def _variable(name: str) -> str:
    variable = name.upper().replace("-", "_")
    return variable if name in ("content-type", "content-length") else f"HTTP_{variable}"


class Adapter:
    """The RSGI application: granian calls `__rsgi_init__` once and `__rsgi__` for each request."""

    def __init__(self, application: WsgiApplication) -> None:
        self._application = application

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        shutdown.listen_for_stop_signals(loop, long_poll.close)

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        environ = make_environ(scope, Body(protocol))
        await run(partial(self._answer, environ, protocol))

    def _answer(self, environ: dict[str, Any], protocol: Any) -> None:
        head: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], _error: Any = None) -> None:
            head[:] = int(status[:3]), headers

        pieces = self._application(environ, start_response)
        status, headers = head
        try:
            if any(name.lower() == "content-length" for name, _ in headers):
                protocol.response_bytes(status, headers, b"".join(pieces))
            elif environ["REQUEST_METHOD"] == "HEAD" or status in (204, 304):
                protocol.response_empty(status, headers)
            else:
                send_stream(protocol, status, headers, pieces)
        finally:
            if close := getattr(pieces, "close", None):
                close()
