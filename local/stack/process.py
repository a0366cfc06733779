"""One supervised process: starts it, reads its output and ends it.

It leads its own session, so that Ctrl-C reaches only `up`. On Linux the kernel sends it a signal when `up` is killed.
macOS cannot do that: after a SIGKILL of `up` its processes remain, and the next `up` reports them.
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

from local.stack.log_relay import Splitter, split_python
from shared.processes import die_with_parent

READ_CHUNK_BYTES = 1 << 16
MAX_LOG_LINE_BYTES = 1 << 20  # a longer line is split


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Program:
    """A program, and how to run, watch and stop it."""

    role: str
    argv: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    url: str | None = None
    is_ready: Callable[[], bool] = lambda: True  # must not block for long
    ready_seconds: float = 120
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 5
    death_signal: signal.Signals = signal.SIGKILL  # sent by the kernel when `up` is killed
    split: Splitter = split_python
    runs_once: bool = False  # it ends by itself and is not restarted
    clear: Callable[[], None] = _nothing  # removes what an earlier process of the role left behind
    before_exec: Callable[[], None] = _nothing


@dataclass
class Child:
    """A program and its current process, if it runs."""

    program: Program
    lock: int
    process: subprocess.Popen[bytes] | None = None
    output: int = -1  # the descriptor from which we read its output
    started: float = 0
    failures: int = 0
    restart_at: float | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    _partial: bytes = b""

    @property
    def pid(self) -> int | None:
        """Returns the pid of the process; None if it does not run."""
        return self.process.pid if self.process else None

    def start(self) -> None:
        """Starts the process. Raises OSError or SubprocessError if the system cannot start it."""
        program, parent = self.program, os.getpid()

        def prepare() -> None:  # in the child; safe because `up` has one thread
            program.before_exec()
            # This comes last, because a change of identity clears it. The signal comes when the forking thread ends.
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
        """Returns the complete lines that have arrived; None at the end of the output."""
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
        """Returns whether `read` would return at once."""
        return bool(select.select([self.output], [], [], 0)[0])

    def is_ready(self) -> bool:
        """Returns whether the process runs and its program is ready."""
        return self.process is not None and self.program.is_ready()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if it runs."""
        if self.process:
            self.process.send_signal(number)

    def kill(self) -> None:
        """Kills the process and its group."""
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Closes the output of an ended process, and clears what it left behind."""
        os.close(self.output)
        self.process, self.output = None, -1
        self.program.clear()
