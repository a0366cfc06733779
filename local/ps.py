"""`ps`: what runs, with the pid of each main process and its url, passwords included: it is the operator's own."""

import json
from argparse import ArgumentParser, Namespace

from local.command import Command
from local.state import running_processes


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="a JSON list of {role, pid, url}")


def _run(args: Namespace) -> int:
    processes = running_processes(args.data)
    if args.json:
        print(json.dumps([process.as_json() for process in processes]))
    else:
        for process in processes:
            print(f"{process.role:<10}{process.pid or 'external':<10}{process.url or ''}".rstrip())
    return 0


COMMAND = Command(
    "ps",
    "list the processes of the running service",
    _run,
    description="Lists the processes of the running `up`: role, pid of the main process, url. The urls of Postgres "
    "and of the\nbroker are complete, with password. A server that `up` was given (DATABASE_URL, BROKER_URL) has no pid.",
    add_arguments=_add_arguments,
)
