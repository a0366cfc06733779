"""Reads: users, transactions, balances now and at an instant, statements, the backlog, operator actions."""

from collections.abc import Collection
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from shared import operator_actions, server
from shared.database import autocommit, transaction
from shared.errors import transaction_not_found, user_not_found
from shared.operator_actions import Action
from shared.payments.model import LANES, Backlog, StatementFilter, StatementKey, Story, Transaction, User
from shared.payments.queries import lanes, ledger, transactions, users
from shared.payments.queries.statement import find_scan_end, read_statement
from shared.payments.queries.story import find_story

MAX_USER_ID: Final = 2**63 - 1


class Balance(NamedTuple):
    """A user's balance, in minor units, at an instant (UTC)."""

    user_id: int
    balance: int
    instant: datetime


class StatementPage(NamedTuple):
    """A page of a statement. The next page begins after the key `after`; None marks the last page."""

    items: list[Transaction]
    after: StatementKey | None


def get_user(user_id: int) -> User:
    """Returns a user with the balance now. Raises NotFound if no user has this id, or the id is out of range."""
    with autocommit() as connection:
        user = users.find_user(connection, user_id) if 0 < user_id <= MAX_USER_ID else None
    if user is None:
        raise user_not_found(user_id)
    return user


def get_transaction(uid: UUID) -> Transaction:
    """Returns a transaction in its current state. Raises NotFound if the uid is unknown."""
    with autocommit() as connection:
        by_uid = transactions.find_transactions(connection, [uid])
    if uid not in by_uid:
        raise transaction_not_found(uid)
    return by_uid[uid]


def find_final(uids: Collection[UUID]) -> dict[UUID, Transaction]:
    """Returns the final transactions among these uids, by uid."""
    with autocommit() as connection:
        return transactions.find_final(connection, uids)


def get_balance(user_id: int, instant: datetime | None = None) -> Balance:
    """Returns the user's balance at an instant, in minor units.

    Without an instant, or with one in the future, it is the balance now. Raises NotFound if there is no such user.
    """
    with autocommit() as connection:
        user = users.find_user(connection, user_id) if 0 < user_id <= MAX_USER_ID else None
        if user is None:
            raise user_not_found(user_id)
        now = server.read_clock(connection)
        if instant is None or instant >= now:
            return Balance(user_id, user.balance, now)
        return Balance(user_id, ledger.get_balance_at(connection, user_id, instant), instant)


def get_statement(user_id: int, filters: StatementFilter, after: StatementKey | None, limit: int) -> StatementPage:
    """Returns a page of the user's transactions, newest accepted first. Raises NotFound if there is no such user."""
    with transaction() as connection:
        if not 0 < user_id <= MAX_USER_ID or not users.find_user(connection, user_id):
            raise user_not_found(user_id)
        items = read_statement(connection, user_id, filters, after, limit + 1)
        if len(items) > limit:
            last = items[limit - 1]
            return StatementPage(items[:limit], StatementKey(last.accepted_at, last.accept_order))
        narrowed = filters.status is not None or filters.type is not None
        return StatementPage(items, find_scan_end(connection, user_id, filters, after) if narrowed else None)


def list_actions(limit: int) -> list[Action]:
    """Returns the last `limit` operator actions, the newest first."""
    with autocommit() as connection:
        return operator_actions.read_newest(connection, limit)


def get_story(uid: UUID) -> Story:
    """Returns a transaction with its user, entry, event and queue position. Raises NotFound if the uid is unknown."""
    with transaction() as connection:
        story = find_story(connection, uid)
    if story is None:
        raise transaction_not_found(uid)
    return story


def get_backlog() -> Backlog:
    """Returns the numbers of PENDING rows, and the age of the oldest one."""
    with autocommit() as connection:
        return lanes.read_backlog(connection, LANES)
