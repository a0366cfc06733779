"""Which server reads the HTTP: the accept path of web on granian, as it runs, and on gunicorn's threads.

No worker settles here, so both have the machine to themselves. `python -m bench.floors.fronts` is gunicorn's side.
"""

import os
import sys
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from bench.floors import books
from bench.floors.serving import port_of_command_line
from bench.generator import closed_loop
from bench.loads import CONNECTIONS, payments
from bench.plan import Run, Skipped, Values
from bench.stack import add_users, server
from shared import logs
from shared.processes import die_with_parent
from shared.settings import settings
from web.app import create_app

ANOTHER_REDIS_DATABASE = "/2"  # its rings are heard by nobody


def measure(run: Run) -> Values:
    if find_spec("gunicorn") is None:
        raise Skipped("gunicorn is not installed")
    url = books.make(run, "fronts")
    broker = urlsplit(run.stack.broker_url)._replace(path=ANOTHER_REDIS_DATABASE).geturl()
    users = add_users(url, run.plan.users)
    values: Values = {}
    for name, module in (("granian", "web"), ("gunicorn", "bench.floors.fronts")):
        with server(module, run.log(name), DATABASE_URL=url, BROKER_URL=broker) as address:
            closed_loop(address, payments(users), CONNECTIONS, run.plan.seconds / 5)
            sample = closed_loop(address, payments(users), CONNECTIONS, run.plan.seconds)
        run.notes[f"accepting on {name}"] = {"statuses": sample.statuses}
        values[f"accepting_on_{name}_per_s"] = sample.statuses.get(202, 0) / sample.seconds
    return values


def application() -> Any:
    """As web.__main__ makes it."""
    die_with_parent()
    logs.configure()
    return create_app()


def main() -> None:
    threads, bind = settings().web_threads, f"127.0.0.1:{port_of_command_line()}"
    options = ["--worker-class=gthread", "--workers=1", f"--threads={threads}", f"--bind={bind}", "--keep-alive=75"]
    command = [sys.executable, "-m", "gunicorn", *options, "bench.floors.fronts:application()"]
    os.execv(sys.executable, command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
