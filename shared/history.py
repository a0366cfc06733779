"""What the books say: users, transactions, balances now and at an instant, statements, the state of the backlog."""

from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from shared.database import autocommit, transaction
from shared.errors import NotReady, transaction_not_found, user_not_found
from shared.models import MIGRATION
from shared.queries import lanes, ledger, server, transactions, users
from shared.queries.lanes import Backlog
from shared.queries.statement import Filter, Key, find_scan_end, read_statement
from shared.queries.transactions import Transaction
from shared.queries.users import User
from shared.status import LANES

MOST_USER_ID: Final = 2**63 - 1


class Balance(NamedTuple):
    """The balance in minor units at an instant (UTC)."""

    user_id: int
    balance: int
    instant: datetime


class Page(NamedTuple):
    """A page of a statement; `after` is where the next one begins, None at the end."""

    items: list[Transaction]
    after: Key | None


def get_user(user_id: int) -> User:
    """Raises NotFound, also for what can be no user's id."""
    with autocommit() as connection:
        user = users.find_user(connection, user_id) if 0 < user_id <= MOST_USER_ID else None
    if user is None:
        raise user_not_found(user_id)
    return user


def get_transaction(uid: UUID) -> Transaction:
    """Raises NotFound."""
    with autocommit() as connection:
        found = transactions.find_transactions(connection, [uid])
    if uid not in found:
        raise transaction_not_found(uid)
    return found[uid]


def get_balance(user_id: int, instant: datetime | None = None) -> Balance:
    """The user's balance at an instant; now where there is none, or it lies in the future. Raises NotFound."""
    with autocommit() as connection:
        user = users.find_user(connection, user_id) if 0 < user_id <= MOST_USER_ID else None
        if user is None:
            raise user_not_found(user_id)
        now = server.read_clock(connection)
        if instant is None or instant >= now:
            return Balance(user_id, user.balance, now)
        return Balance(user_id, ledger.get_balance_at(connection, user_id, instant), instant)


def get_statement(user_id: int, wanted: Filter, after: Key | None, limit: int) -> Page:
    """A page of the user's transactions, newest accepted first. Raises NotFound."""
    with transaction() as connection:
        if not 0 < user_id <= MOST_USER_ID or not users.find_user(connection, user_id):
            raise user_not_found(user_id)
        items = read_statement(connection, user_id, wanted, after, limit + 1)
        if len(items) > limit:
            last = items[limit - 1]
            return Page(items[:limit], Key(last.accepted_at, last.accept_order))
        narrowed = wanted.status is not None or wanted.type is not None
        return Page(items, find_scan_end(connection, user_id, wanted, after) if narrowed else None)


def get_backlog() -> Backlog:
    """How much waits to be settled."""
    with autocommit() as connection:
        return lanes.read_backlog(connection, LANES)


def check_server() -> None:
    """Raises NotReady where the database cannot keep our promises."""
    with transaction() as connection:
        state = server.read_state(connection)
    if state.migration is None or state.migration < MIGRATION:
        raise NotReady(f"The database is at migration {state.migration}; {MIGRATION} is needed.")
    for name in ("fsync", "full_page_writes"):
        if getattr(state, name) != "on":
            raise NotReady(f"Postgres runs with {name} off: a crash would lose payments.")
