"""`up`: runs the whole service in the foreground. This module starts it in order; local.supervisor keeps it alive.

All checks come first, so that a refused start changes nothing.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import click

from local import broker, postgres
from local.addresses import check_host, claim_port, free_port, responds, url_of, without_password
from local.child import Child, Program
from local.command import ROOT, CommandError, setting_options, verbatim
from local.look import clear_libpq_environment, has_rows
from local.recovery import Recovery, refuse_standby
from local.state import Process, lock_folder, plain_url, refuse_second_up, wait_for_orphans, write_processes
from local.supervisor import StopRequested, Supervisor
from shared.settings import Settings, is_loopback, settings

STANDARD_OUTPUT = 1
VALID_KEYS = "SELECT FROM api_keys WHERE revoked_at IS NULL LIMIT 1"

DESCRIPTION = """\
Starts Postgres, the broker, the migrations, the worker, web and Flower. Prints a line when each is ready, and then
`ready URL`. After that, standard output has JSON lines, each with the field `process`. A process that ends is
restarted. Ctrl-C or SIGTERM stops all in order, within 30 s; a second one stops all at once. The data stays.

If DATABASE_URL or BROKER_URL is set, `up` uses that server and does not start its own."""


@click.command("up", short_help="start the whole service, in the foreground", help=verbatim(DESCRIPTION))
@setting_options("host", "port", "flower_port", "workers")
def command(options: Settings) -> int:
    check_host(options.host)
    if not settings().database_url:
        clear_libpq_environment()
    if _needs_keys(options.host) and not settings().database_url and not postgres.exists(options.data):
        raise _no_key(options.host)
    refuse_second_up(options.data)
    wait_for_orphans(options.data)
    port = claim_port(options.host, options.port, "--port")
    flower_port = claim_port("127.0.0.1", options.flower_port, "--flower-port")
    options = options.model_copy(update={"port": port, "flower_port": flower_port})
    _open_standard_descriptors()
    with lock_folder(options.data) as lock:
        supervisor = Supervisor(STANDARD_OUTPUT, lock, partial(_record, options.data))
        try:
            _start(options, supervisor)
            supervisor.write(f"ready {url_of(options.host, options.port)}")
            supervisor.watch()
        except StopRequested:
            return 0
        finally:
            supervisor.stop()


def _start(options: Settings, supervisor: Supervisor) -> None:
    environment = _environment(options)
    url = start_database(options.data, environment, supervisor)
    if _needs_keys(options.host) and not has_rows(url, VALID_KEYS):
        raise _no_key(options.host)
    environment["DATABASE_URL"] = url if settings().database_url else postgres.url_of_app(options.data, url)
    _report_access(options.host)
    environment["BROKER_URL"] = _start_broker(options.data, environment, supervisor)
    _progress("starting the workers, web and Flower")
    # They are stopped in reverse order.
    programs = (_worker(environment), _notify(environment), _web(options, environment), _flower(options, environment))
    supervisor.await_ready([supervisor.start(program) for program in programs], partial(_announce, supervisor))


def _needs_keys(host: str) -> bool:
    """Returns whether web needs an API key to be usable: it listens beyond loopback, and keys are not off."""
    return not is_loopback(host) and settings().auth != "off"


def _no_key(host: str) -> CommandError:
    return CommandError(
        f"--host {host} is reachable from other machines, and there is no API key yet: "
        "./payments key create --name NAME --scope write (or use 127.0.0.1)"
    )


def _report_access(host: str) -> None:
    if settings().auth != "required" and is_loopback(host):
        _progress("no API key is needed on loopback (PAYMENTS_AUTH=required changes this)")
    elif settings().auth == "off":
        _progress(f"PAYMENTS_AUTH=off: EVERYBODY WHO REACHES {host} CAN MOVE MONEY")


def start_database(data: Path, environment: Mapping[str, str], supervisor: Supervisor) -> str:
    """Starts Postgres, or uses DATABASE_URL, and applies the migrations. Returns the url of the owner role."""
    url = _start_postgres(data, environment, supervisor)
    _progress("migrating the database")
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
        _progress(f"creating the database in {cluster.folder} (only at the first start)")
        supervisor.run_to_end(postgres.initdb(cluster, environment))
        postgres.adopt(cluster)
    child = supervisor.start(postgres.server(cluster, environment))
    recovery = Recovery(cluster, child.is_ready, _progress)
    supervisor.await_true(recovery.has_ended)
    supervisor.await_ready([child], partial(_announce, supervisor))
    postgres.ensure_roles(cluster)
    return cluster.url


def _start_broker(data: Path, environment: Mapping[str, str], supervisor: Supervisor) -> str:
    if url := settings().broker_url:
        supervisor.write(f"broker external {without_password(url)}")
        return url
    program = broker.server(data, free_port(), environment)
    supervisor.await_ready([supervisor.start(program)], partial(_announce, supervisor))
    assert program.url
    return program.url


def _worker(environment: Mapping[str, str]) -> Program:
    heartbeat = Path(environment["PAYMENTS_HEARTBEAT_FILE"])
    return _python(
        "worker",
        environment,
        *("-m", "worker"),
        is_ready=heartbeat.exists,
        clear=lambda: heartbeat.unlink(missing_ok=True),
        stop_seconds=8,  # a settle slice takes 2 s, plus the locks that it waits for
    )


def _notify(environment: Mapping[str, str]) -> Program:
    heartbeat = Path(environment["PAYMENTS_HEARTBEAT_FILE"]).with_name("notify.heartbeat")
    return _python(
        "notify",
        {**environment, "PAYMENTS_HEARTBEAT_FILE": str(heartbeat)},
        *("-m", "worker", "notify"),
        is_ready=heartbeat.exists,
        clear=lambda: heartbeat.unlink(missing_ok=True),
        stop_seconds=3,  # if a receiver takes longer to answer, the delivery is repeated
    )


def _web(options: Settings, environment: Mapping[str, str]) -> Program:
    return _python(
        "web",
        environment,
        *("-m", "web", "--host", options.host, "--port", str(options.port)),
        url=url_of(options.host, options.port),
        is_ready=lambda: responds(options.host, options.port, "/readyz"),
        stop_seconds=6,
    )


def _flower(options: Settings, environment: Mapping[str, str]) -> Program:
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


def _environment(options: Settings) -> dict[str, str]:
    """Returns the environment variables for every process, and creates an empty folder for metrics."""
    run = options.data / "run"
    shutil.rmtree(run / "metrics", ignore_errors=True)
    (run / "metrics").mkdir()
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "PAYMENTS_HOST": options.host,
        "PAYMENTS_WORKERS": str(options.workers),
        "PAYMENTS_HEARTBEAT_FILE": str(run / "worker.heartbeat"),
        "PROMETHEUS_MULTIPROC_DIR": str(run / "metrics"),
    }


def _record(data: Path, children: Sequence[Child]) -> None:
    """Writes the list for `ps`. An error, such as a full disk, does not stop the service."""
    external_urls = {"postgres": plain_url(settings().database_url), "broker": settings().broker_url}
    processes = [Process("up", os.getpid(), None)]
    processes += [Process(role, None, url) for role, url in external_urls.items() if url]
    processes += [Process(child.program.role, child.pid, child.program.url) for child in children if child.pid]
    try:
        write_processes(data, processes)
    except OSError as error:
        _progress(f"cannot write the list of processes: {error.strerror}")


def _announce(supervisor: Supervisor, child: Child) -> None:
    url = f" {without_password(child.program.url)}" if child.program.url else ""
    supervisor.write(f"{child.program.role} pid {child.pid}{url}")


def _progress(line: str) -> None:
    with suppress(OSError):
        print(f"payments: {line}", file=sys.stderr, flush=True)


def _open_standard_descriptors() -> None:
    """Opens closed standard descriptors. Otherwise the next file that we open gets their number, and logs go there."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STANDARD_OUTPUT + 1:
        pass
    os.close(descriptor)
