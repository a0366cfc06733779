"""`ps`: lists the running processes, with pid and url. The urls have passwords, because only the operator runs it."""

import json

import click

from local.command import setting_options, verbatim
from local.stack.run_state import running_processes
from shared.settings import Settings

DESCRIPTION = """\
Lists the processes of the running `up`: role, pid of the main process, url. The urls of Postgres and the broker
contain their passwords. An external server (DATABASE_URL, BROKER_URL) has no pid."""


@click.command("ps", short_help="list the processes of the running service", help=verbatim(DESCRIPTION))
@click.option("--json", "as_json", is_flag=True, help="a JSON list of {role, pid, url}")
@setting_options()
def command(options: Settings, as_json: bool) -> int:
    processes = running_processes(options.data)
    if as_json:
        print(json.dumps([process.as_json() for process in processes]))
    else:
        for process in processes:
            print(f"{process.role:<10}{process.pid or 'external':<10}{process.url or ''}".rstrip())
    return 0
