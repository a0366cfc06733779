"""What each process of the service takes: memory after the load, CPU during one.

Memory is PSS in MB, where shared pages count by their share.
"""

import os
import re
from pathlib import Path

from bench.plan import Run, Values
from bench.stack import Stack


def memory(run: Run) -> Values:
    """By role, with all descendants; `rss` of the role's largest process besides."""
    values: Values = {}
    for role in run.stack.roles:
        sizes = sizes_of(run.stack, role)
        run.notes[f"memory of {role}"] = [dict(zip(("pss_mb", "rss_mb"), size, strict=True)) for size in sizes]
        values[f"memory_{role}_pss_mb"] = sum(pss for pss, _ in sizes)
        values[f"memory_{role}_largest_rss_mb"] = max(rss for _, rss in sizes)
    return values


def sizes_of(stack: Stack, role: str) -> list[tuple[float, float]]:
    """PSS and RSS in MB of each of the role's processes."""
    # `up` is the parent of all the others
    return [_sizes(pid) for pid in stack.pids_of(role)[: 1 if role == "up" else None]]


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
    """By role, since its processes began; and our own, which makes the load."""
    spent = {role: sum(map(_cpu_of, stack.pids_of(role))) for role in stack.roles if role != "up"}
    return spent | {"generator": sum(os.times()[:2])}


def _cpu_of(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0  # it has just ended
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
