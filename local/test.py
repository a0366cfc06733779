"""`test` and `check`: pytest in the environment of `./payments`, so that tests see the very packages that run.

Without arguments, all of it, on three processes: most tests wait for processes of their own. `test faults` is no
pytest: it breaks a service of its own on purpose, for as long as it is told.
"""

import os
import subprocess
import sys
from argparse import Namespace

from local.command import ROOT, Command

ALL = ("--numprocesses=3", "--dist=loadfile")


def _test(args: Namespace) -> int:
    faults = args.rest[:1] == ["faults"]
    program = _python("tests.faults", *args.rest[1:]) if faults else _pytest(*(args.rest or ALL))
    os.execve(sys.executable, program, _environment())  # noqa: S606 - no shell is wanted


def _check(args: Namespace) -> int:
    house = subprocess.run(_pytest("-q", "-m", "house"), env=_environment(), check=False).returncode
    return (
        house
        or subprocess.run(
            _pytest("-x", "-m", "not house and not faults", *args.rest), env=_environment(), check=False
        ).returncode
    )


def _pytest(*arguments: str) -> list[str]:
    return _python("pytest", *arguments)


def _python(module: str, *arguments: str) -> list[str]:
    os.chdir(ROOT)
    return [sys.executable, "-m", module, *arguments]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


COMMAND = Command(
    "test",
    "run the tests; all arguments go to pytest (`test faults --help`: break things on purpose)",
    _test,
    passes_on=True,
)
CHECK = Command("check", "what CI runs, the house rules first, up to the first failure", _check, passes_on=True)
