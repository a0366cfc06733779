"""`bench`: the service measured beside its floors, by a program of its own in the environment of `./payments`."""

import os
import sys
from argparse import Namespace

from local.command import ROOT, Command


def _run(args: Namespace) -> int:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    os.execve(sys.executable, [sys.executable, "-m", "bench", *args.rest], environment)  # noqa: S606 - no shell is wanted


COMMAND = Command("bench", "measure the service beside floors of the same run (`bench --help`)", _run, passes_on=True)
