"""`parked`: what our own code could not settle: list it, release it."""

import json
import sys
from typing import TYPE_CHECKING, Final
from uuid import UUID

import click

from local.books import database_session
from local.command import CommandError, command_group, setting_options
from local.tables import table
from shared.instants import format_instant
from shared.money import format_amount
from shared.processes import operator_name
from shared.settings import Settings

if TYPE_CHECKING:
    from shared.model import ParkedRow

MAX_LISTED_ROWS: Final = 1000
MAX_LISTED_ERRORS: Final = 20
MAX_ERROR_CHARACTERS: Final = 80

DESCRIPTION = """\
A transaction is parked when our own code fails on it while others settle. Its user's later ones wait behind it,
everybody else goes on, and it is tried again by itself, after a minute and then ever more rarely, up to an hour.

  ./payments parked list            what is parked, since when and why (attempts 0: it waits behind another)
  ./payments parked list --json     the same for a program
  ./payments parked release UID     try it now, and all of its user's that are parked with it, in their order
  ./payments parked release --all   the same for all users
  ./payments parked release --error TEXT   for the users whose first parked transaction has TEXT in its error

A release of many commits lane by lane and shows its progress. It asks nothing."""


group = command_group("parked", "list what could not be settled, or release it", DESCRIPTION)


@group.command("list", help="Lists what is parked, since when and why.")
@click.option("--json", "as_json", is_flag=True, help="a JSON list")
@setting_options()
def list_rows(options: Settings, as_json: bool) -> int:
    with database_session(options.data):
        print(_list(as_json))
    return 0


@group.command(
    "release",
    short_help="Tries again at once.",
    help="Tries again at once: one user's, by UID of a parked transaction, or many users'.",
)
@click.argument("uid", type=click.UUID, required=False)
@click.option("--all", "everything", is_flag=True, help="release what is parked of all users")
@click.option("--error", metavar="TEXT", help="release users by their error: TEXT is part of it, in any case")
@setting_options()
def release(options: Settings, uid: UUID | None, everything: bool, error: str | None) -> int:
    if sum((uid is not None, everything, error is not None)) != 1:
        raise click.UsageError("`release` needs one of UID, --all and --error TEXT")
    if error == "":
        raise click.UsageError("--error needs a TEXT; --all releases everything")
    with database_session(options.data):
        if uid is None:
            return _release_matching(error or "")
        print(_release(uid))
    return 0


def _list(as_json: bool) -> str:
    from shared.parked import list_parked

    rows, in_all, errors = list_parked(MAX_LISTED_ROWS, 0 if as_json else MAX_LISTED_ERRORS)
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
    listed = table(header, [_cells(row) for row in rows], right=("user", "lane", "amount", "attempts"))
    by_error = table(
        ("rows", "users", "error"),
        [(str(count.rows), str(count.users), _shorten(count.error)) for count in errors],
        right=("rows", "users"),
    )
    return f"{listed}\n\n{by_error}\n\n{summary}"


def _cells(row: "ParkedRow") -> tuple[str, ...]:
    return (
        str(row.uid),
        str(row.user_id),
        str(row.lane),
        row.type,
        format_amount(row.amount),
        format_instant(row.parked_at),
        str(row.attempts),
        _shorten(row.last_error or ""),
    )


def _shorten(error: str) -> str:
    """Returns an error as one line of bounded length."""
    line = " ".join(error.split())
    return line if len(line) <= MAX_ERROR_CHARACTERS else f"{line[: MAX_ERROR_CHARACTERS - 3]}..."


def _as_json(row: "ParkedRow") -> dict[str, object]:
    own = {"uid": str(row.uid), "amount": format_amount(row.amount), "parked_at": format_instant(row.parked_at)}
    return {**row._asdict(), **own}


def _release(uid: UUID) -> str:
    """Release waits for a busy lane, as long as a lock may be waited for."""
    from sqlalchemy.exc import DBAPIError

    from shared import database, parked

    try:
        rows = parked.release(uid, operator_name())
    except DBAPIError as error:
        if database.is_lock_timeout(error):
            raise CommandError(f"the lane of {uid} is busy; nothing was released, try again") from None
        raise
    return f"released {rows} of the user's transactions; the worker settles them in a second or two, in their order"


def _release_matching(error: str) -> int:
    from shared.parked import Released, release_matching

    done = Released()
    for done in release_matching(error, operator_name()):
        if sys.stderr.isatty():
            print(f"\r\x1b[K{done.rows:,} released ...", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if done.busy_users:
        print(f"released {done.rows} transactions; {done.busy_users} users are left, their lane was busy: run it again")
        return 1
    print(f"released {done.rows} transactions; the workers settle them, each user's in their order")
    return 0
