"""`parked`: lists and releases transactions that our own code could not settle."""

import json
import sys
from typing import TYPE_CHECKING, Final
from uuid import UUID

import click

from local.command import CommandError, command_group, setting_options
from local.database_session import database_session
from local.tables import table
from shared.money import format_amount
from shared.processes import operator_name
from shared.settings import Settings
from shared.timestamps import format_instant

if TYPE_CHECKING:
    from shared.payments.model import ParkedRow

MAX_LISTED_ROWS: Final = 1000
MAX_LISTED_ERRORS: Final = 20
MAX_ERROR_CHARACTERS: Final = 80

DESCRIPTION = """\
A transaction is parked if our own code fails on it while others settle. Later transactions of the same user wait
behind it. Other users are not affected. It is retried after a minute, then at growing intervals, up to an hour.

  ./payments parked list            list parked transactions with time and error (attempts 0: it waits behind another)
  ./payments parked list --json     the same as JSON
  ./payments parked release UID     retry it now, with all parked transactions of its user, in their order
  ./payments parked release --all   the same for all users
  ./payments parked release --error TEXT   for all users whose first parked transaction has TEXT in its error

A release of many users commits lane by lane and shows its progress. It does not ask for confirmation."""


group = command_group("parked", "list or release transactions that could not be settled", DESCRIPTION)


@group.command("list", help="Lists parked transactions with their time and error.")
@click.option("--json", "as_json", is_flag=True, help="a JSON list")
@setting_options()
def list_rows(options: Settings, as_json: bool) -> int:
    with database_session(options.data):
        print(_list(as_json))
    return 0


@group.command(
    "release",
    short_help="Retries parked transactions now.",
    help="Retries parked transactions now: of one user, by the UID of one of them, or of many users.",
)
@click.argument("uid", type=click.UUID, required=False)
@click.option("--all", "everything", is_flag=True, help="release the parked transactions of all users")
@click.option("--error", metavar="TEXT", help="release users by error: it contains TEXT, in upper or lower case")
@setting_options()
def release(options: Settings, uid: UUID | None, everything: bool, error: str | None) -> int:
    if sum((uid is not None, everything, error is not None)) != 1:
        raise click.UsageError("`release` needs exactly one of UID, --all and --error TEXT")
    if error == "":
        raise click.UsageError("--error needs a TEXT; --all releases everything")
    with database_session(options.data):
        if uid is None:
            return _release_matching(error or "")
        print(_release(uid))
    return 0


def _list(as_json: bool) -> str:
    from shared.payments.parked import list_parked

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
    """Releases one user's transactions and returns the line to print. Waits for a busy lane up to the lock time-out."""
    from sqlalchemy.exc import DBAPIError

    from shared import database
    from shared.payments import parked

    try:
        rows = parked.release(uid, operator_name())
    except DBAPIError as error:
        if database.is_lock_timeout(error):
            raise CommandError(f"the lane of {uid} is busy; nothing was released, try again") from None
        raise
    return f"released {rows} of the user's transactions; a worker settles them in order, within a second or two"


def _release_matching(error: str) -> int:
    from shared.payments.parked import Released, release_matching

    progress = Released()
    for progress in release_matching(error, operator_name()):
        if sys.stderr.isatty():
            print(f"\r\x1b[K{progress.rows:,} released ...", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    released = f"released {progress.rows} transactions"
    if progress.busy_users:
        print(f"{released}; {progress.busy_users} users are not released, because their lane was busy: run it again")
        return 1
    print(f"{released}; the workers settle them, each user's in order")
    return 0
