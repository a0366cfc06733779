"""`psql`: the wheel's psql, connected. The password goes by the environment: a command line is public."""

import os
from argparse import Namespace

from psycopg2.extensions import parse_dsn  # type: ignore[import-untyped]

from local.command import Command
from local.look import check_answers
from local.postgres import binary
from local.state import connect_to

# libpq's variables are PG and the keyword, but for these.
_IRREGULAR = {"dbname": "PGDATABASE", "application_name": "PGAPPNAME", "target_session_attrs": "PGTARGETSESSIONATTRS"}


def _run(args: Namespace) -> int:
    url = connect_to(args.data).database_url
    check_answers(url)
    parameters = parse_dsn(url)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    for keyword, value in parameters.items():
        environment[_IRREGULAR.get(keyword, f"PG{keyword.upper()}")] = str(value)
    os.execve(binary("psql"), ["psql", *args.rest], environment)  # noqa: S606 - no shell is wanted


COMMAND = Command("psql", "open the database; all arguments go to psql", _run, passes_on=True)
