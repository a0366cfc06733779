"""The real service as a test sees it: a process started by `python -m local up`, its output and its descendants."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent.parent
READY_SECONDS = 90
STOP_SECONDS = 30
NOT_INHERITED = ("DATABASE_URL", "BROKER_URL", "PAYMENTS_", "PROMETHEUS_")

Answer = TypeVar("Answer")


def wait_until(condition: Callable[[], Answer], what: str, seconds: float = 60) -> Answer:
    """Ask until the answer is true: the one way to wait in these tests."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return answer


def environment(**changes: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(NOT_INHERITED)} | changes


def payments(*arguments: str | Path, seconds: float = 60, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "local", *map(str, arguments)],
        cwd=ROOT,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


class Service:
    """An `up` and what it started. Its output goes to files, so that nothing waits for the test to read."""

    program = "local"  # the module that is run

    def __init__(self, data: Path, options: tuple[str, ...] = (), changes: Mapping[str, str] | None = None) -> None:
        self.data = data
        self.output = data.with_name(f"{data.name}.{time.monotonic_ns()}.out")
        arguments = ["up", "--port", "0", "--flower-port", "0", "--data", str(data), *options]
        with open(self.output, "wb") as out, open(self.output.with_suffix(".err"), "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.program, *arguments],
                cwd=ROOT,
                env=environment(**(changes or {})),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        ready = [line for line in self.lines() if line.startswith("ready ")]
        return ready[0].removeprefix("ready ") if ready else ""

    @cached_property  # it stays as it is when Postgres is started again
    def database_url(self) -> str:
        return str(self._of("postgres")["url"])

    @cached_property
    def broker_url(self) -> str:
        return str(self._of("broker")["url"])

    def wait_ready(self) -> "Service":
        wait_until(lambda: self.url or self.process.poll() is not None, "ready or ended", READY_SECONDS)
        assert self.process.poll() is None, f"up ended: {self.errors()}"
        return self

    def ps(self) -> list[dict[str, Any]]:
        done = payments("ps", "--json", "--data", self.data)
        assert done.returncode == 0, done.stderr
        listed: list[dict[str, Any]] = json.loads(done.stdout)
        return listed

    def pid_of(self, role: str) -> int:
        return int(self._of(role)["pid"])

    def lines(self) -> list[str]:
        """The whole lines of standard output so far."""
        return self.output.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines() if line.startswith("{")]

    def plain_lines(self) -> list[str]:
        return [line for line in self.lines() if not line.startswith("{")]

    def errors(self) -> str:
        return self.output.with_suffix(".err").read_text(encoding="utf-8")

    def answers(self) -> bool:
        """Whether /readyz gives 200."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        """Stop it as the contract says: in 30 s, with exit code 0, and nothing left."""
        if self.process.poll() is not None:
            return
        before = family(self.pid)
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(STOP_SECONDS) == 0, self.errors()
        assert_all_ended(before)

    def kill(self) -> dict[int, str]:
        """SIGKILL `up` alone, and return what there was of it."""
        before = family(self.pid)
        self.process.kill()
        self.process.wait()
        return before

    def _of(self, role: str) -> dict[str, Any]:
        return next(process for process in self.ps() if process["role"] == role)


def family(pid: int) -> dict[int, str]:
    """A process and all its descendants, with their start times: a pid alone may be another's later."""
    parents = {child: stat[1] for child, stat in _stats().items()}
    members = {pid}
    while more := {child for child, parent in parents.items() if int(parent) in members} - members:
        members |= more
    return {member: started for member in members if (started := started_at(member))}


def started_at(pid: int) -> str | None:
    """Start time of a living process; a zombie does not live."""
    stat = _stats().get(pid)
    return stat[19] if stat and stat[0] not in "ZX" else None


def living(processes: Mapping[int, str]) -> list[int]:
    return [pid for pid, started in processes.items() if started_at(pid) == started]


def assert_all_ended(processes: Mapping[int, str], seconds: float = 0) -> None:
    deadline = time.monotonic() + seconds
    while (left := living(processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, f"still alive: {left}"


def _stats() -> dict[int, list[str]]:
    """/proc/*/stat from the third field on: state, parent, ..., start time (the twentieth)."""
    stats = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stats[int(entry.name)] = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
    return stats
