"""`example`: starts an example of a program that uses the running service, as a separate process."""

import os
import sys
from typing import Final

import click

from local.command import ROOT, setting_options, verbatim
from local.stack.run_state import connect_to
from shared.settings import Settings

EXAMPLE_MODULES: Final = {"ads": "examples.ad_engine"}

DESCRIPTION = """\
Starts an example of a service that follows the events of this one. `ads` is an advertising engine: it runs a user's
campaign while the user's balance is positive, and shows all campaigns on a web page. Ctrl-C stops it.

  ./payments example ads"""


@click.command(
    "example", short_help="start an example of a service that follows the events", help=verbatim(DESCRIPTION)
)
@click.argument("name", type=click.Choice([*EXAMPLE_MODULES]))
@setting_options("url", "ads_port")
def command(options: Settings, name: str) -> int:
    url = options.url or connect_to(options.data).web_url
    program = [sys.executable, "-P", "-m", EXAMPLE_MODULES[name], "--url", url, "--port", str(options.ads_port)]
    os.execve(sys.executable, program, {**os.environ, "PYTHONPATH": str(ROOT)})  # noqa: S606 - no shell is wanted
