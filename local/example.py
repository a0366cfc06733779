"""`example`: a program of others' making beside the running service, as a process of its own."""

import os
import sys
from typing import Final

import click

from local.command import ROOT, setting_options, verbatim
from local.state import connect_to
from shared.settings import Settings

EXAMPLE_MODULES: Final = {"ads": "examples.ad_engine"}

DESCRIPTION = """\
Starts an example of a service that listens to this one. `ads` is an advertising engine that runs a user's campaign
only while there is money; it shows its campaigns on a page of its own. Ctrl-C stops it.

  ./payments example ads"""


@click.command(
    "example", short_help="start an example of a service that listens to this one", help=verbatim(DESCRIPTION)
)
@click.argument("name", type=click.Choice([*EXAMPLE_MODULES]))
@setting_options("url", "ads_port")
def command(options: Settings, name: str) -> int:
    url = options.url or connect_to(options.data).web_url
    program = [sys.executable, "-P", "-m", EXAMPLE_MODULES[name], "--url", url, "--port", str(options.ads_port)]
    os.execve(sys.executable, program, {**os.environ, "PYTHONPATH": str(ROOT)})  # noqa: S606 - no shell is wanted
