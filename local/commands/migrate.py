"""`migrate`: applies all missing migrations to the database. `up` does the same at each start."""

import os
import sys

import click

from local.command import ROOT, setting_options, verbatim
from local.stack.postgres import check_answers
from local.stack.run_state import connect_to
from shared.settings import Settings

DESCRIPTION = """\
Applies all missing migrations to the database of the running `up`, or else to DATABASE_URL.
`up` does the same at each start."""


@click.command("migrate", short_help="apply all missing migrations to the database", help=verbatim(DESCRIPTION))
@setting_options()
def command(options: Settings) -> int:
    url = connect_to(options.data).database_url
    check_answers(url)
    os.environ["DATABASE_URL"] = url
    os.environ["PYTHONPATH"] = str(ROOT)
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "migrations"])  # noqa: S606 - no shell is wanted
