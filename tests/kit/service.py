"""The real service as a test sees it: a process started by `python -m local up`, its output and its descendants."""

import json
import signal
import subprocess
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.kit.http import get
from tests.kit.processes import assert_all_ended, family, run_python, start_python
from tests.kit.waiting import wait_until

READY_SECONDS = 90
STOP_SECONDS = 30


def payments(*arguments: str | Path, seconds: float = 60, **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of `./payments` to its end and returns its exit code and output."""
    return run_python("-m", "local", *arguments, seconds=seconds, **changes)


class Service:
    """An `up` and the processes that it started."""

    program = "local"  # the module that is run

    def __init__(self, data: Path, options: tuple[str, ...] = (), changes: Mapping[str, str] | None = None) -> None:
        self.data = data
        self.output = data.with_name(f"{data.name}.{time.monotonic_ns()}.out")
        arguments = ["up", "--port", "0", "--flower-port", "0", "--data", str(data), *options]
        self.process = start_python(
            *("-m", self.program, *arguments),
            output=self.output,
            errors=self.output.with_suffix(".err"),
            **(changes or {}),
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
        """Returns the whole lines of standard output so far."""
        return self.output.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines() if line.startswith("{")]

    def plain_lines(self) -> list[str]:
        return [line for line in self.lines() if not line.startswith("{")]

    def errors(self) -> str:
        return self.output.with_suffix(".err").read_text(encoding="utf-8")

    def answers(self) -> bool:
        """Returns whether /readyz gives 200."""
        answer = get(f"{self.url}/readyz", seconds=5)
        return answer is not None and answer.status == 200

    def stop(self) -> None:
        """Stops it as the contract says: in 30 s, with exit code 0, and nothing left."""
        if self.process.poll() is not None:
            return
        before = family(self.pid)
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(STOP_SECONDS) == 0, self.errors()
        assert_all_ended(before)

    def kill(self) -> dict[int, str]:
        """Sends SIGKILL to `up` alone and returns the family it had."""
        before = family(self.pid)
        self.process.kill()
        self.process.wait()
        return before

    def _of(self, role: str) -> dict[str, Any]:
        return next(process for process in self.ps() if process["role"] == role)
