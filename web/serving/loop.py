"""Runs each request in a greenlet on the event loop: views are plain code, and can wait without blocking the loop.

A call that waits switches to the loop and continues later (SQLAlchemy's asyncio extension works in the same way).
A call that blocks runs in a thread. In a plain thread (a test, another server) the functions here simply block.
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
QUEUE_TIMEOUT_SECONDS: Final = 3.0  # equal to the time-out for a database connection
PROBE_THREADS: Final = 32

Result = TypeVar("Result")
View = TypeVar("View", bound=Callable[..., Any])


class _RequestGreenlet(greenlet):  # type: ignore[misc] # it is untyped
    """Code that runs on the loop and can switch to it. Each greenlet has its own context variables."""


def is_on_loop() -> bool:
    """Returns whether the caller runs in a greenlet on the event loop."""
    return isinstance(getcurrent(), _RequestGreenlet)


async def run(call: Callable[[], Result]) -> Result:
    """Runs a call in a greenlet and returns its result. Awaits each awaitable that the call passes to `switch`."""
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
    """Lets the loop run until the awaitable is done. Returns its result or raises its error."""
    parent = getcurrent().parent
    assert parent is not None, "switch must be called on the loop"
    return cast(Result, parent.switch(awaitable))


class Wakeup:
    """Lets one caller wait until it is woken, once. On the loop it lets the loop run, in a thread it blocks."""

    __slots__ = ("_future", "_lock")

    def __init__(self) -> None:
        """Must be called by the caller that will wait. Uses a bare lock, because an Event is several times slower."""
        self._future: asyncio.Future[bool] | None = None
        if is_on_loop():
            self._future = asyncio.get_running_loop().create_future()
        else:
            self._lock = threading.Lock()
            self._lock.acquire()

    def wait(self, seconds: float) -> bool:
        """Waits for at most `seconds` and returns whether it was woken."""
        future = self._future
        if future is None:
            return self._lock.acquire(timeout=max(0.0, seconds))
        timer = future.get_loop().call_later(seconds, _resolve, [future], False)
        try:
            return switch(future)
        finally:
            timer.cancel()


def wake(wakeups: Iterable[Wakeup]) -> None:
    """Wakes all callers that wait, from any thread. All callers on the loop are woken by one event of the loop."""
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
    """A call that waits for a thread, and its result for the loop."""

    __slots__ = ("_call", "_context", "_tickets", "done")

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call, self._context = call, copy_context()  # with the request's log fields and Flask's context
        self._tickets = [None]
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def _take(self) -> bool:
        """Takes the call and returns whether it was free. Either a thread or the time-out takes it, never both."""
        try:
            self._tickets.pop()  # atomic
        except IndexError:
            return False
        return True

    def run(self) -> None:
        """Makes the call, unless it timed out in the queue, and passes its result to the loop."""
        if not self._take():
            return
        result, error = None, None
        try:
            result = self._context.run(self._call)
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop has ended, so no caller waits
            self.done.get_loop().call_soon_threadsafe(self._finish, result, error)

    def _finish(self, result: Any, error: BaseException | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(result)
        else:
            self.done.set_exception(error)

    def give_up(self) -> None:
        """Ends the wait with Unavailable, unless a thread has begun the call."""
        if self._take():
            self._finish(None, _overloaded())


def _overloaded() -> Unavailable:
    return Unavailable("overloaded", "All threads of this process are busy. Nothing was done.")


class ThreadPool:
    """Threads for calls that block. They start when needed, and are daemons, so that they do not delay the end."""

    def __init__(self, name: str, max_threads: int) -> None:
        self._name, self._max_threads = name, max_threads
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._idle = 0

    def put(self, call: _Call) -> None:
        """Queues a call. Raises Unavailable if there is no thread and the system starts none."""
        with self._lock:
            if self._idle > 0:
                self._idle -= 1  # an idle thread will take this call
            elif self._threads < self._max_threads:
                self._start()
        self._calls.put(call)

    def queued(self) -> int:
        """Returns the number of calls that wait for a thread."""
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
    """Runs a call that may block in a thread. Returns its result or raises its error.

    Raises Unavailable if no thread is free in time.
    """
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
    """Marks a view to run on the loop. Whatever blocks in it must use `in_thread` or `Wakeup`."""
    view.runs_on_loop = True  # type: ignore[attr-defined]
    return view


def for_probes(view: View) -> View:
    """Makes a view run in the threads for probes, which are free even if all other threads are busy."""

    @wraps(view)
    def in_probe_thread(**arguments: Any) -> Any:
        if not is_on_loop():
            return view(**arguments)
        queued_call = _Call(partial(view, **arguments))
        _probe_threads.put(queued_call)
        return switch(queued_call.done)

    return cast(View, on_loop(in_probe_thread))


def place_view(view: View) -> View:
    """Returns a view that can be called on the loop: the view itself if it is marked, otherwise one in a thread."""
    if getattr(view, "runs_on_loop", False):
        return view

    @wraps(view)
    def elsewhere(**arguments: Any) -> Any:
        return in_thread(partial(view, **arguments))

    return cast(View, elsewhere)
