"""Logs the stacks of all threads before the guard ends a process."""

import sys
import threading
import traceback
from typing import Final

from shared import logs

MAX_STACK_CHARACTERS: Final = 100_000


def log() -> None:
    """Logs the stacks of all threads of this process, without the locks that one of them may hold."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    texts = [
        f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    ]
    logs.write_line("thread stacks", "error", stacks="\n".join(texts)[:MAX_STACK_CHARACTERS])
