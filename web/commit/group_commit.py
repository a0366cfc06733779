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
from shared.payments import doorbell
from shared.payments.accept import Accepted, Reply, accept, isolate_failing, recognise
from shared.payments.doorbell import RingSource
from shared.payments.model import Status, TransactionRequest
from web.limits.backlog import backlog_reader
from web.serving.loop import Wakeup, wake

MAX_COMMIT_ROWS: Final = 1000
MAX_WAITING_REQUESTS: Final = 5000
COMMIT_TIMEOUT_SECONDS: Final = 4.5
MAX_RING_PAUSE_SECONDS: Final = 0.02
RING_PAUSE_FACTOR: Final = 4  # pause = 4 x ring duration; rings that arrive in the pause share one message


class _Submission:
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
    """The group commit of a process. Its threads start with the first request, as threads do not survive the fork."""

    def __init__(self) -> None:
        self._waiting: deque[_Submission] = deque()
        self._arrival = threading.Condition()
        self._ring_sources: dict[int, RingSource] = {}
        self._ring_arrival = threading.Condition()
        self._threads: dict[str, threading.Thread] = {}

    def submit(self, requests: Sequence[TransactionRequest]) -> list[Reply]:
        """Accepts the requests and returns one reply for each, in order, after their commit.

        Raises Unavailable if the result is not known in time (send the request again). Passes on SQLAlchemy's errors.
        """
        submission = _Submission(requests)
        with self._arrival:
            if len(self._waiting) >= MAX_WAITING_REQUESTS:
                raise Unavailable("overloaded", "Too many requests wait to be accepted. Nothing was accepted.")
            self._keep_alive("commit", self._commit_for_ever)
            self._waiting.append(submission)
            self._arrival.notify()
        return submission.wait()

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

    def _take(self) -> list[_Submission]:
        """Returns the submissions that wait, in order of arrival, until there are at least MAX_COMMIT_ROWS rows."""
        batch: list[_Submission] = []
        rows = 0
        while self._waiting and rows < MAX_COMMIT_ROWS:
            submission = self._waiting.popleft()
            if not submission.is_abandoned:
                batch.append(submission)
                rows += len(submission.requests)
        return batch

    def _commit(self, batch: Sequence[_Submission]) -> None:
        requests = [request for submission in batch for request in submission.requests]
        if not requests:
            return
        try:
            take = (
                partial(recognise, retry_seconds=backlog_reader.retry_seconds()) if backlog_reader.is_full() else accept
            )
            deadline = time.monotonic() + COMMIT_TIMEOUT_SECONDS
            replies = isolate_failing(take, requests, deadline=deadline, max_failing=len(requests))
        except Exception as error:
            for submission in batch:
                submission.answer([], error)
            wake(submission.answered for submission in batch)
            return
        start = 0
        for submission in batch:
            submission.answer(replies[start : start + len(submission.requests)])
            start += len(submission.requests)
        wake(submission.answered for submission in batch)
        self.ring(requests, replies)

    def ring(self, requests: Sequence[TransactionRequest], replies: Sequence[Reply]) -> None:
        """Rings the lanes of PENDING transactions. Repeats ring, too, because the first ring may have been lost."""
        with self._ring_arrival:
            for request, reply in zip(requests, replies, strict=True):
                if isinstance(reply, Accepted) and reply.transaction.status == Status.PENDING:
                    self._ring_sources.setdefault(
                        reply.transaction.lane, RingSource(str(request.uid), request.request_id)
                    )
            if self._ring_sources:
                self._keep_alive("ring", self._ring_for_ever)
                self._ring_arrival.notify()

    def _ring_for_ever(self) -> None:
        while True:
            with self._ring_arrival:
                while not self._ring_sources:
                    self._ring_arrival.wait()
                sources, self._ring_sources = self._ring_sources, {}
            began = time.monotonic()
            doorbell.ring(sources)
            time.sleep(min(MAX_RING_PAUSE_SECONDS, RING_PAUSE_FACTOR * (time.monotonic() - began)))


group_commit = GroupCommit()
