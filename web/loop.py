"""Waiting without keeping the event loop: the views are plain code, each request runs in a greenlet of its own on the loop.

A call that would wait gives the loop away until it may go on (SQLAlchemy's asyncio extension works in the same way).
A call that blocks goes to a thread. Called from a plain thread (a test, another server), all of this just blocks.
"""

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from contextvars import copy_context
from functools import cache, partial, wraps
from queue import SimpleQueue
from typing import Any, Final, TypeVar, cast

from greenlet import getcurrent, greenlet

from shared.errors import Unavailable
from shared.settings import settings

MAX_QUEUED_CALLS: Final = 1024
QUEUE_TIMEOUT_SECONDS: Final = 3.0  # as long as a call may wait for a database connection
PROBE_THREADS: Final = 32

Result = TypeVar("Result")
View = TypeVar("View", bound=Callable[..., Any])


class _RequestGreenlet(greenlet):  # type: ignore[misc] # it is untyped
    """Code that runs on the loop and may give it away. Each has its own context variables."""


def is_on_loop() -> bool:
    """Returns whether the caller runs on the event loop."""
    return isinstance(getcurrent(), _RequestGreenlet)


async def run(call: Callable[[], Result]) -> Result:
    """Calls on the loop, in a greenlet; awaits whatever `switch` is given there."""
    current = _RequestGreenlet(call)
    awaited = current.switch()
    while not current.dead:
        try:
            value = await awaited
        except BaseException:
            awaited = current.throw(*sys.exc_info())
        else:
            awaited = current.switch(value)
    return cast(Result, awaited)


def switch(awaitable: Awaitable[Result]) -> Result:
    """Gives the loop away until the awaitable is done; returns its result or raises its error."""
    parent = getcurrent().parent
    assert parent is not None, "called on the loop only"
    return cast(Result, parent.switch(awaitable))


class Wakeup:
    """Lets one caller wait until anybody wakes it, once. On the loop it gives the loop away, in a thread it blocks."""

    __slots__ = ("_future", "_lock")

    def __init__(self) -> None:
        """To be made by the caller that will wait. A bare lock: an Event costs several times as much."""
        self._future: asyncio.Future[bool] | None = None
        if is_on_loop():
            self._future = asyncio.get_running_loop().create_future()
        else:
            self._lock = threading.Lock()
            self._lock.acquire()

    def wait(self, seconds: float) -> bool:
        """Returns whether it was woken in time."""
        future = self._future
        if future is None:
            return self._lock.acquire(timeout=max(0.0, seconds))
        timer = future.get_loop().call_later(seconds, _resolve, [future], False)
        try:
            return switch(future)
        finally:
            timer.cancel()


def wake(wakeups: Iterable[Wakeup]) -> None:
    """Wakes all of them; from any thread. Those on the loop are one event of it, however many they are."""
    futures: list[asyncio.Future[bool]] = []
    for wakeup in wakeups:
        if wakeup._future is None:
            wakeup._lock.release()
        else:
            futures.append(wakeup._future)
    if futures:
        futures[0].get_loop().call_soon_threadsafe(_resolve, futures, True)


def _resolve(futures: list["asyncio.Future[bool]"], woken: bool) -> None:
    for future in futures:
        if not future.done():
            future.set_result(woken)


class _Call:
    """A call on its way to a thread and back."""

    __slots__ = ("_call", "_context", "_tickets", "done")

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call, self._context = call, copy_context()  # the request's log fields and Flask's context go with it
        self._tickets = [None]
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def _take(self) -> bool:
        """Whether it is still nobody's: a thread that begins it takes it, and so does the time-out."""
        try:
            self._tickets.pop()  # atomic
        except IndexError:
            return False
        return True

    def run(self) -> None:
        """Makes the call, unless it was given up, and hands its result to the loop."""
        if not self._take():
            return
        answer, error = None, None
        try:
            answer = self._context.run(self._call)
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop has ended: nobody waits
            self.done.get_loop().call_soon_threadsafe(self._finish, answer, error)

    def _finish(self, answer: Any, error: BaseException | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(answer)
        else:
            self.done.set_exception(error)

    def give_up(self) -> None:
        """Ends the wait with Unavailable if no thread has begun the call."""
        if self._take():
            self._finish(None, _overloaded())


def _overloaded() -> Unavailable:
    return Unavailable("overloaded", "All threads of this process are at work. Nothing was done.")


class ThreadPool:
    """Threads for calls that block. They start when they are needed, and end with the process, whatever they wait for."""

    def __init__(self, name: str, max_threads: int) -> None:
        self._name, self._max_threads = name, max_threads
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._idle = 0

    def put(self, call: _Call) -> None:
        """Queues a call. Raises Unavailable if there is no thread and none can be started."""
        with self._lock:
            if self._idle > 0:
                self._idle -= 1  # one of them takes this call
            elif self._threads < self._max_threads:
                self._start()
        self._calls.put(call)

    def queued(self) -> int:
        """Returns how many calls wait for a thread."""
        return self._calls.qsize()

    def _start(self) -> None:
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError:
            if not self._threads:
                raise _overloaded() from None
        else:
            self._threads += 1

    def _work(self) -> None:
        while True:
            self._calls.get().run()
            with self._lock:
                self._idle += 1


@cache
def _view_threads() -> ThreadPool:
    return ThreadPool("view", settings().web_threads)


_probe_threads: Final = ThreadPool("probe", PROBE_THREADS)


def in_thread(call: Callable[..., Result], *arguments: Any) -> Result:
    """Returns what a call that may block returns, or raises what it raises. Raises Unavailable: no thread in time."""
    if not is_on_loop():
        return call(*arguments)
    if _view_threads().queued() >= MAX_QUEUED_CALLS:
        raise _overloaded()
    queued_call = _Call(partial(call, *arguments))
    _view_threads().put(queued_call)
    timer = queued_call.done.get_loop().call_later(QUEUE_TIMEOUT_SECONDS, queued_call.give_up)
    try:
        return cast(Result, switch(queued_call.done))
    finally:
        timer.cancel()


def on_loop(view: View) -> View:
    """Marks a view that runs on the loop: all that blocks in it goes by `in_thread` or `Wakeup`."""
    view.runs_on_loop = True  # type: ignore[attr-defined]
    return view


def for_probes(view: View) -> View:
    """Makes a view run in threads of its own, which whoever looks after the process finds free."""

    @wraps(view)
    def in_probe_thread(**arguments: Any) -> Any:
        if not is_on_loop():
            return view(**arguments)
        queued_call = _Call(partial(view, **arguments))
        _probe_threads.put(queued_call)
        return switch(queued_call.done)

    return cast(View, on_loop(in_probe_thread))


def place_view(view: View) -> View:
    """Returns the view so that it may be called on the loop: as it is where it is marked, else it runs in a thread."""
    if getattr(view, "runs_on_loop", False):
        return view

    @wraps(view)
    def elsewhere(**arguments: Any) -> Any:
        return in_thread(partial(view, **arguments))

    return cast(View, elsewhere)
