"""The load generator against a server of some lines: it counts right, and a server that stalls cannot hide it."""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest

from bench.crowd import raise_descriptors
from bench.generator import Address, Pool, closed_loop, open_loop, open_loop_on, read_each, send_each
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.unit

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
ACCEPTED = b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n{}"
REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"

Answer = Callable[[int], Sequence[bytes]]  # the pieces of the answer to the request of that number; none: hang up


class Server:
    """Answers each request with the pieces that it is told, a thread per connection."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.numbers = itertools.count()
        self.open = self.most_open = 0
        self.heard: list[bytes] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address: Address = self._listener.getsockname()
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(1 << 16):
                with self._lock:
                    number = next(self.numbers)
                    self.heard.append(data)
                    self.open += 1
                    self.most_open = max(self.open, self.most_open)
                pieces = self.answer(number)
                with self._lock:
                    self.open -= 1
                if not pieces:
                    return
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(0.002 if len(pieces) > 1 else 0)  # a packet of its own


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_every_request_is_sent_once_and_counted_by_status(serve: Callable[[Answer], Server]) -> None:
    server = serve(lambda number: [OK if number % 3 else ACCEPTED])
    requests = [REQUEST.replace(b"/", b"/%d" % number, 1) for number in range(30)]
    sample = closed_loop(server.address, iter(requests), 4, seconds=10)
    assert sample.statuses == {200: 20, 202: 10}
    assert sorted(server.heard) == sorted(requests)
    assert sample.rate == pytest.approx(30 / sample.seconds)


def test_a_closed_loop_keeps_every_connection_busy(
    serve: Callable[[Answer], Server],
) -> None:
    all_here = threading.Barrier(5)

    def answer(_: int) -> Sequence[bytes]:
        all_here.wait(5)  # raises, and so hangs up, unless five are under way at once
        return [OK]

    server = serve(answer)
    sample = closed_loop(server.address, itertools.repeat(REQUEST, 20), 5, seconds=10)
    assert (sample.statuses, server.most_open) == ({200: 20}, 5)


def test_a_closed_loop_ends_when_its_time_is_over(serve: Callable[[Answer], Server]) -> None:
    server = serve(lambda _: [OK])
    sample = closed_loop(server.address, itertools.repeat(REQUEST), 2, seconds=0.1)
    assert 0.1 <= sample.seconds < 1
    assert sum(sample.statuses.values()) == len(server.heard)


def test_an_answer_in_pieces_is_one_answer(serve: Callable[[Answer], Server]) -> None:
    body = b"x" * 200_000
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + body
    server = serve(lambda _: [whole[:9], whole[9:30], whole[30:5000], whole[5000:]])
    sample = closed_loop(server.address, itertools.repeat(REQUEST, 3), 1, seconds=10)
    assert sample.statuses == {200: 3}


def test_a_server_that_hangs_up_is_no_answer(serve: Callable[[Answer], Server]) -> None:
    server = serve(lambda number: [OK] if number < 3 else [])
    with pytest.raises(ConnectionError):
        closed_loop(server.address, itertools.repeat(REQUEST), 1, seconds=10)


def test_an_open_loop_keeps_its_rate(serve: Callable[[Answer], Server]) -> None:
    def answer(_: int) -> Sequence[bytes]:
        time.sleep(0.1)
        return [OK]

    sample = open_loop(serve(answer).address, itertools.repeat(REQUEST), rate=200, seconds=0.5, connections=64)
    assert sample.statuses == {200: 100}
    assert 0.55 < sample.seconds < 1.5
    assert 0.1 <= sample.percentile(50, 200) < 0.3


def test_a_stall_counts_for_all_requests_due_meanwhile(
    serve: Callable[[Answer], Server],
) -> None:
    """Coordinated omission: with its one connection stalled the generator cannot send, but the requests were due."""

    def answer(number: int) -> Sequence[bytes]:
        time.sleep(0.4 if number == 50 else 0)
        return [OK]

    sample = open_loop(serve(answer).address, itertools.repeat(REQUEST), rate=250, seconds=0.6, connections=1)
    latencies = sample.by_status[200]
    assert len(latencies) == 150
    assert sample.percentile(99) > 0.35
    assert sum(latency > 0.1 for latency in latencies) > 50  # about 75 were due in its first 300 ms
    assert sample.percentile(5) < 0.05


def test_percentiles_are_of_one_status_where_one_is_given(serve: Callable[[Answer], Server]) -> None:
    def answer(number: int) -> Sequence[bytes]:
        time.sleep(0.1 if number % 2 else 0)
        return [OK if number % 2 else ACCEPTED]

    sample = closed_loop(serve(answer).address, itertools.repeat(REQUEST, 6), 1, seconds=10)
    assert sample.percentile(50, 202) < 0.1 <= sample.percentile(1, 200)
    assert sample.percentile(50, 404) != sample.percentile(50, 404)  # NaN: there is none


def test_clients_that_wait_do_not_keep_others_from_being_served(serve: Callable[[Answer], Server]) -> None:
    """More descriptors than select() takes; each client is answered after the others' load, and none is lost."""
    clients, released = 1_034, threading.Event()
    raise_descriptors(2 * clients + 200)  # both ends of each connection are in this process

    def answer(number: int) -> Sequence[bytes]:
        if number < clients:
            released.wait(20)
        return [ACCEPTED if number < clients and number % 11 == 0 else OK]

    server = serve(answer)
    with Pool(server.address, 4) as others, Pool(server.address, clients) as crowd:
        send_each(crowd, [REQUEST] * clients)
        wait_until(lambda: len(server.heard) == clients, "all have asked", 20)
        sample = open_loop_on(others, itertools.repeat(REQUEST), rate=100, seconds=0.2)
        released.set()
        statuses = read_each(crowd)
    assert sample.statuses == {200: 20}
    assert statuses == {200: 940, 202: 94}
