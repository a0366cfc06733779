"""Plain code on the event loop: it waits without keeping the loop, and what blocks goes to a thread and comes back."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest

from shared.errors import Unavailable
from web.serving import loop as module
from web.serving.loop import ThreadPool, Wakeup, in_thread, is_on_loop, run, switch, wake

pytestmark = pytest.mark.unit

AT_ONCE_SECONDS = 10.0  # on a machine that is busy


class CountingLoop(asyncio.SelectorEventLoop):
    """Knows how often other threads have called it."""

    calls = 0

    def call_soon_threadsafe(self, *arguments: Any, **options: Any) -> asyncio.Handle:
        self.calls += 1
        return super().call_soon_threadsafe(*arguments, **options)


def on_a_loop(main: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[Any, CountingLoop]:
    """What the coroutine returns, and the loop. No callback of the loop may fail."""
    loop, failures = CountingLoop(), list[Any]()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    try:
        result = loop.run_until_complete(asyncio.wait_for(main(), AT_ONCE_SECONDS))
    finally:
        loop.close()
    assert failures == []
    return result, loop


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_plain_code_awaits_and_gets_the_result_or_the_error() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("asked for")

    def view() -> str:
        assert is_on_loop()
        with pytest.raises(ValueError, match="asked for"):
            switch(fail())
        return switch(asyncio.sleep(0, "slept"))

    assert on_a_loop(lambda: run(view))[0] == "slept"
    assert not is_on_loop()


def test_an_error_of_plain_code_is_raised_where_it_is_awaited() -> None:
    def view() -> None:
        switch(asyncio.sleep(0))
        raise ValueError("a view's own")

    with pytest.raises(ValueError, match="a view's own"):
        on_a_loop(lambda: run(view))


def test_all_who_wait_are_woken_by_one_event_of_the_loop() -> None:
    waiting: list[Wakeup] = []

    def view() -> bool:
        waiting.append(wakeup := Wakeup())
        return wakeup.wait(AT_ONCE_SECONDS)

    async def main() -> list[bool]:
        tasks = [asyncio.ensure_future(run(view)) for _ in range(50)]
        while len(waiting) < 50:
            await asyncio.sleep(0)
        threading.Thread(target=wake, args=(waiting,)).start()
        return await asyncio.gather(*tasks)

    woken, loop = on_a_loop(main)
    assert woken == [True] * 50
    assert loop.calls == 1


def test_a_wakeup_times_out_and_a_late_wake_is_harmless() -> None:
    def view() -> bool:
        wakeup = Wakeup()
        in_time = wakeup.wait(0.01)
        wake([wakeup])
        switch(asyncio.sleep(0))
        return in_time

    assert on_a_loop(lambda: run(view))[0] is False


def test_who_is_woken_before_the_wait_does_not_wait() -> None:
    def view() -> bool:
        wakeup = Wakeup()
        wake([wakeup])
        return wakeup.wait(AT_ONCE_SECONDS)

    assert on_a_loop(lambda: run(view))[0] is True
    assert view() is True


def test_in_a_plain_thread_it_blocks() -> None:
    wakeup = Wakeup()
    assert wakeup.wait(0.01) is False
    threading.Thread(target=wake, args=([wakeup],)).start()
    assert wakeup.wait(AT_ONCE_SECONDS) is True
    assert in_thread(threading.get_ident) == threading.get_ident()


def test_blocking_calls_run_in_a_thread_with_the_context() -> None:
    name = ContextVar[str]("name", default="nobody")
    may_end, begun = threading.Event(), list[str]()

    def block(suffix: str) -> tuple[str, int]:
        begun.append(suffix)
        assert may_end.wait(AT_ONCE_SECONDS)
        return name.get() + suffix, threading.get_ident()

    def view(own: str) -> tuple[str, int]:
        assert name.get() == "nobody", "each request has its own variables"
        name.set(own)
        return in_thread(block, "!")

    async def main() -> list[tuple[str, int]]:
        tasks = [asyncio.ensure_future(run(lambda own=own: view(own))) for own in ("Ann", "Bob")]
        await until(lambda: len(begun) == 2)
        may_end.set()
        return await asyncio.gather(*tasks)

    answers = on_a_loop(main)[0]
    assert [answer for answer, _ in answers] == ["Ann!", "Bob!"]
    assert threading.get_ident() not in {thread for _, thread in answers}


def test_an_error_in_a_thread_is_raised_in_the_view() -> None:
    def view() -> None:
        with pytest.raises(ZeroDivisionError):
            in_thread(lambda: 1 / 0)

    on_a_loop(lambda: run(view))


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ThreadPool("one", 1)
    monkeypatch.setattr(module, "_view_threads", lambda: pool)


@pytest.mark.usefixtures("one_thread")
def test_a_call_without_a_free_thread_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE_TIMEOUT_SECONDS", 0.02)
    monkeypatch.setattr(module, "MAX_QUEUED_CALLS", 1)
    begun, may_end, made = threading.Event(), threading.Event(), list[int]()

    def block() -> bool:
        begun.set()
        return may_end.wait(AT_ONCE_SECONDS)

    def refusal() -> str:
        with pytest.raises(Unavailable) as caught:
            in_thread(made.append, 1)
        return caught.value.code

    async def main() -> list[Any]:
        busy = asyncio.ensure_future(run(lambda: in_thread(block)))
        await until(begun.is_set)  # what has begun is not given up
        codes = await asyncio.gather(run(refusal), run(refusal))
        may_end.set()
        done = await busy
        # A call that was given up is queued until a thread sees it.
        await until(lambda: not module._view_threads().queued())
        return [*codes, done, await run(lambda: in_thread(made.append, 2))]

    assert on_a_loop(main)[0] == ["overloaded", "overloaded", True, None]
    assert made == [2]


@pytest.mark.usefixtures("one_thread")
def test_calls_beyond_the_threads_are_made_one_after_the_other() -> None:
    async def main() -> list[int]:
        return await asyncio.gather(*(run(lambda: in_thread(threading.get_ident)) for _ in range(20)))

    assert len(set(on_a_loop(main)[0])) == 1
