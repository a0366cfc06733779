"""`psql`: connected. The password goes by the environment: a command line is public."""

import os
import shutil

import click
from psycopg2.extensions import parse_dsn  # type: ignore[import-untyped]

from local.command import PASSES_ON, CommandError, setting_options
from local.look import check_answers
from local.postgres import binary
from local.state import connect_to
from shared.settings import Settings

SUMMARY = "open the database; all arguments go to psql (of the PATH where DATABASE_URL demands TLS)"

# libpq's variables are PG and the keyword, but for these.
_IRREGULAR = {"dbname": "PGDATABASE", "application_name": "PGAPPNAME", "target_session_attrs": "PGTARGETSESSIONATTRS"}
_WITH_TLS = ("require", "verify-ca", "verify-full")


@click.command("psql", short_help=SUMMARY, **PASSES_ON)
@click.argument("rest", nargs=-1, type=click.UNPROCESSED)
@setting_options()
def command(options: Settings, rest: tuple[str, ...]) -> int:
    url = connect_to(options.data).database_url
    check_answers(url)
    parameters = parse_dsn(url)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    for keyword, value in parameters.items():
        environment[_IRREGULAR.get(keyword, f"PG{keyword.upper()}")] = str(value)
    os.execve(find_psql(parameters.get("sslmode", "")), ["psql", *rest], environment)  # noqa: S606 - no shell is wanted


def find_psql(sslmode: str) -> str:
    """Returns the path of the wheel's psql, or of the PATH's where TLS is demanded: the wheel's has none.

    Raises CommandError where there is none that can connect so.
    """
    own = shutil.which("psql")
    if sslmode not in _WITH_TLS:
        try:
            return binary("psql")
        except CommandError:  # as in a container: the wheel is not installed
            if own:
                return own
            raise
    if own:
        return own
    raise CommandError(f"DATABASE_URL has sslmode={sslmode}, and the wheel's psql has no TLS: install psql on the PATH")
