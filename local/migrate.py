"""`migrate`: bring the database to the newest migration; `up` does the same at each start."""

import os
import sys
from argparse import Namespace

from local.command import ROOT, Command
from local.look import check_answers
from local.state import connect_to


def _run(args: Namespace) -> int:
    url = connect_to(args.data).database_url
    check_answers(url)
    os.environ["DATABASE_URL"] = url
    os.environ["PYTHONPATH"] = str(ROOT)
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "migrations"])  # noqa: S606 - no shell is wanted


COMMAND = Command(
    "migrate",
    "bring the database to the newest migration",
    _run,
    description="Migrates the database of the running `up`, or else the one that DATABASE_URL names.\n"
    "`up` does this by itself at each start.",
)
