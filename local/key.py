"""`key`: make, list and revoke API keys. Works on the running service, or on its data while none runs."""

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING

from local import postgres
from local.books import books
from local.command import Command, CommandError
from local.standalone import served
from shared.instants import format_instant
from shared.processes import operator
from shared.scopes import Scope
from shared.settings import settings

if TYPE_CHECKING:
    from shared.scopes import Key

DESCRIPTION = """\
Callers show a key: `Authorization: Bearer KEY`. Its scope says what it allows: read (every GET but webhooks, and the
look-up by POST), write (users and transactions, too), admin (webhooks, too).

  ./payments key create --name shop --scope write   the last word printed is the key; it is shown this once
  ./payments key list                               id, name, scope, since when, and whether it is valid
  ./payments key revoke 3                           nobody gets in by it ten seconds from now

To exchange a key: create another, give it to the caller, revoke the old one. Needs the data folder or DATABASE_URL."""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("action", choices=("create", "list", "revoke"), help="what to do")
    parser.add_argument("key_id", metavar="ID", nargs="?", type=_key_id, help="the key, for revoke")
    parser.add_argument("--name", help="whose key it is: letters, digits, . _ - (for create)")
    parser.add_argument("--scope", choices=[*Scope], help="what it allows (for create)")


def _run(args: Namespace) -> int:
    if (args.action == "revoke") != (args.key_id is not None):
        raise CommandError("key: `revoke` needs an ID, the others none")
    if args.action == "create" and not (args.name and args.scope):
        raise CommandError("key: `create` needs --name and --scope")
    if args.action != "create" and (args.name or args.scope):
        raise CommandError("key: --name and --scope are for `create`")
    if args.action != "create" and not settings().database_url and not postgres.exists(args.data):
        raise CommandError(f"there is no database in {args.data}")
    with served(args.data), books(args.data):
        {"create": _create, "list": _list, "revoke": _revoke}[args.action](args)
    return 0


def _create(args: Namespace) -> None:
    from shared import keys

    try:
        key_id, key = keys.create(args.name, Scope(args.scope), operator())
    except ValueError as error:
        raise CommandError(f"--name: {error}") from None
    print(f"key {key_id}, {args.name}, {args.scope}, shown this once: {key}")


def _list(_args: Namespace) -> None:
    from shared import keys

    for key in keys.list_all():
        print(_line(key))


def _line(key: "Key") -> str:
    state = f"revoked {format_instant(key.revoked_at)}" if key.revoked_at else "valid"
    return f"{key.id} {key.name} {key.scope} {format_instant(key.created_at)} {state}"


def _revoke(args: Namespace) -> None:
    from shared import keys

    if not keys.revoke(args.key_id, operator()):
        raise CommandError(f"there is no key {args.key_id} (key list shows them)")
    print(f"key {args.key_id} is revoked: nobody gets in by it ten seconds from now")


def _key_id(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text, re.ASCII):
        raise ArgumentTypeError(f"{text!r} is not a key's id, which `key list` shows")
    return int(text)


COMMAND = Command(
    "key",
    "create, list and revoke API keys",
    _run,
    description=DESCRIPTION,
    add_arguments=_add_arguments,
)
