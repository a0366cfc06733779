"""The guard: a thread in each process of the worker that ends the process if a task hangs or a stop takes too long.

Celery's own time limits need a pool of processes, which we do not use. The guard logs the stacks of all threads and ends
the process; its supervisor starts another one.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from celery.worker import state

from shared import logs
from worker.pulse import Pulse

STOP_TIMEOUT_SECONDS = 20.0  # a slice is 2 s; a longer batch is rolled back, and others settle it
MAX_TASK_SECONDS = 60.0  # a slice is 2 s, a batch that is settled in parts takes 15 s
GUARD_INTERVAL_SECONDS: Final = 1.0


def start(pulse: Pulse, *, parent: int | None = None, duties: Sequence[Callable[[], None]] = ()) -> None:
    """Starts the thread. It also calls `duties` every GUARD_INTERVAL_SECONDS.

    `parent` is the pid of a settling process's parent: without it the process ends. A settling process runs its tasks in
    the thread of its loop, so its pulse also shows tasks that hang.
    """
    threading.Thread(target=_run, args=[_Guard(pulse, parent), duties], name="guard", daemon=True).start()


def is_stop_requested() -> bool:
    """Returns whether a signal or Flower has asked this process to stop."""
    return any(flag is not None and flag is not False for flag in (state.should_stop, state.should_terminate))


class _Guard:
    def __init__(self, pulse: Pulse, parent: int | None) -> None:
        self._pulse, self._parent = pulse, parent
        self._stopping_since: float | None = None

    def check(self) -> None:
        self._pulse.note_alive()
        if self._parent and os.getppid() != self._parent:  # for systems without a death signal of the parent
            os._exit(1)
        now = time.monotonic()
        if is_stop_requested():
            self._stopping_since = self._stopping_since or now
            if now - self._stopping_since > STOP_TIMEOUT_SECONDS:
                end("the warm stop takes too long")
        elif self._parent and state.active_requests and now - self._pulse.consumed_at > MAX_TASK_SECONDS:
            end("a task takes too long")


def end(reason: str) -> None:
    """Logs the stacks of all threads and ends this process at once."""
    log_stacks()
    logs.write_line("worker terminates itself", "critical", reason=reason)
    os._exit(1)


def _run(guard: _Guard, duties: Sequence[Callable[[], None]]) -> None:
    while True:
        guard.check()
        for duty in duties:
            with suppress(OSError):  # no process or file available now: the next call tries again
                duty()
        time.sleep(GUARD_INTERVAL_SECONDS)


MAX_STACK_CHARACTERS: Final = 100_000


def log_stacks() -> None:
    """Logs the stacks of all threads of this process, without the locks that one of them may hold."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    texts = [
        f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    ]
    logs.write_line("thread stacks", "error", stacks="\n".join(texts)[:MAX_STACK_CHARACTERS])
