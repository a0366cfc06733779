"""The parent of the settling processes: starts them, starts again what ends, and stops them when it is told to.

It has neither threads nor connections, so that it forks safely, and does nothing that could fail with them.
"""

import gc
import os
import select
import signal
import time
from contextlib import suppress
from typing import Any, Final

from shared import logs
from shared.processes import describe_exit
from shared.settings import settings
from worker import child, guard
from worker.exporter import Exporter
from worker.pulse import Heartbeat, Pulse

MIN_RESTART_DELAY_SECONDS: Final = 0.5
MAX_RESTART_DELAY_SECONDS: Final = 5.0
HEALTHY_CHILD_SECONDS: Final = 60.0  # a process that lived this long has earned the short pause again
PARENT_INTERVAL_SECONDS: Final = 1.0
KILL_GRACE_SECONDS: Final = 3.0  # after its guard should have ended it
MIN_FROZEN_SECONDS: Final = 10.0
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
HANDLED_SIGNALS: Final = (*STOP_SIGNALS, signal.SIGCHLD)


class Parent:
    """The processes by their numbers, from 1; each keeps its number when it is started again."""

    def __init__(self) -> None:
        self._children = [_Child(number) for number in range(1, settings().workers + 1)]
        self._heartbeat = Heartbeat([one.pulse for one in self._children])
        self._exporter = Exporter()
        self._wake, self._waker = os.pipe()
        self._stop_requested = False

    def run(self) -> int:
        """Keep them alive until a signal comes. Returns the exit code: 0 where all ended in order."""
        child.prepare()
        self._heartbeat.remove()
        self._listen_to_signals()
        gc.collect()
        gc.freeze()  # the collector would write to the pages that the children share with this process
        while not self._stop_requested:
            for one in self._children:
                one.maintain()
            self._maintain_files()
            self._sleep()
        return self._stop()

    def _maintain_files(self) -> None:
        with suppress(OSError):  # no process or no file to be had: the next look may have more luck
            self._exporter.maintain()
            self._heartbeat.maintain()

    def _stop(self) -> int:
        """Stop all; a process that is still there when its own guard should have ended it is killed."""
        for one in self._children:
            one.send(signal.SIGTERM)
        deadline = time.monotonic() + guard.STOP_TIMEOUT_SECONDS + KILL_GRACE_SECONDS
        while any(one.is_running() for one in self._children) and time.monotonic() < deadline:
            self._maintain_files()
            self._sleep()
        for one in self._children:
            one.kill()
        return int(any(one.has_failed for one in self._children))

    def _sleep(self) -> None:
        """Until a signal comes, the end of a child among them, but not for long."""
        if select.select([self._wake], [], [], PARENT_INTERVAL_SECONDS)[0]:
            os.read(self._wake, 4096)

    def _listen_to_signals(self) -> None:
        for descriptor in (self._wake, self._waker):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in STOP_SIGNALS:
            signal.signal(number, self._note_stop)

    def _note_stop(self, *_: Any) -> None:
        self._stop_requested = True


class _Child:
    """One settling process, or the pause until the next one."""

    def __init__(self, number: int) -> None:
        self.pulse = Pulse()
        self.has_failed = False
        self._number = number
        self._pid: int | None = None
        self._started_at = self._starts_at = 0.0
        self._failures = 0
        self._silence = _Silence(self.pulse)

    def maintain(self) -> None:
        """Start it, or start it again, or kill it where it is frozen."""
        pid = self._pid
        if self.is_running():
            if self._silence.last_seconds() > max(settings().deaf_seconds, MIN_FROZEN_SECONDS):
                logs.write_line("frozen settling process killed", "error", pid=pid)
                self.send(signal.SIGKILL)
                self._silence = _Silence(self.pulse)
            return
        if pid:
            self._plan_restart(pid)
        if time.monotonic() >= self._starts_at:
            self._start()

    def is_running(self) -> bool:
        """Returns whether there is a process."""
        if self._pid is None:
            return False
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid:
            self._note_end(os.waitstatus_to_exitcode(status))
        return not pid

    def send(self, number: signal.Signals) -> None:
        if self._pid is not None:
            os.kill(self._pid, number)

    def kill(self) -> None:
        """End it now, if it is still there."""
        if self._pid is not None:
            self.send(signal.SIGKILL)
            _, status = os.waitpid(self._pid, 0)
            self._note_end(os.waitstatus_to_exitcode(status))

    def _note_end(self, code: int) -> None:
        self._pid, self._how = None, describe_exit(code)
        self.has_failed = code not in (0, -signal.SIGTERM)  # it was told to stop before it had learned how

    def _plan_restart(self, pid: int) -> None:
        now = time.monotonic()
        self._failures = 1 if now - self._started_at > HEALTHY_CHILD_SECONDS else self._failures + 1
        pause = min(MAX_RESTART_DELAY_SECONDS, MIN_RESTART_DELAY_SECONDS * 2.0 ** min(self._failures - 1, 10))
        self._starts_at = now + pause
        logs.write_line("settling process ended", "error", pid=pid, how=self._how, restart_in_seconds=pause)

    def _start(self) -> None:
        self.pulse.clear()
        self._silence = _Silence(self.pulse)
        self._started_at, parent = time.monotonic(), os.getpid()
        try:
            pid = _fork()
        except OSError as error:  # no memory, no process: it passes
            logs.write_line("settling process not started", "error", error=error.strerror)
            self._starts_at = time.monotonic() + MAX_RESTART_DELAY_SECONDS
            return
        if not pid:
            child.settle(self._number, parent, self.pulse)
        self._pid = pid


class _Silence:
    """For how long a process has not run, as far as this one has seen it: it may have stood still itself."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse, self._alive_at = pulse, pulse.alive_at
        self._seconds, self._looked_at = 0.0, time.monotonic()

    def last_seconds(self) -> float:
        """Called about once a second."""
        now, alive_at = time.monotonic(), self._pulse.alive_at
        if alive_at != self._alive_at:
            self._alive_at, self._seconds = alive_at, 0.0
        else:
            self._seconds += min(now - self._looked_at, 2 * PARENT_INTERVAL_SECONDS)
        self._looked_at = now
        return self._seconds


def _fork() -> int:
    """Returns the child's pid; in the child 0, where a signal that comes before Celery listens to it ends the process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
    try:
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            for number in HANDLED_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
