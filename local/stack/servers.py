"""How each server and process of the service is started: Postgres, the broker, worker, notify, web and Flower."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from local.command import ROOT
from local.stack import postgres, valkey
from local.stack.ports import free_port, responds, url_of, without_password
from local.stack.process import Child, Program
from local.stack.recovery import Recovery, refuse_standby
from local.stack.run_state import plain_url
from local.stack.supervisor import Supervisor
from shared.settings import Settings, settings


def start_database(data: Path, environment: Mapping[str, str], supervisor: Supervisor) -> str:
    """Starts Postgres, or uses DATABASE_URL, and applies the migrations. Returns the url of the owner role."""
    url = _start_postgres(data, environment, supervisor)
    report_progress("migrating the database")
    role = settings().app_role if settings().database_url else postgres.APP_ROLE
    own = {**environment, "DATABASE_URL": url, "PAYMENTS_APP_ROLE": role}
    supervisor.run_to_end(_python("migrations", own, "-m", "migrations", runs_once=True))
    return url


def _start_postgres(data: Path, environment: Mapping[str, str], supervisor: Supervisor) -> str:
    if url := settings().database_url:
        supervisor.write(f"postgres external {without_password(plain_url(url))}")
        return plain_url(url)
    cluster = postgres.prepare(data, free_port())
    refuse_standby(cluster)
    if not cluster.folder.exists():
        report_progress(f"creating the database in {cluster.folder} (only at the first start)")
        supervisor.run_to_end(postgres.initdb(cluster, environment))
        postgres.adopt(cluster)
    child = supervisor.start(postgres.server(cluster, environment))
    recovery = Recovery(cluster, child.is_ready, report_progress)
    supervisor.await_true(recovery.has_ended)
    supervisor.await_ready([child], partial(announce, supervisor))
    postgres.ensure_roles(cluster)
    return cluster.url


def start_broker(data: Path, environment: Mapping[str, str], supervisor: Supervisor) -> str:
    if url := settings().broker_url:
        supervisor.write(f"broker external {without_password(url)}")
        return url
    program = valkey.server(data, free_port(), environment)
    supervisor.await_ready([supervisor.start(program)], partial(announce, supervisor))
    assert program.url
    return program.url


def worker_program(environment: Mapping[str, str]) -> Program:
    heartbeat = Path(environment["PAYMENTS_HEARTBEAT_FILE"])
    return _python(
        "worker",
        environment,
        *("-m", "worker"),
        is_ready=heartbeat.exists,
        clear=lambda: heartbeat.unlink(missing_ok=True),
        stop_seconds=8,  # a settle slice takes 2 s, plus the locks that it waits for
    )


def notify_program(environment: Mapping[str, str]) -> Program:
    heartbeat = Path(environment["PAYMENTS_HEARTBEAT_FILE"]).with_name("notify.heartbeat")
    return _python(
        "notify",
        {**environment, "PAYMENTS_HEARTBEAT_FILE": str(heartbeat)},
        *("-m", "worker", "notify"),
        is_ready=heartbeat.exists,
        clear=lambda: heartbeat.unlink(missing_ok=True),
        stop_seconds=3,  # if a receiver takes longer to answer, the delivery is repeated
    )


def web_program(options: Settings, environment: Mapping[str, str]) -> Program:
    return _python(
        "web",
        environment,
        *("-m", "web", "--host", options.host, "--port", str(options.port)),
        url=url_of(options.host, options.port),
        is_ready=lambda: responds(options.host, options.port, "/readyz"),
        stop_seconds=6,
    )


def flower_program(options: Settings, environment: Mapping[str, str]) -> Program:
    port = options.flower_port
    # Flower serves its own metrics. In the shared folder, web would report them a second time.
    own = {name: value for name, value in environment.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    return _python(
        "flower",
        own,
        *("-m", "worker", "flower", "--address=127.0.0.1", f"--port={port}"),
        url=url_of("127.0.0.1", port),
        is_ready=lambda: responds("127.0.0.1", port, "/healthcheck"),
        stop_seconds=2,
    )


def _python(role: str, environment: Mapping[str, str], *arguments: str, **options: Any) -> Program:
    own = {**environment, "PAYMENTS_PROCESS": role}
    return Program(role, (sys.executable, *arguments), ROOT, own, **options)


def announce(supervisor: Supervisor, child: Child) -> None:
    url = f" {without_password(child.program.url)}" if child.program.url else ""
    supervisor.write(f"{child.program.role} pid {child.pid}{url}")


def report_progress(line: str) -> None:
    with suppress(OSError):
        print(f"payments: {line}", file=sys.stderr, flush=True)
