"""The loop that keeps the processes alive, in one thread with one select().

It has one thread, because the kernel ties its death signal to the thread that forked, and because forking is safe then.
Signals arrive as bytes on a socket, so that no code runs in a signal handler.
"""

import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

from local.command import CommandError
from local.stack.log_relay import Output, as_json, event, text_of
from local.stack.process import Child, Program
from shared.processes import describe_exit

RESTART_DELAYS_SECONDS = (0.5, 1.0, 2.0, 4.0, 5.0)
HEALTHY_PROCESS_SECONDS = 60.0  # after this lifetime a process restarts with the shortest delay again
MAX_START_ATTEMPTS = 4  # before `ready`; unlimited after it
SUPERVISOR_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
READY_PROBE_INTERVAL_SECONDS = 0.1
LOOP_INTERVAL_SECONDS = 1.0
KILL_TIMEOUT_SECONDS = 2.0  # a killed process that takes longer hangs in the kernel, so `up` does not wait for it


class StopRequested(Exception):
    """The process has received SIGINT, SIGTERM or SIGHUP."""


class Supervisor:
    """Starts, restarts and stops the processes of one `up`. `_turn` does all the work."""

    def __init__(self, output: int, lock: int, on_change: Callable[[Sequence[Child]], None]) -> None:
        """Every process inherits `lock`. `on_change` is called after each start and end of a process."""
        self.children: list[Child] = []
        self._selector = selectors.SelectSelector()  # not epoll: standard output may be a file
        self._output = Output(self._selector, output)
        self._lock = lock
        self._on_change = on_change
        self._signals = 0
        self._starting = True
        self._stopping = False
        self._listen_to_signals()

    def write(self, line: str) -> None:
        """Writes a line to standard output."""
        self._output.write(line)

    def start(self, program: Program) -> Child:
        """Starts a process, keeps it alive from now on, and returns it."""
        child = Child(program, self._lock)
        self.children.append(child)
        self._launch(child)
        return child

    def run_to_end(self, program: Program) -> None:
        """Runs a program until it ends by itself. Raises CommandError if it fails."""
        child = self.start(program)
        while child.process:
            self._turn()
        self.children.remove(child)
        if child.failures:
            raise CommandError(f"{program.role} failed: {_last_lines(child)}")

    def await_true(self, condition: Callable[[], bool]) -> None:
        """Keeps the processes alive until the condition is true. The condition must not block for long."""
        while not condition():
            self._turn(READY_PROBE_INTERVAL_SECONDS)

    def await_ready(self, children: Sequence[Child], on_ready: Callable[[Child], None]) -> None:
        """Waits until all are ready, and calls `on_ready` for each. Raises CommandError if one is not ready in time."""
        waiting, started = list(children), time.monotonic()
        while waiting:
            self._turn(READY_PROBE_INTERVAL_SECONDS)
            for child in [child for child in waiting if child.is_ready()]:
                waiting.remove(child)
                on_ready(child)
            for child in waiting:
                if time.monotonic() - started > child.program.ready_seconds:
                    limit = child.program.ready_seconds
                    raise CommandError(f"{child.program.role} is not ready after {limit:.0f} s: {_last_lines(child)}")

    def watch(self) -> NoReturn:
        """Restarts every process that ends, until StopRequested is raised."""
        self._starting = False
        while True:
            self._turn()

    def stop(self) -> None:
        """Stops all processes, the last started first, each within its time-out. A second signal kills the rest."""
        self._stopping = True
        for child in reversed(self.children):
            child.send(child.program.stop_signal)
            deadline = time.monotonic() + child.program.stop_seconds
            while child.process and time.monotonic() < deadline + KILL_TIMEOUT_SECONDS:
                self._turn(READY_PROBE_INTERVAL_SECONDS)
                if time.monotonic() > deadline or self._signals > 1:
                    child.kill()
        self._output.drain(seconds=1)
        # Python resets its handlers at its end, and then a late signal would change the exit code.
        for number in SUPERVISOR_STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _turn(self, seconds: float = LOOP_INTERVAL_SECONDS) -> None:
        restarts = [child.restart_at - time.monotonic() for child in self.children if child.restart_at is not None]
        for key, _ in self._selector.select(max(0.0, min([seconds, *restarts]))):
            key.data()
        for child in self.children:
            if child.process and (code := child.process.poll()) is not None:
                self._reap(child, code)
            elif child.restart_at is not None and child.restart_at <= time.monotonic() and not self._stopping:
                self._launch(child)
        if self._signals and not self._stopping:
            raise StopRequested

    def _launch(self, child: Child) -> None:
        try:
            child.start()
        except (OSError, subprocess.SubprocessError) as error:  # no memory or no descriptors, which is temporary
            child.tail.append(str(error))
            self._plan_restart(child, "cannot be started")
        else:
            self._selector.register(child.output, selectors.EVENT_READ, partial(self._read, child))
            self._on_change(self.children)

    def _read(self, child: Child) -> None:
        lines = child.read()
        if lines is None:
            self._selector.unregister(child.output)
        for line in lines or []:
            self.write(as_json(line, child.program.role, child.program.split))

    def _reap(self, child: Child, code: int) -> None:
        """Handles the end of a process: passes on its last lines, kills its group, and plans its restart."""
        child.kill()
        while child.output in self._selector.get_map() and child.has_output():
            self._read(child)
        if child.output in self._selector.get_map():  # a grandchild in another session still has it open
            self._selector.unregister(child.output)
        child.reap()
        self._on_change(self.children)
        if child.program.runs_once:
            child.failures = code
        elif not self._stopping:
            self._plan_restart(child, describe_exit(code))

    def _plan_restart(self, child: Child, how: str) -> None:
        lifetime = time.monotonic() - child.started
        child.failures = 1 if lifetime > HEALTHY_PROCESS_SECONDS else child.failures + 1
        if self._starting and child.failures == MAX_START_ATTEMPTS:
            raise CommandError(f"{child.program.role} does not start ({how}): {_last_lines(child)}")
        delay = RESTART_DELAYS_SECONDS[min(child.failures, len(RESTART_DELAYS_SECONDS)) - 1]
        child.restart_at = time.monotonic() + delay
        fields = {"role": child.program.role, "how": how, "restart_in_seconds": delay}
        self.write(event("up", "error", "process ended", **fields))

    def _listen_to_signals(self) -> None:
        receiver, sender = socket.socketpair()
        receiver.setblocking(False)
        sender.setblocking(False)
        self._sockets = (receiver, sender)  # kept alive here, because the signal module has only the descriptor
        self._selector.register(receiver, selectors.EVENT_READ, self._count_signals)
        for number in (*SUPERVISOR_STOP_SIGNALS, signal.SIGCHLD):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)

    def _count_signals(self) -> None:
        self._signals += sum(number != signal.SIGCHLD for number in self._sockets[0].recv(4096))


def _last_lines(child: Child) -> str:
    texts = [text_of(line, child.program.split) for line in list(child.tail)[-3:]]
    return " ".join(" ".join(texts).split())[-500:] or "it wrote no output"
