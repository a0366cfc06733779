"""Group commit: requests that arrive during one commit are accepted together by the next commit.

There is no timer, so a lone request is committed at once. One thread only commits. Another thread rings the doorbell
after the clients have their replies, so that a slow broker delays no request.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from shared.errors import Unavailable
from shared.logs import get_logger
from shared.payments import doorbell
from shared.payments.accept import Accepted, Reply, accept, isolate_failing, recognise
from shared.payments.doorbell import Bell
from shared.payments.model import Status, TransactionRequest
from web.limits.backlog import reader
from web.serving.loop import Wakeup, wake

MAX_COMMIT_ROWS: Final = 1000
MAX_WAITING_REQUESTS: Final = 5000
COMMIT_TIMEOUT_SECONDS: Final = 4.5
MAX_RING_PAUSE_SECONDS: Final = 0.02
RING_PAUSE_FACTOR: Final = 4  # the pause relative to the time of the ring; one message covers the rings of a pause

log = get_logger("intake")


class _WaitingRequest:
    """The requests that one client has submitted together. The client waits for the replies."""

    __slots__ = ("_error", "_replies", "answered", "is_abandoned", "requests")

    def __init__(self, requests: Sequence[TransactionRequest]) -> None:
        self.requests = requests
        self.is_abandoned = False
        self._replies: list[Reply] = []
        self._error: Exception | None = None
        self.answered = Wakeup()

    def answer(self, replies: list[Reply], error: Exception | None = None) -> None:
        """Sets the replies or the error. Call it once, before the client is woken."""
        self._replies, self._error = replies, error

    def wait(self) -> list[Reply]:
        """Returns the replies or raises the error that was set. Raises Unavailable if there is neither in time."""
        if not self.answered.wait(COMMIT_TIMEOUT_SECONDS):
            self.is_abandoned = True
            raise Unavailable(
                "database_unavailable",
                "The database did not answer in time. It is not known whether the request was accepted: send it again.",
            )
        if self._error:
            raise self._error
        return self._replies


class GroupCommit:
    """The group commit of a process. Its threads start with the first request, because the server forks before it."""

    def __init__(self) -> None:
        self._waiting: deque[_WaitingRequest] = deque()
        self._arrival = threading.Condition()
        self._bells: dict[int, Bell] = {}
        self._bell_arrival = threading.Condition()
        self._threads: dict[str, threading.Thread] = {}

    def submit(self, requests: Sequence[TransactionRequest]) -> list[Reply]:
        """Accepts the requests and returns one reply for each, in order, after their commit.

        Raises Unavailable if the result is not known in time (send the request again). Passes on SQLAlchemy's errors.
        """
        waiting = _WaitingRequest(requests)
        with self._arrival:
            if len(self._waiting) >= MAX_WAITING_REQUESTS:
                raise Unavailable("overloaded", "Too many requests wait to be accepted. Nothing was accepted.")
            self._keep_alive("commit", self._commit_for_ever)
            self._waiting.append(waiting)
            self._arrival.notify()
        return waiting.wait()

    def _keep_alive(self, name: str, work: Callable[[], None]) -> None:
        thread = self._threads.get(name)
        if thread is None or not thread.is_alive():
            self._threads[name] = threading.Thread(target=work, name=name, daemon=True)
            self._threads[name].start()

    def _commit_for_ever(self) -> None:
        while True:
            with self._arrival:
                while not self._waiting:
                    self._arrival.wait()
                batch = self._take()
            self._commit(batch)

    def _take(self) -> list[_WaitingRequest]:
        """Returns the requests that wait, in order of arrival, until there are at least MAX_COMMIT_ROWS rows."""
        batch: list[_WaitingRequest] = []
        rows = 0
        while self._waiting and rows < MAX_COMMIT_ROWS:
            waiting = self._waiting.popleft()
            if not waiting.is_abandoned:
                batch.append(waiting)
                rows += len(waiting.requests)
        return batch

    def _commit(self, batch: Sequence[_WaitingRequest]) -> None:
        requests = [request for waiting in batch for request in waiting.requests]
        if not requests:
            return
        try:
            take = partial(recognise, retry_seconds=reader.retry_seconds()) if reader.is_full() else accept
            deadline = time.monotonic() + COMMIT_TIMEOUT_SECONDS
            replies = isolate_failing(take, requests, deadline=deadline, max_failing=len(requests))
        except Exception as error:
            for waiting in batch:
                waiting.answer([], error)
            wake(waiting.answered for waiting in batch)
            return
        start = 0
        for waiting in batch:
            waiting.answer(replies[start : start + len(waiting.requests)])
            start += len(waiting.requests)
        wake(waiting.answered for waiting in batch)
        self.ring(requests, replies)

    def ring(self, requests: Sequence[TransactionRequest], replies: Sequence[Reply]) -> None:
        """Rings the lanes of PENDING transactions. Repeats ring, too, because the first ring may have been lost."""
        with self._bell_arrival:
            for request, reply in zip(requests, replies, strict=True):
                if isinstance(reply, Accepted) and reply.transaction.status == Status.PENDING:
                    self._bells.setdefault(reply.transaction.lane, Bell(str(request.uid), request.request_id))
            if self._bells:
                self._keep_alive("ring", self._ring_for_ever)
                self._bell_arrival.notify()

    def _ring_for_ever(self) -> None:
        while True:
            with self._bell_arrival:
                while not self._bells:
                    self._bell_arrival.wait()
                bells, self._bells = self._bells, {}
            began = time.monotonic()
            doorbell.ring(bells)
            time.sleep(min(MAX_RING_PAUSE_SECONDS, RING_PAUSE_FACTOR * (time.monotonic() - began)))


group_commit = GroupCommit()
