"""`test`: pytest in the environment of `./payments`, so that tests see the very packages that run."""

import os
import sys
from argparse import Namespace

from local.command import ROOT, Command


def _run(args: Namespace) -> int:
    os.environ["PYTHONPATH"] = str(ROOT)
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *args.rest])  # noqa: S606 - no shell is wanted


COMMAND = Command("test", "run the tests; all arguments go to pytest", _run, passes_on=True)
