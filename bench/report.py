"""What comes of the runs: the medians, the table of ratios, the JSON."""

import math
import os
import platform
import re
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.figures import RATIOS, Ratio
from bench.plan import Plan, Values
from bench.stack import ROOT, query
from bench.waiting import CLIENTS
from local.tables import table

_WAITING = ("per_s", "p50_ms", "p99_ms")
_ROLES = {"up": "up: supervisor and log relay", "generator": "(load generator, not in the total)"}
SETTINGS = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size")


@dataclass
class Results:
    """What was measured, run by run. `once` holds what has a stack of its own."""

    plan: Plan
    runs: list[Values] = field(default_factory=list)
    once: Values = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)
    not_done: dict[str, str] = field(default_factory=dict)  # step: why
    failed: bool = False
    postgres: dict[str, str] = field(default_factory=dict)
    filesystem: str = ""

    def medians(self) -> Values:
        found: dict[str, list[float]] = {}
        for values in [*self.runs, self.once]:
            for key, value in values.items():
                found.setdefault(key, []).append(value)
        return {key: statistics.median(values) for key, values in found.items()}


@dataclass(frozen=True)
class Line:
    """A ratio as it came out: the median of the runs' own ratios."""

    ratio: Ratio
    value: float
    floor: float
    median: float
    of_runs: list[float]

    def as_json(self) -> dict[str, Any]:
        what = asdict(self.ratio) | {"value": self.value, "floor": self.floor, "value_key": self.ratio.value}
        return what | {"ratio": self.median, "ratios": self.of_runs, "reached": self.verdict}

    @property
    def verdict(self) -> str:
        if self.ratio.reached(self.median, self.ratio.stretch):
            return "stretch"
        return {True: "reached", False: "missed", None: ""}[self.ratio.reached(self.median, self.ratio.bar)]


def lines_of(results: Results) -> list[Line]:
    """The ratios of which both sides were measured."""
    medians, lines = results.medians(), []
    for ratio in RATIOS:
        found = [ratio.of({**values, **results.once}) for values in results.runs or [{}]]
        of_runs = [one for one in found if one is not None]
        if of_runs:
            floor = ratio.floor_of(medians)
            lines.append(Line(ratio, medians[ratio.value], floor, statistics.median(of_runs), of_runs))
    return lines


def as_text(results: Results) -> str:
    parts = [_machine_line(results)]
    if lines := lines_of(results):
        header = ("figure", "value", "to", "floor", "ratio", "range", "bar", "stretch", "")
        rows = [_row(line) for line in lines]
        parts.append(table(header, rows, right=("value", "floor", "ratio", "bar", "stretch")))
    parts += [*_waiting_table(results), *_cpu_table(results), *_not_waited(results.medians())]
    medians = sorted(results.medians().items())
    parts.append(table(("measured", "median"), [(key, _number(value)) for key, value in medians], right=("median",)))
    parts += [f"not measured: {name}: {why}" for name, why in results.not_done.items()]
    return "\n\n".join(parts)


def _waiting_table(results: Results) -> list[str]:
    """Clients that wait, beside FastAPI with as many; nothing where that was not measured."""
    medians, lines = results.medians(), {line.ratio.value: line for line in lines_of(results)}
    rows = []
    for clients in CLIENTS:
        name = f"waiting_{clients}"
        if line := lines.get(f"{name}_per_s"):
            measured = [medians.get(f"{one}_{key}", math.nan) for one in (name, f"{name}_fastapi") for key in _WAITING]
            rows.append((str(clients), *map(_number, measured), *_judged(line)))
    header = ("clients that wait", "ours/s", "p50 ms", "p99 ms", "FastAPI/s", "its p50", "its p99", "ratio", "bar", "")
    return [table(header, rows, right=header[:-1])] if rows else []


def _cpu_table(results: Results) -> list[str]:
    """Milliseconds of CPU that a payment costs, by process; the load generator's are not in the total."""
    medians, lines = results.medians(), {line.ratio.value: line for line in lines_of(results)}
    parts = []
    for name, title in (("spread", "64 connections"), ("one_user", "64 connections, one user"), ("lone_put", "alone")):
        keys = [key for key in medians if re.fullmatch(rf"{name}_cpu_\w+_ms", key)]
        if not keys:
            continue
        rows = []
        for key in sorted(keys, key=lambda key: ("_generator_" in key, "_total_" in key, -medians[key])):
            bar = _judged(lines[key])[1:] if key in lines else ("", "")
            role = key.removeprefix(f"{name}_cpu_").removesuffix("_ms")
            rows.append((_ROLES.get(role, role), f"{medians[key]:.3f}", *bar))
        header = (f"CPU per payment, {title}", "ms", "bar", "")
        parts.append(table(header, rows, right=("ms", "bar")))
    return parts


def _judged(line: Line) -> tuple[str, str, str]:
    """The ratio, its bar, and whether that is reached."""
    sign = "<=" if line.ratio.upper_bound else ">="
    return f"{line.median:.2f}", "" if line.ratio.bar is None else f"{sign} {line.ratio.bar:g}", line.verdict


def _not_waited(medians: Values) -> list[str]:
    ending = "_not_waited_percent"
    return [
        f"{key.removesuffix(ending)}: {share:.0f} % of the PUTs that asked to wait were answered 202 at once, since more "
        "waited than a process keeps; they are in no percentile"
        for key, share in medians.items()
        if key.endswith(ending) and share
    ]


def _row(line: Line) -> tuple[str, ...]:
    ratio, sign = line.ratio, "<=" if line.ratio.upper_bound else ">="
    median, bar, verdict = _judged(line)
    return (
        ratio.name,
        _number(line.value),
        ratio.floor_name,
        _number(line.floor) if ratio.floor else "",
        median,
        f"{min(line.of_runs):.2f}-{max(line.of_runs):.2f}",
        bar,
        "" if ratio.stretch is None else f"{sign} {ratio.stretch:g}",
        verdict,
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def as_json(results: Results) -> dict[str, Any]:
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "postgres": results.postgres,
        "filesystem": results.filesystem,
        "plan": asdict(results.plan),
        "figures": [line.as_json() for line in lines_of(results)],
        "medians": results.medians(),
        "runs": results.runs,
        "once": results.once,
        "not_done": results.not_done,
        "notes": results.notes,
    }


def read_postgres(url: str) -> dict[str, str]:
    return {name: str(query(url, f"SHOW {name}")[0][0]) for name in SETTINGS}


def machine() -> dict[str, Any]:
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model[1] if model else platform.machine(),
        "memory_gb": round(int(memory[1]) / (1 << 20), 1) if memory else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def filesystem_of(folder: Path) -> str:
    """Its type. On tmpfs a commit costs no disk, which is no measurement of a database."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    over = [(len(point), kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(over)[1] if over else "unknown"


def commit() -> str:
    """The commit of this tree, `+` where it was changed since; empty where there is no git."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _machine_line(results: Results) -> str:
    here, plan = machine(), results.plan
    settings = ", ".join(f"{name} {value}" for name, value in results.postgres.items() if name != "server_version")
    return (
        f"{here['cores']} cores ({here['cpu']}), {here['memory_gb']} GB, Python {here['python']}, "
        f"Postgres {results.postgres.get('server_version', '?')} ({settings})\n"
        f"commit {commit() or 'unknown'}; median of {plan.runs} runs, {plan.seconds:g} s a load, on {results.filesystem}; "
        "the machine also carries Postgres, the broker and the load generator"
    )
