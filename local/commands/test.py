"""`test` and `check`: run pytest in the environment of `./payments`, so that tests use the packages of the service.

Without arguments `test` runs all tests in three processes, because most tests wait for other processes. `test faults`
does not use pytest: it starts a service and injects faults, for a given time.
"""

import os
import subprocess
import sys

import click

from local.command import PASSES_ON, PASSES_ON_BUT_HELP, ROOT, setting_options
from shared.settings import Settings

SUMMARY = "run all tests; all arguments go to pytest (`test faults --help`: inject faults)"

ALL_TESTS = ("--numprocesses=3", "--dist=loadfile")


@click.command("test", short_help=SUMMARY, **PASSES_ON)
@click.argument("rest", nargs=-1, type=click.UNPROCESSED)
@setting_options()
def command(_options: Settings, rest: tuple[str, ...]) -> int:
    faults = rest[:1] == ("faults",)
    program = _python("tests.faults", *rest[1:]) if faults else _pytest(*(rest or ALL_TESTS))
    os.execve(sys.executable, program, _environment())  # noqa: S606 - no shell is wanted


@click.command(
    "check",
    short_help="run what CI runs, the house rules first, and stop at the first failure",
    **PASSES_ON_BUT_HELP,
)
@click.argument("rest", nargs=-1, type=click.UNPROCESSED)
@setting_options()
def check(_options: Settings, rest: tuple[str, ...]) -> int:
    """Runs what CI runs, the house rules first, and stops at the first failure. All other arguments go to pytest."""
    house = subprocess.run(_pytest("-q", "-m", "house"), env=_environment(), check=False).returncode
    return (
        house
        or subprocess.run(
            _pytest("-x", "-m", "not house and not faults", *rest), env=_environment(), check=False
        ).returncode
    )


def _pytest(*arguments: str) -> list[str]:
    return _python("pytest", *arguments)


def _python(module: str, *arguments: str) -> list[str]:
    os.chdir(ROOT)
    return [sys.executable, "-m", module, *arguments]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
