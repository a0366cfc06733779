"""`up`: runs the whole service in the foreground. This module starts the processes one after another;
local.stack.supervisor keeps them running.

All checks come first, so that a refused start changes nothing.
"""

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from local.command import ROOT, CommandError, setting_options, verbatim
from local.stack import postgres, servers
from local.stack.ports import check_host, claim_port, url_of
from local.stack.postgres import clear_libpq_environment, has_rows
from local.stack.process import Child
from local.stack.run_state import Process, lock_folder, plain_url, refuse_second_up, wait_for_orphans, write_processes
from local.stack.supervisor import StopRequested, Supervisor
from shared.settings import Settings, is_loopback, settings

STANDARD_OUTPUT = 1
VALID_KEYS = "SELECT FROM api_keys WHERE revoked_at IS NULL LIMIT 1"
DESCRIPTION = """\
Starts Postgres, applies the migrations, then starts the broker, worker, notify, web and Flower. Prints a line when each
is ready, and then `ready URL`. After that, standard output has JSON lines, each with the field `process`. A process
that ends is restarted. Ctrl-C or SIGTERM stops all in order, within 30 s; a second one stops all at once. The data
stays.

If DATABASE_URL or BROKER_URL is set, `up` uses that server and does not start its own."""


@click.command("up", short_help="start the whole service, in the foreground", help=verbatim(DESCRIPTION))
@setting_options("host", "port", "flower_port", "workers")
def command(options: Settings) -> int:
    check_host(options.host)
    if not settings().database_url:
        clear_libpq_environment()
    if _needs_keys(options.host) and not settings().database_url and not postgres.exists(options.data):
        raise _no_key_error(options.host)
    refuse_second_up(options.data)
    wait_for_orphans(options.data)
    port = claim_port(options.host, options.port, "--port")
    flower_port = claim_port("127.0.0.1", options.flower_port, "--flower-port")
    options = options.model_copy(update={"port": port, "flower_port": flower_port})
    _open_standard_descriptors()
    with lock_folder(options.data) as lock:
        supervisor = Supervisor(STANDARD_OUTPUT, lock, partial(_write_process_list, options.data))
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
    url = servers.start_database(options.data, environment, supervisor)
    if _needs_keys(options.host) and not has_rows(url, VALID_KEYS):
        raise _no_key_error(options.host)
    environment["DATABASE_URL"] = url if settings().database_url else postgres.url_of_app(options.data, url)
    _report_access(options.host)
    environment["BROKER_URL"] = servers.start_broker(options.data, environment, supervisor)
    servers.report_progress("starting the worker, notify, web and Flower")
    # They are stopped in reverse order.
    programs = (
        servers.worker_program(environment),
        servers.notify_program(environment),
        servers.web_program(options, environment),
        servers.flower_program(options, environment),
    )
    supervisor.await_ready([supervisor.start(program) for program in programs], partial(servers.announce, supervisor))


def _needs_keys(host: str) -> bool:
    """Returns whether web needs an API key: it is reachable from other machines and PAYMENTS_AUTH is not off."""
    return not is_loopback(host) and settings().auth != "off"


def _no_key_error(host: str) -> CommandError:
    return CommandError(
        f"--host {host} is reachable from other machines, and there is no API key yet: "
        "./payments key create --name NAME --scope write (or use 127.0.0.1)"
    )


def _report_access(host: str) -> None:
    if settings().auth != "required" and is_loopback(host):
        servers.report_progress("no API key is needed on loopback (PAYMENTS_AUTH=required changes this)")
    elif settings().auth == "off":
        servers.report_progress(f"PAYMENTS_AUTH=off: EVERYBODY WHO REACHES {host} CAN MOVE MONEY")


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


def _write_process_list(data: Path, children: Sequence[Child]) -> None:
    """Writes the list for `ps`. An error, such as a full disk, does not stop the service."""
    external_urls = {"postgres": plain_url(settings().database_url), "broker": settings().broker_url}
    processes = [Process("up", os.getpid(), None)]
    processes += [Process(role, None, url) for role, url in external_urls.items() if url]
    processes += [Process(child.program.role, child.pid, child.program.url) for child in children if child.pid]
    try:
        write_processes(data, processes)
    except OSError as error:
        servers.report_progress(f"cannot write the list of processes: {error.strerror}")


def _open_standard_descriptors() -> None:
    """Opens closed standard descriptors. Otherwise the next file that we open gets their number, and logs go there."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STANDARD_OUTPUT + 1:
        pass
    os.close(descriptor)
