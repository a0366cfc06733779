"""What is measured and where: a whole `up` in a folder of its own, and databases beside the service's for the floors.

The service is the real one, started as a user starts it, with nothing left out: logs go to a file.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2  # type: ignore[import-untyped]

from bench.generator import Address
from local.stack.ports import free_port
from shared.processes import die_with_parent

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 90
STOP_SECONDS = 60
UP = "up"  # the role of the supervisor, which also relays the logs
NOT_INHERITED = ("DATABASE_URL", "BROKER_URL", "PAYMENTS_", "PROMETHEUS_", "PG")


class BenchError(Exception):
    """The benchmark cannot go on. Its text is the one line that the user sees."""


def wait_until(condition: Callable[[], object], what: str, seconds: float, every: float = 0.02) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"not within {seconds:.0f} s: {what}")
        time.sleep(every)


class Stack:
    """A running `up`. Stopped by the end of the `with` block."""

    def __init__(self, data: Path, workers: int = 2) -> None:
        self.data = data
        self.log = data.with_name(f"{data.name}.{workers}.log")
        options = ["--port", "0", "--flower-port", "0", "--data", str(data), "--workers", str(workers)]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "local", "up", *options],
                cwd=ROOT,
                env=environment(  # for the benchmark's own receiver, and its long lists
                    WEBHOOK_ALLOW_PRIVATE="1", PAYMENTS_BACKLOG_LIMIT="10000000"
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one thread here
            )

    def __enter__(self) -> "Stack":
        try:
            wait_until(self._is_ready, "`up` is ready (see its log, with --keep)", READY_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        self.processes = _list_processes(self.data)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(STOP_SECONDS)

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise BenchError(f"`up` ended with {self._process.returncode}: {_end_of(self.log)}")
        return b"\nready " in self.log.read_bytes()

    @property
    def web(self) -> Address:
        parts = urlsplit(self.url_of("web"))
        return str(parts.hostname), int(parts.port or 80)

    @property
    def database_url(self) -> str:
        return self.url_of("postgres")

    @property
    def broker_url(self) -> str:
        return self.url_of("broker")

    def url_of(self, role: str) -> str:
        return str(next(process["url"] for process in self.processes if process["role"] == role))

    def pids_of(self, role: str) -> list[int]:
        return self.pids_by_role()[role]

    def pids_by_role(self) -> dict[str, list[int]]:
        """Every process of the service, see `group_by_role`."""
        mains = [(str(process["role"]), int(process["pid"])) for process in self.processes]
        return group_by_role(mains, _read_parents())


def environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(NOT_INHERITED)}
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


def _list_processes(data: Path) -> list[dict[str, Any]]:
    listed = subprocess.run(
        [sys.executable, "-m", "local", "ps", "--json", "--data", str(data)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        check=True,
    )
    processes: list[dict[str, Any]] = json.loads(listed.stdout)
    return processes


def group_by_role(mains: Sequence[tuple[str, int]], parents: Mapping[int, int]) -> dict[str, list[int]]:
    """The pids of each role: its main processes and their descendants.

    `up` is the parent of all the others: it gets itself and whatever belongs to no other role, so nothing is left out.
    """
    groups: dict[str, list[int]] = {}
    for role, pid in mains:
        groups.setdefault(role, []).extend(descendants(pid, parents))
    others = {pid for role, pids in groups.items() if role != UP for pid in pids}
    if UP in groups:
        groups[UP] = [pid for pid in groups[UP] if pid not in others]
    return groups


def descendants(pid: int, parents: Mapping[int, int] | None = None) -> list[int]:
    """A process and all that come from it, the oldest first. `parents` is read from /proc if it is not given."""
    parents = _read_parents() if parents is None else parents
    members = [pid]
    for member in members:  # it grows meanwhile
        members += sorted(child for child, parent in parents.items() if parent == member)
    return members


def _read_parents() -> dict[int, int]:
    """The parent of each process of the machine."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
    return parents


@contextmanager
def sql(url: str) -> Iterator[Any]:
    """A cursor, each statement a transaction."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        yield cursor


def query(url: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with sql(url) as cursor:
        cursor.execute(statement, values[0] if values and isinstance(values[0], dict) else values or None)
        return list(cursor.fetchall()) if cursor.description else []


def make_database(stack: Stack, name: str) -> str:
    """The url of another database on the service's own Postgres, made by the migrations; kept if it is there."""
    url = urlsplit(stack.database_url)._replace(path=f"/{name}").geturl()
    if not query(stack.database_url, "SELECT 1 FROM pg_database WHERE datname = %s", name):
        query(stack.database_url, f"CREATE DATABASE {name} TEMPLATE template0")
        subprocess.run(
            [sys.executable, "-m", "migrations"],
            cwd=ROOT,
            env=environment(DATABASE_URL=url),
            capture_output=True,
            check=True,
        )
    return url


def add_users(url: str, count: int) -> range:
    """The ids of new users."""
    (first,) = query(url, "SELECT coalesce(max(id), 0) + 1 FROM users")[0]
    query(url, "INSERT INTO users (name) SELECT 'user ' || n FROM generate_series(1, %s) AS n", count)
    return range(first, first + count)


@contextmanager
def server(module: str, log: Path, *options: str, **variables: str) -> Iterator[Address]:
    """A server of a floor, `python -m module --port PORT`, while the block runs."""
    port = free_port()
    with program([sys.executable, "-m", module, "--port", str(port), *options], log, **variables) as process:
        wait_until(lambda: process.poll() is not None or _listens(port), f"{module} listens", READY_SECONDS)
        if process.poll() is not None:
            raise BenchError(f"{module} ended with {process.returncode}: {_end_of(log)}")
        yield "127.0.0.1", port


@contextmanager
def program(command: Sequence[str], log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process and its descendants, ended with the block."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one thread here
        )
    try:
        yield process
    finally:
        family = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            for pid in family:
                os.kill(pid, signal.SIGKILL)
            process.wait(10)


def _end_of(log: Path) -> str:
    return " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-300:]


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
