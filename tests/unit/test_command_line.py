"""The command line before any command runs: help needs nothing, bad usage is one line and exit code 1."""

import os
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from local.command import setting_options
from local.main import COMMANDS, main
from shared.settings import Settings, settings

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """No settings of other tests of this process; and none of ours remain, because a command sets some for itself."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("DATABASE_URL", "BROKER_URL", "PAYMENTS_")):
            del os.environ[name]
    settings.cache_clear()
    yield
    os.environ.clear()
    os.environ.update(before)
    settings.cache_clear()


def paths_of(*commands: click.Command) -> Iterator[tuple[str, ...]]:
    """Every command and sub-command but those that leave --help to another program."""
    for command in commands:
        if command.add_help_option:
            yield (str(command.name),)
        if isinstance(command, click.Group):
            yield from ((str(command.name), *path) for path in paths_of(*command.commands.values()))


@pytest.mark.parametrize("path", [(), *paths_of(*COMMANDS)], ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_needs_no_database_and_no_valid_setting(
    path: tuple[str, ...], option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.cache_clear()
    monkeypatch.setenv("DATABASE_URL", "nonsense")
    assert main([*path, option]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(" ".join(("Usage: payments", *path, "")))
    assert printed.err == ""


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "command"),
        (["nonsense"], "nonsense"),
        (["--data", "x", "ps"], "--data"),
        (["ps", "--nonsense"], "--nonsense"),
        (["ps", "--jso"], "--jso"),
        (["ps", "more"], "more"),
        (["ps", "two\nlines"], "two lines"),
        (["up", "--port", "70000"], "port"),
        (["key"], "payments key --help"),
        (["key", "create", "--name", "shop"], "--scope"),
        (["tx", "two\nlines"], "two"),
        (["audit", "sbom", "--output", "/no/folder/sbom.json"], "/no/folder/sbom.json"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_1(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("payments: ")
    assert printed.err.count("\n") == 1
    assert word in printed.err


@pytest.mark.parametrize(
    "arguments", [["list", "--data", "here"], ["--data", "here", "list"], ["--data", "there", "list", "--data", "here"]]
)
def test_data_may_stand_before_or_after_a_sub_command(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["parked", *arguments]) == 1
    assert f"no service runs on {tmp_path / 'here'};" in capsys.readouterr().err


def test_other_programs_get_their_arguments_as_they_are() -> None:
    given: list[object] = []

    from local.command import PASSES_ON

    @click.command("psql", **PASSES_ON)
    @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
    @setting_options()
    def command(options: Settings, rest: tuple[str, ...]) -> int:
        given.extend((options.data.name, rest))
        return 0

    own = ["-xvs", "--help", "-h", "-c", "SELECT 1", "--set=a=b", "-mhouse", "file.py"]
    command.main([*own[:4], *own[4:], "--data", "here"], standalone_mode=False)
    assert given == ["here", tuple(own)]
