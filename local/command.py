"""What a command of `./payments` is made of.

A command is a small function in a module of its own, listed in local.cli. Its options are fields of
shared.settings, so that an option's default, meaning and limits are written once, beside its environment variable.
"""

import tomllib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.settings import Settings

ROOT = Path(__file__).resolve().parent.parent


class CommandError(Exception):
    """An expected failure. Its text is the one line that the user sees; the exit code is 1."""


def _no_arguments(parser: ArgumentParser) -> None:
    pass


@dataclass(frozen=True)
class Command:
    """One subcommand. `run` gets the parsed arguments, with `data` always an absolute path."""

    name: str
    summary: str
    run: Callable[[Namespace], int]
    description: str = ""
    settings: tuple[str, ...] = ()  # fields of Settings that are options here, beside --data
    add_arguments: Callable[[ArgumentParser], None] = _no_arguments
    passes_on: bool = False  # every other argument, --help too, goes to another program as args.rest


def version() -> str:
    """Of the service."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def add_setting(parser: ArgumentParser, name: str, default: object) -> None:
    """Add a field of Settings as an option. It stays text here: Settings itself judges it, in one line."""
    field = Settings.model_fields[name]
    known = f"default {default}; " if str(default) else ""
    parser.add_argument(
        f"--{name.replace('_', '-')}",
        default=str(default),
        metavar=name.rpartition("_")[2].upper(),
        help=f"{field.description} ({known}variable {field.alias})".replace("%", "%%"),
    )
