"""Processes of a test: how they are started, and what there is of them."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_INHERITED = ("DATABASE_URL", "BROKER_URL", "PAYMENTS_", "PROMETHEUS_")


def environment(**changes: str) -> dict[str, str]:
    """Returns our environment without the service's variables, with the changes."""
    return {k: v for k, v in os.environ.items() if not k.startswith(NOT_INHERITED)} | changes


def start_python(
    *arguments: str | Path, output: Path, errors: Path | None = None, **changes: str
) -> "subprocess.Popen[bytes]":
    """Starts `python ARGUMENTS` in the project's folder and returns the process.

    Its output goes to a file, so that it never waits for the test to read. Without `errors` both streams go to `output`.
    """
    with open(output, "wb") as out, open(errors or os.devnull, "wb") as err:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=environment(**changes),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err if errors else out,
        )


def run_python(*arguments: str | Path, seconds: float = 60, **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGUMENTS` in the project's folder to its end and returns its exit code and output."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def family(pid: int) -> dict[int, str]:
    """Returns a process and all its descendants, with their start times: a pid alone may be another's later."""
    parents = {child: stat[1] for child, stat in _stats().items()}
    members = {pid}
    while more := {child for child, parent in parents.items() if int(parent) in members} - members:
        members |= more
    return {member: started for member in members if (started := started_at(member))}


def started_at(pid: int) -> str | None:
    """Returns the start time of a living process. A zombie does not live."""
    stat = _stats().get(pid)
    return stat[19] if stat and stat[0] not in "ZX" else None


def living(processes: Mapping[int, str]) -> list[int]:
    """Returns the pids of those that still live."""
    return [pid for pid, started in processes.items() if started_at(pid) == started]


def assert_all_ended(processes: Mapping[int, str], seconds: float = 0) -> None:
    """Waits for their end for so long. Raises AssertionError if one still lives."""
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
