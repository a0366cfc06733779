"""`parked`: what our own code could not settle: list it, release it."""

import json
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Final
from uuid import UUID

from local.books import books, uid_argument
from local.command import Command, CommandError
from local.tables import table
from shared.instants import format_instant
from shared.money import format_amount
from shared.status import LANES

if TYPE_CHECKING:
    from shared.queries.parked import ParkedRow

LISTED: Final = 1000
ERROR_CHARACTERS: Final = 80

DESCRIPTION = """\
A transaction is parked when our own code fails on it while others settle. Its user's later ones wait behind it,
everybody else goes on, and it is tried again by itself, after a minute and then ever more rarely, up to an hour.

  ./payments parked list            what is parked, since when and why (attempts 0: it waits behind another)
  ./payments parked list --json     the same for a program
  ./payments parked release UID     try it now, and all of its user's that are parked with it, in their order"""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "release"), help="what to do")
    parser.add_argument("uid", metavar="UID", nargs="?", type=uid_argument, help="a parked transaction, for release")
    parser.add_argument("--json", action="store_true", help="list as a JSON list")


def _run(args: Namespace) -> int:
    if (args.action == "release") != (args.uid is not None):
        raise CommandError("parked: `release` needs a UID, `list` none")
    with books(args.data):
        if args.action == "release":
            print(_release(args.uid))
        else:
            print(_list(args.json))
    return 0


def _list(as_json: bool) -> str:
    from shared.database import transaction
    from shared.queries.lanes import read_backlog
    from shared.queries.parked import list_parked

    with transaction() as connection:
        rows = list_parked(connection, LISTED)
        in_all = read_backlog(connection, LANES).parked if len(rows) == LISTED else len(rows)
    if as_json:
        return json.dumps([_as_json(row) for row in rows])
    if not rows:
        return "nothing is parked"
    header = ("uid", "user", "lane", "type", "amount", "parked since", "attempts", "error")
    heads = sum(row.attempts > 0 for row in rows)
    summary = (
        f"{in_all} parked, of {len({row.user_id for row in rows})} users; {heads} failed, the others wait behind them"
    )
    if in_all > len(rows):
        summary += f" (the first {len(rows)} are listed)"
    return f"{table(header, [_cells(row) for row in rows], right=('user', 'lane', 'amount', 'attempts'))}\n{summary}"


def _cells(row: "ParkedRow") -> tuple[str, ...]:
    error = " ".join((row.last_error or "").split())
    return (
        str(row.uid),
        str(row.user_id),
        str(row.lane),
        row.type,
        format_amount(row.amount),
        format_instant(row.parked_at),
        str(row.attempts),
        error if len(error) <= ERROR_CHARACTERS else f"{error[: ERROR_CHARACTERS - 3]}...",
    )


def _as_json(row: "ParkedRow") -> dict[str, object]:
    own = {"uid": str(row.uid), "amount": format_amount(row.amount), "parked_at": format_instant(row.parked_at)}
    return {**row._asdict(), **own}


def _release(uid: UUID) -> str:
    """Release waits for a busy lane, as long as a lock may be waited for."""
    from sqlalchemy.exc import DBAPIError

    from shared import database, parking

    try:
        rows = parking.release(uid)
    except DBAPIError as error:
        if database.is_lock_timeout(error):
            raise CommandError(f"the lane of {uid} is busy; nothing was released, try again") from None
        raise
    return f"released {rows} of the user's transactions; the worker settles them in a second or two, in their order"


COMMAND = Command(
    "parked",
    "list what could not be settled, or release it",
    _run,
    description=DESCRIPTION,
    add_arguments=_add_arguments,
)
