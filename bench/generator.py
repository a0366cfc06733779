"""The load generator: HTTP/1.1 over kept-alive connections from one thread, some ten microseconds a request.

It shares the machine with what it measures, so it does no more than it must: requests are ready bytes, answers are
read as far as their status and length.
"""

import select
import socket
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Self

READ_BYTES = 1 << 16
STUCK_SECONDS = 30.0  # without any answer

Address = tuple[str, int]


@dataclass
class Sample:
    """What came of a load: the latencies in seconds, by the answers' status."""

    by_status: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    seconds: float = 0.0

    @property
    def statuses(self) -> dict[int, int]:
        return {status: len(latencies) for status, latencies in sorted(self.by_status.items())}

    @property
    def rate(self) -> float:
        """Answers a second."""
        return sum(self.statuses.values()) / self.seconds

    def percentile(self, percent: float, status: int | None = None) -> float:
        """Of the latencies (of one status, if given), in seconds; the nearest rank. NaN where there are none."""
        chosen = chain(*self.by_status.values()) if status is None else self.by_status.get(status, [])
        ordered = sorted(chosen)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")


class _Connection:
    """One request at a time. `began` is the instant that its latency is counted from."""

    def __init__(self, address: Address) -> None:
        self.socket = socket.create_connection(address, timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began = 0.0
        self._answer = b""
        self._left = -1  # bytes of the answer still to come; -1: its head is not whole yet
        self._status = 0

    def send(self, request: bytes, began: float) -> None:
        self.began = began
        self._answer, self._left = b"", -1
        self.socket.sendall(request)

    def read(self) -> int:
        """The status once the answer is whole, else 0. Raises ConnectionError when the server hangs up."""
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise ConnectionError("the server closed the connection")
        if self._left < 0:
            self._answer += data
            end = self._answer.find(b"\r\n\r\n")
            if end < 0:
                return 0
            self._status = int(self._answer[9:12])
            self._left = _length_of(self._answer[:end].lower()) - (len(self._answer) - end - 4)
        else:
            self._left -= len(data)
        return self._status if self._left <= 0 else 0


def _length_of(head: bytes) -> int:
    _, found, rest = head.partition(b"content-length:")
    return int(rest.split(b"\r\n", 1)[0]) if found else 0


def closed_loop(address: Address, requests: Iterator[bytes], connections: int, seconds: float) -> Sample:
    """Each connection sends the next request as soon as it has its answer, for `seconds` or to the last request."""
    sample = Sample()
    with Pool(address, connections) as pool:
        began = time.perf_counter()
        ends = began + seconds
        for connection in pool.all:
            if (request := next(requests, None)) is not None:
                connection.send(request, time.perf_counter())
                pool.busy += 1
        while pool.busy:
            for connection, status in pool.answers(STUCK_SECONDS):
                now = time.perf_counter()
                sample.by_status[status].append(now - connection.began)
                request = next(requests, None) if now < ends else None
                if request is None:
                    pool.busy -= 1
                else:
                    connection.send(request, now)
        sample.seconds = time.perf_counter() - began
    return sample


def open_loop(
    address: Address, requests: Iterator[bytes], rate: float, seconds: float, connections: int = 256
) -> Sample:
    """A request every 1/rate seconds whatever the answers do; latency counts from the instant it was due."""
    with Pool(address, connections) as pool:
        return open_loop_on(pool, requests, rate, seconds)


def open_loop_on(pool: "Pool", requests: Iterator[bytes], rate: float, seconds: float) -> Sample:
    """The same on connections that are open already."""
    sample = Sample()
    free = deque(pool.all)
    began = time.perf_counter()
    sent, last = 0, int(rate * seconds)
    while sent < last or pool.busy:
        now = time.perf_counter()
        while sent < last and free and (due := began + sent / rate) <= now:
            connection = free.popleft()
            connection.send(next(requests), due)
            pool.busy += 1
            sent += 1
        patience = began + sent / rate - time.perf_counter() if sent < last and free else STUCK_SECONDS
        for connection, status in pool.answers(max(0.0, patience)):
            sample.by_status[status].append(time.perf_counter() - connection.began)
            pool.busy -= 1
            free.append(connection)
    sample.seconds = time.perf_counter() - began
    return sample


def send_each(pool: "Pool", requests: Sequence[bytes]) -> None:
    """One request on each connection, all at once; `read_each` reads the answers, however much later."""
    for connection, request in zip(pool.all, requests, strict=True):
        connection.send(request, time.perf_counter())
        pool.busy += 1


def read_each(pool: "Pool") -> Counter[int]:
    """How many answers had which status. When they came is not known: they may have waited for us."""
    statuses: Counter[int] = Counter()
    while pool.busy:
        for _, status in pool.answers(STUCK_SECONDS):
            statuses[status] += 1
            pool.busy -= 1
    return statuses


class Pool:
    """Connections and what watches them. Of several, the one that is waited for to the microsecond is made first."""

    def __init__(self, address: Address, connections: int) -> None:
        self._watch = select.epoll()  # before the connections: select() takes no descriptor above 1,023
        self.all = [_Connection(address) for _ in range(connections)]
        self.busy = 0
        self._by_descriptor = {connection.socket.fileno(): connection for connection in self.all}
        for descriptor in self._by_descriptor:
            self._watch.register(descriptor, select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.close()
        for connection in self.all:
            connection.socket.close()

    def answers(self, patience: float) -> Iterator[tuple[_Connection, int]]:
        """Whole answers as they come. Raises TimeoutError when for very long none does."""
        # select on epoll's own descriptor: it waits to the microsecond, epoll to the millisecond, and a request that
        # is sent late by us would count against the server
        ready = self._watch.poll(0) if select.select([self._watch], [], [], patience)[0] else []
        if not ready and patience >= STUCK_SECONDS:
            raise TimeoutError(f"no answer for {STUCK_SECONDS:.0f} s, {self.busy} are waited for")
        for descriptor, _ in ready:
            connection = self._by_descriptor[descriptor]
            if status := connection.read():
                yield connection, status
