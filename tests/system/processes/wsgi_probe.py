"""A small WSGI application that tells what it sees and does what it is asked to; `python -m tests.system.processes.wsgi_probe PORT` serves it as web."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from web.__main__ import serve
from web.serving.loop import Wakeup, in_thread, wake

PIECE = b"x" * 100_000
PIECES = 1000

_waiting: list[Wakeup] = []
_sent = 0
_closed = threading.Event()


def tell(environ: dict[str, Any]) -> Iterable[bytes]:
    """The environment, without the process's own variables, and the body."""
    body = b""
    while piece := environ["wsgi.input"].read(65536):
        body += piece
    own = {name: repr(value) for name, value in environ.items() if name not in os.environ and "wsgi.i" not in name}
    return [json.dumps({**own, "body": repr(body)}).encode()]


def read_all(environ: dict[str, Any]) -> Iterable[bytes]:
    """As frameworks read: without a size, and once more."""
    return [environ["wsgi.input"].read() + b"|" + environ["wsgi.input"].read()]


def wait(_: dict[str, Any]) -> Iterable[bytes]:
    _waiting.append(wakeup := Wakeup())
    return [b"woken" if wakeup.wait(30) else b"not woken"]


def wake_all(_: dict[str, Any]) -> Iterable[bytes]:
    woken, _waiting[:] = list(_waiting), []
    in_thread(wake, woken)
    return [str(len(woken)).encode()]


def fail(_: dict[str, Any]) -> Iterable[bytes]:
    raise ZeroDivisionError


class Stream:
    def __iter__(self) -> Iterator[bytes]:
        global _sent
        for _ in range(PIECES):
            _sent += 1
            yield PIECE

    def close(self) -> None:
        _closed.set()


def stream(_: dict[str, Any]) -> Iterable[bytes]:
    _closed.clear()
    return Stream()


def count(_: dict[str, Any]) -> Iterable[bytes]:
    return [json.dumps([_sent, _closed.is_set(), len(_waiting), threading.active_count()]).encode()]


VIEWS = {"/all": read_all, "/wait": wait, "/wake": wake_all, "/fail": fail, "/stream": stream, "/count": count}


def application() -> Any:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/empty":
            start_response("204 No Content", [("Content-Type", "text/plain")])
            return ()
        answer = VIEWS.get(environ["PATH_INFO"], tell)(environ)
        length = [("Content-Length", str(len(answer[0])))] if isinstance(answer, list) else []
        start_response("200 OK", [("Content-Type", "text/plain"), *length])
        return answer

    return app


if __name__ == "__main__":
    serve("tests.system.processes.wsgi_probe:application", "127.0.0.1", int(sys.argv[1]))
