"""A whole service to break: `up` with its own servers, each behind a proxy of ours."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2  # type: ignore[import-untyped]
import redis

from local.stack.run_state import Process, running_processes
from tests.faults.proxy import Address, Proxy
from tests.kit.processes import ROOT, family, start_python
from tests.kit.service import Service, payments
from tests.kit.waiting import wait_until

RESTART_SECONDS = 30


class _Launched(Service):
    """As Service, started by launch.py."""

    program = "tests.faults.launch"


class Stack:
    """`hook` is a module that web and worker load as they start; `changes` are variables for all processes."""

    def __init__(
        self, folder: Path, workers: int = 2, hook: str = "", changes: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.workers = workers
        self.postgres = Proxy(partial(self._address, "postgres"), reads_postgres=True)
        self.broker = Proxy(partial(self._address, "broker"))
        self._addresses: dict[str, Address] = {}
        ports = {"FAULTS_POSTGRES_PORT": str(self.postgres.port), "FAULTS_BROKER_PORT": str(self.broker.port)}
        self.service = _Launched(
            folder / "data",
            ("--workers", str(workers)),
            {**ports, "PYTHONPATH": str(ROOT), "FAULTS_HOOK": hook, **(changes or {})},
        )

    def wait_ready(self) -> "Stack":
        self.service.wait_ready()
        return self

    @property
    def url(self) -> str:
        return self.service.url

    @property
    def database_url(self) -> str:
        return str(self._process("postgres").url)

    @property
    def broker_url(self) -> str:
        return str(self._process("broker").url)

    def pid_of(self, role: str) -> int:
        """The pid of the role's main process; waits while it is being started again."""
        return wait_until(lambda: self._find_pid(role) or 0, f"{role} runs", RESTART_SECONDS)

    def family_of(self, role: str) -> list[int]:
        """The role's main process, then its descendants."""
        return sorted(family(self.pid_of(role)))

    def signal(self, role: str, number: signal.Signals) -> int:
        """Send to the whole family; the main process's pid."""
        main = self.pid_of(role)
        for pid in family(main):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return main

    def await_restart(self, role: str, old: int) -> None:
        wait_until(lambda: self._find_pid(role) not in (None, old), f"{role} is started again", RESTART_SECONDS)

    def is_ready(self) -> bool:
        """Whether web answers that it can serve, and the worker has begun to consume."""
        return (self.service.data / "run" / "worker.heartbeat").exists() and self.service.answers()

    def await_ready(self) -> None:
        wait_until(self.is_ready, "the service is ready", RESTART_SECONDS)

    @contextmanager
    def session(self) -> Iterator[Any]:
        """A cursor of another program, straight to Postgres, in a transaction that is rolled back at the end."""
        with closing(psycopg2.connect(self.database_url, connect_timeout=5)) as connection:
            yield connection.cursor()

    def redis(self) -> redis.Redis:
        """Straight to the broker."""
        return redis.Redis.from_url(self.broker_url, socket_timeout=5, socket_connect_timeout=5)

    def start_worker(self) -> subprocess.Popen[bytes]:
        """One more worker, which `up` does not know of. Returns when it consumes."""
        heartbeat = self.folder / f"extra-{time.monotonic_ns()}.heartbeat"
        process = start_python(
            *("-m", "worker"),
            output=heartbeat.with_suffix(".out"),
            DATABASE_URL=self.postgres.url(self.database_url),
            BROKER_URL=self.broker.url(self.broker_url),
            PAYMENTS_PROCESS="worker",
            PAYMENTS_WORKERS="1",
            PAYMENTS_HEARTBEAT_FILE=str(heartbeat),
        )
        try:
            wait_until(heartbeat.exists, "the extra worker consumes", RESTART_SECONDS)
        except AssertionError:
            process.kill()
            raise
        return process

    def heal(self) -> None:
        """Ends all faults of the lines."""
        for proxy in (self.postgres, self.broker):
            proxy.heal()

    def heal_and_verify(self) -> None:
        """The service recovers from the faults of a test, and its books balance."""
        self.heal()
        self.await_ready()
        verified = payments("verify", "--data", self.service.data)
        assert verified.returncode == 0, verified.stdout + verified.stderr

    def stop(self) -> None:
        """Heal and stop, in order."""
        self.heal()
        try:
            self.service.stop()
        finally:
            self.postgres.close()
            self.broker.close()

    def _find_pid(self, role: str) -> int | None:
        return next((p.pid for p in running_processes(self.service.data) if p.role == role), None)

    def _process(self, role: str) -> Process:
        def find() -> list[Process]:
            return [p for p in running_processes(self.service.data) if p.role == role]

        return wait_until(find, f"{role} runs", RESTART_SECONDS)[0]

    def _address(self, role: str) -> Address:
        if role not in self._addresses:  # it stays, also when the server is started again
            parts = urlsplit(str(self._process(role).url))
            self._addresses[role] = (str(parts.hostname), int(parts.port or 0))
        return self._addresses[role]
