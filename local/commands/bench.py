"""`bench`: runs the benchmark, a separate program, in the environment of `./payments`."""

import os
import sys

import click

from local.command import PASSES_ON, ROOT, setting_options
from shared.settings import Settings


@click.command(
    "bench", short_help="measure the service and a baseline in the same run (see `bench --help`)", **PASSES_ON
)
@click.argument("rest", nargs=-1, type=click.UNPROCESSED)
@setting_options()
def command(_options: Settings, rest: tuple[str, ...]) -> int:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    os.execve(sys.executable, [sys.executable, "-m", "bench", *rest], environment)  # noqa: S606 - no shell is wanted
