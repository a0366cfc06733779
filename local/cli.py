"""The command line of `./payments`: one table of commands, and every expected failure as one line."""

import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from local import audit, bench, demo, example, key, migrate, parked, ps, psql, test, tx, up, verify
from local.command import Command, CommandError, add_setting, version
from shared.settings import InvalidSettings, Settings, describe_error, settings

COMMANDS: tuple[Command, ...] = (
    up.COMMAND,
    ps.COMMAND,
    demo.COMMAND,
    example.COMMAND,
    verify.COMMAND,
    tx.COMMAND,
    parked.COMMAND,
    key.COMMAND,
    migrate.COMMAND,
    psql.COMMAND,
    test.COMMAND,
    test.CHECK,
    bench.COMMAND,
    audit.COMMAND,
)

DESCRIPTION = """\
The payment service on one machine: Postgres, broker, web, worker and Flower, from wheels.

  ./payments up            start everything, in the foreground; Ctrl-C stops it
  ./payments ps            what runs, and where
  ./payments COMMAND -h    a command's own options"""


class _Parser(ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        return _run(arguments)
    except CommandError as error:
        return _fail(str(error))
    except InvalidSettings as error:
        return _fail(str(error))
    except ValidationError as error:
        return _fail(describe_error(error))
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: Sequence[str]) -> int:
    parser = _make_parser(settings())
    args, rest = parser.parse_known_args(arguments)
    command: Command = args.command
    if rest and not command.passes_on:
        parser.error(f"{command.name}: unknown argument {rest[0]}")
    args.rest = rest
    _check_settings(args, command)
    args.data = Path(os.path.abspath(args.data))
    return command.run(args)


def _make_parser(defaults: Settings) -> ArgumentParser:
    parser = _Parser("payments", description=DESCRIPTION, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"payments {version()}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    for command in COMMANDS:
        child = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=command.description or command.summary,
            formatter_class=RawDescriptionHelpFormatter,
            add_help=not command.passes_on,
            allow_abbrev=False,
        )
        for name in ("data", *command.settings):
            add_setting(child, name, getattr(defaults, name))
        command.add_arguments(child)
        child.set_defaults(command=command)
    return parser


def _check_settings(args: Namespace, command: Command) -> None:
    """Put the options through Settings, whose types and limits are the only ones."""
    names = ("data", *command.settings)
    checked = Settings(**{name: getattr(args, name) for name in names})
    vars(args).update({name: getattr(checked, name) for name in names})


def _fail(line: str) -> int:
    print(f"payments: {line}", file=sys.stderr)
    return 1
