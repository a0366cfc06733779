"""What each process of the service takes: memory after the load, CPU and context switches during one.

Memory is PSS in MB, where shared pages count by their share.
"""

import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from bench.plan import Run, Values
from bench.stack import Stack

INTERVAL_SAMPLE_SECONDS = 1.0
GENERATOR = "generator"  # our own process, which makes the load: no part of the service


def memory(run: Run) -> Values:
    """By role, with all descendants; `rss` of the role's largest process besides. The total leaves out Postgres."""
    values: Values = {}
    for role in run.stack.pids_by_role():
        sizes = sizes_of(run.stack, role)
        run.notes[f"memory of {role}"] = [dict(zip(("pss_mb", "rss_mb"), size, strict=True)) for size in sizes]
        values[f"memory_{role}_pss_mb"] = sum(pss for pss, _ in sizes)
        values[f"memory_{role}_largest_rss_mb"] = max(rss for _, rss in sizes)
    return values | {"memory_total_pss_mb": total_memory(values)}


def total_memory(values: Values) -> float:
    return sum(
        size for key, size in values.items() if key.endswith("_pss_mb") and not key.startswith("memory_postgres_")
    )


def sizes_of(stack: Stack, role: str) -> list[tuple[float, float]]:
    """PSS and RSS in MB of each of the role's processes."""
    return [_sizes(pid) for pid in stack.pids_of(role)]


def _sizes(pid: int) -> tuple[float, float]:
    """PSS and RSS. Where the kernel hides the first from us, RSS stands for both."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        pss, rss = (_megabytes(text, name) for name in ("Pss", "Rss"))
    except PermissionError:
        rss = _megabytes(Path(f"/proc/{pid}/status").read_text(), "VmRSS")
        pss = rss
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0.0, 0.0
    return pss, rss


def _megabytes(text: str, name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def cpu_seconds(stack: Stack) -> dict[str, float]:
    """By role, since its processes began, with `up` and every descendant; and our own, which makes the load."""
    spent = {role: sum(map(cpu_seconds_of, pids)) for role, pids in stack.pids_by_role().items()}
    return spent | {GENERATOR: sum(os.times()[:2])}


def cpu_seconds_of(pid: int) -> float:
    """User and system time of the process, and of its children that have ended: their time is not lost."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0  # it has just ended
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def cpu_per_payment(name: str, before: Mapping[str, float], after: Mapping[str, float], payments: int) -> Values:
    """Milliseconds of CPU by role, and in total without the load generator."""
    spent = {role: 1000 * (seconds - before.get(role, 0.0)) / payments for role, seconds in after.items()}
    total = sum(milliseconds for role, milliseconds in spent.items() if role != GENERATOR)
    return {f"{name}_cpu_{role}_ms": milliseconds for role, milliseconds in (spent | {"total": total}).items()}


class SwitchCounter:
    """Counts the context switches of all threads of some processes while the block runs.

    The kernel drops a thread's counts when it ends, so they are read every second: what is lost is the last part of
    a second of a thread that ends during the load.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._before: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._sample_often, name="switches", daemon=True)

    def __enter__(self) -> Self:
        self.sample()
        self._before = dict(self._last)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        self.sample()

    @property
    def count(self) -> int:
        return sum(switches - self._before.get(thread, 0) for thread, switches in self._last.items())

    def sample(self) -> None:
        for pid in self._pids:
            for status in Path(f"/proc/{pid}/task").glob("[0-9]*/status"):
                try:
                    self._last[str(status)] = switches_in(status.read_text())
                except OSError:
                    continue  # the thread has ended: its last sample counts

    def _sample_often(self) -> None:
        while not self._ends.wait(INTERVAL_SAMPLE_SECONDS):
            self.sample()


def switches_in(status: str) -> int:
    """Voluntary and involuntary ones."""
    return sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", status)))
