"""A receiver of webhooks, for tests: a real HTTP server that keeps what it got and answers as it is told."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from standardwebhooks import Webhook

DROP = 0  # cut the line without an answer
HANG = -1  # answer nothing until the server ends


class Got(NamedTuple):
    """A request as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def told(self) -> tuple[int, str]:
        """Which event of its user, and what of it."""
        return self.json["data"]["user_seq"], self.json["type"]

    def verified_by(self, secret: str) -> bool:
        try:
            Webhook(secret).verify(self.body, dict(self.headers))
        except Exception:
            return False
        return True


Answer = Callable[[Got], int]


class Receiver:
    """`answer` decides the status of each request; it may be replaced at any time."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.server = server
        self.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
        self.got: list[Got] = []
        self.answer: Answer = lambda _: 200
        self.headers: dict[str, str] = {}  # of each answer
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def headers_of(self, status: int) -> dict[str, str]:
        moved = {"Location": f"{self.url}/moved"} if status in (301, 302, 307) else {}
        return {**moved, **self.headers, "Content-Length": "2"}

    def of(self, user_id: int) -> list[Got]:
        return [got for got in list(self.got) if got.json["data"].get("user_id") == user_id]

    def told(self, user_id: int) -> list[tuple[int, str]]:
        return [got.told for got in self.of(user_id)]


@contextmanager
def speaking(speak: Callable[[socket.socket], None], address: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A receiver that writes bytes of the test's choice: it reads a request, then calls `speak` with the connection.

    The port it listens on. Each connection is closed after `speak` has returned.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as listener:
        listener.settimeout(0.05)
        ended = threading.Event()

        def serve(line: socket.socket) -> None:
            with line:
                line.settimeout(10)
                try:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += line.recv(65536)
                    speak(line)
                except OSError:
                    pass  # the sender has closed the connection

        def accept() -> None:
            while not ended.is_set():
                try:
                    line, _ = listener.accept()
                except TimeoutError:
                    continue
                threading.Thread(target=serve, args=[line], daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            ended.set()
            thread.join()


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a port of its own."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            got = Got(self.path, headers, body, time.monotonic())
            with receiver.lock:
                receiver.got.append(got)
                receiver.at_once += 1
                receiver.most_at_once = max(receiver.most_at_once, receiver.at_once)
            try:
                self._respond(receiver.answer(got))
            finally:
                with receiver.lock:
                    receiver.at_once -= 1

        def _respond(self, status: int) -> None:
            if status == HANG:
                ended.wait(60)
            if status in (DROP, HANG):
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in receiver.headers_of(status).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            pass  # a line that was cut

    server = Server(("127.0.0.1", 0), Handler)
    receiver = Receiver(server)
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    try:
        yield receiver
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
