"""Runs the embedded Postgres for one command while no `up` runs, to create an API key before the first start."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local.command import ROOT, CommandError
from local.stack import servers
from local.stack.postgres import clear_libpq_environment, has_rows
from local.stack.run_state import (
    Process,
    lock_folder,
    pid_of_up,
    plain_url,
    running_processes,
    wait_for_orphans,
    write_processes,
)
from local.stack.supervisor import StopRequested, Supervisor
from shared.settings import settings

START_TIMEOUT_SECONDS = 60.0
KEYS_TABLE_EXISTS = "SELECT WHERE to_regclass('api_keys') IS NOT NULL"


def _migrate_if_new() -> None:
    """Migrates an external database that was never migrated. Raises CommandError if the migration fails."""
    if not has_rows(plain_url(settings().database_url), KEYS_TABLE_EXISTS):
        migration = subprocess.run([sys.executable, "-m", "migrations"], cwd=ROOT, capture_output=True, check=False)
        if migration.returncode:
            raise CommandError("the database is not migrated, and the migration fails: ./payments migrate shows why")


def _await_tables(data: Path) -> None:
    """Waits for the tables while another `up`, or another command like this one, starts.

    Raises CommandError if they are missing after START_TIMEOUT_SECONDS.
    """
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while pid_of_up(data) is not None:
        urls = [process.url for process in running_processes(data) if process.role == "postgres" and process.url]
        if urls and has_rows(urls[0], KEYS_TABLE_EXISTS):
            return
        if time.monotonic() > deadline:
            raise CommandError(f"the service on {data} has no database yet; try again")
        time.sleep(0.2)


@contextmanager
def running_database(data: Path) -> Iterator[None]:
    """Makes the database available as that of a running `up`. Meanwhile no `up` can start on this data.

    Raises CommandError if the database cannot be started.
    """
    if settings().database_url:
        _migrate_if_new()
        yield
        return
    clear_libpq_environment()
    if pid_of_up(data) is not None:
        _await_tables(data)
        yield
        return
    wait_for_orphans(data)
    silence = os.open(os.devnull, os.O_WRONLY)
    with lock_folder(data) as lock:
        supervisor = Supervisor(silence, lock, lambda _: None)
        try:
            url = servers.start_database(data, dict(os.environ), supervisor)
            write_processes(data, [Process("postgres", None, url)])
            yield
        except StopRequested:
            sys.exit(130)
        finally:
            supervisor.stop()
            os.close(silence)
