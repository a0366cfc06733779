"""`example`: a program of others' making beside the running service, as a process of its own."""

import os
import sys
from argparse import ArgumentParser, Namespace
from typing import Final

from local.command import ROOT, Command
from local.state import connect_to

MODULES: Final = {"ads": "examples.ad_engine"}

DESCRIPTION = """\
Starts an example of a service that listens to this one. `ads` is an advertising engine that runs a user's campaign
only while there is money; it shows its campaigns on a page of its own. Ctrl-C stops it.

  ./payments example ads"""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", choices=[*MODULES], help="which one")


def _run(args: Namespace) -> int:
    url = args.url or connect_to(args.data).web_url
    program = [sys.executable, "-P", "-m", MODULES[args.name], "--url", url, "--port", str(args.ads_port)]
    os.execve(sys.executable, program, {**os.environ, "PYTHONPATH": str(ROOT)})  # noqa: S606 - no shell is wanted


COMMAND = Command(
    "example",
    "start an example of a service that listens to this one",
    _run,
    description=DESCRIPTION,
    settings=("url", "ads_port"),
    add_arguments=_add_arguments,
)
