"""The parent of the settling processes: starts them, restarts those that end, and stops them on a signal.

It has neither threads nor connections, so that it can fork safely and keeps running when a server fails.
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
from worker import guard
from worker.child import prepare, run_settling_process
from worker.metrics_exporter import Exporter
from worker.pulse import Heartbeat, Pulse

MIN_RESTART_DELAY_SECONDS: Final = 0.5
MAX_RESTART_DELAY_SECONDS: Final = 5.0
HEALTHY_CHILD_SECONDS: Final = 60.0  # after this time the restart delay is short again
PARENT_INTERVAL_SECONDS: Final = 1.0
KILL_GRACE_SECONDS: Final = 3.0  # extra seconds after the guard's own limit
MIN_FROZEN_SECONDS: Final = 10.0
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
HANDLED_SIGNALS: Final = (*STOP_SIGNALS, signal.SIGCHLD)


class Parent:
    """Starts and watches the settling processes, which are numbered from 1. A restarted process keeps its number."""

    def __init__(self) -> None:
        self._children = [_Child(number) for number in range(1, settings().workers + 1)]
        self._heartbeat = Heartbeat([child.pulse for child in self._children])
        self._exporter = Exporter()
        self._wake, self._waker = os.pipe()
        self._stop_requested = False

    def run(self) -> int:
        """Keeps the processes running until a signal comes. Returns the exit code: 0 if all stopped normally."""
        prepare()
        self._heartbeat.remove()
        self._listen_to_signals()
        gc.collect()
        gc.freeze()  # the collector would write to memory pages that the children share
        while not self._stop_requested:
            for child in self._children:
                child.maintain()
            self._maintain_files()
            self._sleep()
        return self._stop()

    def _maintain_files(self) -> None:
        with suppress(OSError):  # no process or file available now: the next call tries again
            self._exporter.maintain()
            self._heartbeat.maintain()

    def _stop(self) -> int:
        """Stops all processes. Kills one that its own guard has not ended in time. Returns the exit code."""
        for child in self._children:
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + guard.STOP_TIMEOUT_SECONDS + KILL_GRACE_SECONDS
        while any(child.is_running() for child in self._children) and time.monotonic() < deadline:
            self._maintain_files()
            self._sleep()
        for child in self._children:
            child.kill()
        return int(any(child.has_failed for child in self._children))

    def _sleep(self) -> None:
        """Waits for a signal (the end of a child is one), at most PARENT_INTERVAL_SECONDS."""
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
    """One settling process, or the delay before its restart."""

    def __init__(self, number: int) -> None:
        self.pulse = Pulse()
        self.has_failed = False
        self._number = number
        self._pid: int | None = None
        self._started_at = self._starts_at = 0.0
        self._failures = 0
        self._silence = _SilenceTimer(self.pulse)

    def maintain(self) -> None:
        """Starts the process if it does not run, or kills it if it is frozen."""
        pid = self._pid
        if self.is_running():
            if self._silence.silent_seconds() > max(settings().deaf_seconds, MIN_FROZEN_SECONDS):
                logs.write_line("frozen settling process killed", "error", pid=pid)
                self.send(signal.SIGKILL)
                self._silence = _SilenceTimer(self.pulse)
            return
        if pid:
            self._plan_restart(pid)
        if time.monotonic() >= self._starts_at:
            self._start()

    def is_running(self) -> bool:
        """Returns whether the process runs. Reaps it if it has ended."""
        if self._pid is None:
            return False
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid:
            self._note_end(os.waitstatus_to_exitcode(status))
        return not pid

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if there is one."""
        if self._pid is not None:
            os.kill(self._pid, number)

    def kill(self) -> None:
        """Kills the process, if there is one, and waits for its end."""
        if self._pid is not None:
            self.send(signal.SIGKILL)
            _, status = os.waitpid(self._pid, 0)
            self._note_end(os.waitstatus_to_exitcode(status))

    def _note_end(self, code: int) -> None:
        self._pid, self._how = None, describe_exit(code)
        self.has_failed = code not in (0, -signal.SIGTERM)  # SIGTERM: it was stopped before Celery had set its handlers

    def _plan_restart(self, pid: int) -> None:
        now = time.monotonic()
        self._failures = 1 if now - self._started_at > HEALTHY_CHILD_SECONDS else self._failures + 1
        pause = min(MAX_RESTART_DELAY_SECONDS, MIN_RESTART_DELAY_SECONDS * 2.0 ** min(self._failures - 1, 10))
        self._starts_at = now + pause
        logs.write_line("settling process ended", "error", pid=pid, how=self._how, restart_in_seconds=pause)

    def _start(self) -> None:
        self.pulse.clear()
        self._silence = _SilenceTimer(self.pulse)
        self._started_at, parent = time.monotonic(), os.getpid()
        try:
            pid = _fork()
        except OSError as error:  # no memory or no process available now
            logs.write_line("settling process not started", "error", error=error.strerror)
            self._starts_at = time.monotonic() + MAX_RESTART_DELAY_SECONDS
            return
        if not pid:
            run_settling_process(self._number, parent, self.pulse)
        self._pid = pid


class _SilenceTimer:
    """Counts how long a child shows no sign of life. Time while the parent itself is suspended does not count."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse, self._alive_at = pulse, pulse.alive_at
        self._seconds, self._looked_at = 0.0, time.monotonic()

    def silent_seconds(self) -> float:
        """Returns the seconds without a sign of life. Must be called about once a second."""
        now, alive_at = time.monotonic(), self._pulse.alive_at
        if alive_at != self._alive_at:
            self._alive_at, self._seconds = alive_at, 0.0
        else:
            self._seconds += min(now - self._looked_at, 2 * PARENT_INTERVAL_SECONDS)
        self._looked_at = now
        return self._seconds


def _fork() -> int:
    """Forks and returns the pid of the child, 0 in the child. There, signals end the process until Celery handles them."""
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
