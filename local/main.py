"""The command line of `./payments`: lists the commands, and prints every expected failure as one line."""

import sys
from collections.abc import Sequence

import click
from pydantic import ValidationError

from local.command import CommandGroup, verbatim, version
from local.commands import audit, bench, demo, example, key, migrate, parked, ps, psql, test, tx, up, verify
from shared.settings import InvalidSettings, describe_error

DESCRIPTION = """\
The payment service on one machine: Postgres, broker, worker, notify, web and Flower, from wheels.

  ./payments up            start the whole service, in the foreground; Ctrl-C stops it
  ./payments ps            list the running processes and their urls
  ./payments COMMAND -h    show the options of a command"""

COMMANDS = (
    up.command,
    ps.command,
    demo.command,
    example.command,
    verify.command,
    tx.command,
    parked.group,
    key.group,
    migrate.command,
    psql.command,
    test.command,
    test.check,
    bench.command,
    audit.group,
)


def main(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code."""
    try:
        return int(_payments().main(arguments, "payments", standalone_mode=False))
    except click.UsageError as error:
        place = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return _fail(" ".join(error.format_message().split()).rstrip(".") + place)
    except click.ClickException as error:
        return _fail(error.format_message())
    except InvalidSettings as error:
        return _fail(str(error))
    except ValidationError as error:
        return _fail(describe_error(error))
    except click.Abort:  # Ctrl-C
        return 130


def _payments() -> click.Command:
    names = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
    group = CommandGroup(commands=COMMANDS, help=verbatim(DESCRIPTION), context_settings=names, no_args_is_help=False)
    return click.version_option(version(), message="payments %(version)s")(group)


def _fail(line: str) -> int:
    print(f"payments: {line}", file=sys.stderr)
    return 1
