"""The data's own Postgres for one command, while no `up` runs on it: what must be done before the first start."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local import up
from local.state import Process, hold, pid_of_up, wait_for_remains, write_processes
from local.supervisor import StopRequested, Supervisor
from shared.settings import settings


@contextmanager
def served(data: Path) -> Iterator[None]:
    """Within it the database can be found as that of a running `up`. Another `up` is refused meanwhile."""
    if pid_of_up(data) is not None or settings().database_url:
        yield
        return
    wait_for_remains(data)
    silence = os.open(os.devnull, os.O_WRONLY)
    with hold(data) as lock:
        supervisor = Supervisor(silence, lock, lambda _: None)
        try:
            url = up.start_database(data, dict(os.environ), supervisor)
            write_processes(data, [Process("postgres", None, url)])
            yield
        except StopRequested:
            sys.exit(130)
        finally:
            supervisor.stop()
            os.close(silence)
