"""One supervised process: how it is started, read and ended.

It leads a session of its own, so that Ctrl-C reaches only `up`, and it is told by the kernel (Linux) when `up` is
killed. macOS has no such call: there, after a SIGKILL of `up`, its processes are left, and the next `up` says so.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from local.output import Splitter, split_python
from shared.processes import die_with_parent

READ_CHUNK_BYTES = 1 << 16
MAX_LOG_LINE_BYTES = 1 << 20  # a longer line is cut, not collected for ever


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Program:
    """What to run, and how to live with it."""

    role: str
    argv: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    url: str | None = None
    is_ready: Callable[[], bool] = lambda: True  # must not block for long
    ready_seconds: float = 120
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 5
    death_signal: signal.Signals = signal.SIGKILL  # when `up` is killed: a sure end, not an orderly one
    split: Splitter = split_python
    runs_once: bool = False  # it does its work once, and is not started again
    clear: Callable[[], None] = _nothing  # away with what an earlier process of the role left
    before_exec: Callable[[], None] = _nothing


@dataclass
class Child:
    """A program and its present process, if it has one."""

    program: Program
    lock: int
    process: subprocess.Popen[bytes] | None = None
    output: int = -1  # the descriptor of our end of its output
    started: float = 0
    failures: int = 0
    restart_at: float | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    _partial: bytes = b""

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    def start(self) -> None:
        program, parent = self.program, os.getpid()

        def prepare() -> None:  # in the child; safe because `up` has one thread
            program.before_exec()
            # last, because a change of identity clears it; the signal comes when the thread that forked ends
            die_with_parent(program.death_signal)
            if sys.platform == "linux" and os.getppid() != parent:
                os._exit(1)

        self.started, self.restart_at, self._partial = time.monotonic(), None, b""
        program.clear()
        self.output, write_end = os.pipe()
        os.set_blocking(self.output, False)
        self.process = subprocess.Popen(
            program.argv,
            cwd=program.folder,
            env=program.environment,
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=write_end,
            pass_fds=(self.lock,),
            start_new_session=True,
            preexec_fn=prepare,  # noqa: PLW1509 - one thread
        )
        os.close(write_end)

    def read(self) -> list[str] | None:
        """The whole lines that have come; None at the end of the output."""
        try:
            data = os.read(self.output, READ_CHUNK_BYTES)
        except BlockingIOError:
            return []
        if not data and not self._partial:
            return None
        *lines, self._partial = (self._partial + data).split(b"\n")
        if not data or len(self._partial) > MAX_LOG_LINE_BYTES:
            lines, self._partial = [*lines, self._partial], b""
        texts = [text for line in lines if (text := line.decode("utf-8", "replace").rstrip())]
        self.tail += texts
        return texts

    def has_output(self) -> bool:
        return bool(select.select([self.output], [], [], 0)[0])

    def is_ready(self) -> bool:
        return self.process is not None and self.program.is_ready()

    def send(self, number: signal.Signals) -> None:
        if self.process:
            self.process.send_signal(number)

    def kill(self) -> None:
        """The last resort: the process and its group."""
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def reap(self) -> None:
        """After the end of the process: nothing of it is left."""
        os.close(self.output)
        self.process, self.output = None, -1
        self.program.clear()
