"""`key`: creates, lists and revokes API keys, in the running service or in the data folder of a stopped one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from local.command import CommandError, command_group, setting_options
from local.database_session import database_session
from local.stack import postgres
from local.stack.database_only import running_database
from shared.auth.scopes import Scope
from shared.processes import operator_name
from shared.settings import Settings, settings
from shared.timestamps import format_instant

if TYPE_CHECKING:
    from shared.auth.scopes import ApiKey

DESCRIPTION = """\
A caller sends its key in the header `Authorization: Bearer KEY`. The scope of a key limits its use: read (every GET
except webhooks, and the look-up by POST), write (also users and transactions), admin (also webhooks).

  ./payments key create --name shop --scope write   the last word printed is the key; it is shown only once
  ./payments key list                               id, name, scope, time of creation, and whether it is valid
  ./payments key revoke 3                           takes effect within 10 seconds

To replace a key, create a new one, give it to the caller, and revoke the old one. Needs --data or DATABASE_URL."""

MAX_KEY_ID = 10**18 - 1

group = command_group("key", "create, list and revoke API keys", DESCRIPTION)


@group.command("create", help="Creates a key and prints it.")
@click.option("--name", required=True, help="name of the owner: letters, digits, . _ -")
@click.option(
    "--scope", required=True, type=click.Choice([scope.value for scope in Scope]), help="the scope of the key"
)
@setting_options()
def create(options: Settings, name: str, scope: str) -> int:
    from shared.auth import api_keys

    with running_database(options.data), database_session(options.data):
        try:
            key_id, key = api_keys.create(name, Scope(scope), operator_name())
        except ValueError as error:
            raise CommandError(f"--name: {error}") from None
    print(f"key {key_id}, {name}, {scope}, shown this once: {key}")
    return 0


@group.command(
    "list", short_help="Lists the keys.", help="Lists the keys: id, name, scope, time of creation, whether it is valid."
)
@setting_options()
def list_all(options: Settings) -> int:
    from shared.auth import api_keys

    with _existing_database(options.data):
        for key in api_keys.list_all():
            print(_line(key))
    return 0


@group.command("revoke", help="Revokes the key with this ID, which `key list` shows.")
@click.argument("key_id", metavar="ID", type=click.IntRange(0, MAX_KEY_ID))
@setting_options()
def revoke(options: Settings, key_id: int) -> int:
    from shared.auth import api_keys

    with _existing_database(options.data):
        if not api_keys.revoke(key_id, operator_name()):
            raise CommandError(f"there is no key {key_id} (key list shows them)")
    print(f"key {key_id} is revoked; this takes effect within 10 seconds")
    return 0


@contextmanager
def _existing_database(data: Path) -> Iterator[None]:
    """Opens the database. Unlike `create`, it does not create one: raises CommandError if there is none."""
    if not settings().database_url and not postgres.exists(data):
        raise CommandError(f"there is no database in {data}")
    with running_database(data), database_session(data):
        yield


def _line(key: "ApiKey") -> str:
    state = f"revoked {format_instant(key.revoked_at)}" if key.revoked_at else "valid"
    return f"{key.id} {key.name} {key.scope} {format_instant(key.created_at)} {state}"
