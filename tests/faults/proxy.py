"""A TCP proxy that breaks lines on purpose: in front of Postgres, whose simple queries it understands, or the broker.

It must carry no TLS. A line is one client connection and one to the server behind it, with a thread each way.
"""

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

CHUNK = 1 << 16
START_UP, CANCEL = 196608, 80877102
_LENGTH = struct.Struct("!I")
_NO_LINGER = struct.pack("ii", 1, 0)  # close() sends RST

Address = tuple[str, int]


@dataclass(eq=False)
class Line:
    """One connection through the proxy; `statements` are those of its Postgres transaction, the open one or the last."""

    client: socket.socket
    server: socket.socket
    application: str = ""
    statements: list[str] = field(default_factory=list)
    in_transaction: bool = False
    cutting: bool = False
    dead: bool = False  # what comes is read and goes nowhere, until the line is reset
    answered: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        """Both ends get RST."""
        for end in (self.client, self.server):
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            with suppress(OSError):
                end.shutdown(socket.SHUT_RD)  # wakes the thread that reads, and says nothing to the other side
            end.close()


@dataclass
class Cut:
    """A COMMIT of a transaction that `matches` is cut: before the server has it, or after it has answered."""

    matches: Callable[[Line], bool]
    count: int
    after: bool
    done: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """Listens on a port of its own as long as it lives. `target` is asked at each connection."""

    def __init__(self, target: Callable[[], Address], *, reads_postgres: bool = False) -> None:
        self.delay_seconds = 0.0
        self.refuses = False
        self._target = target
        self._reads_postgres = reads_postgres
        self._flows = threading.Event()
        self._flows.set()
        self._swallows = False
        self.says = b""
        self._cut: Cut | None = None
        self._lines: set[Line] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def url(self, url: str) -> str:
        """The server's url, by way of the proxy. For Postgres without TLS, or its messages could not be read."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        query = "sslmode=disable&gssencmode=disable" if self._reads_postgres else parts.query
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}", query=query))

    def close(self) -> None:
        self._flows.set()
        self._listener.close()
        self.reset()

    def reset(self) -> None:
        """RST to every line there is."""
        for line in self._snapshot():
            line.reset()

    def hold(self) -> None:
        """Nothing passes, nothing is lost; new connections are taken and hear nothing. Until `heal`."""
        self._flows.clear()

    def swallow(self) -> None:
        """A black hole: what comes is read and lost, and a line that lost something never works again."""
        self._swallows = True

    def half_open(self) -> None:
        """The server sees every line end; the clients are told nothing, and nothing ever comes for them."""
        for line in self._snapshot():
            line.dead = True
            with suppress(OSError):
                line.server.shutdown(socket.SHUT_RDWR)

    def cut_commits(self, matches: Callable[[Line], bool], count: int = 1, *, after: bool = True) -> Cut:
        """Cut the next transactions that match as they commit; `done` is set when all have been."""
        self._cut = Cut(matches, count, after)
        return self._cut

    def heal(self, *, leaves_dead: bool = False) -> None:
        """All as it should be; lines that lost something are reset, as when a hung middle box is restarted.

        Or they stay as they are: what the clients send is acknowledged, and nobody ever answers.
        """
        self.delay_seconds, self.refuses, self._swallows, self._cut, self.says = 0.0, False, False, None, b""
        self._flows.set()
        for line in self._snapshot():
            if line.dead and not leaves_dead:
                line.reset()

    def _snapshot(self) -> list[Line]:
        with self._lock:
            return list(self._lines)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._connect, args=[client], daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self._flows.wait()
        try:
            if self.refuses:
                raise ConnectionRefusedError
            server = socket.create_connection(self._target(), timeout=10)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            client.close()
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = Line(client, server)
        with self._lock:
            self._lines.add(line)
        threading.Thread(target=self._pump_answers, args=[line], daemon=True).start()
        try:
            self._pump_requests(line)
        finally:
            line.reset()
            with self._lock:
                self._lines.discard(line)

    def _pump_requests(self, line: Line) -> None:
        reader = _Reader() if self._reads_postgres else None
        with suppress(OSError):
            while data := line.client.recv(CHUNK):
                if answer := self.says:
                    line.dead = True  # the server gets nothing any more
                    line.client.sendall(answer * _count_commands(data))
                    continue
                if self._drops(line):
                    continue
                if reader and reader.commits(line, data) and self._is_cut(line):
                    return
                line.server.sendall(data)
                if line.cutting:
                    line.answered.wait(10)
                    return

    def _is_cut(self, line: Line) -> bool:
        """Whether the line ends here, before its COMMIT is passed on."""
        with self._lock:
            cut = self._cut
            if cut is None or cut.count == 0 or not cut.matches(line):
                return False
            cut.count -= 1
            line.cutting = cut.after
            if cut.count == 0:
                cut.done.set()
        return not cut.after

    def _pump_answers(self, line: Line) -> None:
        try:
            while data := line.server.recv(CHUNK):
                if line.cutting:
                    return
                if not self._drops(line):
                    line.client.sendall(data)
        except OSError:
            pass
        finally:
            line.answered.set()
            if not line.dead:  # a dead line's client is told nothing
                line.reset()

    def _drops(self, line: Line) -> bool:
        """Whether what has just come is lost. Waits as the proxy's state has it."""
        self._flows.wait()
        if self.delay_seconds:
            time.sleep(self.delay_seconds)
        line.dead = line.dead or self._swallows
        return line.dead


class _Reader:
    """Reads a Postgres client's messages as they pass."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._started = False

    def commits(self, line: Line, data: bytes) -> bool:
        """Whether a COMMIT is among the messages that are now whole."""
        self._buffer += data
        found = False
        while (message := self._next()) is not None:
            kind, body = message
            if kind == b"":
                line.application = _parameters(body).get("application_name", "")
            elif kind == b"Q":
                found |= _note(line, body[:-1].decode(errors="replace"))
        return found

    def _next(self) -> tuple[bytes, bytes] | None:
        head = 1 if self._started else 0  # the first message has no type
        if len(self._buffer) < head + 4:
            return None
        end = head + _LENGTH.unpack_from(self._buffer, head)[0]
        if len(self._buffer) < end:
            return None
        kind, body = bytes(self._buffer[:head]), bytes(self._buffer[head + 4 : end])
        del self._buffer[:end]
        self._started = True
        return kind, body


def _count_commands(data: bytes) -> int:
    """How many commands of Redis's protocol begin in a piece."""
    return max(1, data.startswith(b"*") + data.count(b"\r\n*"))


def _note(line: Line, statement: str) -> bool:
    """Keep what the line's transaction has said so far; whether it now commits. A lone statement commits by itself."""
    word = statement.lstrip()[:8].upper()
    if word.startswith(("COMMIT", "ROLLBACK")):
        line.in_transaction = False
        return word.startswith("COMMIT")
    if not line.in_transaction:
        line.statements.clear()
        line.in_transaction = word.startswith("BEGIN")
        if line.in_transaction:
            return False
    line.statements.append(statement)
    return not line.in_transaction


def _parameters(start_up: bytes) -> dict[str, str]:
    protocol = _LENGTH.unpack_from(start_up)[0]
    if protocol >> 16 != START_UP >> 16 or protocol == CANCEL:
        return {}
    words = start_up[4:].decode(errors="replace").split("\0")
    return dict(zip(words[::2], words[1::2], strict=False))
