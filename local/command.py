"""The parts that all commands of `./payments` share.

Each command is a click command in its own module, listed in local.main. Its options are fields of shared.settings, so
that an option and its environment variable have one default, one description and one check.
"""

import os
import tomllib
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click

from shared.settings import Settings, settings

ROOT = Path(__file__).resolve().parent.parent

# For commands that pass all arguments except our settings, even --help, to another program.
PASSES_ON: Final[dict[str, Any]] = {"add_help_option": False, "context_settings": {"ignore_unknown_options": True}}
# The same, with a help of their own: the other program's needs a database, or is not to the point.
PASSES_ON_BUT_HELP: Final[dict[str, Any]] = {"context_settings": {"ignore_unknown_options": True}}


class CommandError(click.ClickException):
    """An expected failure. The command prints its text as one line and exits with code 1."""


class CommandGroup(click.Group):
    """A group that lists its commands in the order of definition instead of the alphabetical order."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        return list(self.commands)


def command_group(name: str, summary: str, description: str) -> CommandGroup:
    """Returns a command with sub-commands. Its option --data is the default for all of them."""
    help_text = verbatim(description)
    return CommandGroup(name, short_help=summary, help=help_text, params=[_option("data")], no_args_is_help=False)


def setting_options(*names: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Adds --data and other fields of Settings as options. The command gets a Settings as its first argument.

    click passes them on as text, and Settings checks them. `data` is always an absolute path.
    """
    fields = ("data", *names)

    def decorate(run: Callable[..., int]) -> Callable[..., int]:
        @wraps(run)
        def run_checked(**arguments: Any) -> int:
            options = {name: arguments.pop(name) for name in fields}
            return run(_check(options), **arguments)

        vars(run_checked)["__click_params__"] = [*getattr(run, "__click_params__", []), *map(_option, reversed(fields))]
        return run_checked

    return decorate


def verbatim(text: str) -> str:
    """Returns a help text whose lines click does not wrap."""
    return "\b\n" + text.replace("\n\n", "\n\n\b\n")


def version() -> str:
    """Returns the version of the service."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def _option(name: str) -> click.Option:
    field = Settings.model_fields[name]
    default = f"default {field.default}; " if str(field.default) else ""
    text = f"{field.description} ({default}variable {field.alias})"
    return click.Option([f"--{name.replace('_', '-')}"], metavar=name.rpartition("_")[2].upper(), help=text)


def _check(options: Mapping[str, str | None]) -> Settings:
    """Returns the settings of the options.

    Raises InvalidSettings if an environment variable is invalid, ValidationError if an option is.
    """
    environment, group = settings(), click.get_current_context().parent
    inherited = group.params.get("data") if group else None
    values: dict[str, Any] = {
        "data": inherited,
        **{name: value for name, value in options.items() if value is not None},
    }
    return Settings(**{**values, "data": os.path.abspath(values["data"] or environment.data)})
